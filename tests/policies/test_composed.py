"""Compositions of denoisers against closed forms, against themselves, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import policies
from policies.base import EmbeddingContext
from policies.composed import Composed
from policies.flow import FlowPolicy
from policies.sampling import euler
from sinew.errors import InputError, SpecError
from sinew.specs import ENVIRONMENT_STATE, STATE, ObservationSpec


def sampled(policy, data, toys, rows=6, n=2, **options):
    obs = toys.batch(data, policy.spec, rows)
    noise = torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(0))
    return policy.sample(policy.encode({k: obs[k] for k in policy.spec.observation}), n=n, noise=noise, **options)


@pytest.mark.parametrize("name", ["flow-mlp", "diffusion-mlp", "edm-mlp", "flow-unet-camera"])
@pytest.mark.parametrize("steps", [None, 1, 7])
def test_a_policy_composed_with_itself_is_that_policy(toys, name, steps):
    policy, data = toys.make(name)
    composed = Composed([policy, policy], (0.3, 0.7))
    alone, both = (sampled(p, data, toys, steps=steps, features=True) for p in (policy, composed))
    torch.testing.assert_close(both.actions, alone.actions, rtol=0, atol=2e-5)
    torch.testing.assert_close(both.features, alone.features, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["flow-mlp", "edm-mlp"])
def test_all_weight_on_the_first_is_the_first_bit_for_bit(toys, name):
    (policy, data), (other, _) = toys.make(name), toys.make("diffusion-mlp")
    assert torch.equal(sampled(Composed([policy, other], (1, 0)), data, toys).actions, sampled(policy, data, toys).actions)


def test_the_sample_is_that_of_the_mean_denoiser_on_the_first_ones_levels(toys):
    """Against the exchange sampler, written out with each member's own denoiser."""
    members = [toys.make(name)[0] for name in ("edm-mlp", "flow-mlp", "diffusion-mlp")]
    data, weights = toys.make("flow-mlp")[1], (0.5, 0.2, 0.3)
    obs = toys.batch(data, members[0].spec, 5)
    contexts = [policy.encode(obs) for policy in members]
    noise = torch.randn(5, *members[0].spec.noise_shape)

    def mean(x, sigma):
        return sum(w * p.denoise(x, sigma, c) for w, p, c in zip(weights, members, contexts, strict=True))

    expected = euler(mean, noise, members[0].sigmas(6)).clamp(-1, 1)
    composed = Composed(members, weights)
    got = composed.sample(composed.encode(obs), noise=noise.unsqueeze(1), steps=6).actions[:, 0]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


class Bell(FlowPolicy):
    """The exact denoiser of actions N(mean, spread^2): D = (spread^2 x + sigma^2 mean) / (spread^2 + sigma^2)."""

    mean, spread = 0.0, 0.1

    def encode(self, obs):
        return EmbeddingContext(torch.zeros(len(obs[STATE]), 1))

    def denoise(self, x, sigma, ctx):
        variance = sigma.square()[:, None, None]
        return (self.spread**2 * x + variance * self.mean) / (self.spread**2 + variance)

    def _predict(self, y, t, ctx):
        """The velocity of that denoiser, v = (y - D) / t."""
        clean = self.denoise((y / (1 - t)).flatten(0, 1), (t / (1 - t)).expand(y.shape[0] * y.shape[1]), ctx)
        return (y - clean.view_as(y)) / t, y.flatten(2)


def test_two_bells_of_one_width_compose_to_the_bell_between_them(toys):
    """Equal covariances: the mean of two Gaussian scores is the score of the Gaussian at the weighted mean."""
    bells = []
    for mean in (-0.4, 0.6):
        policy = policies.make("flow", toys.policy_spec(), toys.ToyData().stats(), {"hidden": [8]})
        policy.net.embed_time = lambda level: level
        policy.__class__, policy.mean = Bell, mean
        bells.append(policy)
    composed = Composed(bells, (0.25, 0.75))
    chunk = composed.sample(composed.encode({STATE: torch.zeros(1, 1, 4)}), n=4000, steps=100)
    assert float(chunk.actions.mean()) == pytest.approx(0.25 * -0.4 + 0.75 * 0.6, abs=0.005)
    assert float(chunk.actions.std()) == pytest.approx(0.1, rel=0.06)  # 100 Euler steps


