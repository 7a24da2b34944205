"""Who talks to whom: the token that a client shows, and the certificate by which it knows its server.

A certificate that a server made for itself is known by its fingerprint, as a host is to SSH: from the URL that the server
printed, from a file of authorities, or, only when asked for, from the first visit. It is never taken unseen.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from policies.wire import SCHEMES, SECURE, CertificateError, LinkError, line
from sinew.errors import DataError, InputError
from sinew.rundir import atomic_write, read_json

MIN_TOKEN = 16
"""Fewest characters of a token."""
TOKEN_VARIABLE = "SINEW_TOKEN"
"""Environment variable with the token, where no file is named."""
_MOST = 4096


# ---------------------------------------------------------------- tokens


def read_token(path: Path | str | None) -> str | None:
    """The token in a file that only its owner can read, without white space around it.

    Args:
        path: the file; None for what SINEW_TOKEN holds, and no token where that is not set.

    Raises:
        InputError: there is no file, others can read it, or what it holds is too short to be a secret.
    """
    if path is None:
        given = os.environ.get(TOKEN_VARIABLE)
        return None if given is None else _checked(given.strip(), TOKEN_VARIABLE)
    text = read_private(Path(path), "the token file")
    return _checked(text.strip(), str(path))


def read_private(path: Path, what: str) -> str:
    """A small text file that nobody but its owner may read.

    Args:
        path: the file.
        what: what it is called in errors.

    Raises:
        InputError: there is none, others can read it, or it is no text.
    """
    try:
        with open(path, "rb") as f:
            mode = stat.S_IMODE(os.fstat(f.fileno()).st_mode)
            data = f.read(_MOST * 4)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"cannot read {what} {path}: {getattr(e, 'strerror', None) or 'it is not text'}") from None
    if mode & 0o077:
        raise InputError(f"{what} {path} can be read by others than its owner (mode {mode:o}): chmod 600 {path}")
    return text


def same_token(given: str, wanted: str) -> bool:
    """Compare two tokens in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _checked(token: str, where: str) -> str:
    if not MIN_TOKEN <= len(token) <= _MOST or not token.isascii() or not token.isprintable() or " " in token:
        wanted = f"at least {MIN_TOKEN} printable characters without spaces"
        raise InputError(f"the token in {where} must be {wanted}: make one with openssl rand -hex 32")
    return token


# ---------------------------------------------------------------- addresses


@dataclass(frozen=True)
class Address:
    """Where a policy is, out of https://host:port/policy#sha256:fingerprint."""

    url: str
    """https://host:port, or with another of the schemes."""
    host: str
    port: int
    policy: str | None
    """Name of the policy; None for the only one."""
    fingerprint: str | None
    """64 hexadecimal digits of the server's certificate."""

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith(SECURE)


