"""Messages of arrays over a websocket, as policy servers speak them: msgpack with raw NumPy bytes, nothing is ever unpickled.

The one module that imports `websockets` and `msgpack`; `policies.remote`, `policies.openpi` and `robot_bridge.policy_server` use it.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sinew.errors import DataError, InputError, MissingDependency

DTYPES = ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
"""Element types that may cross the wire."""
MAX_BYTES = 64 * 2**20
"""Largest message, unless a server says otherwise."""
MIN_TOKEN = 16
"""Fewest characters of a token."""

Admit = Callable[[Mapping[str, str]], "tuple[int, str] | None"]
"""Headers of a request to connect → None to let it in, or HTTP status and one line."""


class LinkError(InputError):
    """The other side cannot be reached, refused us, or went away.

    Args:
        message: one line.
        again: whether the same request may succeed on a new connection.
    """

    def __init__(self, message: str, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


# ---------------------------------------------------------------- messages


def pack(value: Any) -> bytes:
    """A tree of mappings, lists, scalars, strings and arrays as bytes.

    Arrays are maps with the keys b"__ndarray__", b"data", b"dtype" and b"shape", scalars of NumPy maps with
    b"__npgeneric__": the encoding of openpi's client, which descends from msgpack-numpy.

    Raises:
        DataError: an array of objects, or something that is no such tree.
    """
    try:
        return _msgpack().packb(value, default=_pack_array)
    except (TypeError, ValueError, OverflowError) as e:
        raise DataError(f"the message cannot be packed: {_line(e)}") from None


def unpack(data: bytes) -> Any:
    """What `pack` made.

    Raises:
        DataError: the bytes are no message, or hold an array of another element type or size than they say.
    """
    msgpack = _msgpack()
    try:
        return msgpack.unpackb(data, object_hook=_unpack_array)
    except DataError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as e:
        raise DataError(f"the message is not msgpack: {_line(e)}") from None


def _pack_array(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{type(value).__name__} has no place in a message")
    kind = value.dtype.newbyteorder("<").str
    if kind not in DTYPES:
        raise TypeError(f"arrays of {value.dtype} are not sent; known are {', '.join(DTYPES)}")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": kind}
    return {b"__ndarray__": True, b"data": value.astype(kind, copy=False).tobytes(), b"dtype": kind, b"shape": list(value.shape)}


def _unpack_array(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in found and b"__npgeneric__" not in found:
        return found
    kind, data = found.get(b"dtype"), found.get(b"data")
    if kind not in DTYPES:
        raise DataError(f"the message holds an array of {kind!r:.40}; known are {', '.join(DTYPES)}")
    dtype = np.dtype(kind)
    if b"__npgeneric__" in found:
        if not isinstance(data, (bool, int, float)):
            raise DataError(f"the message holds a scalar of {kind} that is no number")
        return dtype.type(data)
    shape = found.get(b"shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape) or not isinstance(data, bytes):
        raise DataError(f"the message holds an array without a shape or bytes: {shape!r:.80}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DataError(f"the message holds an array of shape {shape!r:.80} {kind} with {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape).copy()


# ---------------------------------------------------------------- the calling side


class Channel:
    """One open connection; no call takes longer than the time-out it is given."""

    def __init__(self, connection: Any, url: str, close: Callable[[], None]) -> None:
        self._connection, self.url, self._close = connection, url, close

    def send(self, data: bytes) -> None:
        """Send one message.

        Raises:
            LinkError: the connection is closed, or nobody reads at the other end.
        """
        try:
            self._connection.send(data)
        except (_exceptions().ConnectionClosed, OSError) as e:
            raise self._gone(e) from None

    def receive(self, timeout_s: float | None) -> bytes | str:
        """The next message: bytes, or str from a text frame; without a time-out only a dead connection ends the wait.

        Raises:
            LinkError: nothing came in time (the connection is closed then: what came later would answer another question), or
                the connection is gone.
        """
        try:
            return self._connection.recv(timeout=timeout_s)
        except TimeoutError:
            self.close()
            told = f"{self.url} did not answer within {timeout_s} s"
            raise LinkError(f"{told}: it is busy or stopped; try again, or allow more time") from None
        except (_exceptions().ConnectionClosed, OSError) as e:
            raise self._gone(e) from None

    def close(self) -> None:
        """Close the connection; closing twice does nothing."""
        with contextlib.suppress(Exception):  # whatever state the other side is in, this end is done with it
            self._close()

    def _gone(self, error: Exception) -> LinkError:
        code = getattr(getattr(error, "rcvd", None), "code", None) or getattr(getattr(error, "sent", None), "code", None)
        if code == 1009:
            return LinkError(f"{self.url}: the message is larger than the receiving side takes; send smaller images or fewer rows")
        return LinkError(f"{self.url} closed the connection{f' (code {code})' if code else ''}: is the server still running?", again=True)


def dial(url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0, max_bytes: int | None = MAX_BYTES) -> Channel:
    """Open a connection.

    Args:
        url: ws://host:port or wss://host:port.
        headers: sent with the request to connect.
        timeout_s: to be connected; also the longest that a `send` may wait for the other side to read.
        max_bytes: largest message that is accepted; None for any.

    Raises:
        InputError: the URL is no websocket URL.
        LinkError: nothing listens there, it is no websocket server, or it refuses: its own words are told.
        MissingDependency: `websockets` is not installed.
    """
    client, errors = _websockets("sync.client"), _exceptions()
    if not url.startswith(("ws://", "wss://")):
        raise InputError(f"{url!r} is not the address of a policy server: give ws://host:port or wss://host:port")
    stack = contextlib.ExitStack()
    try:
        connection = stack.enter_context(
            client.connect(
                url,
                additional_headers=dict(headers or {}),
                open_timeout=timeout_s,
                close_timeout=1.0,
                max_size=max_bytes,
                compression=None,
                proxy=None,
            )
        )
    except errors.InvalidURI as e:
        raise InputError(f"{url!r} is not the address of a policy server: {_line(e)}") from None
    except errors.InvalidStatus as e:
        body = bytes(e.response.body or b"").decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise LinkError(f"{url} refused the connection ({e.response.status_code}): {body[0][:300]}") from None
    except TimeoutError:
        raise LinkError(f"{url} did not answer within {timeout_s:g} s: is a policy server running there?") from None
    except OSError as e:
        raise LinkError(f"nothing can be reached at {url} ({e.strerror or _line(e)}): is the policy server running?") from None
    except (errors.InvalidHandshake, errors.InvalidMessage, EOFError) as e:
        raise LinkError(f"what listens at {url} is no websocket server: {_line(e)}") from None
    _bound_sends(connection.socket, timeout_s)
    return Channel(connection, url, stack.close)


# ---------------------------------------------------------------- the serving side


class Listener:
    """A websocket server with one thread per client.

    Args:
        serve: called with a `Channel` per client; the connection is closed when it returns.
        host: address to listen at.
        port: 0 for any that is free.
        admit: looks at the headers (lower-case names) of a request to connect.
        max_bytes: largest message that is accepted.
        timeout_s: longest that a `send` may wait for a client to read.

    Raises:
        InputError: the address cannot be listened at.
        MissingDependency: `websockets` is not installed.
    """

    def __init__(
        self, serve: Callable[[Channel], None], host: str, port: int, admit: Admit, max_bytes: int = MAX_BYTES, timeout_s: float = 10.0
    ) -> None:
        server = _websockets("sync.server")

        def handle(connection: Any) -> None:
            _bound_sends(connection.socket, timeout_s)
            name = "{}:{}".format(*connection.remote_address[:2])
            serve(Channel(connection, name, connection.close))

        def judge(connection: Any, request: Any) -> Any:
            refused = admit({name.lower(): value for name, value in request.headers.raw_items()})
            return None if refused is None else connection.respond(refused[0], refused[1] + "\n")

        try:
            self._server = server.serve(
                handle,
                host,
                port,
                process_request=judge,
                origins=[None],  # web pages name their origin: none of them gets in through a browser on this machine
                max_size=max_bytes,
                compression=None,
                server_header=None,
                open_timeout=5.0,
                close_timeout=1.0,
            )
        except OSError as e:
            why = os.strerror(e.errno) if e.errno else _line(e)
            raise InputError(f"cannot listen at {host}:{port}: {why}; choose another --listen") from None
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="policy server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close every connection and wait until the clients' threads have ended."""
        self._server.shutdown()
        self._thread.join()


