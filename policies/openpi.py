"""A policy behind an openpi websocket server (π0, π0.5, …) as ours.

Protocol, as openpi's client and server speak it (github.com/Physical-Intelligence/openpi, packages/openpi-client and
src/openpi/serving): on connecting the server sends its metadata; each request is one observation as a map, each answer a map
with "actions" (H, A) in physical units; arrays are encoded as in `policies.wire`; an error comes as a text frame with a
traceback, and then the connection ends. The server draws its own noise: nothing of ours reaches it, so samples differ from
call to call, latent steering is not possible, and n candidates of B observations are B * n requests.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, noise_for
from policies.wire import Channel, LinkError, dial, pack, unpack
from sinew.errors import DataError, InputError, SpecError
from sinew.protocols import Chunk, Loss
from sinew.specs import TASK, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

KEYS = {
    "observation.images.front": "observation/image",
    "observation.images.wrist": "observation/wrist_image",
    "observation.state": "observation/state",
}
"""Our keys and those of openpi's LIBERO policies; the default, as far as the observation has them."""
_PART = re.compile(r"(?P<key>[^\[\]]+)(\[(?P<first>\d*):(?P<last>\d*)\])?")


@dataclass(frozen=True, kw_only=True)
class OpenpiConfig:
    """Where the policy is and what it calls things."""

    url: str
    """ws://host:port or wss://host:port."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Our keys to the server's; "observation.state[0:7]" is a part of a vector, so that one of ours may become several."""
    prompt: str | None = None
    """Instruction where the observation has none."""
    prompt_key: str = "prompt"
    """The server's name of the instruction."""
    timeout_s: float = 10.0
    """Longest time to be connected, and longest time to wait for one answer, in seconds."""
    warmup_s: float = 300.0
    """Longest time to wait for the very first answer, for which the server may have to compile."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf") or not 0 < self.warmup_s < float("inf"):
            raise InputError(f"a policy server needs time-outs above 0 s, not {self.timeout_s} and {self.warmup_s}")


@dataclass(frozen=True)
class OpenpiContext:
    """Observations in the server's words."""

    requests: tuple[Mapping[str, Any], ...]
    """One map per observation."""
    candidates: int = 1

    @property
    def batch(self) -> int:
        """Rows that the context stands for: observations times candidates."""
        return len(self.requests) * self.candidates

    def expand(self, n: int) -> OpenpiContext:
        """The same observations for n candidates each."""
        return replace(self, candidates=self.candidates * n)


def connect(
    config: OpenpiConfig, observation: ObservationSpec, action: ActionSpec, *, api_key: str | None = None, horizon: int | None = None
) -> OpenpiPolicy:
    """The policy of an openpi server; a first answer to an empty observation tells its horizon and proves that the keys fit.

    Args:
        config: where it is and what it calls things.
        observation: what there is to send; what the keys name of it becomes the policy's observation.
        action: the meaning of its actions, which the protocol does not tell; values beyond the bounds are clipped.
        api_key: sent as "Authorization: Api-Key …".
        horizon: actions of each chunk that are used; None for all.

    Raises:
        SpecError: a key that the observation does not have, or actions of another length than `action` or `horizon` say.
        InputError: no such server, or it refuses the observation: its own last line is told.
        MissingDependency: `websockets` or `msgpack` is not installed: pip install 'sinew[serve]'.
    """
    keys = dict(config.keys) or {ours: theirs for ours, theirs in KEYS.items() if ours in observation.tensors}
    tensors: dict[str, TensorSpec] = {}
    for ours in keys:
        name, _ = _part(ours)
        if name not in observation.tensors:
            raise SpecError(f"the openpi policy is to be sent {name!r}, which is not there: there are {', '.join(observation.tensors)}")
        tensors[name] = observation.tensors[name]
    spec = PolicySpec(observation=ObservationSpec(tensors), action=action, horizon=horizon or 1, capabilities=("language",))
    return OpenpiPolicy(spec, replace(config, keys=keys), api_key, probe=horizon is None)


