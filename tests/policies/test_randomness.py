"""Streams that are functions of their counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.randomness import BatchOrder, generator, mix, normal


@pytest.mark.parametrize(("length", "batch"), [(10, 3), (7, 7), (5, 12), (1, 4)])
def test_batches_are_whole_epochs_without_a_gap(length, batch):
    order = BatchOrder(length, batch, seed=4)
    flat = np.concatenate([order[step] for step in range(3 * length)])
    assert all(len(order[step]) == batch for step in range(4))
    for epoch in range(len(flat) // length):
        assert sorted(flat[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_any_batch_can_be_had_without_those_before():
    walked = [BatchOrder(50, 8, 1)[step] for step in range(20)]
    order = BatchOrder(50, 8, 1)
    for step in (13, 2, 19, 0):
        assert np.array_equal(order[step], walked[step])
    assert not np.array_equal(BatchOrder(50, 8, 2)[0], walked[0])


def test_an_epoch_draws_each_sample_as_often_as_its_weight_says():
    draw = np.array([0.0, 1, 1, 0, 2.5, 0.25, 0])
    order, epochs = BatchOrder(7, 7, 3, draw), 400
    counts = np.array([np.bincount(order[epoch], minlength=7) for epoch in range(epochs)])
    exact = 7 * draw / draw.sum()
    assert (counts >= np.floor(exact)).all() and (counts <= np.ceil(exact)).all()
    np.testing.assert_allclose(counts.mean(0), exact, atol=4 * 0.5 / np.sqrt(epochs))
    again = BatchOrder(7, 7, 3, draw)
    assert np.array_equal(again[11], order[11]), "a batch depends on its number alone"
    assert sorted(BatchOrder(7, 7, 3, np.full(7, 0.1))[5]) == list(range(7))


def test_noise_is_a_function_of_seed_and_counter():
    assert torch.equal(normal((3, 2), 7, 1), normal((3, 2), 7, 1))
    assert not torch.equal(normal((3, 2), 7, 1), normal((3, 2), 7, 2))
    assert not torch.equal(normal((3, 2), 7, 1), normal((3, 2), 8, 1))
    assert not torch.equal(normal((3, 2), -1, 1), normal((3, 2), -2, 1)), "all 64 bits of a seed count"
    many = torch.stack([normal((4,), mix(s), c) for s in range(50) for c in range(20)])
    assert abs(many.mean()) < 0.08 and abs(many.std() - 1) < 0.06
    assert np.abs(np.corrcoef(many.T.numpy()) - np.eye(4)).max() < 0.15


def test_mixed_seeds_differ_and_negative_ones_are_taken():
    seeds = {mix(a, b) for a in range(-5, 20) for b in range(20)}
    assert len(seeds) == 500 and all(0 <= s < 2**63 for s in seeds)
    assert torch.equal(torch.rand(3, generator=generator(-1, 2)), torch.rand(3, generator=generator(-1, 2)))
