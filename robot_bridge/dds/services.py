"""Services as rmw_cyclonedds sends them: who asks, and which question it is, stand before the message.

A request or response is a CDR payload whose first 16 bytes are the client's 64-bit id and a sequence number, which the
server sends back. Fast DDS keeps both in the protocol's own headers instead, where Cyclone DDS' interface cannot put them: a
client of one would wait for ever for a server of the other, so such peers are refused.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from robot_bridge.dds import codec, wire
from robot_bridge.dds.graph import user_text
from robot_bridge.dds.messages import parts
from robot_bridge.transport import CYCLONE, Handler, answer_in_time, vendor
from sinew.errors import DataError, InputError

if TYPE_CHECKING:
    from robot_bridge.dds.node import Node

POLL_S = 0.005
MATCH_S = 0.5
"""How long a server waits for the place where its response goes to be discovered; rmw_cyclonedds waits 0.1 s."""
MAX_WAITING = 64
"""Requests that wait for a handler; further ones are dropped."""
_ID, _BIG_ID = struct.Struct("<Qq"), struct.Struct(">Qq")
_BIGMAX_WAITING = 64
"""Requests that wait for a handler; further ones are dropped."""
_ID = struct.Struct(">Qq")
_log = logging.getLogger(__name__)


def wrap(identity: tuple[int, int], payload: bytes | memoryview) -> bytes:
    """A CDR payload with client id and sequence number put in behind its header; padded to a multiple of 4."""
    return bytes(payload[:4]) + _ID.pack(*identity) + bytes(payload[4:]) + bytes(-len(payload) % 4)


def unwrap(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Client id and sequence number, and the payload without them.

    Raises:
        DataError: the sample is too short to hold them, as those of another vendor are.
    """
    if len(data) < 4 + _ID.size:
        raise DataError(f"a service message of {len(data)} bytes is shorter than its header")
    form = _ID if data[1] else _BIG_ID
    return form.unpack_from(data, 4), data[:4] + data[4 + _ID.size :]


def refusal(service: str, vendors: set[str]) -> str:
    """Why a service cannot be used; empty while it can, or nobody serves it."""
    if not vendors or CYCLONE in vendors:
        return ""
    return (
        f"service {service} is served by {' and '.join(sorted(vendors))}, whose services cannot be reached over Cyclone DDS (topics can): "
        "start that node with RMW_IMPLEMENTATION=rmw_cyclonedds_cpp, or use --robot ros2 where ROS 2 is sourced"
    )


