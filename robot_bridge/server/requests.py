"""What clients may ask of a policy, checked word for word before the policy sees it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinew.errors import SpecError
from sinew.specs import TASK, PolicySpec

KEPT_CONTEXTS = 8
"""Observations that are kept for each client, fewer where they are large."""
MAX_ROWS = 4096
"""Most chunks in one answer."""
MAX_STEPS = 1000
"""Most sampling steps in one request."""
NEEDS = {"denoise": "denoise", "sigmas": "denoise", "energy": "energy", "observe": "observe", "correct": "correct"}
"""Capability behind each operation that not every policy has."""
OPERATIONS = ("sample", *NEEDS)


class ForgottenError(Exception):
    """The observation that a request names is not kept."""


@dataclass(eq=False)
class Kept:
    """An observation of a client; encoded when it is first needed alone."""

    obs: Mapping[str, Any]
    rows: int
    bytes: int
    context: Any = None

    def encoded(self, policy: Any) -> Any:
        """The policy's context of it."""
        if self.context is None:
            self.context = policy.encode(self.obs)
        return self.context


class Memory:
    """The newest observations of one client, up to a number and a size."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, int], Kept] = OrderedDict()

    def keep(self, policy: str, key: int, kept: Kept) -> None:
        """Add one; the oldest give way."""
        self._kept.pop((policy, key), None)
        self._kept[policy, key] = kept
        while len(self._kept) > KEPT_CONTEXTS or (len(self._kept) > 1 and sum(k.bytes for k in self._kept.values()) > self._max_bytes):
            self._kept.popitem(last=False)

    def find(self, policy: str, key: int) -> Kept:
        """One that was added.

        Raises:
            ForgottenError: it is not there.
        """
        if (policy, key) not in self._kept:
            raise ForgottenError
        self._kept.move_to_end((policy, key))
        return self._kept[policy, key]


@dataclass(eq=False, frozen=True)
class Sample:
    """Chunks to be sampled; those that are `alike` can be sampled in one."""

    kept: Kept
    candidates: int
    n: int
    noise: Tensor
    steps: int | None
    features: bool
    alone: bool
    """Whether it may not be sampled with others: the client wants it so, or its observation was sampled before and is encoded."""

    @property
    def alike(self) -> tuple[Any, ...] | None:
        """Equal for samples that can be sampled in one; None for one that cannot."""
        if self.alone or self.candidates != 1:
            return None
        shapes = ((key, getattr(value, "shape", ())[1:]) for key, value in self.kept.obs.items())
        return self.n, self.steps, self.features, tuple(sorted(shapes))

    def work(self, policy: Any) -> dict[str, Any]:
        """The answer."""
        context = self.kept.encoded(policy)
        context = context.expand(self.candidates) if self.candidates > 1 else context
        return _answer(policy.sample(context, n=self.n, noise=self.noise, steps=self.steps, features=self.features))


def together(policy: Any, samples: list[Sample]) -> list[dict[str, Any]]:
    """The answers to samples that are alike, out of one forward pass; to 1e-5 what each alone would give."""
    first = samples[0]
    joined: dict[str, Any] = {}
    for key, value in first.kept.obs.items():
        parts = [sample.kept.obs[key] for sample in samples]
        joined[key] = torch.cat(parts) if isinstance(value, Tensor) else [text for part in parts for text in part]
    noise = torch.cat([sample.noise for sample in samples])
    chunk = _answer(policy.sample(policy.encode(joined), n=first.n, noise=noise, steps=first.steps, features=first.features))
    ends = np.cumsum([sample.kept.rows for sample in samples])
    return [
        {name: None if value is None else value[end - sample.kept.rows : end] for name, value in chunk.items()}
        for sample, end in zip(samples, ends, strict=True)
    ]


@dataclass(frozen=True)
class Reader:
    """Turns the requests to one policy into work."""

    policy: Any
    name: str
    device: torch.device
    spec: PolicySpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.policy.spec)

    def read(self, request: Mapping[str, Any], memory: Memory) -> Sample | Callable[[Any], dict[str, Any]]:
        """A sample, or what else the policy is to do.

        Raises:
            SpecError: the request is not what the policy can answer.
            ForgottenError: it names an observation that is not kept.
        """
        op = request["op"]
        if op not in OPERATIONS:
            raise SpecError(f"unknown operation {op[:40]!r}: known are {', '.join(OPERATIONS)}")
        if op in NEEDS and NEEDS[op] not in self.spec.capabilities:
            raise SpecError(f"the served policy has no capability {NEEDS[op]!r}; it has: {', '.join(self.spec.capabilities) or 'none'}")
        if op == "sample":
            return self._sample(request, memory)
        if op in ("denoise", "energy"):
            return self._on_chunks(op, request, memory)
        if op == "sigmas":
            steps = _steps(request)
            return lambda policy: {"value": _array(policy.sigmas(steps))}
        obs, rows, _ = self._observation(request.get("obs"), 1)
        if op == "observe":
            return lambda policy: {"value": _array(policy.observe(obs))}
        action = self._given(request, "action", (rows, self.spec.action_dim))
        return lambda policy: {"value": _array(policy.correct(obs, action))}

    def _sample(self, request: Mapping[str, Any], memory: Memory) -> Sample:
        kept, candidates = self._kept(request, memory)
        rows, n = kept.rows * candidates, _count(request, "n", MAX_ROWS)
        if rows * n > MAX_ROWS:
            raise SpecError(f"{rows * n} chunks are asked for at once; the server gives up to {MAX_ROWS}")
        noise = self._given(request, "noise", (rows, n, *self.spec.noise_shape))
        alone = bool(request.get("alone")) or "obs" not in request
        return Sample(kept, candidates, n, noise, _steps(request), bool(request.get("features")), alone)

    def _on_chunks(self, op: str, request: Mapping[str, Any], memory: Memory) -> Callable[[Any], dict[str, Any]]:
        kept, candidates = self._kept(request, memory)
        rows = kept.rows * candidates
        if rows > MAX_ROWS:
            raise SpecError(f"{rows} chunks are given at once; the server takes up to {MAX_ROWS}")
        x = self._given(request, "x", (rows, self.spec.horizon, self.spec.action_dim))
        sigma = self._given(request, "sigma", (rows,)) if op == "denoise" else None

        def work(policy: Any) -> dict[str, Any]:
            context = kept.encoded(policy)
            context = context.expand(candidates) if candidates > 1 else context
            return {"value": _array(policy.energy(x, context) if sigma is None else policy.denoise(x, sigma, context))}

        return work

    def _kept(self, request: Mapping[str, Any], memory: Memory) -> tuple[Kept, int]:
        """The observation that a request holds or names, and its number of candidates."""
        key = request.get("context")
        if not isinstance(key, int):
            raise SpecError("a request names its observation by a number, context")
        candidates = _count(request, "expand", MAX_ROWS)
        if "obs" not in request:
            return memory.find(self.name, key), candidates
        kept = Kept(*self._observation(request["obs"], 2))
        memory.keep(self.name, key, kept)
        return kept, candidates

    def _observation(self, found: Any, leading: int) -> tuple[dict[str, Any], int, int]:
        """Observations as the policy takes them, checked against its spec, their number of rows and of bytes."""
        if not isinstance(found, dict):
            raise SpecError("the request holds no observation")
        steps = (self.spec.n_obs_steps,) if leading == 2 else ()
        obs: dict[str, Any] = {}
        rows, size = None, 0
        for key, want in self.spec.observation.tensors.items():
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
                obs[name], size = torch.from_numpy(value).to(self.device), size + value.nbytes
        if TASK in found:
            obs[TASK] = _texts(found[TASK], rows)
        if not rows or rows > MAX_ROWS:
            raise SpecError(f"an observation of {rows or 0} rows cannot be used: 1 to {MAX_ROWS} are possible")
        return obs, rows, size

    def _given(self, request: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
        value = request.get(name)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != np.float32:
            told = f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise SpecError(f"{name} is {told}, expected {shape} float32")
        return torch.from_numpy(value).to(self.device)


def _texts(texts: Any, rows: int | None) -> list[str]:
    if not isinstance(texts, list) or len(texts) != rows or not all(isinstance(text, str) for text in texts):
        raise SpecError(f"observation {TASK!r} must be one text per row")
    return texts


def _answer(chunk: Any) -> dict[str, Any]:
    return {
        "actions": _array(chunk.actions),
        "features": None if chunk.features is None else _array(chunk.features),
        "energy": None if chunk.energy is None else _array(chunk.energy),
    }


def _array(value: Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy()


def _count(request: Mapping[str, Any], name: str, most: int) -> int:
    value = request.get(name, 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise SpecError(f"{name} {value!r:.40} must be a whole number from 1 to {most}")
    return value


def _steps(request: Mapping[str, Any]) -> int | None:
    return None if request.get("steps") is None else _count(request, "steps", MAX_STEPS)
