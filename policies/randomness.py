"""Random streams that are functions of their counters: what is drawn depends on (seed, counters) and nothing before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

_MASK = 2**64 - 1


def mix(*counters: int) -> int:
    """One 63-bit seed out of several integers; close inputs give unrelated seeds."""
    words = [int(c) & _MASK for c in counters]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*counters: int) -> Generator:
    """A torch generator on the CPU, seeded by `mix` of the counters."""
    return torch.Generator().manual_seed(mix(*counters))


def normal(shape: tuple[int, ...], seed: int, counter: int) -> Tensor:
    """N(0, I) of `shape` float32, number `counter` of the stream of `seed` (Philox, Salmon et al. 2011)."""
    stream = np.random.Generator(np.random.Philox(key=np.array([seed & _MASK, counter & _MASK], dtype=np.uint64)))
    return torch.from_numpy(stream.standard_normal(shape, dtype=np.float32))


class BatchOrder:
    """Which samples make up which batch: epochs of random permutations, cut into batches without a gap.

    Batch number `step` is a function of the seed alone, so training goes on anywhere in the order.

    Args:
        length: number of samples.
        batch_size: samples in a batch; may exceed `length`.
        seed: fixes the order.
        draw: (length,) how often each sample is drawn, relative to the others; None for once in an epoch. In an epoch of `length`
            draws, a sample with the share p of the sum comes floor(p * length) or ceil(p * length) times, p * length on average.

    Source: systematic resampling, Kitagawa 1996, J. Comput. Graph. Stat. 5(1), whose counts vary least.
    """

    def __init__(self, length: int, batch_size: int, seed: int, draw: np.ndarray | None = None) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self._below = None if draw is None else np.cumsum(draw, dtype=np.float64) * (length / np.sum(draw, dtype=np.float64))
        self._last = length - 1 if draw is None else int(np.flatnonzero(draw)[-1])
        self._known = -1, (np.empty(0, np.int64), np.empty(0, np.int64))

    def __getitem__(self, step: int) -> np.ndarray:
        """Sample indices (batch_size,) int64 of batch `step`."""
        position, end, parts = step * self.batch_size, (step + 1) * self.batch_size, []
        while position < end:
            epoch, offset = divmod(position, self.length)
            part = self._epoch_of(epoch)[0][offset : offset + end - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)

    def until(self, step: int) -> int:
        """The batch after those that are best read together with batch `step`."""
        return step + 1

    def _epoch_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples of an epoch in their order, (length,), and the places where its pools end."""
        number, known = self._known
        if epoch != number:
            stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed & _MASK, epoch])))
            order, ends = self._shuffled(stream)
            if self._below is not None:
                drawn = np.searchsorted(self._below, np.arange(self.length) + stream.random(), side="right")
                order = np.minimum(drawn, self._last)[order]
            known = order, ends
            self._known = epoch, known  # in one piece: another thread may ask for another epoch
        return known

    def _shuffled(self, stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """0 … length - 1 in the order of an epoch, and the places where its pools end."""
        return stream.permutation(self.length), np.array([self.length])
