"""Guidance against closed forms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import policies
from policies.goals import PREFIX
from policies.guided import Guided, ValueGuidance
from sinew.errors import InputError, SpecError
from sinew.specs import ENVIRONMENT_STATE


def observed(toys, policy, data, rows=5):
    batch = toys.batch(data, policy.spec, rows)
    return {key: batch[key] for key in policy.spec.observation}


def pull(x, clean, sigma, ctx):
    return clean + 0.1 * sigma[:, None, None].clamp(max=1)


@pytest.mark.parametrize("name", ["flow-mlp", "diffusion-mlp", "edm-mlp"])
def test_no_strength_changes_nothing_bit_for_bit(toys, name):
    policy, data = toys.make(name)
    guided = Guided(policy, [ValueGuidance(lambda a, ctx: a.sum((1, 2)), 0.0)])
    obs, noise = observed(toys, policy, data), torch.randn(5, 2, *policy.spec.noise_shape)
    one, two = (p.sample(p.encode(obs), n=2, noise=noise).actions for p in (policy, guided))
    assert torch.equal(one, two)


def test_a_quadratic_value_moves_the_estimate_by_the_closed_form():
    """D = k x with k = s^2 / (s^2 + sigma^2), Q = -|D - g|^2 / 2: D' = k x + lambda sigma^2 k (g - k x)."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 2, generator=stream).double().requires_grad_()
    sigma, goal, spread, strength = torch.tensor([0.1, 0.5, 2.0, 30.0]).double(), 0.3, 0.7, 0.2
    k = (spread**2 / (spread**2 + sigma**2))[:, None, None]
    clean = k * x
    guide = ValueGuidance(lambda a, ctx: -0.5 * (a - goal).square().sum((1, 2)), strength, limit=None)
    expected = k * x + strength * sigma.square()[:, None, None] * k * (goal - k * x)
    torch.testing.assert_close(guide(x, clean, sigma, None), expected)
    step = guide(x, clean, sigma, None) - clean
    limited = ValueGuidance(guide.value, strength, limit=0.01)(x, clean, sigma, None) - clean
    length, whole = (v.square().mean((1, 2)).sqrt() for v in (limited, step))
    torch.testing.assert_close(length, whole.clamp(max=0.01))
    cosine = torch.nn.functional.cosine_similarity(limited.flatten(1), step.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4).double())


@pytest.mark.parametrize("name", ["flow-mlp", "diffusion-unet", "edm-mlp", "composed-flow-mlp+diffusion-mlp"])
def test_the_sampler_gives_the_gradient_through_its_own_network(toys, name):
    """The step at the first noise level against finite differences of Q(D(x)) along a random direction."""
    policy, data = toys.make(name)
    policy = policy.double()
    obs = {key: value.double() for key, value in observed(toys, policy, data, 2).items()}
    context, seen = policy.encode(obs), []

    def value(a, ctx):
        return (a.square() * torch.linspace(-1, 1, a.shape[-1]).to(a)).sum((1, 2))

    guide = ValueGuidance(value, 1.0, limit=None)

    def spy(x, clean, sigma, ctx):
        seen.append((x.detach(), (guide(x, clean, sigma, ctx) - clean).detach(), sigma))
        return clean

    wrapper: object = type("Spy", (), {"differentiates": True, "__call__": staticmethod(spy)})()
    noise = torch.randn(2, 1, *policy.spec.noise_shape).double()
    policy.sample(context, noise=noise, guidance=[wrapper])
    x, step, sigma = seen[-1]  # the last step: noise is small, the network matters
    direction = torch.randn_like(x)
    told = (step / sigma.square()[:, None, None] * direction).sum((1, 2))
    h = 1e-6
    up, down = (value(policy.denoise(x + s * h * direction, sigma, context), None) for s in (1, -1))
    torch.testing.assert_close(told, (up - down) / (2 * h), rtol=1e-4, atol=1e-7)


def test_value_guidance_raises_the_value_and_repeats_itself(toys):
    policy, data = toys.make("flow-mlp")
    guided = Guided(policy, [ValueGuidance(lambda a, ctx: -(a - 0.5).square().sum((1, 2)), 0.3)])
    obs, noise = observed(toys, policy, data), torch.randn(5, 2, *policy.spec.noise_shape)
    plain = policy.sample(policy.encode(obs), n=2, noise=noise).actions
    one, two = (guided.sample(guided.encode(obs), n=2, noise=noise).actions for _ in range(2))
    assert torch.equal(one, two) and not one.requires_grad
    assert bool(((one - 0.5).square().sum((2, 3)) < (plain - 0.5).square().sum((2, 3))).all())
    with torch.no_grad():  # as in the executor
        assert torch.equal(guided.sample(guided.encode(obs), n=2, noise=noise).actions, one)
    assert not any(p.grad is not None for p in policy.parameters())


