"""A batch of transitions, and what a learner draws them from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

POLICY, HUMAN, DEMO, SYNTHETIC = 1, 2, 4, 8
"""Bits of `source`: who chose the action of a step."""

FrameSpec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Batch:
    """Transitions, batch first. A transition spans the steps from its start to its bootstrap state."""

    frames: dict[str, Tensor]
    """{key: (B, ...)} at the start."""
    action: Tensor
    """(B, A) executed at the start; (B, stride, A) for a chunk stride above 1, zeros after the episode's end."""
    reward: Tensor
    """(B,) float32: sum of gamma^k r_k over the span."""
    discount: Tensor
    """(B,) float32: gamma^span, and 0 if the episode terminated (never for a time-out)."""
    next_frames: dict[str, Tensor]
    """{key: (B, ...)} at the bootstrap state; meaningless where `discount` is 0."""
    span: Tensor
    """(B,) int64: environment steps covered, at least 1."""
    source: Tensor
    """(B,) uint8: source bits of the first decision, those of all its steps together for a chunk."""
    slot: Tensor
    """(B,) int64: flat slot of the start, time * N + world, to relabel or to prioritise."""

    def map(self, function: Any) -> Batch:
        """`function` applied to every tensor."""
        values = {}
        for name in ("action", "reward", "discount", "span", "source", "slot"):
            values[name] = function(getattr(self, name))
        for name in ("frames", "next_frames"):
            values[name] = {k: function(v) for k, v in getattr(self, name).items()}
        return Batch(**values)


def concatenate(a: Batch, b: Batch) -> Batch:
    """Two batches one after the other."""
    values = {}
    for name in ("action", "reward", "discount", "span", "source", "slot"):
        values[name] = torch.cat((getattr(a, name), getattr(b, name)))
    for name in ("frames", "next_frames"):
        left, right = getattr(a, name), getattr(b, name)
        values[name] = {k: torch.cat((left[k], right[k])) for k in left}
    return Batch(**values)


class Way(TypedDict, total=False):
    """How far transitions reach; see `rl.replay.Ring.sample`."""

    n_step: int
    gamma: float
    stride: int


class Sampler(Protocol):
    """What a learner draws from: the "replay" slot."""

    def sample(
        self,
        batch_size: int,
        *,
        updates: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        stride: int = 1,
        generator: torch.Generator | None = None,
    ) -> list[Batch]:
        """Draw `updates` batches of `batch_size`."""
        ...
