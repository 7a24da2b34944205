"""Convolutions over a chunk's time: each way of computing them is torch's own, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from policies.convolution import FEW_ROWS, FEW_TIMES, TimeConv, TimeGrow


def check(ours: nn.Module, torchs: nn.Module, x: Tensor) -> None:
    torchs.load_state_dict(ours.state_dict())
    given = []
    for module in (ours, torchs):
        seen = x.clone().requires_grad_()
        module.zero_grad()
        y = module(seen)
        y.square().sum().backward()
        given.append((y.detach(), seen.grad, *(p.grad for p in module.parameters())))
    for mine, expected in zip(*given, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 3])
@pytest.mark.parametrize("times", [1, 2, FEW_TIMES, 2 * FEW_TIMES, 13])
@pytest.mark.parametrize(("length", "stride"), [(5, 1), (3, 2), (1, 1)])
def test_convolution_is_torchs(rows: int, times: int, length: int, stride: int) -> None:
    x = torch.randn(rows, 6, times, dtype=torch.float64)
    ours = TimeConv(6, 4, length, stride, padding=length // 2).double()
    check(ours, nn.Conv1d(6, 4, length, stride, length // 2).double(), x)


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 3])
def test_growth_is_torchs(rows: int) -> None:
    check(TimeGrow(6, 4).double(), nn.ConvTranspose1d(6, 4, 4, 2, 1).double(), torch.randn(rows, 6, 5, dtype=torch.float64))


def test_gradients_of_short_convolutions_have_gradients() -> None:
    ours = TimeConv(2, 3, 3, padding=1).double()
    x = torch.randn(FEW_ROWS + 1, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(ours, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, *ours.parameters())) and torch.autograd.gradgradcheck(run, (x, *ours.parameters()))


@pytest.mark.parametrize("backbone", ["unet", "transformer"])
def test_modulation_ahead_is_that_of_each_step(backbone: str) -> None:
    from policies.backbones import TransformerBackbone, UNetBackbone

    net = UNetBackbone(6, 2, 3, (8, 16), 16, 3, 4, 4) if backbone == "unet" else TransformerBackbone(6, 2, 3, 16, 2, 2, 4)
    for parameter in net.parameters():  # those that start at zero would hide a difference
        nn.init.normal_(parameter, std=0.2)
    x, times, condition = torch.randn(2, 3, 6, 2), net.embed_time(torch.rand(4)), net.embed(torch.randn(2, 3))
    for ahead, time in zip(net.ahead(times, condition), times, strict=True):
        for mine, expected in zip(net(x, ahead, condition), net(x, time, condition), strict=True):
            torch.testing.assert_close(mine, expected)