def read_token(path: Path | str) -> str:
    """The token in a file, without white space around it.

    Raises:
        InputError: there is no file, or what it holds is too short to be a secret.
    """
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"cannot read the token file {path}: {getattr(e, 'strerror', None) or 'it is not text'}") from None
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        wanted = f"at least {MIN_TOKEN} printable characters without spaces"
        raise InputError(f"the token in {path} must be {wanted}: openssl rand -hex 32 > {path}")
    return token


def same_token(given: str, wanted: str) -> bool:
    """Compare two tokens in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _bound_sends(sock: socket.socket, timeout_s: float) -> None:
    """Make a blocked send fail instead of waiting for ever for a peer that does not read."""
    whole = int(timeout_s)
    with contextlib.suppress(OSError):  # a socket wrapped for TLS may refuse; the keep-alive then ends it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", whole, int((timeout_s - whole) * 1e6)))


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _exceptions() -> ModuleType:
    return _websockets("exceptions")


def _websockets(part: str) -> ModuleType:
    return _optional(f"websockets.{part}")


def _msgpack() -> ModuleType:
    return _optional("msgpack")


def _optional(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as e:
        raise MissingDependency(f"a policy server needs {name.split('.')[0]}: pip install 'sinew[serve]' ({_line(e)})") from None