def test_each_policy_sees_its_own_observations_over_its_own_steps(toys):
    """One looks at the state alone, the other at two steps of everything with a camera."""
    two, data = toys.make("flow-mlp-camera")
    narrow = replace(toys.policy_spec(horizon=5), observation=ObservationSpec({STATE: two.spec.observation[STATE]}))
    one = policies.make("edm", narrow, data.stats(), {"hidden": [16], "steps": 4}, seed=1)
    composed = Composed([one, two], (0.5, 0.5))
    assert set(composed.spec.observation) == set(two.spec.observation) and composed.spec.n_obs_steps == 2
    obs = toys.batch(data, composed.spec, 4)
    context = composed.encode({k: obs[k] for k in composed.spec.observation})
    assert torch.equal(context.parts[0].embedding, one.encode({STATE: obs[STATE][:, -1:]}).embedding)
    assert torch.equal(context.parts[1].embedding, two.encode(obs).embedding)
    newest = {key: obs[key][:, -1] for key in composed.spec.observation}
    assert torch.equal(composed.observe(newest), torch.cat([one.observe(newest), two.observe(newest)], -1))
    assert composed.observation_dim == one.observation_dim + two.observation_dim


def test_a_policy_is_not_asked_beyond_its_largest_noise(toys):
    """Flow samples from 1000, EDM knows far less: there it is asked instead, with x scaled to it."""
    (flow, data), (edm, _) = toys.make("flow-mlp"), toys.make("edm-mlp")
    composed, obs = Composed([flow, edm], (0, 1)), toys.batch(data, flow.spec, 3)
    x = 1000 * torch.randn(3, *flow.spec.noise_shape)
    got = composed.denoise(x, torch.full((3,), 1000.0), composed.encode(obs))
    top = float(edm.sigmas()[0])
    assert top < 100
    expected = edm.denoise(x * top / 1000, torch.full((3,), top), edm.encode(obs))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_corrections_are_averaged(toys):
    (one, data), (two, _) = toys.make("residual-flow-mlp"), toys.make("edm-mlp")
    composed = Composed([one, two], (0.25, 0.75))
    newest = {k: v[:, -1] for k, v in toys.batch(data, one.spec, 4).items() if k in one.spec.observation}
    planned = torch.zeros(4, 3)
    torch.testing.assert_close(composed.correct(newest, planned), 0.25 * one.correct(newest, planned))
    assert not hasattr(Composed([two, two], (0.5, 0.5)), "correct")


def test_what_does_not_fit_is_named(toys):
    policy, data = toys.make("flow-mlp")

    def other(spec, kind="flow"):
        return policies.make(kind, spec, data.stats(), {"hidden": [8]})

    spec = policy.spec
    with pytest.raises(SpecError, match="policy 1 of the composition has horizon 5, policy 2 6: train both with the same one"):
        Composed([policy, other(toys.policy_spec(horizon=6))], (0.5, 0.5))
    slow = replace(toys.policy_spec(horizon=5), action=replace(spec.action, rate_hz=10.0))
    with pytest.raises(SpecError, match=r"policy 2 disagree on the action: rate_hz 20\.0 .*: train both on data with the same one"):
        Composed([policy, other(slow)], (0.5, 0.5))
    joint = replace(toys.policy_spec(horizon=5), action=replace(spec.action, kind="joint_delta"))
    with pytest.raises(SpecError, match="kind 'ee_delta' against 'joint_delta'"):
        Composed([policy, other(joint)], (0.5, 0.5))
    degrees = replace(spec.observation[STATE], unit="deg")
    observation = ObservationSpec({STATE: degrees, ENVIRONMENT_STATE: spec.observation[ENVIRONMENT_STATE]})
    with pytest.raises(SpecError, match=r"disagree on 'observation\.state': unit .*: train both on data with the same one"):
        Composed([policy, other(replace(toys.policy_spec(horizon=5), observation=observation))], (0.5, 0.5))
    for weights in ((0.5, 0.6), (-0.5, 1.5), (float("nan"), 1)):
        with pytest.raises(SpecError, match=r"must be in \[0, 1\] and sum to 1"):
            Composed([policy, policy], weights)
    with pytest.raises(SpecError, match="takes two or more policies with one weight each, not 1 with 1"):
        Composed([policy], (1,))
    blind, _ = toys.make("best_of-flow-mlp")
    with pytest.raises(SpecError, match="Composed needs a policy with capability 'denoise'; BestOfN has: noise"):
        Composed([policy, blind], (0.5, 0.5))
    with pytest.raises(InputError, match="wraps another policy"):
        policies.make("composed", toys.policy_spec(), data.stats())
