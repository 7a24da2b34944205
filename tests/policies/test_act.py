"""ACT against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import policies
from policies import act
from policies.act import ActConfig
from policies.encoders import ImageConfig
from sinew.errors import SpecError
from sinew.specs import STATE

TINY = {"width": 32, "feedforward": 64, "style_layers": 1, "encoder_layers": 1, "decoder_layers": 1, "latent_dim": 4}


@pytest.fixture
def small(toys):
    def make(*, camera=False, n_obs_steps=1, **kw):
        data = toys.ToyData(camera=camera)
        spec = toys.policy_spec(camera=camera, horizon=5, n_obs_steps=n_obs_steps)
        return policies.make("act", spec, data.stats(), ActConfig(**{**TINY, "image": toys.IMAGE, **kw})).eval(), data

    return make


def seen(policy, batch):
    return {key: batch[key] for key in policy.spec.observation}


def test_divergence_is_that_of_torch():
    mean, log_variance = torch.randn(6, 4), torch.randn(6, 4)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(act.kl_divergence(mean, log_variance), expected)
    assert act.kl_divergence(torch.zeros(2, 4), torch.zeros(2, 4)).tolist() == [0, 0]


def test_the_loss_is_absolute_error_and_weighted_divergence_and_leaves_padding_out(small, toys):
    policy, data = small(kl_weight=3.0)
    batch = toys.batch(data, policy.spec, 2)
    batch["action_is_pad"] = torch.tensor([[False, False, True, True, True], [False] * 5])
    mean, log_variance, noise, styles = torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 4), []
    chunk = torch.randn(2, 5, 3)
    policy.style.forward = lambda state, action, padding: (mean, log_variance)
    policy.decode = lambda tokens, z: styles.append(z) or (chunk, z)
    loss = policy.loss(batch, noise=noise)
    torch.testing.assert_close(styles[0], mean + (0.5 * log_variance).exp() * noise)
    error = (chunk - batch["action"]).abs().mean(-1)
    absolute = torch.stack([error[0, :2].mean(), error[1].mean()])
    divergence = act.kl_divergence(mean, log_variance)
    torch.testing.assert_close(loss.per_sample, absolute + 3 * divergence)
    torch.testing.assert_close(loss.logs["l1"], absolute.mean())
    torch.testing.assert_close(loss.logs["kl"], divergence.mean())


def test_the_style_does_not_look_at_padding(small, toys):
    policy, data = small()
    batch = toys.batch(data, policy.spec, 2)
    batch["action_is_pad"] = torch.tensor([[False, False, True, True, True], [False] * 5])
    changed = batch["action"].clone()
    changed[0, 2:] = 0.9
    noise = torch.randn(2, 4)
    one, two = (policy.loss({**batch, "action": action}, noise=noise).per_sample for action in (batch["action"], changed))
    torch.testing.assert_close(one, two)
    changed[0, 1] = 0.9
    assert not torch.allclose(policy.loss({**batch, "action": changed}, noise=noise).per_sample[0], one[0])


def test_acting_is_deterministic_as_published_and_draws_the_prior_where_asked(small, toys):
    policy, data = small()
    obs = seen(policy, toys.batch(data, policy.spec, 3))
    chunk = policy.sample(policy.encode(obs), n=4, features=True)
    assert torch.equal(chunk.actions, chunk.actions[:, :1].expand(-1, 4, -1, -1)) and chunk.features.shape == (3, 4, 32)
    assert not torch.allclose(chunk.actions[0], chunk.actions[1])
    assert "noise" not in policy.spec.capabilities  # noise that does nothing cannot steer
    prior, _ = small(latent_scale=1.0)
    drawn = prior.sample(prior.encode(obs), n=4)
    assert drawn.actions.std(1).min() > 0 and "noise" in prior.spec.capabilities
    zero = torch.zeros(3, 1, 4)
    torch.testing.assert_close(prior.sample(prior.encode(obs), noise=zero).actions, chunk.actions[:, :1])


def test_every_cell_of_every_camera_and_step_is_a_token_that_knows_its_place(small, toys):
    policy, data = small(camera=True, n_obs_steps=2)
    batch = toys.batch(data, policy.spec, 2)
    tokens = policy.encoder(seen(policy, batch))
    assert tokens.shape == (2, 2 + 2 * 4 * 5, 32)  # 16 x 20 pixels at a quarter, and a token of state, each of two steps
    grid = act.sinusoids_2d(32, 4, 5).view(4, 5, 32)
    assert torch.equal(grid[2, :, :16], grid[2, :1, :16].expand(5, 16))  # one half tells the row
    assert torch.equal(grid[:, 3, 16:], grid[:1, 3, 16:].expand(4, 16))  # the other the column
    assert torch.cdist(grid.view(20, 32), grid.view(20, 32)).add(torch.eye(20)).min() > 0.1
    torch.testing.assert_close(act.sinusoids(torch.tensor(3.0), 4), torch.tensor([0.14112, 0.0299955, -0.9899925, 0.99955]))


def test_the_style_separates_two_ways_to_act_that_a_regressor_would_average(small, toys):
    """One observation, two chunks: with a cheap divergence z tells which, and both are given back; z = 0 alone cannot."""
    policy, data = small(kl_weight=1e-3, latent_scale=1.0)
    batch = {key: value[:1].expand(16, *value.shape[1:]) for key, value in toys.batch(data, policy.spec, 1).items()}
    sign = torch.tensor([1.0, -1.0]).repeat(8)[:, None, None]
    batch["action"], batch["action_is_pad"] = 0.5 * sign * torch.ones(16, 5, 3), torch.zeros(16, 5, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        policy.loss(batch).scalar.backward()
        optimizer.step()
    assert policy.loss(batch).logs["l1"] < 0.1  # the mean would be at 0.5
    drawn = policy.sample(policy.encode({key: value[:1] for key, value in seen(policy, batch).items()}), n=200).actions.mean((0, 2, 3))
    assert 0.25 < (drawn > 0.25).float().mean() < 0.75 and 0.25 < (drawn < -0.25).float().mean() < 0.75


def test_wrong_settings_and_observations_are_told(small):
    policy, _ = small()
    with pytest.raises(SpecError, match="multiple of 4 and of the 3 heads"):
        ActConfig(heads=3)
    with pytest.raises(SpecError, match=r"feature maps: image\.kind 'vit' has none"):
        ActConfig(image=ImageConfig(kind="vit"))
    with pytest.raises(SpecError, match=r"dropout in \[0, 1\)"):
        ActConfig(dropout=1.0)
    with pytest.raises(SpecError, match="act takes no guidance"):
        policy.sample(policy.encode({STATE: torch.zeros(1, 1, 4), "observation.environment_state": torch.zeros(1, 1, 3)}), guidance=[print])
    with pytest.raises(SpecError, match=r"looks at 'observation\.environment_state'"):
        policy.encode({STATE: torch.zeros(1, 1, 4)})


def test_one_step_is_not_spread_over_two(toys):
    data = toys.ToyData()
    policy = policies.make("act", toys.policy_spec(n_obs_steps=2), data.stats(), toys.TINY_ACT)
    with pytest.raises(SpecError, match=r"'observation\.state' has shape \(3, 1, 4\), the policy looks at \(batch, 2, 4\)"):
        policy.encode({STATE: torch.zeros(3, 1, 4), "observation.environment_state": torch.zeros(3, 1, 3)})
