"""Shards shuffled within pools: whole epochs, any batch by its number, and how good the shuffle is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.batches import AHEAD, Windows, window_bytes
from policies.orders import ShardOrder, Shards
from policies.parallel import Group
from policies.randomness import BatchOrder
from policies.train import TrainConfig
from sinew.errors import InputError

FRAMES, EPISODE, BATCH = 20_000, 100, 64
SHARDS = Shards(shard_frames=16, pool_frames=1600)


def epoch(order, number=0):
    per = -(-FRAMES // order.batch_size)
    flat = np.concatenate([order[step] for step in range(number * per, (number + 2) * per)])
    start = number * per * order.batch_size
    first = -(-start // FRAMES) * FRAMES - start
    return flat[first : first + FRAMES]


@pytest.mark.parametrize(("length", "batch", "shard", "pool"), [(100, 7, 8, 32), (50, 8, 1, 1), (10, 32, 64, 1000), (1, 4, 3, 3)])
def test_epochs_are_whole_and_pools_end_where_they_say(length, batch, shard, pool):
    order = ShardOrder(length, batch, 3, None, Shards(shard, pool))
    flat = np.concatenate([order[step] for step in range(4 * length)])
    for number in range(len(flat) // length):
        assert sorted(flat[number * length : (number + 1) * length]) == list(range(length))
    again, step = ShardOrder(length, batch, 3, None, Shards(shard, pool)), 0
    while step < 2 * length:
        end = again.until(step)
        assert end > step and np.array_equal(again[end], order[end]) and again.until(end - 1) == end
        together = {int(i) for s in range(step, end) for i in order[s]}
        assert len(together) <= max(pool, shard) + 2 * batch, "no more than a pool, and what its ends have of the next ones"
        step = end


def test_how_good_the_shuffle_is():
    """Against a shuffle of everything: as good over the epoch, and in a batch as many episodes as the pool's shards allow."""
    order, full = ShardOrder(FRAMES, BATCH, 1, None, SHARDS), BatchOrder(FRAMES, BATCH, 1)
    pool, episodes = SHARDS.pool_frames // SHARDS.shard_frames, FRAMES // EPISODE
    for number in range(2):
        rows = epoch(order, number)
        rank = np.corrcoef(np.arange(FRAMES), rows)[0, 1]
        # Whole shards move together, so there are FRAMES / shard_frames independent places: 4 standard deviations of their correlation.
        assert abs(rank) < 4 / np.sqrt(FRAMES / SHARDS.shard_frames)
        neighbours = np.abs(np.diff(rows)) == 1
        # Two neighbours of a shard are next to each other with chance 2 / pool_frames; of n frames about 2 do so, in any direction.
        assert neighbours.mean() < 4 * 2 / SHARDS.pool_frames
    seen = [np.unique(order[step] // EPISODE).size for step in range(200)]
    everything = [np.unique(full[step] // EPISODE).size for step in range(200)]
    assert abs(np.mean(everything) - episodes * (1 - (1 - 1 / episodes) ** BATCH)) < 1
    shards_seen = pool * (1 - (1 - 1 / pool) ** BATCH)
    in_shards = episodes * (1 - (1 - 1 / episodes) ** shards_seen)  # shards of one episode count once
    assert np.mean(seen) > in_shards - 2 and np.mean(seen) > 0.75 * np.mean(everything)
    assert not np.array_equal(epoch(order, 0), epoch(order, 1))


def test_frames_that_are_drawn_more_often_are_so_in_pools_too():
    draw = np.repeat([1.0, 3.0], FRAMES // 2)
    rows = epoch(ShardOrder(FRAMES, BATCH, 1, draw, SHARDS))
    assert np.mean(rows >= FRAMES // 2) == pytest.approx(0.75, abs=1e-3)
    assert abs(np.corrcoef(np.arange(FRAMES), rows)[0, 1]) < 4 / np.sqrt(FRAMES / SHARDS.shard_frames)


class Reads:
    """Which frames a dataset is asked for, in which order."""

    def __init__(self, data):
        self.data, self.asked = data, []

    def __getattr__(self, name):
        return getattr(self.data, name)

    def __len__(self):
        return len(self.data)

    def window(self, indices, *rest):
        self.asked.append(np.array(indices))
        return self.data.window(indices, *rest)


@pytest.mark.parametrize("camera", [False, True])
@pytest.mark.parametrize("early_share", [0.0, 0.25])
def test_pools_that_are_read_in_a_row_give_the_same_batches_as_data_in_memory(toys, camera, early_share):
    data, spec = toys.ToyData(episodes=30, length=20, camera=camera), toys.policy_spec(camera=camera, n_obs_steps=2)
    how = {"pool_bytes": 200 * (1 + AHEAD) * window_bytes(spec), "shard_frames": 10, "early_share": early_share}
    spied = Reads(data)
    kept = Windows(data, spec, 16, 5, Group(), **how)
    pooled = Windows(spied, spec, 16, 5, Group(), limit_bytes=0, **how)
    for (indices, batch), (others, other) in zip(kept(0, 60), pooled(0, 60), strict=True):
        assert np.array_equal(indices, others)
        assert all(torch.equal(batch[key], other[key]) and batch[key].dtype == other[key].dtype for key in batch)
    assert len(spied.asked) < 20 and all((np.diff(rows) > 0).all() for rows in spied.asked if len(rows) > 16)
    if not early_share:
        runs = [np.mean(np.diff(rows) == 1) for rows in spied.asked if len(rows) > 150]
        assert runs and min(runs) > 0.7, "most frames come right after another"
    later = list(Windows(data, spec, 16, 5, Group(), limit_bytes=0, **how)(41, 60))
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(later, list(kept(41, 60)), strict=True)), "resumed in the middle of a pool"


def test_processes_share_pools_and_take_the_same_batches(toys):
    data, spec = toys.ToyData(episodes=20, length=20), toys.policy_spec()
    how = {"limit_bytes": 0, "pool_bytes": 100 * (1 + AHEAD) * window_bytes(spec)}
    whole = list(Windows(data, spec, 12, 1, Group(), **how)(3, 15))
    parts = [list(Windows(data, spec, 12, 1, Group(rank, 3), **how)(3, 15)) for rank in range(3)]
    for step, (indices, batch) in enumerate(whole):
        assert np.array_equal(np.concatenate([part[step][0] for part in parts]), indices)
        for key in batch:
            assert torch.equal(torch.cat([part[step][1][key] for part in parts]), batch[key])


def test_an_error_while_reading_ahead_reaches_the_training(toys):
    data, spec = toys.ToyData(), toys.policy_spec()

    class Damaged(Reads):
        def window(self, indices, *rest):
            if len(self.asked) > 3:
                raise InputError("a.mp4 is damaged")
            return super().window(indices, *rest)

    batches = Windows(Damaged(data), spec, 16, 5, Group(), limit_bytes=0)(0, 50)
    assert len([next(batches) for _ in range(4)]) == 4
    with pytest.raises(InputError, match=r"a\.mp4 is damaged"):
        list(batches)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="pool_mb -1 must not be negative"):
        TrainConfig(pool_mb=-1)
    with pytest.raises(InputError, match="shard_frames 0 must be at least 1"):
        TrainConfig(pool_mb=1, shard_frames=0)
