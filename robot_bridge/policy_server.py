"""A policy server: one policy for several clients over websockets, for robots whose computer has no GPU.

Messages are msgpack with raw arrays; nothing is unpickled, and no traceback leaves this process. Without TLS the token and
the images cross the network in the clear: on other networks than one's own put a TLS proxy or a tunnel before it.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.remote import FORGOTTEN, VERSION, VERSION_HEADER
from policies.wire import MAX_BYTES, Channel, LinkError, Listener, pack, same_token, unpack
from sinew.config import to_json
from sinew.errors import DataError, InputError, SinewError, SpecError
from sinew.specs import TASK, PolicySpec

KEPT_CONTEXTS = 8
"""Encoded observations that are kept for each client."""
MAX_ROWS = 4096
"""Most chunks in one answer."""
MAX_STEPS = 1000
"""Most sampling steps in one request."""
_NEEDS = {"denoise": "denoise", "sigmas": "denoise", "energy": "energy", "observe": "observe", "correct": "correct"}
"""Capability behind each operation that not every policy has."""

_log = logging.getLogger(__name__)


class _ForgottenError(Exception):
    """The observation that a request names is not kept."""


class PolicyServer:
    """Serves from its making until `close`.

    Args:
        policy: any `sinew.protocols.Policy`, in evaluation mode.
        host: address to listen at; without a token only addresses of this machine are allowed.
        port: 0 for any that is free.
        token: what clients must send; None for none.
        name: told to clients.
        device: where the policy is.
        max_bytes: largest request.
        max_clients: most connections at a time.

    Raises:
        InputError: the address reaches beyond this machine and there is no token, or cannot be listened at.
        MissingDependency: `websockets` or `msgpack` is not installed.
    """

    def __init__(
        self,
        policy: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str | None = None,
        name: str = "",
        device: torch.device | str = "cpu",
        max_bytes: int = MAX_BYTES,
        max_clients: int = 16,
    ) -> None:
        if token is None and not is_loopback(host):
            raise InputError(f"{host} can be reached by others: give --token-file, or listen at 127.0.0.1")
        self.policy, self.name, self.device = policy, name, torch.device(device)
        self.max_clients, self.served, self.clients = max_clients, 0, 0
        self._token = token
        self._open: set[int] = set()
        self._lock, self._policy_lock = threading.Lock(), threading.Lock()
        spec = policy.spec
        self._hello = {
            "server": "sinew",
            "version": VERSION,
            "policy": name,
            "spec": to_json(spec),
            "max_bytes": max_bytes,
            "observation_dim": int(policy.observation_dim) if "observe" in spec.capabilities else None,
        }
        pack(self._hello)
        self._listener = Listener(self._client, host, port, self._admit, max_bytes)
        self.port = self._listener.port
        self.url = f"ws://{f'[{host}]' if ':' in host else host}:{self.port}"

    def close(self) -> None:
        """Let the request that is being worked on end, close every connection and stop listening."""
        self._listener.close()

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """None to let a client in, or HTTP status and reason; the token comes first, so that strangers learn nothing."""
        if self._token is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not same_token(given.strip(), self._token):
                return 401, "wrong or missing token: give the server's with --token-file"
        if headers.get(VERSION_HEADER) != str(VERSION):
            spoken = f"version {VERSION} of the policy messages, the client {headers.get(VERSION_HEADER, 'none')[:8]}"
            return 426, f"this server speaks {spoken}: install the same Sinew on both sides"
        if len(self._open) >= self.max_clients:
            return 503, f"the server has its {self.max_clients} clients already: close one"
        return None

    def _client(self, channel: Channel) -> None:
        """Answer one client until it leaves."""
        contexts: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        with self._lock:
            self.clients += 1
            self._open.add(id(channel))
        try:
            channel.send(pack(self._hello))
            while True:
                channel.send(self._answer(channel.receive(None), contexts))
        except LinkError as e:
            _log.info("client %s left: %s", channel.url, e)
        finally:
            with self._lock:
                self._open.discard(id(channel))

    def _answer(self, data: bytes | str, contexts: OrderedDict[int, tuple[Any, int]]) -> bytes:
        """The answer to one message, whatever it is."""
        number = None
        try:
            request = unpack(data) if isinstance(data, bytes) else None
            if not isinstance(request, dict) or not isinstance(request.get("op"), str):
                raise DataError("a request is a map with op and id, sent as a binary message")
            number = request.get("id") if isinstance(request.get("id"), int) else None
            with self._policy_lock, torch.no_grad():
                result = self._work(request, contexts)
                self.served += 1
            return pack({"id": number, **result})
        except _ForgottenError:
            return pack({"id": number, "kind": FORGOTTEN, "error": "that observation is not kept any more: send it again"})
        except SinewError as e:
            return pack({"id": number, "kind": "input", "error": str(e)})
        except Exception:
            _log.exception("a request failed")
            return pack({"id": number, "kind": "internal", "error": "the policy failed on this request; the server's log says why"})

    def _work(self, request: Mapping[str, Any], contexts: OrderedDict[int, tuple[Any, int]]) -> dict[str, Any]:
        op, policy = request["op"], self.policy
        if op in _NEEDS and _NEEDS[op] not in policy.spec.capabilities:
            raise SpecError(f"the served policy has no capability {_NEEDS[op]!r}; it has: {', '.join(policy.spec.capabilities) or 'none'}")
        if op == "sample":
            return self._sample(request, contexts)
        if op == "denoise":
            ctx, rows = self._context(request, contexts)
            x, sigma = self._rows(request, "x", rows, ctx), self._rows(request, "sigma", rows, ctx)
            return {"value": _array(policy.denoise(x, sigma, ctx))}
        if op == "energy":
            ctx, rows = self._context(request, contexts)
            return {"value": _array(policy.energy(self._rows(request, "x", rows, ctx), ctx))}
        if op == "sigmas":
            return {"value": _array(policy.sigmas(_steps(request)))}
        if op == "observe":
            return {"value": _array(policy.observe(self._observation(request.get("obs"), 1)[0]))}
        if op == "correct":
            obs, rows = self._observation(request.get("obs"), 1)
            return {"value": _array(policy.correct(obs, self._given(request, "action", (rows, policy.spec.action_dim))))}
        raise SpecError(f"unknown operation {op[:40]!r}: known are sample, {', '.join(_NEEDS)}")

    def _sample(self, request: Mapping[str, Any], contexts: OrderedDict[int, tuple[Any, int]]) -> dict[str, Any]:
        ctx, rows = self._context(request, contexts)
        n = _count(request, "n", MAX_ROWS)
        if rows * n > MAX_ROWS:
            raise SpecError(f"{rows * n} chunks are asked for at once; the server gives up to {MAX_ROWS}")
        noise = self._given(request, "noise", (rows, n, *self.policy.spec.noise_shape))
        chunk = self.policy.sample(ctx, n=n, noise=noise, steps=_steps(request), features=bool(request.get("features")))
        return {
            "actions": _array(chunk.actions),
            "features": None if chunk.features is None else _array(chunk.features),
            "energy": None if chunk.energy is None else _array(chunk.energy),
        }

    def _context(self, request: Mapping[str, Any], contexts: OrderedDict[int, tuple[Any, int]]) -> tuple[Any, int]:
        """The encoded observation of a request, expanded as it says, and its rows; the newest observations are kept."""
        key = request.get("context")
        if not isinstance(key, int):
            raise SpecError("a request names its observation by a number, context")
        if "obs" in request:
            obs, rows = self._observation(request["obs"], 2)
            contexts[key] = (self.policy.encode(obs), rows)
            while len(contexts) > KEPT_CONTEXTS:
                contexts.popitem(last=False)
        if key not in contexts:
            raise _ForgottenError
        ctx, rows = contexts[key]
        contexts.move_to_end(key)
        candidates = _count(request, "expand", MAX_ROWS)
        return (ctx.expand(candidates) if candidates > 1 else ctx), rows * candidates

    def _observation(self, found: Any, leading: int) -> tuple[dict[str, Any], int]:
        """Observations as the policy takes them, checked against its spec, and their number of rows."""
        spec: PolicySpec = self.policy.spec
        if not isinstance(found, dict):
            raise SpecError("the request holds no observation")
        steps = (spec.n_obs_steps,) if leading == 2 else ()
        obs: dict[str, Any] = {}
        rows = None
        for key, want in spec.observation.tensors.items():
            for name in (key, f"goal.{key}"):
                value = found.get(name)
                if value is None and name != key:
                    continue
                if not isinstance(value, np.ndarray):
                    raise SpecError(f"the policy needs observation {key!r}; given are {', '.join(map(str, found))[:300] or 'none'}")
                rows = len(value) if rows is None and value.ndim else rows
                tail = (rows, *steps, *want.shape) if name == key else (rows, *value.shape[1:])
                if value.shape != tail or value.dtype != np.dtype(want.dtype):
                    raise SpecError(f"observation {name!r} is {value.shape} {value.dtype}, expected {tail} {want.dtype}")
                obs[name] = torch.from_numpy(value).to(self.device)
        if TASK in found:
            texts = found[TASK]
            if not isinstance(texts, list) or len(texts) != rows or not all(isinstance(text, str) for text in texts):
                raise SpecError(f"observation {TASK!r} must be one text per row")
            obs[TASK] = texts
        if not rows or rows > MAX_ROWS:
            raise SpecError(f"an observation of {rows or 0} rows cannot be used: 1 to {MAX_ROWS} are possible")
        return obs, rows

    def _rows(self, request: Mapping[str, Any], name: str, rows: int, ctx: Any) -> Tensor:
        """Chunks x (rows, H, A), or noise levels sigma (rows,)."""
        if rows > MAX_ROWS:
            raise SpecError(f"{rows} chunks are given at once; the server takes up to {MAX_ROWS}")
        spec = self.policy.spec
        return self._given(request, name, (rows, spec.horizon, spec.action_dim) if name == "x" else (rows,))

    def _given(self, request: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
        value = request.get(name)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != np.float32:
            told = f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise SpecError(f"{name} is {told}, expected {shape} float32")
        return torch.from_numpy(value).to(self.device)


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
        ready(f"serving {server.name} at {server.url}; Ctrl-C ends it")
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


def _array(value: Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy()


def _count(request: Mapping[str, Any], name: str, most: int) -> int:
    value = request.get(name, 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise SpecError(f"{name} {value!r:.40} must be a whole number from 1 to {most}")
    return value


def _steps(request: Mapping[str, Any]) -> int | None:
    return None if request.get("steps") is None else _count(request, "steps", MAX_STEPS)
