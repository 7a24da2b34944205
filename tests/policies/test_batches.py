"""Training batches out of a dataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.base import weighted_loss
from policies.batches import EARLY_FRAMES, Beginnings, Windows, check_horizon
from policies.parallel import Group
from policies.randomness import BatchOrder
from policies.train import TrainConfig
from sinew.errors import DataError, InputError
from sinew.progress import Progress
from sinew.specs import STATE


@pytest.mark.parametrize("camera", [False, True])
def test_kept_and_read_ahead_batches_are_the_same_and_right(toys, camera):
    data, spec = toys.ToyData(camera=camera), toys.policy_spec(camera=camera, n_obs_steps=2)
    kept, read = (Windows(data, spec, 16, 5, Group(), limit_bytes=limit) for limit in (1 << 30, 0))
    pairs = list(zip(kept(3, 20), read(3, 20), strict=True))
    assert len(pairs) == 17
    for (indices, batch), (others, other) in pairs:
        assert np.array_equal(indices, others) and set(batch) == set(other)
        assert all(torch.equal(batch[key], other[key]) and batch[key].dtype == other[key].dtype for key in batch)
        assert torch.equal(batch[STATE][:, -1], torch.from_numpy(data.frames[STATE][indices]))
        torch.testing.assert_close(spec.action.denormalize(batch["action"][:, 0]), torch.from_numpy(data.actions[indices]))
        assert batch["action_is_pad"].dtype == torch.bool
        if camera:
            assert batch[toys.CAMERA].dtype == torch.uint8


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_shares_of_the_processes_make_up_the_batch(toys, limit):
    data, spec = toys.ToyData(), toys.policy_spec()
    whole = list(Windows(data, spec, 12, 1, Group(), limit_bytes=limit)(0, 12))
    parts = [list(Windows(data, spec, 12, 1, Group(rank, 3), limit_bytes=limit)(0, 12)) for rank in range(3)]
    for step, (indices, batch) in enumerate(whole):
        assert np.array_equal(np.concatenate([part[step][0] for part in parts]), indices)
        for key in batch:
            assert torch.equal(torch.cat([part[step][1][key] for part in parts]), batch[key])


def test_loading_is_told_and_an_empty_dataset_refused(toys):
    told = []

    class Note(Progress):
        def start(self, stage, total, done=0):
            told.append((stage, total))

        def advance(self, n=1, **values):
            told.append(n)

    Windows(toys.ToyData(30, 20), toys.policy_spec(), 8, 0, Group(), Note())
    assert told[0] == ("load", 600) and sum(told[1:]) == 600
    with pytest.raises(DataError, match="no frames"):
        Windows(toys.ToyData(0), toys.policy_spec(), 8, 0, Group())


def test_a_horizon_longer_than_every_episode_is_refused(toys):
    data = toys.ToyData(length=20)
    check_horizon(data, 20)
    with pytest.raises(InputError, match="21 actions is longer than the longest episode, 20 frames: choose --horizon up to 20"):
        check_horizon(data, 21)


def test_weights_are_relative_however_small():
    losses = torch.tensor([1.0, 3.0])
    for size in (1e-30, 1e-12, 1.0, 1e12):
        scalar = weighted_loss(losses, {"weight": size * torch.tensor([1.0, 3.0])}).scalar
        torch.testing.assert_close(scalar, torch.tensor(2.5))
    assert weighted_loss(losses, {"weight": torch.zeros(2)}).scalar == 0


def test_a_share_of_each_batch_comes_from_the_beginnings_of_episodes(toys):
    data, spec = toys.ToyData(episodes=10, length=20), toys.policy_spec()
    drawn = Beginnings(data, BatchOrder(len(data), 1000, 3), 0.75)
    frame = np.concatenate([drawn[step] for step in range(20)]) % 20
    chance = 0.25 / 20 + 0.75 * np.exp(-np.arange(20) / EARLY_FRAMES) / np.exp(-np.arange(20) / EARLY_FRAMES).sum()
    np.testing.assert_allclose(np.bincount(frame, minlength=20) / len(frame), chance, atol=4 * np.sqrt(0.25 / len(frame)))
    kept, later = (list(Windows(data, spec, 16, 5, Group(), early_share=0.5)(first, 9)) for first in (0, 6))
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(kept[6:], later, strict=True)), "a batch depends on its number alone"
    plain = next(iter(Windows(data, spec, 16, 5, Group())(0, 1)))[0]
    assert np.array_equal(kept[0][0][8:], plain[8:])


def test_beginnings_need_to_be_known(toys):
    data = toys.ToyData()
    columnless = type("Columnless", (), {"__len__": lambda self: len(data)})()
    with pytest.raises(DataError, match="nothing tells where their episodes begin"):
        Beginnings(columnless, BatchOrder(len(data), 8, 0), 0.5)
    with pytest.raises(InputError, match=r"early_share 1\.5 is a share of the batch: 0 to 1"):
        TrainConfig(early_share=1.5)


def test_frames_are_drawn_by_weight_in_the_usual_order_and_among_beginnings(toys):
    data, spec = toys.ToyData(episodes=10, length=20), toys.policy_spec()
    draw = np.repeat([1.0, 0.0, 0.5, 1, 1, 0, 1, 1, 1, 2], 20)
    for early in (0.0, 0.5):
        batches = list(Windows(data, spec, 16, 5, Group(), early_share=early, draw=draw)(0, 50))
        later = list(Windows(data, spec, 16, 5, Group(), early_share=early, draw=draw)(44, 50))
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(batches[44:], later, strict=True))
        counts = np.bincount(np.concatenate([i for i, _ in batches]) // 20, minlength=10)
        assert not counts[[1, 5]].any() and counts[9] > counts[0] > counts[2] > 0
    whole = list(Windows(data, spec, 12, 1, Group(), draw=draw)(0, 3))
    parts = [list(Windows(data, spec, 12, 1, Group(rank, 3), draw=draw)(0, 3)) for rank in range(3)]
    for step, (indices, _) in enumerate(whole):
        assert np.array_equal(indices, np.concatenate([part[step][0] for part in parts]))
    for wrong in (-draw, np.zeros(200), draw[1:]):
        with pytest.raises(InputError, match="weight"):
            Windows(data, spec, 16, 5, Group(), draw=wrong)