def parse_url(url: str) -> Address:
    """The parts of a policy's address; ws and http mean the same, and so do wss and https.

    Raises:
        InputError: it is none.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if not url.startswith(SCHEMES) or not host or parts.query or "@" in parts.netloc or "/" in parts.path.strip("/"):
        raise InputError(f"{url!r} is not the address of a policy server: give https://host:port or https://host:port/policy")
    port = (443 if url.startswith(SECURE) else 80) if port is None else port
    shown = f"[{host}]" if ":" in host else host
    pin = fingerprint(parts.fragment) if parts.fragment else None
    return Address(f"{parts.scheme}://{shown}:{port}", host, port, unquote(parts.path.strip("/")) or None, pin)


# ---------------------------------------------------------------- certificates


@dataclass(frozen=True, kw_only=True)
class Trust:
    """By what a client knows the certificate of its server; where nothing is set, by the authorities that the machine trusts."""

    fingerprint: str | None = None
    """SHA-256 of the certificate, as the server printed it."""
    ca: str | None = None
    """File with the certificate of the authority, or with the server's own; the server's name is checked too."""
    first_use: bool = False
    """Whether a server that was never seen is trusted, and remembered."""

    def __post_init__(self) -> None:
        if self.fingerprint is not None:
            object.__setattr__(self, "fingerprint", fingerprint(self.fingerprint))
        if self.ca is not None and not Path(self.ca).is_file():
            raise InputError(f"there is no file {self.ca} with the certificate of an authority")


def fingerprint(text: str) -> str:
    """64 hexadecimal digits out of sha256:…, with or without colons between them.

    Raises:
        InputError: it is no fingerprint.
    """
    bare = re.sub(r"^sha-?256[:=]", "", text.strip(), flags=re.IGNORECASE).replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", bare):
        raise InputError(f"{text[:80]!r} is no fingerprint: give sha256: and 64 hexadecimal digits, as sinew serve prints it")
    return bare


def digest(certificate: bytes) -> str:
    """Fingerprint of a certificate (DER)."""
    return hashlib.sha256(certificate).hexdigest()


def tls_for(address: Address, trust: Trust, timeout_s: float) -> ssl.SSLContext:
    """How the certificate of a server is to be checked.

    Raises:
        LinkError: a server that is to be trusted at first sight cannot be reached.
        DataError: the list of known servers is damaged.
    """
    pin = _expected(address, trust)
    if pin is None and trust.ca is None and trust.first_use:
        pin = shown_fingerprint(address, timeout_s)
        _remember(address, pin)
    if pin is None:
        try:
            return ssl.create_default_context(cafile=trust.ca)
        except (ssl.SSLError, OSError) as e:
            raise InputError(f"{trust.ca} holds no certificate: {line(e)}") from None
    context = _unchecked()
    context.sslsocket_class = _pinned(pin)
    return context


def refused(address: Address, trust: Trust, reason: CertificateError, timeout_s: float) -> CertificateError:
    """What to tell a user whose server's certificate is not trusted."""
    if _expected(address, trust) is not None:
        known = "" if trust.fingerprint or address.fingerprint else f", and take its line out of {_known_path()}"
        return CertificateError(
            f"{reason}: unless the server was set up anew, somebody is between; if it was, use the URL that it prints now{known}"
        )
    try:
        shown = f" with the fingerprint sha256:{shown_fingerprint(address, timeout_s)}"
    except LinkError:
        shown = ""
    return CertificateError(
        f"{address.url} shows a certificate{shown} that is not trusted here ({str(reason).removeprefix(address.url + ': ')}): if it is the "
        "one that sinew serve printed, use the URL that it printed, or give --ca FILE or --trust-first-use"
    )


def _expected(address: Address, trust: Trust) -> str | None:
    """The fingerprint that the server's certificate must have; None where authorities are asked."""
    pin = trust.fingerprint or address.fingerprint
    return pin if pin or trust.ca else known_servers().get(_key(address))


def shown_fingerprint(address: Address, timeout_s: float) -> str:
    """Fingerprint of the certificate that a server shows; nothing is sent to it.

    Raises:
        LinkError: it cannot be reached.
    """
    try:
        with socket.create_connection((address.host, address.port), timeout_s) as plain:
            plain.settimeout(timeout_s)
            with _unchecked().wrap_socket(plain, server_hostname=address.host) as secured:
                return digest(secured.getpeercert(binary_form=True) or b"")
    except OSError as e:
        raise LinkError(f"nothing can be reached at {address.url} ({e.strerror or line(e)}): is the policy server running?") from None


def user_folder() -> Path:
    """Where this user's keys and known servers are: $XDG_CONFIG_HOME/sinew, or ~/.config/sinew."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sinew"


def known_servers() -> dict[str, str]:
    """Fingerprints of the servers that were trusted at first sight, by host:port.

    Raises:
        DataError: the file is damaged.
    """
    path = _known_path()
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DataError(f"{path} is no list of known servers: mend or remove it")
    return {name: fingerprint(value) for name, value in found.items()}


def _unchecked() -> ssl.SSLContext:
    """Without a check by authorities: only for a certificate that is compared with its fingerprint, or looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _pinned(pin: str) -> type[ssl.SSLSocket]:
    """A socket whose handshake fails, before anything is sent, unless the peer's certificate has this fingerprint."""

    class Pinned(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            shown = digest(self.getpeercert(binary_form=True) or b"")
            if not hmac.compare_digest(shown, pin):
                raise ssl.SSLCertVerificationError(1, f"the server shows a certificate sha256:{shown}, expected sha256:{pin}")

    return Pinned


def _remember(address: Address, pin: str) -> None:
    path = _known_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    entries: dict[str, Any] = {**known_servers(), _key(address): f"sha256:{pin}"}
    atomic_write(path, json.dumps(entries, indent=2) + "\n")


def _known_path() -> Path:
    return user_folder() / "known_servers.json"


def _key(address: Address) -> str:
    return f"{address.host}:{address.port}"
