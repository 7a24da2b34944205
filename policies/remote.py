"""A policy that runs in another process or on another machine, behind `sinew serve`: used like any other."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, noise_for
from policies.wire import MAX_BYTES, Channel, LinkError, dial, pack, read_token, unpack
from sinew.config import from_json
from sinew.errors import DataError, InputError, SinewError, SpecError
from sinew.protocols import Chunk, Loss, Obs
from sinew.specs import TASK, PolicySpec

__all__ = ["RemoteConfig", "RemoteContext", "RemotePolicy", "connect", "read_token"]

VERSION = 1
"""Version of the messages; client and server must agree."""
VERSION_HEADER = "sinew-policy-version"
REMEMBERED = 64
"""Numbers of observations that a client remembers to have sent; a server keeps fewer."""
FORGOTTEN = "forgotten"
"""Kind of the error with which a server asks for an observation again."""
CAPABILITIES = ("noise", "denoise", "energy", "features", "observe", "correct", "language", "goal")
"""Capabilities that work over the wire."""


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """Where the policy is."""

    url: str
    """ws://host:port or wss://host:port."""
    timeout_s: float = 10.0
    """Longest time to be connected, and longest time to wait for one answer, in seconds."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise InputError(f"a policy server needs a time-out above 0 s, not {self.timeout_s}")


@dataclass(frozen=True)
class RemoteContext:
    """An observation that the server encodes with the first request that needs it, and then keeps for a while."""

    obs: Mapping[str, Any]
    """{key: (B, To, ...)} as arrays."""
    key: int
    """Number of the observation; sent instead of it from the second request on."""
    rows: int
    """Observations B."""
    candidates: int = 1

    @property
    def batch(self) -> int:
        """Rows that the context stands for: observations times candidates."""
        return self.rows * self.candidates

    def expand(self, n: int) -> RemoteContext:
        """The same observation for n candidates each; nothing is copied or sent."""
        return replace(self, candidates=self.candidates * n)


def connect(url: str, token: str | None = None, *, timeout_s: float = 10.0) -> RemotePolicy:
    """The policy that `sinew serve RUN` serves at `url`.

    Args:
        url: ws://host:port, or wss://host:port behind a proxy that ends TLS.
        token: what the server's token file holds (`read_token(path)`); None for a server without one.
        timeout_s: longest time to be connected, and longest time to wait for one answer, in seconds.

    Raises:
        InputError: no such server, wrong token, another version, no answer in time: one line that says which.
        MissingDependency: `websockets` or `msgpack` is not installed: pip install 'sinew[serve]'.
    """
    return RemotePolicy(RemoteConfig(url=url, timeout_s=timeout_s), token)


class RemotePolicy(PolicyModule):
    """A served policy as a policy: the same noise gives the same actions as on the server, bit for bit.

    Noise is drawn here and sent, so generators and seeds mean what they mean locally. An observation is sent once; further
    samples of the same context send its number. A connection that was lost is opened again, once per call; what then fails
    raises in one line, and the next call tries anew. No call takes longer than twice its time-out and the time to connect.

    Args:
        config: where it is.
        token: the server's token.
    """

    Config = RemoteConfig

    def __init__(self, config: RemoteConfig, token: str | None = None) -> None:
        self._url, self._timeout_s, self._token = config.url, config.timeout_s, token
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._requests = itertools.count()
        self._sent: set[int] = set()
        channel, hello = self._open()
        try:
            spec = from_json(PolicySpec, hello.get("spec"), f"{config.url}: spec")
        except BaseException:
            channel.close()
            raise
        kept = tuple(name for name in spec.capabilities if name in CAPABILITIES)
        super().__init__(replace(spec, capabilities=kept), config)
        self._channel: Channel | None = channel
        self._hello, self._max_bytes = hello, int(hello.get("max_bytes", MAX_BYTES))
        self.name = str(hello.get("policy", ""))

    # ------------------------------------------------------------ as a policy

    def encode(self, obs: Mapping[str, Any]) -> RemoteContext:
        """Take what the policy looks at; nothing is sent before it is needed."""
        arrays = self._pick(obs)
        rows = len(next((arrays[key] for key in self.spec.observation if key in arrays), ()))
        return RemoteContext(arrays, next(self._numbers), rows)

    def sample(
        self,
        ctx: Any,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """See `sinew.protocols.Policy.sample`.

        Raises:
            SpecError: guidance is given, which cannot be sent; wrong noise; or what the served policy refuses.
            InputError: the server cannot be reached or does not answer in time.
        """
        if guidance:
            raise SpecError("guidance cannot be sent to a policy server: guide the policy where it is served")
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        answer = self._ask("sample", ctx, n=n, noise=_array(noise), steps=steps, features=features)
        actions = self._tensor(answer, "actions", (ctx.batch, n, self.spec.horizon, self.spec.action_dim))
        told = {
            name: self._tensor(answer, name, shape) if answer.get(name) is not None else None
            for name, shape in (("features", (ctx.batch, n, self.spec.feature_dim)), ("energy", (ctx.batch, n)))
        }
        return Chunk(actions=actions, noise=noise, features=told["features"], energy=told["energy"])

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """See `sinew.protocols.HasDenoiser`; one request per call, without gradient."""
        return self._tensor(self._ask("denoise", ctx, x=_array(x), sigma=_array(sigma)), "value", tuple(x.shape))

    def sigmas(self, steps: int | None = None) -> Tensor:
        """Noise levels of the served policy's native sampler; capability "denoise"."""
        return self._tensor(self._ask("sigmas", None, steps=steps), "value", None)

    def energy(self, x: Tensor, ctx: Any) -> Tensor:
        """See `sinew.protocols.HasEnergy`; one request per call, without gradient."""
        return self._tensor(self._ask("energy", ctx, x=_array(x)), "value", (x.shape[0],))

    def observe(self, obs: Obs) -> Tensor:
        """See `sinew.protocols.HasFeatures`; one request per call."""
        return self._tensor(self._ask("observe", None, obs=self._pick(obs)), "value", None)

    @property
    def observation_dim(self) -> int:
        """Length of what `observe` gives; 0 where it cannot."""
        return int(self._hello.get("observation_dim") or 0)

    def correct(self, obs: Obs, action: Tensor) -> Tensor:
        """See `sinew.protocols.HasCorrection`; one request per call."""
        answer = self._ask("correct", None, obs=self._pick(obs), action=_array(action))
        return self._tensor(answer, "value", tuple(action.shape)).to(action.device)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Refused."""
        raise SpecError("a policy behind a server cannot be trained from here: train where its weights are")

    @property
    def device(self) -> torch.device:
        """The CPU: that is where answers arrive."""
        return torch.device("cpu")

    def close(self) -> None:
        """Close the connection; the next request would open it again."""
        with self._lock:
            self._drop()

    # ------------------------------------------------------------ the connection

    def _open(self) -> tuple[Channel, dict[str, Any]]:
        """A new connection and what the server says of itself."""
        headers = {VERSION_HEADER: str(VERSION), **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        channel = dial(self._url, headers=headers, timeout_s=self._timeout_s)
        try:
            hello = _read(channel, self._timeout_s)
            if hello.get("server") != "sinew":
                raise LinkError(f"{self._url} is not served by sinew serve; for a server of openpi see policies.openpi")
            if hello.get("version") != VERSION:
                raise LinkError(f"{self._url} speaks version {hello.get('version')!r} of the policy messages, this Sinew {VERSION}: "
                                "install the same Sinew on both sides")
        except BaseException:
            channel.close()
            raise
        return channel, hello

    def _ask(self, op: str, ctx: RemoteContext | None, **fields: Any) -> dict[str, Any]:
        """One request and its answer, on a new connection where the old one was lost."""
        with self._lock:
            for attempt in range(2):
                try:
                    return self._exchange(op, ctx, fields)
                except LinkError as e:
                    self._drop()
                    if attempt or not e.again:
                        raise
                except BaseException as e:  # an interrupted request leaves an answer behind that nobody reads
                    if not isinstance(e, SinewError):
                        self._drop()
                    raise
        raise LinkError(f"{self._url} cannot be reached")

    def _exchange(self, op: str, ctx: RemoteContext | None, fields: Mapping[str, Any]) -> dict[str, Any]:
        if self._channel is None:
            self._channel, hello = self._open()
            if hello.get("spec") != self._hello.get("spec"):
                raise LinkError(f"{self._url} now serves another policy than it did; connect anew")
        request = {"op": op, "id": next(self._requests), **fields}
        if ctx is not None:
            request |= {"context": ctx.key, "expand": ctx.candidates}
            answer = self._send(request if ctx.key in self._sent else {**request, "obs": ctx.obs})
            if answer.get("kind") == FORGOTTEN:
                answer = self._send({**request, "obs": ctx.obs})
            if len(self._sent) >= REMEMBERED:
                self._sent.clear()
            self._sent.add(ctx.key)
        else:
            answer = self._send(request)
        if "error" in answer:
            kind = SpecError if answer.get("kind") == "input" else InputError
            raise kind(f"{self._url}: {answer['error']}")
        return answer

    def _send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._channel is None:
            raise LinkError(f"{self._url} is not connected")
        data = pack(request)
        if len(data) > self._max_bytes:
            sizes = f"up to {self._max_bytes} bytes, this one has {len(data)}"
            raise SpecError(f"{self._url} takes messages of {sizes}: send smaller images or fewer rows")
        self._channel.send(data)
        answer = _read(self._channel, self._timeout_s)
        if answer.get("id") != request["id"]:
            raise LinkError(f"{self._url} answered another request than the one that was sent: {str(answer.get('error', ''))[:200]}")
        return answer

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        self._sent.clear()
        if channel is not None:
            channel.close()

    def _pick(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """What the policy looks at, as arrays."""
        goals = [f"goal.{key}" for key in self.spec.observation]
        picked: dict[str, Any] = {key: _array(obs[key]) for key in (*self.spec.observation, *goals) if key in obs}
        if TASK in obs and "language" in self.spec.capabilities:
            picked[TASK] = list(obs[TASK])
        return picked

    def _tensor(self, answer: Mapping[str, Any], name: str, shape: tuple[int, ...] | None) -> Tensor:
        found = answer.get(name)
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or (shape is not None and found.shape != shape):
            told = getattr(found, "shape", type(found).__name__)
            raise DataError(f"{self._url} answered with {name} {told}, expected floats of shape {shape or 'any'}")
        return torch.from_numpy(found)


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


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