class OpenpiPolicy(PolicyModule):
    """See `connect`.

    Args:
        spec: observation, action and horizon.
        config: where it is, with its keys filled in.
        api_key: of the server.
        probe: take the horizon from the first answer.
    """

    Config = OpenpiConfig

    def __init__(self, spec: PolicySpec, config: OpenpiConfig, api_key: str | None = None, probe: bool = False) -> None:
        super().__init__(spec, config)
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self.metadata: dict[str, Any] = {}
        tensors = spec.observation.tensors
        empty: dict[str, Any] = {key: torch.zeros(1, 1, *t.shape, dtype=getattr(torch, t.dtype)) for key, t in tensors.items()}
        try:
            actions = self._infer(self.encode({**empty, TASK: [config.prompt or ""]}).requests[0], config.warmup_s)
            if probe:
                self.spec = replace(spec, horizon=len(actions))
            self._physical(actions)
        except BaseException:
            self._drop()
            raise

    def encode(self, obs: Mapping[str, Any]) -> OpenpiContext:
        """{key: (B, 1, ...)} and "task", B texts, in the server's words.

        Raises:
            SpecError: an observation is missing, or there is no instruction.
        """
        config: OpenpiConfig = self.config
        missing = [key for key in self.spec.observation if key not in obs]
        if missing:
            raise SpecError(f"the policy needs observation {missing[0]!r}; given are {', '.join(obs)}")
        rows = len(obs[next(iter(self.spec.observation))])
        texts = obs[TASK] if TASK in obs else [config.prompt] * rows
        if len(texts) != rows or any(text is None for text in texts):
            raise SpecError("an openpi policy needs an instruction per observation: give obs['task'], or a prompt")
        parts = [(theirs, *_part(ours)) for ours, theirs in config.keys.items()]
        arrays = {key: obs[key][:, -1].detach().cpu().numpy() for key in self.spec.observation}
        return OpenpiContext(
            tuple({**{theirs: arrays[key][row][part] for theirs, key, part in parts}, config.prompt_key: texts[row]} for row in range(rows))
        )

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
        """Chunks (B, n, H, A), each from a request of its own.

        Raises:
            SpecError: steps or guidance are given, which the protocol cannot carry.
            InputError: the server cannot be reached, fails, or does not answer in time.
        """
        if guidance or steps is not None:
            raise SpecError("steps and guidance cannot be sent to an openpi server: set them where the policy is served")
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        rows = [request for request in ctx.requests for _ in range(ctx.candidates * n)]
        chunks = [self._physical(self._infer(request, self.config.timeout_s)) for request in rows]
        actions = self.spec.action.normalize(torch.from_numpy(np.stack(chunks))).clamp(-1, 1)
        return Chunk(actions=actions.reshape(ctx.batch, n, self.spec.horizon, self.spec.action_dim), noise=noise)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Refused."""
        raise SpecError("a policy behind a server cannot be trained from here: train where its weights are")

    @property
    def device(self) -> torch.device:
        """The CPU: that is where answers arrive."""
        return torch.device("cpu")

    def answer_within(self, timeout_s: float) -> None:
        """Wait no longer for any answer from now on; what does not come by then raises `policies.wire.LinkError`."""
        self.config = replace(self.config, timeout_s=min(self.config.timeout_s, timeout_s))

    def close(self) -> None:
        """Close the connection; the next request would open it again."""
        with self._lock:
            self._drop()

    def _physical(self, actions: np.ndarray) -> np.ndarray:
        """Actions (H, A) float32 in physical units out of the server's answer."""
        horizon, dim = self.spec.horizon, self.spec.action_dim
        if len(actions) < horizon or actions.shape[1] != dim:
            raise SpecError(f"the openpi server gives actions {actions.shape}, expected at least {horizon} of {dim} elements each")
        return actions[:horizon].astype(np.float32)

    def _infer(self, request: Mapping[str, Any], timeout_s: float) -> np.ndarray:
        """One request, on a new connection where the old one was lost; gives actions (H', A')."""
        with self._lock:
            for attempt in range(2):
                try:
                    return self._exchange(request, timeout_s)
                except LinkError as e:
                    self._drop()
                    if attempt or not e.again:
                        raise
                except BaseException:  # an interrupted request leaves an answer behind that nobody reads
                    self._drop()
                    raise
        raise LinkError(f"{self.config.url} cannot be reached")

    def _exchange(self, request: Mapping[str, Any], timeout_s: float) -> np.ndarray:
        if self._channel is None:
            self._channel = dial(self.config.url, headers=self._headers, timeout_s=self.config.timeout_s)
            self.metadata = _read(self._channel, self.config.timeout_s)
            if self.metadata.get("server") == "sinew":
                raise LinkError(f"{self.config.url} is served by sinew serve; connect with policies.remote")
        self._channel.send(pack(request))
        actions = _read(self._channel, timeout_s).get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
            told = f"{actions.shape} {actions.dtype}" if isinstance(actions, np.ndarray) else type(actions).__name__
            raise DataError(f"{self.config.url} answered with actions {told}, expected floats (H, A)")
        return actions

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def _read(channel: Channel, timeout_s: float) -> dict[str, Any]:
    """The next message; a text frame holds the server's traceback, of which the last line is told."""
    data = channel.receive(timeout_s)
    if isinstance(data, str):
        lines = [line.strip() for line in data.splitlines() if line.strip()] or ["no reason given"]
        raise LinkError(f"the openpi server at {channel.url} failed: {lines[-1][:300]}")
    try:
        message = unpack(data)
    except DataError as e:
        raise LinkError(f"{channel.url} does not answer as an openpi server: {e}") from None
    if not isinstance(message, dict):
        raise LinkError(f"{channel.url} does not answer as an openpi server: it sent a {type(message).__name__}")
    return message


def _part(ours: str) -> tuple[str, Any]:
    """Key and slice of "key" or "key[first:last]".

    Raises:
        InputError: it is neither.
    """
    found = _PART.fullmatch(ours)
    if found is None:
        raise InputError(f"{ours!r} is not a key: give KEY or KEY[FIRST:LAST]")
    first, last = found["first"], found["last"]
    return found["key"], slice(int(first) if first else None, int(last) if last else None)
