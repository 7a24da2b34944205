"""The energy policy against closed forms, and beside the objective that learns the mean of two modes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import policies
from policies.base import EmbeddingContext
from policies.energy import EnergyConfig
from policies.energy_network import MlpEnergy, TransformerEnergy
from sinew.errors import SpecError

SHAPE = (5, 3)


@pytest.fixture
def small(toys):
    data = toys.ToyData()
    return lambda **kw: (policies.make("energy", toys.policy_spec(horizon=5), data.stats(), EnergyConfig(hidden=(32, 32), **kw)), data)


@pytest.fixture
def quadratic(small):
    """A policy whose energy is k / 2 |x - m|^2, with one m per row, and a function to make its context."""

    def make(stiffness=20.0, **settings):
        policy, _ = small(**settings)

        def forward(x, condition):
            return 0.5 * stiffness * (x.flatten(1) - condition).square().sum(1), x.mean(1).repeat(1, 11)[:, :32]

        policy.net.forward = forward
        return policy

    return make


def context(minimum):
    return EmbeddingContext(minimum.flatten(1))


# ---------------------------------------------------------------- descent


def test_descent_on_a_quadratic_follows_the_closed_form(quadratic):
    """x_k - m = (1 - step_size * stiffness)^k (x_0 - m)."""
    policy = quadratic(stiffness=8.0, step_size=0.05, tolerance=0.0)
    minimum, noise = 0.2 * torch.randn(4, *SHAPE), torch.randn(4, 3, *SHAPE).clamp(-0.5, 0.5)
    for steps in (1, 3, 40):
        chunk = policy.sample(context(minimum), n=3, noise=noise, steps=steps)
        expected = minimum.unsqueeze(1) + 0.6**steps * (noise - minimum.unsqueeze(1))
        torch.testing.assert_close(chunk.actions, expected, rtol=0, atol=1e-5)
        last = 0.6 ** (steps - 1) * 8 * (noise - minimum.unsqueeze(1))  # the gradient before the last step
        torch.testing.assert_close(chunk.energy, last.square().mean((2, 3)).sqrt(), rtol=1e-3, atol=1e-6)


def test_each_sample_stops_where_its_own_gradient_is_small(quadratic):
    """Gradients halve at every step: starting at size s, the first below 0.1 is number 1 + ceil(log2(s / 0.1))."""
    policy = quadratic(stiffness=10.0, step_size=0.05, tolerance=0.1, steps=50)
    sizes = torch.tensor([0.05, 0.15, 0.7, 90.0])
    minimum = torch.zeros(4, 15)
    start = sizes[:, None, None] / 10 * torch.ones(4, *SHAPE)
    found = policy.descend(start, minimum)
    assert found.evaluations.tolist() == [1, 2, 4, 11]
    assert (found.slope < 0.1).all()
    torch.testing.assert_close(found.slope, sizes * 0.5 ** (found.evaluations - 1), rtol=1e-4, atol=0)
    for row in range(4):  # a sample's stop does not depend on the others
        alone = policy.descend(start[row : row + 1], minimum[:1])
        assert alone.evaluations.item() == found.evaluations[row] and torch.equal(alone.x[0], found.x[row])
    limited = policy.descend(start, minimum, 3)
    assert limited.evaluations.tolist() == [1, 2, 3, 3]


def test_samples_that_stopped_are_evaluated_no_more(quadratic):
    policy = quadratic(stiffness=10.0, step_size=0.05, tolerance=0.1, steps=50)
    plain, rows = policy.net.forward, []
    policy.net.forward = lambda x, condition: rows.append(len(x)) or plain(x, condition)
    start = torch.tensor([0.05, 0.15, 0.7, 90.0])[:, None, None] / 10 * torch.ones(4, *SHAPE)
    found = policy.descend(start, torch.zeros(4, 15))
    assert rows == [4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1] and sum(rows) == found.evaluations.sum()


def test_the_energy_of_a_chunk_is_how_steep_it_is_there(quadratic):
    policy = quadratic(stiffness=20.0)
    minimum, away = torch.zeros(1, *SHAPE), torch.tensor([0.0, 0.1, -0.3])
    chunks = away[:, None, None] * torch.ones(3, *SHAPE)
    energy = policy.energy(chunks, context(minimum).expand(3))
    torch.testing.assert_close(energy, 20 * away.abs())
    assert "energy" in policy.spec.capabilities


def test_sampling_works_where_gradients_are_off(small, toys):
    policy, data = small()
    obs = {key: value for key, value in toys.batch(data, policy.spec).items() if key in policy.spec.observation}
    noise = torch.randn(8, 2, *SHAPE)
    plain = policy.sample(policy.encode(obs), n=2, noise=noise, features=True)
    assert not plain.actions.requires_grad and not plain.features.requires_grad and not plain.energy.requires_grad
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            there = policy.sample(policy.encode(obs), n=2, noise=noise.clone(), features=True)
            energy = policy.energy(there.actions[:, 0], policy.encode(obs))
        assert torch.equal(there.actions, plain.actions) and torch.equal(there.energy, plain.energy)
        assert torch.equal(there.features, plain.features)
        torch.testing.assert_close(energy, policy.energy(plain.actions[:, 0], policy.encode(obs)))
    assert all(p.grad is None for p in policy.parameters())


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_gradient_and_second_derivatives_of_the_energies_are_those_of_finite_differences(kind):
    net = MlpEnergy(4, 2, 3, (8, 8), 4.0) if kind == "mlp" else TransformerEnergy(4, 2, 3, 4, 2, 2, 4.0)
    net.double()
    for parameter in net.parameters():  # nothing at zero, so that every path counts
        nn.init.normal_(parameter, std=0.3)
    condition, x = net.embed(torch.randn(2, 3).double()), torch.randn(2, 4, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: net(y, condition.detach())[0], (x,))
    assert torch.autograd.gradgradcheck(lambda y, c: net(y, c)[0], (x, condition.detach().requires_grad_()))


def test_the_loss_is_the_error_of_the_gradient_on_the_path_and_leaves_padding_out(small, toys):
    """With energy x.v the gradient is v everywhere; the target is c (noise - action), c = 4 min(1, (1 - gamma) / 0.2)."""
    policy, data = small()
    batch = toys.batch(data, policy.spec, 4)
    batch["action_is_pad"] = torch.zeros(4, 5, dtype=torch.bool)
    batch["action_is_pad"][0, 2:] = True
    slope, seen = torch.randn(*SHAPE), []
    policy.net.forward = lambda x, condition: seen.append(x) or ((x * slope).sum((1, 2)), condition)
    gamma, noise = torch.tensor([0.0, 0.5, 0.9, 1.0]), torch.randn(4, *SHAPE)
    loss = policy.loss(batch, t=gamma, noise=noise)
    pull = torch.tensor([4.0, 4.0, 2.0, 0.0])[:, None, None]
    error = (slope - pull * (noise - batch["action"])).square().mean(-1)
    expected = torch.stack([error[0, :2].mean(), *error[1:].mean(-1)])
    torch.testing.assert_close(loss.per_sample, expected)
    torch.testing.assert_close(seen[0][2], 0.9 * batch["action"][2] + 0.1 * noise[2])
    with torch.no_grad():
        torch.testing.assert_close(policy.loss(batch, t=gamma, noise=noise).per_sample, expected)


# ---------------------------------------------------------------- two modes

GAP = 0.25
"""Demonstrations are m(c) + GAP or m(c) - GAP in every element, so that their mean m(c) is GAP from both."""


class TwoModes:
    """Chunks of 4 actions of 3 elements with two equally likely ways to act under every condition."""

    def __init__(self):
        self.stream = torch.Generator().manual_seed(0)

    def middle(self, condition):
        return 0.5 * torch.sin(2 * condition + torch.arange(12)).view(-1, 4, 3)

    def draw(self, rows):
        condition = torch.rand(rows, 1, generator=self.stream) * 2 - 1
        sign = (torch.rand(rows, 1, 1, generator=self.stream) < 0.5).float() * 2 - 1
        return condition, self.middle(condition) + GAP * sign

    def distances(self, chunk, condition):
        """Root mean square distance (R,) to the nearest mode, and whether it is the upper one."""
        off = chunk - self.middle(condition)
        both = torch.stack([(off - GAP * sign).square().mean((1, 2)).sqrt() for sign in (-1, 1)])
        return both.amin(0), both.argmin(0)


def naive_loss(net, condition, action, noise, steps=2, step_size=0.5):
    """Descend from pure noise, and compare what each step gives with the demonstration (energy-based transformers)."""
    x, losses = noise, []
    for _ in range(steps):
        x = x.detach().requires_grad_()
        gradient = torch.autograd.grad(net(x, net.embed(condition))[0].sum(), x, create_graph=True)[0]
        x = x - step_size * gradient
        losses.append((x - action).square().mean())
    return torch.stack(losses).mean()


def learn(parameters, loss, steps=700):
    optimizer = torch.optim.Adam(list(parameters), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def test_equilibrium_matching_keeps_both_modes_where_the_naive_objective_learns_their_mean(toys):
    modes = TwoModes()
    condition, _ = modes.draw(500)
    noise = torch.randn(500, 4, 3, generator=torch.Generator().manual_seed(1))

    naive = MlpEnergy(4, 3, 1, (64, 64), 1.0)

    def descent_loss():
        seen, action = modes.draw(256)
        return naive_loss(naive, seen, action, torch.randn(256, 4, 3))

    learn(naive.parameters(), descent_loss)
    for steps in (2, 6):  # more steps when acting do not mend it
        x = noise.clone()
        for _ in range(steps):
            x = x.detach().requires_grad_()
            x = x - 0.5 * torch.autograd.grad(naive(x, naive.embed(condition))[0].sum(), x)[0]
        distance, _ = modes.distances(x.detach(), condition)
        assert 0.8 * GAP < distance.median() < 1.2 * GAP  # half way between the modes

    spec = toys.policy_spec(horizon=4)
    policy = policies.make("energy", spec, toys.ToyData().stats(), EnergyConfig(hidden=(64, 64)))
    ours = policy.net = MlpEnergy(4, 3, 1, (64, 64), 4.0)
    policy.encode = lambda batch: EmbeddingContext(ours.embed(batch["condition"]))

    def matching_loss():
        seen, action = modes.draw(256)
        return policy.loss({"condition": seen, "action": action}, t=torch.rand(256), noise=torch.randn(256, 4, 3)).scalar

    learn(ours.parameters(), matching_loss)
    chunk = policy.sample(policy.encode({"condition": condition}), noise=noise.unsqueeze(1), steps=50)
    distance, upper = modes.distances(chunk.actions[:, 0], condition)
    assert distance.median() < 0.2 * GAP and distance.quantile(0.9) < 0.5 * GAP
    assert 0.35 < upper.float().mean() < 0.65


# ---------------------------------------------------------------- refusals


def test_wrong_settings_are_told(small):
    policy, _ = small()
    with pytest.raises(SpecError, match="energy backbone 'unet' is unknown: known are mlp, transformer"):
        EnergyConfig(backbone="unet")
    with pytest.raises(SpecError, match="multiple of the 3 heads"):
        EnergyConfig(heads=3)
    for wrong in ({"scale": 0.0}, {"plateau": 1.0}, {"step_size": -1.0}, {"tolerance": -0.1}):
        with pytest.raises(SpecError, match=r"scale > 0, plateau in \[0, 1\)"):
            EnergyConfig(**wrong)
    with pytest.raises(SpecError, match="takes no guidance"):
        policy.sample(context(torch.zeros(1, 32)), guidance=[lambda *a: a[1]])
