"""The socket of a server of ours: websockets in threads, plain questions over HTTP, TLS, and strangers who mean no good."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.wire import Channel, bound_sends, line, websockets
from robot_bridge.server.limits import Limits
from sinew.errors import InputError

_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_CLOSED = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
_ONCE = ("host", "origin", "authorization")
"""Headers that a request may hold once: of two, this server might judge one and another program the other."""
_QUEUED = 2
"""Frames of one client that are read ahead; the others wait at its own end."""


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP instead of a websocket."""

    status: int
    text: str
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further ones."""


Front = Callable[[str, Mapping[str, str]], "Reply | None"]
"""Path and headers (lower-case names) of a request → None to open a websocket, or the answer over HTTP."""


class Listener:
    """A websocket server with one thread per client.

    Args:
        serve: called with a `Channel` per client; the connection is closed when it returns.
        host: address to listen at.
        port: 0 for any that is free.
        front: judges every request to connect.
        limits: sizes, numbers and times.
        timeout_s: longest that a `send` may wait for a client to read.
        tls: with the server's certificate; None for no encryption.
        turned_away: called for every connection beyond those that the limits allow.
        origins: of web pages that may open a websocket; None in it stands for clients that are no pages, None for whatever `front`
            lets in.

    Raises:
        InputError: the address cannot be listened at.
        MissingDependency: `websockets` is not installed.
    """

    def __init__(
        self,
        serve: Callable[[Channel], None],
        host: str,
        port: int,
        front: Front,
        limits: Limits | None = None,
        *,
        timeout_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
        turned_away: Callable[[], None] = lambda: None,
        origins: Sequence[str | None] | None = (None,),
    ) -> None:
        server, limits = websockets("sync.server"), limits or Limits()

        self._places = _Places(limits.max_clients + limits.max_pending, turned_away)

        def handle(connection: Any) -> None:
            self._places.settled(connection.socket)
            bound_sends(connection.socket, timeout_s)
            name = "{}:{}".format(*connection.remote_address[:2])
            serve(Channel(connection, name, connection.close, connection.request.path))

        def judge(connection: Any, request: Any) -> Any:
            reply = _judge(front, request)
            if reply is None:
                return None
            response = connection.respond(reply.status, reply.text + "\n")
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = reply.content_type
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Content-Type-Options"] = "nosniff"
            for name, value in reply.headers.items():
                response.headers[name] = value
            return response

        if tls is not None:
            tls.sslsocket_class = _SteadyTls
        try:
            self._server = server.serve(
                handle,
                sock=_bound(host, port),
                ssl=tls,
                process_request=judge,
                origins=origins,
                max_size=limits.max_bytes,
                max_queue=_QUEUED,
                compression=None,
                server_header=None,
                open_timeout=limits.handshake_s,
                close_timeout=1.0,
            )
        except OSError as e:
            why = os.strerror(e.errno) if e.errno else line(e)
            raise InputError(f"cannot listen at {host}:{port}: {why}; choose another --listen") from None
        self._server.handler = self._places.around(self._server.handler)
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close every connection and wait until the clients' threads have ended."""
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes a waiting accept
        self._places.close()
        self._server.shutdown()
        self._thread.join()


def _judge(front: Front, request: Any) -> Reply | None:
    """What a request to connect is answered, before the websocket's own checks."""
    headers: dict[str, str] = {}
    for name, value in request.headers.raw_items():
        if name.lower() in _ONCE and name.lower() in headers:
            return Reply(400, f"the request names its {name.lower()} twice")
        headers[name.lower()] = value
    return front(request.path, headers)


class _Places:
    """How many connections there may be, and which of them are still at their handshakes."""

    def __init__(self, most: int, turned_away: Callable[[], None]) -> None:
        self._most, self._turned_away = most, turned_away
        self._lock = threading.Lock()
        self._taken, self._closed = 0, False
        self._pending: set[socket.socket] = set()

    def around(self, handler: Callable[..., None]) -> Callable[..., None]:
        """A handler of accepted sockets that closes those beyond the limit before it reads a byte of them."""

        def handle(sock: socket.socket, address: Any) -> None:
            with self._lock:
                free = self._taken < self._most and not self._closed
                self._taken += 1
                if free:
                    self._pending.add(sock)
            if not free:
                self._turned_away()
                sock.close()
            try:
                handler(sock, address)  # ends at once on a closed socket, and is tidied up as any other
            finally:
                with self._lock:
                    self._taken -= 1
                    self._pending.discard(sock)

        return handle

    def settled(self, sock: socket.socket) -> None:
        """A connection has ended its handshakes."""
        with self._lock:
            self._pending.discard(sock)

    def close(self) -> None:
        """End every handshake, and let nobody in any more."""
        with self._lock:
            self._closed = True
            for sock in self._pending:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the socket itself, whatever state its TLS is in


class _Steady(socket.socket):
    """A listening socket that outlives a client which went away before it was accepted, and a lack of descriptors."""

    def accept(self) -> tuple[socket.socket, Any]:
        while True:
            try:
                return super().accept()
            except OSError as e:  # errors of TLS are among them
                if self.fileno() < 0 or e.errno in _CLOSED:
                    raise
                if e.errno in _SCARCE:
                    time.sleep(0.05)


class _SteadyTls(_Steady, ssl.SSLSocket):
    """The same with TLS."""


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: it cannot.
    """
    family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = _Steady(family, kind, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    return sock
