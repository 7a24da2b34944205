"""The common sampler against the exact solution for Gaussian data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.sampling import euler, sigma_to_time, time_to_sigma


def test_time_and_noise_level_are_inverse():
    sigma = torch.tensor([0.0, 0.1, 1.0, 50.0])
    torch.testing.assert_close(time_to_sigma(sigma_to_time(sigma)), sigma)
    assert sigma_to_time(torch.tensor(1.0)) == 0.5


def test_gaussian_data_are_reached_along_the_exact_flow():
    """For a ~ N(m, s^2) the flow maps x at sigma to m + (x - m) s / sqrt(s^2 + sigma^2) at 0."""
    mean, spread, start = 0.3, 0.2, 80.0

    def denoise(x, sigma):
        gain = spread**2 / (spread**2 + sigma.view(-1, 1, 1) ** 2)
        return mean + gain * (x - mean)

    noise = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0))
    levels = torch.cat([torch.logspace(1.9030899, -3, 1000), torch.zeros(1)])
    exact = mean + (noise * start - mean) * spread / (spread**2 + start**2) ** 0.5
    torch.testing.assert_close(euler(denoise, noise, levels), exact, rtol=0, atol=5e-3)


def test_one_step_is_the_denoiser():
    out = euler(lambda x, sigma: x * 0 + 0.7, torch.randn(2, 1, 1), torch.tensor([5.0, 0.0]))
    torch.testing.assert_close(out, torch.full((2, 1, 1), 0.7))


@pytest.mark.parametrize("case_name", ["flow-mlp", "consistency-flow-mlp"])
def test_what_is_kept_between_samples_serves_gradients_later(toys, case_name):
    """A policy may act in inference mode before it is trained or guided: nothing kept from then may stand in the way."""
    policy, data = toys.make(case_name)
    window = data.window(np.arange(2), policy.spec.n_obs_steps, policy.spec.horizon, list(policy.spec.observation))
    obs = {key: torch.from_numpy(window[key]) for key in policy.spec.observation}
    with torch.inference_mode():
        policy.sample(policy.encode(obs))
    policy.requires_grad_(True).sample(policy.encode(obs)).actions.sum().backward()
    assert any(p.grad is not None for p in policy.parameters())
