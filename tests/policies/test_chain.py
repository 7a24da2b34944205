"""The denoising chain: its sampler against the native one and against DDIM's own formulas, its densities in closed form."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from policies.base import EmbeddingContext
from policies.chain import ChainActor, ChainConfig, DenoisingChain
from policies.executor import ChunkExecutor
from sinew.errors import SpecError
from sinew.protocols import HasLogProb

FAMILIES = ("flow-mlp", "flow-unet", "diffusion-mlp", "diffusion-unet", "edm-mlp", "composed-flow-mlp+diffusion-mlp", "vla-causal")


def made(toys, case):
    policy, data = toys.make(case)
    batch = toys.batch(data, policy.spec)
    told = {"task": batch["task"]} if "language" in policy.spec.capabilities else {}
    return policy, policy.encode({**{k: batch[k] for k in policy.spec.observation}, **told})


def noise(policy, walk, rows=8, seed=0):
    return torch.randn(rows, walk.steps + 1, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FAMILIES)
def test_without_injected_noise_the_chain_is_the_native_sampler(toys, name):
    policy, ctx = made(toys, name)
    walk = DenoisingChain(policy, ChainConfig(eta=0.0, std_low=0.0))
    drawn = noise(policy, walk)
    with torch.no_grad():
        chain = walk.chain(ctx, drawn)
        native = policy.sample(ctx, noise=drawn[:, :1]).actions[:, 0]
    torch.testing.assert_close(chain[:, -1].clamp(-1, 1), native, rtol=0, atol=2e-5)
    assert isinstance(walk, HasLogProb)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["flow-mlp", "diffusion-mlp", "edm-mlp"])
def test_steps_are_ddims_own(toys, name, eta):
    """Mean and spread of a step, against the formulas of arXiv:2010.02502, equation 12 and 16, in abar = 1 / (1 + sigma^2)."""
    policy, ctx = made(toys, name)
    walk = DenoisingChain(policy, ChainConfig(eta=eta, std_low=0.0, std_high=10.0))
    with torch.no_grad():
        chain, means = walk.walk(ctx, noise(policy, walk))
        sigmas = policy.sigmas().double()
        for k, (sigma, later) in enumerate(pairwise(sigmas)):
            abar, following = 1 / (1 + sigma**2), 1 / (1 + later**2)
            std = eta * ((1 - following) / (1 - abar)).sqrt() * (1 - abar / following).sqrt()
            y = chain[:, k].double()
            clean = policy.denoise((y / abar.sqrt()).float(), sigma.float().expand(len(y)), ctx).double()
            eps = (y - abar.sqrt() * clean) / (1 - abar).sqrt()
            mean = following.sqrt() * clean + (1 - following - std**2).clamp(min=0).sqrt() * eps
            torch.testing.assert_close(means[:, k].double(), mean, rtol=1e-4, atol=2e-5)
            assert float(walk.std[k]) == pytest.approx(float(std), abs=1e-6)


def test_density_is_the_gaussians_in_closed_form(toys):
    policy, ctx = made(toys, "flow-mlp")
    walk = DenoisingChain(policy, ChainConfig(std_low=0.07))
    with torch.no_grad():
        chain, means = walk.walk(ctx, noise(policy, walk))
        wanted = Normal(means, walk.std.view(-1, 1, 1)).log_prob(chain[:, 1:]).flatten(2).sum(-1)
        torch.testing.assert_close(walk.log_prob(walk.means(ctx, chain), chain), wanted, rtol=1e-4, atol=1e-3)
        for k in range(walk.steps):
            torch.testing.assert_close(walk.step_logp(ctx, chain[:, k], chain[:, k + 1], k), wanted[:, k], rtol=1e-4, atol=1e-3)
        others = means + 0.03 * torch.randn_like(means)
        closed = kl_divergence(Normal(means, walk.std.view(-1, 1, 1)), Normal(others, walk.std.view(-1, 1, 1))).flatten(2).sum(-1)
        torch.testing.assert_close(walk.divergence(means, others), closed)
    # the spread that the noise had is the one that the density has: standardised steps have mean square 1
    steps = ((chain[:, 1:] - means) / walk.std.view(-1, 1, 1)).square().mean()
    assert float(steps) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", ["flow-mlp", "diffusion-unet", "edm-mlp"])
def test_gradient_of_the_density_by_finite_differences(toys, name):
    policy, data = toys.make(name)
    policy = policy.double()
    batch = {k: v.double() for k, v in toys.batch(data, policy.spec).items() if k in policy.spec.observation}
    walk = DenoisingChain(policy, ChainConfig())
    with torch.no_grad():
        chain, _ = walk.walk(policy.encode(batch), noise(policy, walk).double())
    parameter = next(p for p in policy.net.parameters() if p.ndim == 2)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value():
        return walk.log_prob(walk.means(policy.encode(batch), chain), chain).sum()

    policy.zero_grad()
    value().backward()
    assert parameter.grad is not None
    slope, h = float((parameter.grad * direction).sum()), 1e-5
    with torch.no_grad():
        parameter += h * direction
        above = float(value())
        parameter -= 2 * h * direction
        below = float(value())
    assert slope == pytest.approx((above - below) / (2 * h), rel=1e-4)


def marginals(eta, steps, mean=0.3, spread=0.4):
    """Chunks of N(0.3, 0.4^2) and their exact denoiser: (M,) of the mean and of the spread, over the level's own, after some steps."""
    sigmas = torch.cat((torch.linspace(3.0, -3.0, steps).exp(), torch.zeros(1)))

    def denoise(x, sigma, ctx):
        noise = sigma.view(-1, 1, 1).square()
        return (spread**2 * x + noise * mean) / (spread**2 + noise)

    toy: Any = SimpleNamespace(
        spec=SimpleNamespace(capabilities=("denoise",)), sigmas=lambda steps: sigmas, denoise=denoise, device=torch.device("cpu")
    )
    walk = DenoisingChain(toy, ChainConfig(eta=eta, std_low=0.0))
    drawn = torch.randn(20_000, walk.steps + 1, 1, 1, generator=torch.Generator().manual_seed(0))
    drawn[:, 0] = (mean + (spread**2 + sigmas[0] ** 2).sqrt() * drawn[:, 0]) / sigmas[0]  # the first level's own marginal
    chain, unit = walk.chain(EmbeddingContext(torch.zeros(20_000, 1)), drawn)[..., 0, 0], (1 + sigmas.square()).sqrt()
    wanted = (spread**2 + sigmas.square()).sqrt() / unit
    return (chain.mean(0) - mean / unit) / wanted, chain.std(0) / wanted - 1


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_injected_noise_leaves_the_marginals_as_they_are(eta):
    """After every step the chain has that level's mean and spread, but for the error of first order in the size of steps."""
    (few_mean, few_spread), (mean, spread) = marginals(eta, 60), marginals(eta, 240)
    standard_error = 20_000**-0.5
    assert float(mean.abs().max()) < 4 * standard_error + float(few_mean.abs().max()) / 2
    assert float(spread.abs().max()) < 4 * standard_error + float(few_spread.abs().max()) / 2
    assert float(few_spread.abs().max()) < 0.1 and float(few_mean.abs().max()) < 0.1


