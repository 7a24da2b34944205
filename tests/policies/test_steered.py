"""Latent steering: the actor's choice becomes the base's noise, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

import policies
from policies.executor import ChunkExecutor
from policies.steered import LatentSteered, NoiseActor, Steering, pack, unpack
from sinew.errors import SpecError
from sinew.specs import ENVIRONMENT_STATE


def steered(toys, case="flow-mlp", **settings):
    base, data = toys.make(case)
    policy = LatentSteered(base, hidden=(16,), **settings).eval()
    return policy, base, observed(policy, data)


def observed(policy, data, rows=4):
    window = data.window(torch.arange(rows).numpy(), policy.spec.n_obs_steps, policy.spec.horizon, list(policy.spec.observation))
    obs = {key: torch.from_numpy(window[key]) for key in policy.spec.observation}
    if "language" in policy.spec.capabilities:
        obs["task"] = ["Touch the red button."] * rows
    return obs


def test_until_it_has_learned_it_is_the_base_and_then_the_base_from_the_chosen_noise(toys):
    policy, base, obs = steered(toys)
    noise = torch.randn(4, 2, *policy.spec.noise_shape)
    assert torch.equal(policy.sample(policy.encode(obs), n=2, noise=noise).actions, base.sample(base.encode(obs), n=2, noise=noise).actions)
    policy.actor.active.fill_(True)
    context = policy.encode(obs)
    chosen = policy.noise(policy.actor(context.features))
    wanted = base.sample(base.encode(obs), noise=chosen.unsqueeze(1)).actions
    made = policy.sample(context, n=2, noise=noise)
    torch.testing.assert_close(made.actions, wanted.expand(-1, 2, -1, -1))
    assert torch.equal(made.noise, noise) and chosen.abs().max() <= 1.5


def test_knots_are_interpolated_over_the_chunk(toys):
    length, dim = 5, 3
    whole, one, three = (steered(toys, knots=k)[0] for k in (0, 1, 3))
    u = torch.randn(2, length * dim)
    assert torch.equal(whole.noise(u), u.view(2, length, dim)) and whole.actor.size == length * dim
    assert torch.equal(one.noise(u[:, :dim]), u[:, None, :dim].expand(2, length, dim))
    ramp = torch.tensor([0.0, 1.0, 2.0])[:, None].expand(3, dim).reshape(1, -1)
    torch.testing.assert_close(three.noise(ramp), torch.linspace(0, 2, length)[None, :, None].expand(1, length, dim))


def test_log_probability_is_that_of_a_gaussian_through_tanh():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actor = NoiseActor(3, 4, (8,), bound=1.5)
        features, normal = torch.randn(6, 3), torch.randn(6, 4)
    u, log_p = actor.draw(features, normal)
    mean, log_std = actor.layers(features).chunk(2, dim=-1)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    torch.testing.assert_close(log_p, reference.log_prob(u / 1.5).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actor(features), 1.5 * torch.tanh(mean))


@pytest.mark.parametrize("kind", ["flow-mlp", "edm-transformer", "consistency-flow-mlp", "vla-causal", "best_of-flow-mlp"])
def test_a_packed_context_gives_the_same_chunk_in_any_order_of_rows(toys, kind):
    policy, base, obs = steered(toys, kind)
    steering = Steering(policy, ChunkExecutor(policy, 4, instruction="Touch the red button."), act_steps=3)
    newest = {key: value[:, -1] for key, value in obs.items() if key in policy.spec.observation}
    frames = steering.frames(newest)
    u = policy.actor.bound * torch.tanh(torch.randn(4, policy.actor.size))
    together = steering.decode(frames, u)
    assert together.shape == (4, 3, policy.spec.action_dim)
    rows = torch.tensor([2, 0])
    picked = steering.decode({key: value[rows] for key, value in frames.items()}, u[rows])
    torch.testing.assert_close(picked, together[rows], rtol=0, atol=1e-5)
    repeated = {key: value.unsqueeze(1).expand(-1, policy.spec.n_obs_steps, *value.shape[1:]) for key, value in newest.items()}
    repeated |= {key: value for key, value in obs.items() if key not in repeated}
    direct = base.sample(base.encode(repeated), noise=policy.noise(u).unsqueeze(1)).actions[:, 0, :3]
    torch.testing.assert_close(together, direct, rtol=0, atol=1e-5)


def test_goals_are_part_of_a_packed_context(toys):
    _, base, obs = steered(toys, "edm-transformer")
    context = base.encode({**obs, "goal." + ENVIRONMENT_STATE: torch.ones(4, 3)})
    tensors, template = pack(context)
    assert set(tensors) == {"context.embedding", "context.free"}
    again = unpack(template, {key: value[:2] for key, value in tensors.items()}, 2)
    assert again.batch == 2 and torch.equal(again.free, context.free[:2])


def test_saved_and_loaded_it_steers_the_same(toys, tmp_path):
    from sinew.rundir import RunDir

    policy, _, obs = steered(toys, knots=2)
    policy.actor.active.fill_(True)
    run = RunDir.create(tmp_path / "run", {})
    policies.save(policy, run)
    loaded = policies.load(run)
    assert torch.equal(loaded.sample(loaded.encode(obs)).actions, policy.sample(policy.encode(obs)).actions)


def test_what_cannot_be_steered_is_told(toys):
    policy, base, obs = steered(toys)
    with pytest.raises(SpecError, match=r"latent steering.*noise"):
        LatentSteered(policy)
    with pytest.raises(SpecError, match="'noise'; ActPolicy has"):
        steered(toys, "act-state")
    with pytest.raises(SpecError, match="6 knots are more than the 5 steps"):
        LatentSteered(base, knots=6)
    with pytest.raises(SpecError, match="takes no guidance"):
        policy.sample(policy.encode(obs), guidance=[lambda x, clean, sigma, ctx: clean])
    with pytest.raises(SpecError, match=r"needs bound > 0.*given -1"):
        LatentSteered(base, bound=-1)


def test_a_policy_that_corrects_is_not_steered(toys):
    base, _ = toys.make("residual-flow-mlp")
    with pytest.raises(SpecError, match="steer its base"):
        LatentSteered(base)
