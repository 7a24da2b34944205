"""Messages of arrays over a websocket, as policy servers speak them: msgpack with raw NumPy bytes, nothing is ever unpickled.

The one module that imports `websockets` and `msgpack`; `policies.link`, `policies.openpi` and `robot_bridge.server` use it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from sinew.errors import DataError, InputError, MissingDependency

DTYPES = ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
"""Element types that may cross the wire."""
MAX_BYTES = 64 * 2**20
"""Largest message, unless a server says otherwise."""
SECURE, SCHEMES = ("https://", "wss://"), ("https://", "wss://", "http://", "ws://")
"""How the address of a server with TLS begins, and of any; http and ws mean the same."""
MAX_LIST = 4096
"""Longest list, map or shape in a message."""
MAX_TEXT = 2**20
"""Longest text in a message, bytes."""
MAX_PARTS = 100_000
"""Most elements of all lists and maps of a message together: an empty map of one byte becomes 64 bytes here."""


class LinkError(InputError):
    """The other side cannot be reached, refused us, or went away.

    Args:
        message: one line.
        again: whether the same request may succeed on a new connection.
    """

    def __init__(self, message: str, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class CertificateError(LinkError):
    """The certificate that a server shows is not the one that is trusted, or none that is."""


class BusyError(LinkError):
    """The server has too much to do, or came to the request too late; the connection is as it was."""


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
        raise DataError(f"the message cannot be packed: {line(e)}") from None


def unpack(data: bytes) -> Any:
    """What `pack` made.

    Raises:
        DataError: the bytes are no message, hold an array of another element type or size than they say, or unfold into more
            parts than any message has.
    """
    msgpack, left = _msgpack(), MAX_PARTS

    def count(found: Any) -> Any:
        nonlocal left
        left -= len(found) + 1
        if left < 0:
            raise DataError(f"the message has more than {MAX_PARTS} parts")
        return _unpack_array(found) if isinstance(found, dict) else found

    limits = {"max_array_len": MAX_LIST, "max_map_len": MAX_LIST, "max_str_len": MAX_TEXT, "max_ext_len": 0}
    try:
        return msgpack.unpackb(data, object_hook=count, list_hook=count, **limits)
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.exceptions.UnpackException) as e:
        raise DataError(f"the message is not msgpack: {line(e)}") from None


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

    def __init__(self, connection: Any, url: str, close: Callable[[], None], path: str = "/") -> None:
        self._connection, self.url, self._close, self.path = connection, url, close, path

    def send(self, data: bytes | str) -> None:
        """Send one message; str as a text frame.

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
            told = f"{self.url} did not answer within {timeout_s or 0:.2g} s"
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


def dial(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    max_bytes: int | None = MAX_BYTES,
    tls: ssl.SSLContext | None = None,
) -> Channel:
    """Open a connection.

    Args:
        url: https://host:port, or http, wss, ws.
        headers: sent with the request to connect.
        timeout_s: to be connected; also the longest that a `send` may wait for the other side to read.
        max_bytes: largest message that is accepted; None for any.
        tls: how the certificate of a server is checked; None for the authorities that this machine trusts.

    Raises:
        InputError: the URL is no websocket URL.
        CertificateError: the server's certificate is not to be trusted; nothing was sent to it.
        LinkError: nothing listens there, it is no websocket server, or it refuses: its own words are told.
        MissingDependency: `websockets` is not installed.
    """
    client, errors = websockets("sync.client"), _exceptions()
    if not url.startswith(SCHEMES):
        raise InputError(f"{url!r} is not the address of a policy server: give https://host:port")
    secure, rest = url.startswith(SECURE), url.partition("://")[2]
    stack = contextlib.ExitStack()
    try:
        connection = stack.enter_context(
            client.connect(
                f"{'wss' if secure else 'ws'}://{rest}",
                ssl=(tls or ssl.create_default_context()) if secure else None,
                additional_headers=dict(headers or {}),
                open_timeout=timeout_s,
                close_timeout=1.0,
                max_size=max_bytes,
                compression=None,
                proxy=None,
            )
        )
    except errors.InvalidURI as e:
        raise InputError(f"{url!r} is not the address of a policy server: {line(e)}") from None
    except errors.InvalidStatus as e:
        body = bytes(e.response.body or b"").decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise LinkError(f"{url} refused the connection ({e.response.status_code}): {body[0][:300]}") from None
    except TimeoutError:
        raise LinkError(f"{url} did not answer within {timeout_s:.2g} s: is a policy server running there?") from None
    except ssl.SSLCertVerificationError as e:
        raise CertificateError(f"{url}: {getattr(e, 'verify_message', '') or line(e)}") from None
    except ssl.SSLError as e:
        raise LinkError(f"what listens at {url} does not speak TLS as it should ({e.reason or line(e)}): is it https:// there?") from None
    except OSError as e:
        raise LinkError(f"nothing can be reached at {url} ({e.strerror or line(e)}): is the policy server running?") from None
    except errors.ConnectionClosed:
        raise LinkError(f"{url} closed the connection before it was open: is it full, or being closed? Try again") from None
    except (errors.InvalidHandshake, errors.InvalidMessage, EOFError) as e:
        raise LinkError(f"what listens at {url} is no websocket server: {line(e)}") from None
    bound_sends(connection.socket, timeout_s)
    return Channel(connection, url, stack.close)


# ---------------------------------------------------------------- both sides


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound_sends(sock: socket.socket, timeout_s: float) -> None:
    """Make a blocked send fail instead of waiting for ever for a peer that does not read.

    A TLS socket tries again when the first option's time is over; the second one then ends the connection.
    """
    whole = int(timeout_s)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", whole, int((timeout_s - whole) * 1e6)))
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(int(timeout_s * 1e3), 1))


def line(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _exceptions() -> ModuleType:
    return websockets("exceptions")


def websockets(part: str) -> ModuleType:
    """A module of `websockets`.

    Raises:
        MissingDependency: it is not installed.
    """
    return _optional(f"websockets.{part}")


def _msgpack() -> ModuleType:
    return _optional("msgpack")


def _optional(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as e:
        raise MissingDependency(
            f"a policy server, and a page that moves a robot, needs {name.split('.')[0]}: pip install 'sinew[serve]' ({line(e)})"
        ) from None