def test_last_steps_alone_are_random_and_have_a_density(toys):
    policy, ctx = made(toys, "flow-mlp")
    part, whole = DenoisingChain(policy, ChainConfig(trained_steps=2)), DenoisingChain(policy, ChainConfig(eta=0.0, std_low=0.0))
    drawn = noise(policy, part)
    with torch.no_grad():
        chain, means = part.walk(ctx, drawn)
        flow = whole.chain(ctx, torch.cat((drawn[:, :1], torch.zeros(8, 4, *drawn.shape[2:])), 1))
    assert chain.shape[1] == 3 and means.shape[1] == 2 and part.log_prob(means, chain).shape == (8, 2)
    torch.testing.assert_close(chain[:, 0], flow[:, 2])  # 4 steps: two of the flow's, then two random ones
    assert float((chain[:, 1] - means[:, 0]).std()) == pytest.approx(float(part.std[2]), rel=0.1)
    torch.testing.assert_close(part.means(ctx, chain), means, rtol=1e-4, atol=1e-5)


def test_a_chain_does_not_depend_on_its_batch(toys):
    policy, data = toys.make("flow-unet")
    batch = toys.batch(data, policy.spec)
    obs = {k: batch[k] for k in policy.spec.observation}
    walk = DenoisingChain(policy, ChainConfig())
    drawn = noise(policy, walk)
    with torch.no_grad():
        together = walk.chain(policy.encode(obs), drawn)
        alone = walk.chain(policy.encode({k: v[3:4] for k, v in obs.items()}), drawn[3:4])
    torch.testing.assert_close(alone[0], together[3], rtol=0, atol=1e-5)


