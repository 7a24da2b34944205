"""The moving average against its closed form."""

from __future__ import annotations

import torch

from policies.ema import Ema


def test_average_follows_its_closed_form():
    parameter = torch.zeros(3)
    ema = Ema([parameter], decay=0.5)
    parameter += 1
    # Decays at the start: 1/10, 2/11, 3/12; the average of ones started at zero is 1 minus their product.
    product = 1.0
    for k in range(3):
        ema.update()
        product *= (1 + k) / (10 + k)
        torch.testing.assert_close(ema.averages[0], torch.full((3,), 1 - product))
    assert torch.equal(parameter, torch.ones(3))


def test_final_decay_is_reached_and_kept():
    parameter = torch.zeros(1)
    ema = Ema([parameter], decay=0.5)
    for _ in range(8):  # (1 + 8) / (10 + 8) = 0.5
        ema.update()
    parameter += 1
    ema.update()
    ema.update()
    torch.testing.assert_close(ema.averages[0], torch.tensor([1 - 0.25]))


def test_swap_exchanges_and_undoes():
    parameter = torch.ones(2)
    ema = Ema([parameter], decay=0.9)
    parameter += 1
    ema.swap()
    assert torch.equal(parameter, torch.ones(2)) and torch.equal(ema.averages[0], torch.full((2,), 2.0))
    ema.swap()
    assert torch.equal(parameter, torch.full((2,), 2.0))
