"""Every denoising family with the exact denoiser of a known density in its network's place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import policies
from policies.base import EmbeddingContext

MODES, SPREAD, SHAPE = torch.stack([torch.full((5, 3), 0.5), torch.full((5, 3), -0.5)]), 0.05, (5, 3)


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    """E[a | x] for a mixture of two Gaussians: each mode's shrunken estimate, by its share of the density at x."""
    noise = sigma.reshape(-1, 1, 1, 1).double() ** 2
    x = x.unsqueeze(1).double()
    total = SPREAD**2 + noise
    share = (-((x - MODES) ** 2 / (2 * total)).sum((-1, -2))).softmax(-1)
    return (share[..., None, None] * (SPREAD**2 * x + noise * MODES) / total).sum(1).float()


def with_exact_network(kind: str, toys):
    """A policy of the family whose network predicts, from y and the level, what the exact denoiser implies."""
    policy = policies.make(kind, toys.policy_spec(horizon=5), toys.ToyData().stats())
    sigma_of = {
        "flow": lambda level: level / (1 - level),
        "diffusion": lambda level: policy.log_sigma.float()[(level * policy.config.train_levels).round().long()].exp(),
        "edm": lambda level: (4 * level).exp(),
    }[kind]

    def predict(y: Tensor, time: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        sigma = sigma_of(time.reshape(-1)).expand(y.shape[0] * y.shape[1])
        scale, skip, out, _ = (c.reshape(-1, 1, 1) for c in policy.coefficients(sigma))
        flat = y.flatten(0, 1)
        raw = (exact(flat / scale, sigma) - skip * flat) / out
        return raw.view_as(y), y.flatten(2)

    policy.net.embed_time = lambda t: t.unsqueeze(-1)
    policy.net.forward = predict
    return policy


@pytest.mark.parametrize(("kind", "steps", "worst"), [
    ("flow", 5, 0.04), ("flow", 10, 0.032), ("flow", 40, 0.015),
    ("diffusion", 5, 0.045), ("diffusion", 10, 0.04), ("diffusion", 40, 0.02),
    ("edm", 3, 0.02), ("edm", 5, 0.02), ("edm", 10, 0.02),
])  # fmt: skip
def test_samples_have_the_modes_and_the_spread_of_the_density(toys, kind, steps, worst):
    """Both modes are kept and the distance to the nearest is the density's own within a bound that more steps tighten.

    The bounds are on |mean distance - 0.05|; with few steps, trajectories fall short of the spread.
    """
    policy = with_exact_network(kind, toys)
    noise = torch.randn(1, 1500, *SHAPE, generator=torch.Generator().manual_seed(0))
    actions = policy.sample(EmbeddingContext(torch.zeros(1, 1)), n=1500, noise=noise, steps=steps).actions[0]
    distance, nearest = (actions.unsqueeze(1) - MODES).square().mean((-1, -2)).sqrt().min(1)
    assert abs(float(distance.mean()) - SPREAD) < worst
    assert float((distance < 0.15).float().mean()) > 0.95
    assert abs(float((nearest == 0).float().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("kind", ["flow", "diffusion", "edm"])
def test_denoise_is_the_exact_denoiser_at_every_level(toys, kind):
    policy = with_exact_network(kind, toys)
    sigmas = policy.sigmas(10)[:-1]
    x = sigmas[:, None, None] * torch.randn(10, *SHAPE)
    told = policy.denoise(x, sigmas, EmbeddingContext(torch.zeros(10, 1)))
    torch.testing.assert_close(told, exact(x, sigmas), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["flow", "diffusion", "edm"])
def test_trained_on_two_modes_both_are_kept(toys, kind):
    """Chunks of one of two kinds that no observation tells apart: nearly all samples are nearer to a kind than to their mean."""
    spec = toys.policy_spec(horizon=5)
    policy = policies.make(kind, spec, toys.ToyData().stats(), {"hidden": [128, 128, 128]}, seed=0)
    stream = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    observation = {key: torch.zeros(128, 1, *spec.observation[key].shape) for key in spec.observation}
    for _ in range(1000):
        sign = torch.randint(0, 2, (128, 1, 1), generator=stream) * 2.0 - 1
        drawn = policy.draw(128, stream)
        loss = policy.loss({**observation, "action": (0.5 * sign).expand(128, *SHAPE)}, t=drawn["t"], noise=drawn["noise"]).scalar
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        actions = policy.sample(policy.encode({k: v[:1] for k, v in observation.items()}), n=600, generator=stream).actions[0]
    distance, nearest = (actions.unsqueeze(1) - MODES).square().mean((-1, -2)).sqrt().min(1)
    assert float((distance < 0.25).float().mean()) > 0.9
    assert 0.35 < float((nearest == 0).float().mean()) < 0.65
