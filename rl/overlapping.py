"""Chunks of a replay that start at any step, not only where they were planned."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from rl.batch import Batch, Way
from rl.replay import Ring
from sinew.errors import InputError


class Overlapping:
    """A ring whose chunks may start at any step of an episode, not only where its own plans did."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._known: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        """Frames that are held."""
        return len(self.ring)

    def sample(self, batch_size: int, *, updates: int = 1, generator: torch.Generator | None = None, **way: Unpack[Way]) -> list[Batch]:
        """As `Ring.sample`; a chunk that the episode's end cuts short keeps its true `span`."""
        window = way.get("n_step", 1) * way.get("stride", 1)
        pool = self._starts(window)
        if not len(pool):
            raise InputError(f"the replay holds no {window} steps in a row; add more before sampling")
        start = pool[torch.randint(len(pool), (batch_size * updates,), generator=generator, device=pool.device)]
        batch = self.ring.gather(start, **way)
        return [batch.map(lambda x, i=i: x[i * batch_size : (i + 1) * batch_size]) for i in range(updates)]

    def _starts(self, window: int) -> Tensor:
        """Steps whose next `window` steps, or all until their episode's end, are there."""
        ring, key = self.ring, (self.ring.count, window)
        if self._known is None or self._known[0] != key:
            pool, N = ring.starts(), ring.num_envs
            first = max(ring.count - window, ring.count - len(ring) // N)
            times = torch.arange(first, ring.count, device=ring.device)
            ended = (ring.terminated | ring.truncated).view(-1, N)
            ended = ended[times % len(ended)]
            ends_later = ended.flip(0).cumsum(0).flip(0) > 0
            time, world = pool // N, pool % N
            self._known = key, pool[(time < first) | ends_later[(time - first).clamp(min=0), world]]
        return self._known[1]
