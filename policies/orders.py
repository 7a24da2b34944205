"""In which order samples make up batches where not every frame can be had at once: shards, shuffled within pools."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.randomness import BatchOrder


@dataclass(frozen=True)
class Shards:
    """How far a shuffle reaches where frames are read in a row."""

    shard_frames: int
    """Frames that lie, and are read, next to each other."""
    pool_frames: int
    """Frames of many shards, from all over the dataset, that are shuffled with each other."""


class ShardOrder(BatchOrder):
    """Epochs in which runs of neighbouring samples stay near each other, so that they can be read in a row.

    An epoch is cut into shards, at other places each time; the shards are shuffled and dealt into pools; the samples of a pool
    are shuffled. Where two samples come is independent as far as they are more than a shard apart, and a batch of B samples
    holds samples of about P (1 - (1 - 1/P)^B) of the P shards of its pool.

    Args:
        length, batch_size, seed, draw: see `BatchOrder`.
        shards: sizes of shards and pools.
    """

    def __init__(self, length: int, batch_size: int, seed: int, draw: np.ndarray | None, shards: Shards) -> None:
        super().__init__(length, batch_size, seed, draw)
        self.shards = shards

    def until(self, step: int) -> int:
        """The batch after those that take from the same pool as the first sample of batch `step`, and are best read with it."""
        epoch, offset = divmod(step * self.batch_size, self.length)
        ends = self._epoch_of(epoch)[1]
        end = int(ends[np.searchsorted(ends, offset, side="right")])
        return max(step + 1, -(-(epoch * self.length + end) // self.batch_size))

    def _shuffled(self, stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        shard, first = self.shards.shard_frames, int(stream.integers(1, self.shards.shard_frames + 1))
        cuts = np.array([0, *range(first, self.length, shard), self.length], np.int64)
        order, per_pool = stream.permutation(len(cuts) - 1), max(1, self.shards.pool_frames // shard)
        pools = []
        for at in range(0, len(order), per_pool):
            inside = [np.arange(int(cuts[i]), int(cuts[i + 1])) for i in order[at : at + per_pool]]
            pools.append(stream.permutation(np.concatenate(inside)))
        return np.concatenate(pools), np.cumsum([len(pool) for pool in pools])