class Pump:
    """One thread that calls back when readers have something.

    Args:
        participant: whose readers they are.
    """

    def __init__(self, participant: Any) -> None:
        self._waitset = wire.WaitSet(participant)
        self._waitset.attach(self._waitset)  # so that its own trigger wakes it
        self._calls: dict[Any, Callable[[], None]] = {}
        self._lock, self._quit = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, reader: Any, call: Callable[[], None]) -> None:
        """Call `call`, which never blocks, whenever `reader` has samples."""
        condition = wire.ReadCondition(reader, wire.ANY)
        with self._lock:
            self._calls[condition] = call
            self._waitset.attach(condition)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="services", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Call nobody any more."""
        self._quit.set()
        if self._thread is not None:
            self._waitset.set_trigger(True)
            if self._thread is not threading.current_thread():
                self._thread.join()

    def _run(self) -> None:
        while not self._quit.is_set():
            self._waitset.wait(1_000_000_000)
            with self._lock:
                calls = list(self._calls.values())
            for call in calls:
                if not self._quit.is_set():
                    call()


class Client:
    """Asks a service of Cyclone DDS peers."""

    def __init__(self, node: Node, service: str, kind: str) -> None:
        self.service, self._node = service, node
        request, self._response = parts(kind)
        user = f"clientid={_dotted(secrets.token_bytes(16))};"
        self._writer = node.service_writer(f"rq{service}Request", request, user)
        self._reader = node.service_reader(f"rr{service}Reply", self._response, user)
        self._id, self._numbers = secrets.randbits(64), itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        node.pump.add(self._reader, self._take)

    @property
    def ready(self) -> bool:
        if self._writer.get_matched_subscriptions() and self._reader.get_matched_publications():
            self._check()
            return True
        return False

    def submit(self, request: Any) -> Future[Any]:
        self._check()
        number = next(self._numbers)
        future: Future[Any] = Future()
        self._waiting[number] = future
        future.add_done_callback(lambda _: self._waiting.pop(number, None))
        code = wire.write(self._writer, wrap((self._id, number), memoryview(codec.encode(request))))
        if code < 0:
            raise InputError(f"DDS could not send to service {self.service}: {wire.DDSException(code)}")
        return future

    def call(self, request: Any, timeout_s: float = 5.0) -> Any:
        # a server that cannot answer need not match to be known
        return answer_in_time(self, request, timeout_s, f"DDS domain {self._node.domain}", self._check)

    def _check(self) -> None:
        if problem := refusal(self.service, self._node.graph.server_vendors(self.service)):
            raise InputError(problem)

    def _take(self) -> None:
        for data, info in wire.take(self._reader, 100):
            if not info.valid_data:
                continue
            try:
                (client, number), payload = unwrap(data)
                future = self._waiting.get(number) if client == self._id else None
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_result(codec.decode(payload, self._response))
            except DataError as e:
                _log.warning("service %s: %s", self.service, e)


class Server:
    """Answers a service; each has a thread of its own, so that a slow one delays no other."""

    def __init__(self, node: Node, service: str, kind: str, handler: Handler) -> None:
        self.service, self._node, self._handler = service, node, handler
        self._request, response = parts(kind)
        user = f"serviceid={_dotted(secrets.token_bytes(16))};"
        self._reader = node.service_reader(f"rq{service}Request", self._request, user)
        self._writer = node.service_writer(f"rr{service}Reply", response, user)
        self._room = threading.Semaphore(MAX_WAITING)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"service {service}")
        self.refused = 0
        """Requests that were damaged, too many, or of clients whose DDS keeps services in another form."""
        node.pump.add(self._reader, self._take)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._node.remove(self._reader, self._writer)

    def _take(self) -> None:
        for data, info in wire.take(self._reader, 100):
            if not info.valid_data:
                continue
            asker = self._reader.get_matched_publication_data(info.publication_handle)
            try:
                if asker is not None and vendor(asker.key.bytes) != CYCLONE:
                    raise DataError(f"a client of {vendor(asker.key.bytes)} asked, whose services are of another form; it gets no answer")
                identity, payload = unwrap(data)
                request = codec.decode(payload, self._request)
            except DataError as e:
                self.refused += 1
                _log.warning("service %s: %s", self.service, e)
                continue
            client = user_text(asker, "clientid") if asker is not None else ""
            if not self._room.acquire(blocking=False):
                self.refused += 1
                continue
            with suppress(RuntimeError):  # closed meanwhile
                self._worker.submit(self._answer, identity, client, request).add_done_callback(lambda _: self._room.release())

    def _answer(self, identity: tuple[int, int], client: str, request: Any) -> None:
        try:
            response = self._handler(request)
        except Exception:
            _log.exception("service %s failed; its client gets no answer", self.service)
            return
        if isinstance(response, Future):
            response.add_done_callback(lambda done: done.cancelled() or self._send(identity, client, done.result()))
        else:
            self._send(identity, client, response)

    def _send(self, identity: tuple[int, int], client: str, response: Any) -> None:
        deadline = time.monotonic() + MATCH_S
        while not self._reachable(client) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        wire.write(self._writer, wrap(identity, memoryview(codec.encode(response))))

    def _reachable(self, client: str) -> bool:
        """Whether the client's reader is matched: its writer may be discovered before."""
        matched = (self._writer.get_matched_subscription_data(h) for h in self._writer.get_matched_subscriptions())
        return any(each is not None and client in ("", user_text(each, "clientid")) for each in matched)


def _dotted(raw: bytes) -> str:
    return ".".join(f"{byte:x}" for byte in raw)
