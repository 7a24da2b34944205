"""The certificate of this machine: made once, kept where only its user can read it, known to clients by its fingerprint."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import socket
import ssl
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from policies.trust import digest, read_private, user_folder
from sinew.errors import InputError

DAYS = 3650
"""A certificate is valid this long. Clients that know it by its fingerprint do not ask."""
CERTIFICATE, KEY = "certificate.pem", "key.pem"


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, on disk."""

    path: Path
    """PEM; what clients may be given for --ca."""
    key: Path
    """PEM; readable by its owner only."""
    made: bool = False
    """Whether it was made just now."""

    @property
    def fingerprint(self) -> str:
        """sha256: and 64 hexadecimal digits."""
        return f"sha256:{digest(ssl.PEM_cert_to_DER_cert(_first(self.path)))}"

    def context(self) -> ssl.SSLContext:
        """For the serving side, TLS 1.3 only: every client of ours speaks it.

        Raises:
            InputError: certificate and key do not fit, or others can read the key.
        """
        read_private(self.key, "the private key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.path, self.key)
        except (ssl.SSLError, OSError) as e:
            raise InputError(f"{self.path} and {self.key} are no certificate with its key: {e.strerror or e}") from None
        return context


def given(path: Path, key: Path) -> Certificate:
    """A certificate that somebody else made.

    Raises:
        InputError: it cannot be used.
    """
    if not path.is_file():
        raise InputError(f"there is no certificate at {path}")
    certificate = Certificate(path, key)
    certificate.context()
    return certificate


def of_machine(host: str, folder: Path | None = None) -> Certificate:
    """The certificate of this machine and user, made with the `openssl` command where there is none yet.

    Args:
        host: address that is listened at; among the names of a certificate that is made now.
        folder: where it is kept; None for server/ in `policies.trust.user_folder`.

    Raises:
        InputError: it cannot be made, or others can read its key.
    """
    folder = user_folder() / "server" if folder is None else folder
    made = not (folder / CERTIFICATE).exists()
    if made:
        _make(folder, _names(host))
    certificate = Certificate(folder / CERTIFICATE, folder / KEY, made)
    certificate.context()
    return certificate


def _make(folder: Path, names: list[str]) -> None:
    """Make it in a folder of its own, which then takes its place whole."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise InputError(
            "a certificate is made with the openssl command, which is not here: install openssl, or give --certificate and --key"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = Path(tempfile.mkdtemp(prefix=".certificate-", dir=folder.parent))
    except OSError as e:
        raise InputError(f"cannot write {folder.parent}: {e.strerror}; set XDG_CONFIG_HOME, or give --certificate and --key") from None
    try:
        command = [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256",
            "-days", str(DAYS), "-subj", "/CN=sinew", "-addext", f"subjectAltName={','.join(names)}",
            "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth",
            "-keyout", str(fresh / KEY), "-out", str(fresh / CERTIFICATE),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, umask=0o077)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            raise InputError(f"openssl could not make a certificate: {said[-1][:200]}; give --certificate and --key")
        with contextlib.suppress(OSError):  # another server was faster: its certificate is as good
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _names(host: str) -> list[str]:
    """Names and addresses by which this machine may be called, as openssl takes them."""
    names: dict[str, None] = dict.fromkeys(("localhost", socket.gethostname(), socket.getfqdn()))
    addresses: dict[str, None] = {"127.0.0.1": None, "::1": None}
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            addresses[host] = None
    except ValueError:
        names[host] = None
    usable = [name for name in names if name and name.isascii() and all(c.isalnum() or c in "-._" for c in name)]
    return [*(f"DNS:{name}" for name in usable), *(f"IP:{address}" for address in addresses)]


def _first(path: Path) -> str:
    """The first certificate of a PEM file, which may hold a chain."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = path.read_text()
    if begin not in text or end not in text:
        raise InputError(f"{path} holds no certificate")
    return begin + text.split(begin, 1)[1].split(end, 1)[0] + end + "\n"
