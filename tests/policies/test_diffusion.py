"""The diffusion policy against diffusers and closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

import policies
from policies.diffusion import DiffusionConfig
from sinew.errors import InputError, SpecError


@pytest.fixture
def make(toys):
    data = toys.ToyData()
    return lambda **kw: policies.make("diffusion", toys.policy_spec(horizon=5), data.stats(), {"hidden": [32, 32], **kw}), data


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [4, 10, 50])
def test_sampling_is_ddim_of_diffusers(make, toys, clip, steps):
    policy, data = make[0](clip_sample=clip), make[1]
    context = policy.encode({key: value for key, value in toys.batch(data, policy.spec, 3).items() if key in policy.spec.observation})
    noise = torch.randn(3, 1, 5, 3)
    ours = policy.sample(context, noise=noise, steps=steps).actions[:, 0]
    theirs = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=clip, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    y = noise[:, 0]
    for k in theirs.timesteps:
        predicted, _ = policy.net(y.unsqueeze(1), policy.net.embed_time(torch.full((3, 1), float(k) / 100)), context.embedding)
        # A clipped estimate implies another noise than the predicted one; the exchange form can only mean the implied one.
        y = theirs.step(predicted[:, 0], int(k), y, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, y.clamp(-1, 1), rtol=0, atol=2e-4)


def test_loss_is_the_squared_error_of_the_noise_at_the_level_of_the_schedule(make, toys):
    policy, data = make[0](mask_padding=False), make[1]
    batch = toys.batch(data, policy.spec)
    seen = []
    policy.net.register_forward_hook(lambda module, args, out: seen.append((args[0], out[0])))
    t, noise = torch.tensor([0.0, 0.009, 0.2, 0.42, 0.6, 0.8, 0.999, 1.0]), torch.randn(8, 5, 3)
    loss = policy.loss(batch, t=t, noise=noise)
    products = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2").alphas_cumprod[[0, 0, 20, 42, 60, 80, 99, 99]][:, None, None]
    noisy, predicted = seen[0]
    torch.testing.assert_close(noisy[:, 0], products.sqrt() * batch["action"] + (1 - products).sqrt() * noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss.per_sample, ((predicted[:, 0] - noise) ** 2).mean((1, 2)))


def test_level_between_two_of_the_schedule_is_interpolated_and_ends_are_kept(make):
    policy = make[0]()
    sigma = policy.log_sigma.exp()
    middle = (sigma[40] * sigma[41]).sqrt()
    told = policy.coefficients(torch.stack([sigma[0] / 10, sigma[0], sigma[40], middle, sigma[99], sigma[99] * 10])).level
    torch.testing.assert_close(told, torch.tensor([0.0, 0.0, 0.40, 0.405, 0.99, 0.99], dtype=torch.float64))


def test_sampling_starts_at_the_noisiest_level_and_goes_through_each_once(make):
    policy = make[0]()
    assert policy.sigmas(10)[0] == policy.log_sigma[-1].exp().float() and policy.sigmas(10)[-1] == 0
    assert (policy.sigmas(100).diff() < 0).all() and len(policy.sigmas(100)) == 101


def test_wrong_settings_are_told(make):
    with pytest.raises(SpecError, match="at most 100 steps, the levels of its schedule, not 101"):
        make[0]().sigmas(101)
    with pytest.raises(InputError, match="noise schedule 'cosine' is unknown to diffusers: squaredcos_cap_v2"):
        make[0](schedule="cosine")
    with pytest.raises(SpecError, match="train_levels, not fewer than its steps; given 5 and 10"):
        DiffusionConfig(train_levels=5)
