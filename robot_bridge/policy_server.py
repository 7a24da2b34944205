"""A policy server: policies for several clients over websockets, for robots whose computer has no GPU.

Messages are msgpack with raw arrays; nothing is unpickled, and no traceback leaves this process. Beyond this machine it listens
only with TLS and a token. The threat model behind it is in docs/security.md.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from policies.link import BUSY, FORGOTTEN, VERSION, VERSION_HEADER
from policies.trust import same_token
from policies.wire import BusyError, Channel, LinkError, is_loopback, pack, unpack
from robot_bridge.server.batching import Worker
from robot_bridge.server.certificate import Certificate
from robot_bridge.server.limits import Limits
from robot_bridge.server.listener import Listener, Reply
from robot_bridge.server.metrics import CONTENT_TYPE, SECONDS, Metrics
from robot_bridge.server.requests import OPERATIONS, ForgottenError, Memory, Reader
from sinew.config import to_json
from sinew.errors import DataError, InputError, SinewError, unknown

STUCK_S = 60.0
"""A server whose policy works on one request for longer calls itself unhealthy."""
LONGEST_WAIT_S = 3600.0
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

_log = logging.getLogger(__name__)


class _Session:
    """One connection: what its requests must carry, and what is kept of it."""

    def __init__(self, max_bytes: int) -> None:
        self.nonce = secrets.token_hex(16)
        self.last = -1
        self.memory = Memory(max_bytes)
        self.joined: set[str] = set()


class PolicyServer:
    """Serves from its making until `close`.

    Args:
        policies: any `sinew.protocols.Policy` in evaluation mode, or several by name.
        host: address to listen at; without a token and a certificate only addresses of this machine are allowed.
        port: 0 for any that is free.
        token: what clients must send; None for none.
        name: of the policy, where it is one.
        device: where the policies are.
        certificate: for TLS; None for none.
        host_names: names by which clients may call the server besides those of this machine, where it listens at this machine
            only; for tunnels and proxies.
        limits: sizes, numbers and times.

    Raises:
        InputError: the address reaches beyond this machine and there is no token or no certificate, or cannot be listened at.
        MissingDependency: `websockets` or `msgpack` is not installed.
    """

    def __init__(
        self,
        policies: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str | None = None,
        name: str = "",
        device: torch.device | str = "cpu",
        certificate: Certificate | None = None,
        host_names: tuple[str, ...] = (),
        limits: Limits | None = None,
    ) -> None:
        if not is_loopback(host) and (token is None or certificate is None):
            missing = " and ".join(what for what, there in (("--token-file", token), ("TLS", certificate)) if there is None)
            raise InputError(f"{host} can be reached by others: that needs {missing}; or listen at 127.0.0.1")
        self.limits = limits or Limits()
        self.metrics, self.clients = Metrics(), 0
        self._token, self._local = token, is_loopback(host)
        self._host_names = tuple(text.lower() for text in (*_LOCAL_NAMES, *host_names))
        self._lock, self._quiet = threading.Lock(), threading.Condition()
        self._open, self._under_way, self._closing = 0, 0, False
        named = dict(policies) if isinstance(policies, Mapping) else {name or "policy": policies}
        self._readers = {key: Reader(policy, key, torch.device(device)) for key, policy in named.items()}
        self._greeting = {key: _described(policy) for key, policy in named.items()}
        pack(self._greeting)
        self._workers = {key: Worker(policy, key, self.limits, self.metrics) for key, policy in named.items()}
        tls = None if certificate is None else certificate.context()
        try:
            self._listener = Listener(
                self._client, host, port, self._front, self.limits, tls=tls, turned_away=lambda: self._reject("connections")
            )
        except BaseException:
            self._end()
            raise
        self.port = self._listener.port
        self.url = f"{'ws' if tls is None else 'wss'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the policies."""
        return tuple(self._readers)

    @property
    def served(self) -> int:
        """Requests that were answered, whatever with."""
        return self.metrics.value("sinew_requests_total")

    def close(self) -> None:
        """Answer what is under way, refuse what comes, close every connection and stop listening."""
        with self._quiet:
            self._closing = True
            self._quiet.wait_for(lambda: not self._under_way, self.limits.drain_s)
        self._end()
        self._listener.close()

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> None:
        for worker in self._workers.values():
            worker.close()

    # ------------------------------------------------------------ over HTTP

    def _front(self, path: str, headers: Mapping[str, str]) -> Reply | None:
        """None to let a client in, or HTTP status and reason; the token comes first, so that strangers learn nothing."""
        if not self._called_rightly(headers.get("host", "")):
            return self._refuse("host", 421, "the server is not called that: use the address that it printed, or serve with --host-name")
        if "origin" in headers:
            return self._refuse("origin", 403, "web pages are not let in")
        if path == "/healthz":
            sick = self._sick()
            return Reply(503 if sick else 200, sick or "ok")
        if not self._authorized(headers):
            return self._refuse("token", 401, "wrong or missing token: give the server's with --token-file")
        if path == "/metrics":
            return Reply(200, self._metrics_text().rstrip("\n"), CONTENT_TYPE)
        if path != "/":
            return self._refuse("path", 404, "there are /, /healthz and /metrics")
        if headers.get(VERSION_HEADER) != str(VERSION):
            spoken = f"version {VERSION} of the policy messages, the client {headers.get(VERSION_HEADER, 'none')[:8]}"
            return self._refuse("version", 426, f"this server speaks {spoken}: install the same Sinew on both sides")
        if self._open >= self.limits.max_clients:
            return self._refuse("clients", 503, f"the server has its {self.limits.max_clients} clients already: close one")
        return None

    def _called_rightly(self, host: str) -> bool:
        """Whether the Host header names this server: a web page whose name was pointed at this machine names its own."""
        if not self._local:
            return True
        name = host.lower().rpartition(":")[0] if not host.endswith("]") and ":" in host else host.lower()
        return name in self._host_names or _is_loopback_literal(name)

    def _authorized(self, headers: Mapping[str, str]) -> bool:
        if self._token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        return same_token(given.strip(), self._token) and kind.lower() == "bearer"

    def _sick(self) -> str | None:
        if self._closing:
            return "closing"
        for worker in self._workers.values():
            if not worker.alive() or worker.busy_s() > STUCK_S:
                return "a policy is stuck"
        return None

    def _metrics_text(self) -> str:
        workers = self._workers.items()
        return self.metrics.text(
            {
                "sinew_clients": [({}, self._open)],
                "sinew_queue_length": [({"policy": name}, worker.queued) for name, worker in workers],
                "sinew_busy_seconds": [({"policy": name}, worker.busy_s()) for name, worker in workers],
            }
        )

    def _refuse(self, reason: str, status: int, text: str) -> Reply:
        self._reject(reason)
        return Reply(status, text)

    def _reject(self, reason: str) -> None:
        self.metrics.count("sinew_rejected_total", reason=reason)

    # ------------------------------------------------------------ over the websocket

    def _client(self, channel: Channel) -> None:
        """Answer one client until it leaves."""
        with self._lock:
            if self._open >= self.limits.max_clients:  # several came in the same moment
                self._reject("clients")
                return
            self._open, self.clients = self._open + 1, self.clients + 1
        session = _Session(self.limits.max_bytes)
        hello = {"server": "sinew", "version": VERSION, "session": session.nonce, "policies": self._greeting}
        try:
            channel.send(pack({**hello, "max_bytes": self.limits.max_bytes, "batch": self.limits.batch}))
            while True:
                data = channel.receive(self.limits.idle_s)
                with self._counted():
                    channel.send(self._answer(data, session))
        except LinkError as e:
            _log.info("client %s left: %s", channel.url, e)
        finally:
            with self._lock:
                self._open -= 1
            for name in session.joined:
                self._workers[name].join(-1)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A request is under way from its arrival until its answer is sent."""
        with self._quiet:
            self._under_way += 1
        try:
            yield
        finally:
            with self._quiet:
                self._under_way -= 1
                self._quiet.notify_all()

    def _answer(self, data: bytes | str, session: _Session) -> bytes:
        """The answer to one message, whatever it is."""
        begin, number, told = time.perf_counter(), None, {"policy": "", "op": ""}
        try:
            request = _request(data)
            number = request["id"]
            self._check(request, session)
            told |= {"policy": request["policy"], "op": request["op"] if request["op"] in OPERATIONS else ""}
            result, outcome = self._work(request, session), "ok"
        except ForgottenError:
            result, outcome = {"kind": FORGOTTEN, "error": "that observation is not kept any more: send it again"}, FORGOTTEN
        except BusyError as e:
            result, outcome = {"kind": BUSY, "error": str(e)}, BUSY
            self._reject(BUSY)
        except SinewError as e:
            result, outcome = {"kind": "input", "error": str(e)}, "input"
        except Exception:
            _log.exception("a request failed")
            result = {"kind": "internal", "error": "the policy failed on this request; the server's log says why"}
            outcome = "internal"
        self.metrics.count("sinew_requests_total", outcome=outcome, **told)
        self.metrics.observe("sinew_request_seconds", time.perf_counter() - begin, SECONDS, policy=told["policy"])
        return pack({"session": session.nonce, "id": number, **result})

    def _check(self, request: Mapping[str, Any], session: _Session) -> None:
        """Let only a new request of this connection to a policy that there is pass.

        Raises:
            InputError: it is none.
            BusyError: the server is being closed.
        """
        if request.get("session") != session.nonce:
            raise DataError("the request is not of this connection: a request is answered once, where it was made")
        if request["id"] <= session.last:
            raise DataError(f"request {request['id']} comes after request {session.last}: numbers go up, nothing is answered twice")
        session.last = request["id"]
        if request.get("policy") not in self.names:
            raise unknown("policy", str(request.get("policy"))[:80], self.names)
        if self._closing:
            raise BusyError("the server is being closed")

    def _work(self, request: Mapping[str, Any], session: _Session) -> dict[str, Any]:
        wait_s, name = request.get("wait_s", LONGEST_WAIT_S), request["policy"]
        if not isinstance(wait_s, (int, float)) or not 0 < wait_s <= LONGEST_WAIT_S:
            raise DataError(f"wait_s {wait_s!r:.40} must be in seconds, up to {LONGEST_WAIT_S:g}")
        if name not in session.joined:
            session.joined.add(name)
            self._workers[name].join(+1)
        return self._workers[name].answer(self._readers[name].read(request, session.memory), wait_s)


def _described(policy: Any) -> dict[str, Any]:
    spec = policy.spec
    return {"spec": to_json(spec), "observation_dim": int(policy.observation_dim) if "observe" in spec.capabilities else None}


def _request(data: bytes | str) -> dict[str, Any]:
    """A message as a request.

    Raises:
        DataError: it is none.
    """
    request = unpack(data) if isinstance(data, bytes) else None
    number = request.get("id") if isinstance(request, dict) else None
    if not isinstance(request, dict) or not isinstance(request.get("op"), str) or not isinstance(number, int) or number < 0:
        raise DataError("a request is a map with op, id, session and policy, sent as a binary message")
    return request


def _is_loopback_literal(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def serve_until_asked(server: PolicyServer, ready: Callable[[str], None]) -> str:
    """Keep a server running until SIGINT or SIGTERM, then close it.

    Args:
        server: running.
        ready: told one line once signals are caught.

    Returns:
        Name of the signal.
    """
    asked = threading.Event()
    with _signals(asked) as caught:
        ready(f"serving {', '.join(server.names)} at {server.url}; Ctrl-C ends it")
        asked.wait()
        server.close()
    return caught[0]


@contextmanager
def _signals(asked: threading.Event) -> Iterator[list[str]]:
    """SIGINT and SIGTERM set `asked` and are listed by name."""
    caught: list[str] = []

    def handle(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        asked.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
