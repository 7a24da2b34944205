"""Messages over a socket: a length and as many bytes; who connects says a secret first. One thread serves every client."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinew.errors import DataError, InputError
from sinew.rundir import atomic_write, read_json

_HEAD = struct.Struct("<Q")
MAX_BYTES = 2**30
"""Largest message."""
STRANGER_BYTES = 256
"""Largest message of somebody who has not said the secret."""
CHUNK = 2**18


@dataclass(frozen=True)
class Endpoint:
    """Where a learner listens, and the secret that it wants to hear."""

    host: str
    port: int
    token: str

    def write(self, path: Path) -> None:
        """Keep it in a file that only this user reads; a learner that is started again listens there again."""
        old = os.umask(0o177)
        try:
            atomic_write(path, f'{{"host": "{self.host}", "port": {self.port}, "token": "{self.token}"}}\n')
        finally:
            os.umask(old)

    @classmethod
    def read(cls, path: Path) -> Endpoint:
        """What `write` wrote.

        Raises:
            DataError: there is no such file, or it is something else.
        """
        found = read_json(path)
        try:
            return cls(str(found["host"]), int(found["port"]), str(found["token"]))
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path} does not say where a learner listens; delete it and start the learner again") from None


# ---------------------------------------------------------------- the calling side


class Lost(Exception):  # noqa: N818
    """The connection is gone, or the other side does not answer."""


class Caller:
    """A connection to a learner; every message is answered.

    Args:
        endpoint: where.
        timeout_s: longest that anything may take.

    Raises:
        Lost: nobody is there, or the secret is wrong.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        try:
            self._socket = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.settimeout(timeout_s)
            self._socket.sendall(_framed(endpoint.token.encode()))
        except OSError as e:
            raise Lost(f"nobody answers at {endpoint.host}:{endpoint.port} ({e.strerror or e})") from None

    def ask(self, message: bytes) -> bytes:
        """Send a message and wait for the answer.

        Raises:
            Lost: it did not come.
        """
        try:
            self._socket.sendall(_framed(message))
            (length,) = _HEAD.unpack(self._read(_HEAD.size))
            if length > MAX_BYTES:
                raise Lost(f"the learner answers with {length} bytes, which is no answer")
            return self._read(length)
        except OSError as e:
            raise Lost(str(e.strerror or e)) from None

    def _read(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self._socket.recv(min(CHUNK, length - len(parts)))
            if not part:
                raise Lost("the learner closed the connection")
            parts += part
        return bytes(parts)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _framed(message: bytes) -> bytes:
    return _HEAD.pack(len(message)) + message


# ---------------------------------------------------------------- the answering side


@dataclass(eq=False)
class Client:
    """Who is at the other end of a connection."""

    socket: Any
    known: bool = False
    """Whether the secret was said."""
    place: int | None = None
    version: int = -1
    """These two are for the one who answers to write on."""
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)


class Server:
    """Listens on this host, and answers in a thread of its own.

    Args:
        endpoint: where, and the secret; port 0 for any that is free.
        answer: (client, message) → answer; None ends the connection. Called in that thread.
        gone: called there when a known client's connection has ended.

    Raises:
        InputError: the port is in use.
    """

    def __init__(self, endpoint: Endpoint, answer: Callable[[Client, bytes], bytes | None], gone: Callable[[Client], None]) -> None:
        self._answer, self._gone, self._token = answer, gone, endpoint.token.encode()
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listening.bind((endpoint.host, endpoint.port))
        except OSError as e:
            self._listening.close()
            raise InputError(f"cannot listen at {endpoint.host}:{endpoint.port}: {e.strerror}; is another learner at work?") from None
        self._listening.listen(256)
        self._listening.setblocking(False)
        self.endpoint = Endpoint(endpoint.host, self._listening.getsockname()[1], endpoint.token)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._wake, self._woken = os.pipe()[::-1]
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closing = False
        self.error: BaseException | None = None
        """What ended the thread, if anything did."""
        self._thread = threading.Thread(target=self._run, name="learner server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every connection and the thread."""
        self._closing = True
        os.write(self._wake, b"x")
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, events in self._selector.select():
                    if key.fileobj is self._listening:
                        self._accept()
                    elif isinstance(key.data, Client):
                        self._serve(key.data, events)
        except BaseException as e:
            self.error = e
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Client):
                key.data.socket.close()
        self._selector.close()
        self._listening.close()
        os.close(self._wake)
        os.close(self._woken)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listening.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, Client(connection))

    def _serve(self, client: Client, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(client)
            if events & selectors.EVENT_READ:
                part = client.socket.recv(CHUNK)
                if not part:
                    return self._drop(client)
                client.received += part
                while (message := self._message(client)) is not None:
                    answer = self._judge(client, message)
                    if answer is None:
                        return self._drop(client)
                    if answer:
                        client.to_send += _framed(answer)
                self._send(client)
        except BlockingIOError:
            pass
        except (OSError, DataError):
            self._drop(client)

    def _message(self, client: Client) -> bytes | None:
        """The next whole message, if it is there.

        Raises:
            DataError: it says that it is larger than a message may be.
        """
        buffer = client.received
        if len(buffer) < _HEAD.size:
            return None
        (length,) = _HEAD.unpack_from(buffer)
        if length > (MAX_BYTES if client.known else STRANGER_BYTES):
            raise DataError(f"a message of {length} bytes is refused")
        if len(buffer) < _HEAD.size + length:
            return None
        message = bytes(buffer[_HEAD.size : _HEAD.size + length])
        del buffer[: _HEAD.size + length]
        return message

    def _judge(self, client: Client, message: bytes) -> bytes | None:
        if client.known:
            return self._answer(client, message)
        client.known = hmac.compare_digest(message, self._token)
        return b"" if client.known else None

    def _send(self, client: Client) -> None:
        try:
            while client.to_send:
                sent = client.socket.send(client.to_send[:CHUNK])
                del client.to_send[:sent]
        except BlockingIOError:
            pass
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.to_send else 0)
        self._selector.modify(client.socket, wanted, client)

    def _drop(self, client: Client) -> None:
        self._selector.unregister(client.socket)
        client.socket.close()
        if client.known:
            self._gone(client)


def new_token() -> str:
    """A secret nobody guesses."""
    return secrets.token_hex(32)
