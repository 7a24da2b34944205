"""Who gets to the page that moves a robot: called by one of its names, from its own origin, with a link that works once.

The page itself holds no secret and is given to whoever asks. Moving takes a secret: the token of the link, which stands in the
part of the URL that browsers keep to themselves, and which is exchanged for a session at the first visit. A session is one
operator's; a token that was used opens nothing any more.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
from collections.abc import Mapping
from importlib.resources import files

from policies.trust import same_token
from policies.wire import is_loopback
from robot_bridge.server.listener import Reply

CONTROL, PICTURES = "/control", "/pictures"
"""Paths of the two websockets."""
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".webmanifest": "application/manifest+json",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; manifest-src 'self'; connect-src 'self' wss://{host}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: nothing from anywhere else, and nothing written into it."""
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "xr-spatial-tracking=(self), gamepad=(self), accelerometer=(self), gyroscope=(self), magnetometer=(self), "
    "screen-wake-lock=(self), camera=(), microphone=(), geolocation=()",
}


class Door:
    """Judges who asks.

    Args:
        host: address that is listened at.
        names: by which the server may be called besides those of this machine.
    """

    def __init__(self, host: str, names: tuple[str, ...] = ()) -> None:
        self._local = is_loopback(host)
        machine = () if self._local else (socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn())
        self._names = {name.lower() for name in ("localhost", *names, *machine)}
        self._pages = _pages()
        self._lock = threading.Lock()
        self._token, self._session = secrets.token_urlsafe(24), ""

    # ------------------------------------------------------------ the page and its sockets

    def front(self, path: str, headers: Mapping[str, str]) -> Reply | None:
        """None to open a websocket, or the answer over HTTP; headers have lower-case names."""
        host = headers.get("host", "")
        if not self.called_rightly(host):  # a foreign name that was pointed at this machine
            return Reply(421, "the robot's page is not called that: use the link that the terminal shows")
        origin = headers.get("origin")
        if origin is not None and origin != f"https://{host}":
            return Reply(403, "another web page asks: open the robot's own")
        if path in (CONTROL, PICTURES):
            wanted = headers.get("upgrade", "").lower() == "websocket" and origin is not None
            return None if wanted else Reply(403, "this is for the robot's page only")
        page = self._pages.get(path)
        if page is None:
            return Reply(404, "there is nothing here: the robot's page is at /")
        text, kind = page
        return Reply(200, text, kind, {**HEADERS, "Content-Security-Policy": POLICY.format(host=host)})

    def called_rightly(self, host: str) -> bool:
        """Whether a Host header names this server: by an address, which no foreign name can be, or by a name of its own."""
        name = host.lower()
        if name.startswith("["):
            name = name.partition("]")[0][1:]
        elif ":" in name:
            name = name.rpartition(":")[0]
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return address.is_loopback or not self._local

    # ------------------------------------------------------------ secrets

    @property
    def token(self) -> str:
        """The token of the link that works now; empty while an operator is there."""
        return self._token

    def renew(self) -> str:
        """A new link's token, for when the operator's page is gone; the session stays good until it is used."""
        with self._lock:
            self._token = self._token or secrets.token_urlsafe(24)
            return self._token

    def enter(self, token: str) -> str:
        """The session that a token is exchanged for; empty for a wrong one. Ends the session before."""
        with self._lock:
            if not self._token or not same_token(token, self._token):
                return ""
            self._token, self._session = "", secrets.token_urlsafe(24)
            return self._session

    def knows(self, session: str) -> bool:
        """Whether a session is the operator's."""
        with self._lock:
            return bool(self._session) and same_token(session, self._session)

    def resume(self, session: str) -> str:
        """The session, where it is the operator's, else nothing; a link that was made meanwhile is void then."""
        if not self.knows(session):
            return ""
        with self._lock:
            self._token = ""
        return session


def _pages() -> dict[str, tuple[str, str]]:
    """{path: (text, content type)} of the page's files."""
    found: dict[str, tuple[str, str]] = {}
    for file in files("robot_bridge.teleop.browser").joinpath("page").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in TYPES:
            found[f"/{file.name}"] = (file.read_text(encoding="utf-8"), TYPES[suffix])
    found["/"] = found["/index.html"]
    return found
