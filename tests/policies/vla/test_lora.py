"""Low-rank adapters: nothing at first, merged the same, and only they learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from policies.ema import Ema
from policies.vla.lora import LoraConfig, LoraLinear, adapt, merge
from sinew.errors import InputError, SpecError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 4, bias=False)))


def test_adapters_start_as_nothing_and_merge_to_the_same_function():
    module, x = net(), torch.randn(7, 6)
    before = module(x)
    assert adapt(module, LoraConfig(rank=2, alpha=3.0, layers=("0",))) == 2
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    changed = module(x)
    assert not torch.allclose(changed, before, atol=1e-2)
    assert merge(module) == 2 and not any(isinstance(m, LoraLinear) for m in module.modules())
    torch.testing.assert_close(module(x), changed, rtol=0, atol=1e-5)


def test_the_difference_is_the_scaled_product_of_its_factors():
    layer = LoraLinear(nn.Linear(3, 2), rank=1, alpha=4.0)
    with torch.no_grad():
        layer.down.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        layer.up.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.tensor([[1.0, 1.0, 1.0]])
    torch.testing.assert_close(layer(x) - layer.base(x), torch.tensor([[24.0, -24.0]]))  # 4 / 1 * (1 + 2 + 3)


def test_only_the_adapters_are_trained():
    module = net()
    adapt(module, LoraConfig(rank=2, layers=("0",)))
    assert {n.rpartition(".")[2] for n, p in module.named_parameters() if p.requires_grad} == {"down", "up"}


def test_adapters_of_a_bfloat16_layer_learn_and_are_averaged_in_float32():
    layer = LoraLinear(nn.Linear(6, 5).to(torch.bfloat16), rank=2, alpha=2.0)
    x = torch.randn(7, 6, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16 and torch.equal(layer(x), layer.base(x))
    assert layer.up.dtype == layer.down.dtype == torch.float32
    average = Ema([layer.up], 0.999)
    average.updates = 20000  # long after the start, where a step of the average is a thousandth of the way
    with torch.no_grad():
        layer.up.fill_(0.3)
    for _ in range(5000):
        average.update()
    average.swap()
    torch.testing.assert_close(layer.up, torch.full_like(layer.up, 0.3), rtol=0.01, atol=0)
    merged = layer.merged()
    assert merged.weight.dtype == torch.bfloat16
    torch.testing.assert_close(merged(x), layer(x), rtol=0.05, atol=0.05)


def test_names_that_fit_nothing_are_told():
    with pytest.raises(InputError, match="no linear layer is named 'q_proj'; there are 0"):
        adapt(net(), LoraConfig())
    with pytest.raises(SpecError, match="rank must be at least 1"):
        LoraConfig(rank=0)
