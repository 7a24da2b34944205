"""The flow policy against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import policies
from policies.flow import FlowConfig, FlowPolicy
from sinew.errors import SpecError


@pytest.fixture
def small(toys):
    data = toys.ToyData()
    return lambda **kw: (policies.make("flow", toys.policy_spec(horizon=5), data.stats(), FlowConfig(hidden=(32, 32), **kw)), data)


def test_loss_is_the_squared_velocity_error_on_the_straight_path(small, toys):
    policy, data = small(mask_padding=False)
    batch = toys.batch(data, policy.spec)
    seen = []
    policy.net.register_forward_hook(lambda module, args, out: seen.append((args[0], out[0])))
    t, noise = torch.linspace(0, 1, 8), torch.randn(8, 5, 3)
    loss = policy.loss(batch, t=t, noise=noise)
    path, velocity = seen[0]
    torch.testing.assert_close(path[0, 0], batch["action"][0])  # t = 0 is the action
    torch.testing.assert_close(path[7, 0], noise[7])  # t = 1 is the noise
    torch.testing.assert_close(path[3, 0], 3 / 7 * noise[3] + 4 / 7 * batch["action"][3])
    torch.testing.assert_close(loss.per_sample, ((velocity[:, 0] - (noise - batch["action"])) ** 2).mean((1, 2)))


def test_padded_actions_are_left_out_of_the_loss_and_of_its_gradient(small, toys):
    policy, data = small()
    batch = toys.batch(data, policy.spec, 2)
    batch["action_is_pad"] = torch.tensor([[False, False, True, True, True], [False] * 5])
    predicted = []
    policy.net.register_forward_hook(lambda module, args, out: predicted.append(out[0]) or out[0].retain_grad())
    t, noise = torch.tensor([0.3, 0.6]), torch.randn(2, 5, 3)
    loss = policy.loss(batch, t=t, noise=noise)
    error = ((predicted[0][:, 0] - (noise - batch["action"])) ** 2).mean(-1)
    torch.testing.assert_close(loss.per_sample, torch.stack([error[0, :2].mean(), error[1].mean()]))
    loss.scalar.backward()
    assert (predicted[0].grad[0, 0, 2:] == 0).all() and (predicted[0].grad[0, 0, :2] != 0).all()


def test_beta_times_follow_beta(small):
    uniform, _ = small()
    beta, _ = small(time_sampling="beta")
    generator = torch.Generator().manual_seed(0)
    assert stats.kstest(uniform.draw(4000, generator)["t"].numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(beta.draw(4000, generator)["t"].numpy(), stats.beta(1.5, 1).cdf).pvalue > 0.01


def test_sampling_a_known_field_lands_on_its_data(small):
    """Data all at a: the exact velocity at (y, t) is (y - a) / t, and Euler steps land on a whatever the noise."""
    policy, data = small()
    target = torch.rand(5, 3) - 0.5
    policy.net.embed_time = lambda t: t.unsqueeze(-1)
    policy.net.forward = lambda x, time, condition: ((x - target) / time, x.flatten(2))
    context = policy.encode({key: torch.from_numpy(data.frames[key][:4, None]) for key in policy.spec.observation})
    for steps in (1, 3, 10):
        actions = policy.sample(context, n=2, steps=steps).actions
        torch.testing.assert_close(actions, target.expand_as(actions), rtol=0, atol=2e-4)


def test_noise_levels_fall_to_zero_evenly_in_time(small):
    policy, _ = small()
    sigmas = policy.sigmas(5)
    assert sigmas[0] == pytest.approx(1000, rel=1e-4) and sigmas[-1] == 0
    t = sigmas / (1 + sigmas)
    torch.testing.assert_close(t.diff(), t.diff()[:1].expand(5), rtol=1e-4, atol=0)
    assert len(policy.sigmas()) == policy.config.steps + 1


def test_wrong_settings_are_told():
    with pytest.raises(SpecError, match="flow backbone 'lstm' is unknown: known are mlp, unet, transformer"):
        FlowConfig(backbone="lstm")
    with pytest.raises(SpecError, match="multiples of the 8 groups"):
        FlowConfig(channels=(20,))
    with pytest.raises(SpecError, match="at least 1"):
        FlowConfig(steps=0)


@pytest.mark.parametrize("horizon", [1, 2, 7, 8])
def test_unet_takes_any_horizon(toys, horizon):
    data = toys.ToyData()
    config = FlowConfig(backbone="unet", channels=(8, 16, 16), embedding_dim=16, groups=4, kernel=3)
    policy = policies.make("flow", toys.policy_spec(horizon=horizon), data.stats(), config)
    batch = toys.batch(data, policy.spec)
    assert policy.sample(policy.encode(batch), n=2).actions.shape == (8, 2, horizon, 3)
    policy.loss(batch).scalar.backward()
    assert all(p.grad is not None for p in policy.parameters())


def test_no_batch_norm_and_no_layer_that_depends_on_the_batch(toys):
    for case in toys.DENOISERS:
        policy, _ = toys.make(case)
        assert not any("BatchNorm" in type(module).__name__ for module in policy.modules())


@pytest.mark.parametrize("backbone", ["mlp", "unet"])
def test_both_modes_of_a_bimodal_action_are_sampled(toys, backbone):
    """Half of the demonstrations go left (-0.6), half right (+0.6): a mean regressor would go straight on (0)."""
    spec, data = toys.policy_spec(horizon=4), toys.ToyData()
    config = FlowConfig(backbone=backbone, hidden=(128, 128), channels=(16, 32), embedding_dim=32, kernel=3, groups=4)
    policy = policies.make("flow", spec, data.stats(), config)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    observed = {key: torch.from_numpy(data.frames[key][:32, None]) for key in spec.observation}
    for step in range(1500 if backbone == "mlp" else 150):
        side = torch.randint(0, 2, (128, 1, 1), generator=torch.Generator().manual_seed(step)) * 1.2 - 0.6
        batch = {key: value.repeat(4, *[1] * (value.ndim - 1)) for key, value in observed.items()}
        optimizer.zero_grad()
        policy.loss({**batch, "action": side.expand(128, 4, 3)}).scalar.backward()
        optimizer.step()
    with torch.no_grad():
        actions = policy.eval().sample(policy.encode(observed), n=32, generator=torch.Generator().manual_seed(1)).actions
    means = actions.mean((-1, -2)).flatten()
    near = (means.abs() - 0.6).abs() < 0.25
    assert near.float().mean() > 0.85
    assert 0.3 < (means > 0).float().mean() < 0.7


def test_sampling_is_differentiable_in_the_noise(small):
    policy, data = small(steps=3)
    context = policy.encode({key: torch.from_numpy(data.frames[key][:2, None]) for key in policy.spec.observation})
    noise = torch.zeros(2, 1, 5, 3, requires_grad=True)
    direction = torch.randn(2, 1, 5, 3)
    policy.sample(context, noise=noise).actions.sum().backward()
    step = 1e-3
    with torch.no_grad():
        up, down = (policy.sample(context, noise=noise + sign * step * direction).actions.sum() for sign in (1, -1))
    assert noise.grad is not None
    assert float((up - down) / (2 * step)) == pytest.approx(float((noise.grad * direction).sum()), rel=2e-2)


def test_flow_policy_is_what_make_gives(small):
    policy, _ = small()
    assert isinstance(policy, FlowPolicy)
    assert policy.spec.noise_shape == (5, 3) and policy.spec.feature_dim == 32
    assert set(policy.spec.capabilities) == {"noise", "denoise", "features", "observe"}
    assert np.isfinite(policy.encoder.normalizer.scale.numpy()).all()
