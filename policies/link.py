"""A client's connection to a policy server: its handshake, its sequence of requests, and what happens when it is lost.

The server begins with a greeting that holds a random session. Every request carries it and a number one higher than the last,
every answer repeats both: nothing that was recorded on one connection has a meaning on another, and an answer that comes late
is never taken for the answer to another question.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping
from typing import Any

from policies.trust import Address, Trust, refused, tls_for
from policies.wire import (
    MAX_BYTES,
    BusyError,
    CertificateError,
    Channel,
    LinkError,
    dial,
    is_loopback,
    pack,
    unpack,
)
from sinew.errors import DataError, InputError, SinewError, SpecError, unknown

VERSION = 2
"""Version of the messages; client and server must agree."""
VERSION_HEADER = "sinew-policy-version"
REMEMBERED = 64
"""Numbers of observations that a client remembers to have sent; a server keeps fewer."""
FORGOTTEN, BUSY = "forgotten", "busy"
"""Kinds of errors: the server asks for an observation again; it has too much to do, or came to the request too late."""
LEAST_S = 0.05
"""A time-out that is nearly over still leaves this long."""


class ServerLink:
    """One client's requests to one policy of a server, one at a time; connected from its making.

    Args:
        address: where the server is and which policy is meant.
        token: the server's token.
        trust: by what its certificate is known.
        timeout_s: longest time to be connected, and to wait for one answer.
        warmup_s: longest time to wait for the very first answer; None for `timeout_s`.

    Raises:
        InputError: the server cannot be reached or is not the one that is meant; one line that says why.
    """

    def __init__(self, address: Address, token: str | None, trust: Trust, timeout_s: float, warmup_s: float | None = None) -> None:
        if not address.secure and not is_loopback(address.host):
            raise InputError(
                f"{address.url} would cross the network in the clear: give https://, which sinew serve speaks wherever others can reach it"
            )
        self.url, self.timeout_s, self._first_s = address.url, timeout_s, warmup_s
        self._address, self._token, self._trust = address, token, trust
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._session = ""
        self._requests = itertools.count()
        self._sent: set[int] = set()
        self._max_bytes = MAX_BYTES
        self.name, self.policy = "", {}
        hello = self._open(timeout_s)
        try:
            self.name, self.policy = _named(hello, address)
            self._max_bytes = int(hello.get("max_bytes", MAX_BYTES))
        except BaseException:
            self._drop()
            raise

    def ask(self, op: str, ctx: Any, **fields: Any) -> dict[str, Any]:
        """One request and its answer, on a new connection where the old one was lost.

        Args:
            op: what is asked for.
            ctx: `policies.remote.RemoteContext`; None for requests without one.
            fields: what else the request holds.

        Raises:
            SpecError: the server refuses what was asked.
            BusyError: it has too much to do.
            LinkError: it cannot be reached, does not answer in time, or answers nonsense.
        """
        with self._lock:
            until = time.monotonic() + (self.timeout_s if self._first_s is None else self._first_s)
            for attempt in range(2):
                try:
                    answer = self._exchange(op, ctx, fields, until)
                    self._first_s = None
                    return answer
                except LinkError as e:
                    if isinstance(e, BusyError):
                        raise
                    self._drop()
                    if attempt or not e.again:
                        raise
                except BaseException as e:  # an interrupted request leaves an answer behind that nobody reads
                    if not isinstance(e, SinewError):
                        self._drop()
                    raise
        raise LinkError(f"{self.url} cannot be reached")

    def close(self) -> None:
        """Close the connection; the next request would open it again."""
        with self._lock:
            self._drop()

    # ------------------------------------------------------------ a connection

    def _open(self, timeout_s: float) -> dict[str, Any]:
        """Connect anew; gives what the server says of itself."""
        headers = {VERSION_HEADER: str(VERSION), **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        tls = tls_for(self._address, self._trust, timeout_s) if self._address.secure else None
        try:
            channel = dial(self.url, headers=headers, timeout_s=timeout_s, tls=tls)
        except CertificateError as e:
            raise refused(self._address, self._trust, e, timeout_s) from None
        try:
            hello = _read(channel, timeout_s)
            if hello.get("server") != "sinew":
                raise LinkError(f"{self.url} is not served by sinew serve; for a server of openpi see policies.openpi")
            if hello.get("version") != VERSION:
                raise LinkError(
                    f"{self.url} speaks version {hello.get('version')!r} of the policy messages, this Sinew {VERSION}: "
                    "install the same Sinew on both sides"
                )
            if not isinstance(hello.get("session"), str) or len(hello["session"]) < 16 or not isinstance(hello.get("policies"), dict):
                raise LinkError(f"{self.url} does not answer as a policy server: its greeting is incomplete")
        except BaseException:
            channel.close()
            raise
        self._channel, self._session = channel, hello["session"]
        return hello

    def _exchange(self, op: str, ctx: Any, fields: Mapping[str, Any], until: float) -> dict[str, Any]:
        if self._channel is None:
            hello = self._open(_left(until))
            if hello["policies"].get(self.name) != self.policy:
                raise LinkError(f"{self.url} now serves another policy than it did; connect anew")
        request = {"op": op, "policy": self.name, **fields}
        if ctx is None:
            return self._checked(self._send(request, until))
        request |= {"context": ctx.key, "expand": ctx.candidates}
        answer = self._send(request if ctx.key in self._sent else {**request, "obs": ctx.obs}, until)
        if answer.get("kind") == FORGOTTEN:
            answer = self._send({**request, "obs": ctx.obs}, until)
        answer = self._checked(answer)
        if len(self._sent) >= REMEMBERED:
            self._sent.clear()
        self._sent.add(ctx.key)
        return answer

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "error" not in answer:
            return answer
        kind = {"input": SpecError, BUSY: BusyError}.get(str(answer.get("kind")), InputError)
        raise kind(f"{self.url}: {str(answer['error'])[:1000]}")

    def _send(self, request: Mapping[str, Any], until: float) -> dict[str, Any]:
        if self._channel is None:
            raise LinkError(f"{self.url} is not connected")
        number = next(self._requests)
        data = pack({**request, "session": self._session, "id": number, "wait_s": _left(until)})
        if len(data) > self._max_bytes:
            sizes = f"up to {self._max_bytes} bytes, this one has {len(data)}"
            raise SpecError(f"{self.url} takes messages of {sizes}: send smaller images or fewer rows")
        self._channel.send(data)
        answer = _read(self._channel, _left(until))
        if answer.get("id") != number or answer.get("session") != self._session:
            raise LinkError(f"{self.url} answered another request than the one that was sent: {str(answer.get('error', ''))[:200]}")
        return answer

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        self._sent.clear()
        if channel is not None:
            channel.close()


def _named(hello: Mapping[str, Any], address: Address) -> tuple[str, dict[str, Any]]:
    """Name and description of the policy that is meant.

    Raises:
        InputError: there is none of that name, or none is named and there are several.
    """
    there = hello["policies"]
    if address.policy is None and len(there) != 1:
        raise InputError(
            f"{address.url} serves {', '.join(map(str, there)) or 'nothing'}: name one, as in {address.url}/{next(iter(there), 'name')}"
        )
    name = address.policy or next(iter(there))
    if name not in there:
        raise unknown(f"policy at {address.url}", name, map(str, there))
    if not isinstance(there[name], dict):
        raise LinkError(f"{address.url} does not say what its policy {name!r} is")
    return name, there[name]


def _left(until: float) -> float:
    return max(until - time.monotonic(), LEAST_S)


def _read(channel: Channel, timeout_s: float) -> dict[str, Any]:
    """The next message as a mapping.

    Raises:
        LinkError: it is none, or does not come.
    """
    data = channel.receive(timeout_s)
    try:
        message = unpack(data) if isinstance(data, bytes) else None
    except DataError as e:
        raise LinkError(f"{channel.url} does not answer as a policy server: {e}") from None
    if not isinstance(message, dict):
        raise LinkError(f"{channel.url} does not answer as a policy server: it sent {str(data)[:80]!r}")
    return message
