"""The machine's certificate: made once, its key for nobody else, and known to clients in each of the ways there are."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from policies import trust
from policies.remote import connect
from robot_bridge.server import certificate as made
from robot_bridge.server.certificate import Certificate, given, of_machine
from sinew.errors import DataError, InputError
from sinew.specs import STATE

OBS = {STATE: torch.ones(1, 1, 3)}


def test_it_is_made_once_and_its_key_is_for_its_owner_only(tmp_path):
    folder = tmp_path / "a" / "server"
    first = of_machine("robot.lab", folder)
    assert first.made and stat.S_IMODE(first.key.stat().st_mode) == 0o600
    again = of_machine("other.lab", folder)
    assert not again.made and again.fingerprint == first.fingerprint
    assert not list(folder.parent.glob(".certificate-*"))
    details = ssl._ssl._test_decode_cert(str(first.path))  # type: ignore[attr-defined]
    names = {value for _, value in details["subjectAltName"]}
    assert {"localhost", "robot.lab", socket.gethostname(), "127.0.0.1"} <= names
    assert of_machine("10.0.0.7", tmp_path / "b").fingerprint != first.fingerprint


def test_two_servers_at_their_first_start_agree_on_one(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: of_machine("localhost", tmp_path / "server").fingerprint, range(4)))
    assert len(set(found)) == 1


def test_what_cannot_be_a_certificate_is_told(tmp_path, certificate, monkeypatch):
    other = of_machine("localhost", tmp_path / "other")
    with pytest.raises(InputError, match="are no certificate with its key"):
        given(certificate.path, other.key)
    with pytest.raises(InputError, match="there is no certificate at"):
        given(tmp_path / "none", other.key)
    with pytest.raises(InputError, match="cannot read the private key"):
        given(certificate.path, tmp_path / "none")
    certificate.key.chmod(0o640)
    with pytest.raises(InputError, match=r"can be read by others than its owner \(mode 640\): chmod 600"):
        of_machine("localhost", certificate.path.parent)
    monkeypatch.setattr(made.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="install openssl, or give --certificate and --key"):
        of_machine("localhost", tmp_path / "third")
    monkeypatch.setattr(made.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(InputError, match="openssl could not make a certificate"):
        of_machine("localhost", tmp_path / "third")
    assert not (tmp_path / "third").exists() and not list(tmp_path.glob(".certificate-*"))


@pytest.fixture
def secured(serving, kinds, certificate):
    """A server with TLS and a token; its URL without anything else, and the token."""
    server = serving(host="0.0.0.0", token=kinds.token, certificate=certificate)
    return f"https://127.0.0.1:{server.port}", kinds.token


def test_a_certificate_is_known_by_its_fingerprint_in_the_url_or_beside_it(secured, certificate):
    url, token = secured
    bare = certificate.fingerprint.removeprefix("sha256:")
    spelled = ":".join(bare[i : i + 2].upper() for i in range(0, 64, 2))
    for shown in (f"{url}#{certificate.fingerprint}", f"{url}/policy#SHA256:{spelled}"):
        remote = connect(shown, token)
        assert remote.sample(remote.encode(OBS)).actions.shape == (1, 1, 4, 2)
        remote.close()
    connect(url, token, fingerprint=spelled).close()
    with pytest.raises(InputError, match="is no fingerprint: give sha256:"):
        connect(url, token, fingerprint="sha256:12")


def test_a_certificate_may_be_a_file_and_then_the_name_counts_too(secured, certificate, tmp_path):
    url, token = secured
    connect(url, token, ca=str(certificate.path)).close()
    port = url.rpartition(":")[2]
    connect(f"https://localhost:{port}", token, ca=str(certificate.path)).close()
    with pytest.raises(InputError, match=r"that is not trusted here.*IP address mismatch"):
        connect(f"https://127.0.0.2:{port}", token, ca=str(certificate.path))
    with pytest.raises(InputError, match="not trusted here"):
        connect(url, token, ca=str(of_machine("localhost", tmp_path / "other").path))
    with pytest.raises(InputError, match="there is no file"):
        connect(url, token, ca=str(tmp_path / "none"))
    (tmp_path / "empty").write_text("")
    with pytest.raises(InputError, match="holds no certificate"):
        connect(url, token, ca=str(tmp_path / "empty"))


def test_an_unknown_certificate_is_not_trusted_and_the_user_is_told_what_to_compare(secured, certificate):
    url, token = secured
    for _ in range(2):
        with pytest.raises(
            InputError, match=rf"shows a certificate with the fingerprint {certificate.fingerprint} that is not trusted"
        ) as told:
            connect(url, token)
        assert "\n" not in str(told.value) and "--trust-first-use" in str(told.value)
    assert trust.known_servers() == {}


def test_trust_at_first_sight_is_remembered_and_another_certificate_is_refused(secured, certificate, tmp_path):
    url, token = secured
    connect(url, token, trust_first_use=True).close()
    connect(url, token).close()  # known from now on, flag or not
    path = trust.user_folder() / "known_servers.json"
    assert list(json.loads(path.read_text()).values()) == [certificate.fingerprint]
    path.write_text(json.dumps({url.removeprefix("https://"): "sha256:" + "0" * 64}))
    for first_use in (False, True):
        with pytest.raises(InputError, match=r"unless the server was set up anew, somebody is between.*take its line out of"):
            connect(url, token, trust_first_use=first_use)
    path.write_text("[1]")
    with pytest.raises(DataError, match="is no list of known servers: mend or remove it"):
        connect(url, token)


class Impostor:
    """A TLS server with another certificate, which listens to what it is told."""

    def __init__(self, certificate: Certificate) -> None:
        self.heard = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._context = certificate.context()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            plain, _ = self._socket.accept()
            try:
                with self._context.wrap_socket(plain, server_side=True) as secured:
                    self.heard += secured.recv(10_000)
            except OSError:
                continue


@pytest.mark.parametrize("known", ["fingerprint", "ca", "nothing"])
def test_an_impostor_hears_no_token(certificate, tmp_path, kinds, known):
    impostor = Impostor(of_machine("127.0.0.1", tmp_path / "impostor"))
    by = {"fingerprint": {"fingerprint": certificate.fingerprint}, "ca": {"ca": str(certificate.path)}, "nothing": {}}[known]
    with pytest.raises(InputError, match="certificate"):
        connect(f"https://127.0.0.1:{impostor.port}", kinds.token, timeout_s=10, **by)
    assert impostor.heard == b""


def test_nothing_crosses_the_network_in_the_clear(kinds):
    for url in ("http://robot.lab:8080", "ws://192.168.1.4:8080", "http://0.0.0.0:1"):
        with pytest.raises(InputError, match="would cross the network in the clear: give https://"):
            connect(url, kinds.token, timeout_s=1)


def test_plain_and_tls_are_told_apart(serving, certificate):
    plain, secured = serving(), serving(certificate=certificate)
    with pytest.raises(InputError, match="does not speak TLS as it should"):
        connect(f"https://127.0.0.1:{plain.port}#{certificate.fingerprint}", timeout_s=5)
    with pytest.raises(InputError, match=r"closed the connection|is no websocket server|nothing can be reached"):
        connect(f"http://127.0.0.1:{secured.port}", timeout_s=5)


# ---------------------------------------------------------------- tokens


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    for mode in (0o644, 0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(InputError, match=rf"can be read by others than its owner \(mode {mode:o}\): chmod 600"):
            trust.read_token(path)
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert trust.read_token(path) == "0123456789abcdef"
    path.chmod(0o600)
    for text in ("short", "0123456789abcd f", "0123456789abcdefä", "a" * 5000, ""):
        path.write_text(text)
        with pytest.raises(InputError, match="at least 16 printable characters") as told:
            trust.read_token(path)
        assert text not in str(told.value) or not text  # what may be a secret is not repeated
    path.write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(InputError, match="it is not text"):
        trust.read_token(path)
    with pytest.raises(InputError, match="cannot read the token file"):
        trust.read_token(tmp_path / "none")
    assert trust.read_token(None) is None
    monkeypatch.setenv("SINEW_TOKEN", "abcdef0123456789")
    assert trust.read_token(None) == "abcdef0123456789"
    monkeypatch.setenv("SINEW_TOKEN", "short")
    with pytest.raises(InputError, match="the token in SINEW_TOKEN must be"):
        trust.read_token(None)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://gpu:8443", ("https://gpu:8443", "gpu", 8443, None)),
        ("wss://gpu/lift", ("wss://gpu:443", "gpu", 443, "lift")),
        ("http://[::1]:80/a%20b/", ("http://[::1]:80", "::1", 80, "a b")),
        ("ws://127.0.0.1", ("ws://127.0.0.1:80", "127.0.0.1", 80, None)),
    ],
)
def test_urls(url, parts):
    address = trust.parse_url(url)
    assert (address.url, address.host, address.port, address.policy) == parts