def test_the_goals_scale_is_that_of_a_policy_made_with_it(toys):
    """Base of scale 2 under a wrapper of 1.5 is a base of scale 3: D_free + 1.5 * 2 (D_goal - D_free)."""
    policy, data = toys.make("edm-transformer")
    obs = observed(toys, policy, data)
    obs[PREFIX + ENVIRONMENT_STATE] = torch.randn(5, 3)
    free = {key: value for key, value in obs.items() if not key.startswith(PREFIX)}
    more = policies.make("edm", toys.policy_spec(horizon=5), data.stats(), _scaled(policy.config, 3.0), seed=3).eval()
    more.load_state_dict(policy.state_dict())
    noise = torch.randn(5, 2, *policy.spec.noise_shape)

    def actions(p, seen=obs):
        return p.sample(p.encode(seen), n=2, noise=noise).actions

    torch.testing.assert_close(actions(Guided(policy, goal_scale=1.5)), actions(more), rtol=0, atol=1e-5)
    torch.testing.assert_close(actions(Guided(policy, goal_scale=0)), actions(policy, free), rtol=0, atol=1e-5)
    assert torch.equal(actions(Guided(policy, goal_scale=1)), actions(policy))
    assert torch.equal(actions(Guided(policy, goal_scale=1.5), free), actions(policy, free))
    guided, x, sigma = Guided(policy, goal_scale=1.5), torch.randn(5, 5, 3), torch.full((5,), 0.7)
    torch.testing.assert_close(guided.denoise(x, sigma, guided.encode(obs)), more.denoise(x, sigma, more.encode(obs)), atol=1e-5, rtol=0)


def _scaled(config, scale):
    from dataclasses import replace

    return replace(config, goal=replace(config.goal, scale=scale))


def test_reach_bounds_every_action_and_guidance_of_a_call_acts_after_its_own(toys):
    policy, data = toys.make("flow-mlp")
    obs = observed(toys, policy, data)
    guided = Guided(policy, [pull], reach=0.2)
    assert guided.sample(guided.encode(obs), n=50).actions.abs().max() <= 0.2 + 1e-6
    order: list[str] = []
    spy = SimpleNamespace(note=lambda name: lambda x, clean, sigma, ctx: (order.append(name), clean)[1])
    Guided(policy, [spy.note("own")]).sample(policy.encode(obs), steps=1, guidance=[spy.note("given")])
    assert order == ["own", "given"]


def test_what_it_needs_is_told_in_the_constructor(toys, tmp_path):
    policy, _ = toys.make("flow-mlp")
    with pytest.raises(SpecError, match="a goal scale needs a policy with capability 'goal'"):
        Guided(policy, goal_scale=2)
    with pytest.raises(SpecError, match="Guided needs a policy with capability 'denoise'; BestOfN has"):
        Guided(toys.make("best_of-flow-mlp")[0])
    for wrong in ({"goal_scale": -1}, {"reach": 0}, {"reach": float("nan")}):
        with pytest.raises(SpecError, match="guidance needs goal_scale >= 0"):
            Guided(policy, **wrong)
    with pytest.raises(SpecError, match="strength >= 0 and a limit above 0"):
        ValueGuidance(lambda a, ctx: a.sum((1, 2)), -1)
    with pytest.raises(InputError, match="guided by function is not saved"):
        policies.save(Guided(policy, [pull]), tmp_path)


def test_a_gradient_asked_for_from_outside_goes_through_its_denoiser(toys):
    """Real-time chunking differentiates a composition to x; the part that is guided by values must not drop out of it."""
    base, data = toys.make("edm-mlp")
    guided = Guided(base, [ValueGuidance(lambda a, ctx: a.sum((1, 2)), 0.3)])
    context, sigma = base.encode(observed(toys, base, data)), torch.full((5,), 0.7)
    x = torch.randn(5, *base.spec.noise_shape, requires_grad=True)
    told, wanted = (torch.autograd.grad(p.denoise(x, sigma, context).square().sum() / 2, x)[0] for p in (guided, base))
    estimate = guided.denoise(x, sigma, context).detach()
    (product,) = torch.autograd.grad(base.denoise(x, sigma, context), x, estimate)  # the guidance itself is held fixed
    torch.testing.assert_close(told, product)
    assert not torch.allclose(told, wanted)
    assert not guided.denoise(x.detach(), sigma, context).requires_grad