def test_what_cannot_be_is_refused(toys):
    policy, _ = toys.make("flow-mlp")
    with pytest.raises(SpecError, match="5 steps of the chain cannot be trained: this policy samples in 4"):
        DenoisingChain(policy, ChainConfig(trained_steps=5))
    with pytest.raises(SpecError, match="denoise"):
        DenoisingChain(toys.make("act-state")[0])
    with pytest.raises(SpecError, match="std_low > 0"):
        ChainActor(policy, 2, ChainConfig(std_low=0.0))
    with pytest.raises(SpecError, match="eta in"):
        ChainConfig(eta=1.5)


def test_frames_see_what_the_executor_would_see(toys):
    """Windows of two observations, one world beginning a new episode on the way, against the executor's own."""
    policy, data = toys.make("flow-mlp-camera")
    actor, executor = ChainActor(policy, 3, ChainConfig()), ChunkExecutor(policy, 3)
    executor.reset()
    actor.reset()
    for tick in range(4):
        obs = {k: torch.from_numpy(v[tick * 3 : tick * 3 + 3]) for k, v in data.frames.items()}
        if tick == 2:
            executor.reset([1])
            actor.reset([1])
        frames = actor.look(obs, [0, 1, 2])
        with torch.no_grad():
            torch.testing.assert_close(actor.encode(frames).embedding, executor.context(obs).embedding)
        torch.testing.assert_close(frames["features"], policy.observe(obs))
    assert actor.look(obs, []) == {}
    recorded = actor.frames({k: frames[f"observed.{k}"] for k in policy.spec.observation})
    for key, value in frames.items():
        torch.testing.assert_close(recorded[key], value)


def test_the_encoder_stays_and_the_rest_is_trained(toys):
    policy, data = toys.make("flow-mlp-camera")
    actor = ChainActor(policy, 2, ChainConfig())
    assert not any(p.requires_grad for p in policy.encoder.parameters())
    assert all(p.requires_grad for p in policy.net.parameters())
    frames = actor.look({k: torch.from_numpy(v[:2]) for k, v in data.frames.items()}, [0, 1])
    chain, means = actor.draw(frames, torch.Generator().manual_seed(0))
    actor.log_prob(actor.means(frames, chain), chain).sum().backward()
    assert all(p.grad is not None for p in policy.net.parameters())
    torch.testing.assert_close(actor.means(frames, chain).detach(), means, rtol=1e-4, atol=1e-5)


def test_a_language_policy_is_told_its_instruction(toys):
    policy, data = toys.make("vla-causal")
    actor = ChainActor(policy, 2, ChainConfig(), "Touch the red button.")
    frames = actor.look({k: torch.from_numpy(v[:2]) for k, v in data.frames.items()}, [1])
    chain, _ = actor.draw(frames, torch.Generator().manual_seed(0))
    assert chain.shape == (1, 5, 5, 3) and bool(torch.isfinite(chain).all())
