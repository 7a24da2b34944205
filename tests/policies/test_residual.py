"""The residual policy."""

from __future__ import annotations

import pytest
import torch

import policies
from policies.executor import ChunkExecutor
from sinew.errors import SpecError


@pytest.fixture
def pair(toys):
    base, data = toys.make("flow-mlp")
    return base, policies.Residual(base, scale=0.25, hidden=(32, 32)), data


def newest(data, rows):
    return {key: torch.from_numpy(value[:rows]) for key, value in data.frames.items()}


def test_a_fresh_residual_acts_exactly_as_its_base(pair):
    base, residual, data = pair
    one, two = ChunkExecutor(base, 6, act_steps=2), ChunkExecutor(residual, 6, act_steps=2)
    for executor in (one, two):
        executor.reset(seeds=range(6))
    for _ in range(5):
        obs = newest(data, 6)
        assert torch.equal(one.act(obs), two.act(obs))


def test_correction_is_the_clipped_sum(pair):
    _, residual, data = pair
    torch.nn.init.normal_(residual.actor.layers[-1].weight, std=3.0)
    obs, planned = newest(data, 6), torch.linspace(-1, 1, 18).view(6, 3)
    correction = residual.actor(residual.observe(obs), planned)
    assert correction.abs().max() <= 0.25 and correction.abs().max() > 0.2
    assert torch.equal(residual.correct(obs, planned), (planned + correction).clamp(-1, 1))


def test_actor_can_be_trained_while_the_base_stays(pair):
    base, residual, data = pair
    trained = [name for name, p in residual.named_parameters() if p.requires_grad]
    assert trained == [f"actor.{name}" for name, _ in residual.actor.named_parameters()]
    before = {name: value.clone() for name, value in base.state_dict().items()}
    optimizer = torch.optim.Adam(residual.actor.parameters(), lr=1e-2)
    obs, planned = newest(data, 6), torch.zeros(6, 3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (residual.correct(obs, planned) - 0.2).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


def test_corrections_nest(pair, toys):
    outer, data = toys.make("residual-residual-flow-mlp")
    obs, planned = newest(data, 4), torch.zeros(4, 3)
    inner = outer.base.correct(obs, planned)
    expected = (inner + outer.actor(outer.observe(obs), inner)).clamp(-1, 1)
    assert torch.equal(outer.correct(obs, planned), expected)


def test_wrong_settings_are_told(pair):
    with pytest.raises(SpecError, match=r"scale 0\.0 must be in \(0, 2\]"):
        policies.Residual(pair[0], scale=0)


def test_the_energy_of_its_base_is_its_own(toys):
    base, data = toys.make("energy-transformer")
    residual, batch = policies.Residual(base), toys.batch(data, base.spec, 4)
    assert "energy" in residual.spec.capabilities
    x, context = batch["action"], residual.encode(batch)
    assert torch.equal(residual.energy(x, context), base.energy(x, context))
    with pytest.raises(SpecError, match="needs a policy with capability 'energy'; FlowPolicy has"):
        toys.make("residual-flow-mlp")[0].energy(x, context)
