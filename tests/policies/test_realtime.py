"""Real-time chunking: the guidance against the published form and finite differences, and chunks that join."""

from __future__ import annotations

import math

import pytest
import torch

import policies
from policies.base import EmbeddingContext
from policies.executor import ChunkExecutor
from policies.realtime import RealTimeGuidance, continuing, overlap_weight
from sinew.errors import SpecError
from sinew.specs import STATE

NAMES = ["flow-mlp", "flow-transformer", "diffusion-unet", "edm-mlp", "composed-flow-mlp+edm-mlp"]


def guided_step(policy, obs, guide, steps=4):
    """(x, D, D', sigma) at every step of a sample that is not moved by it, since an untrained network may run off; the context."""
    seen: list = []

    def spy(x, clean, sigma, ctx):
        seen.append((x.detach(), clean.detach(), guide(x, clean, sigma, ctx).detach(), sigma))
        return clean

    wrapper = type("Spy", (), {"differentiates": guide.differentiates, "__call__": staticmethod(spy)})()
    context = policy.encode(obs)
    rows = context.batch
    noise = torch.randn(rows, 1, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(3)).double()
    policy.sample(context, noise=noise, guidance=[wrapper], steps=steps)
    return seen, context


def setting(toys, name):
    policy, data = toys.make(name)
    batch = toys.batch(data, policy.spec, 3)
    obs = {key: batch[key].double() for key in policy.spec.observation}
    return policy.double(), obs, batch["action"].double()


@pytest.mark.parametrize("name", NAMES)
def test_the_product_with_the_jacobian_is_that_of_finite_differences(toys, name):
    """<J^T e, u> = <e, (D(x + h u) - D(x - h u)) / 2h> for random u, and the factor min(1 + sigma^2, beta sigma)."""
    policy, obs, previous = setting(toys, name)
    weight = overlap_weight(5, 1, 4).double()
    seen, context = guided_step(policy, obs, RealTimeGuidance(previous, weight))
    for x, clean, moved, sigma in seen[1:]:  # at the first, x is in the hundreds and differences lose their digits
        error = weight[None, :, None] * (previous - clean)
        u, h = torch.randn_like(x), 1e-6 * float(sigma[0])
        slope = (policy.denoise(x + h * u, sigma, context) - policy.denoise(x - h * u, sigma, context)) / (2 * h)
        told = ((moved - clean) * u).sum((1, 2)) / torch.minimum(1 + sigma.square(), 5 * sigma)
        torch.testing.assert_close(told, (error * slope).sum((1, 2)), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("jacobian", ["vjp", "identity"])
def test_it_is_the_published_formula_on_the_flow(toys, jacobian):
    """v' = v - g J_y^T e in y = t eps + (1 - t) a, computed as published and then brought to D = y - t v."""
    policy, obs, previous = setting(toys, "flow-mlp")
    weight, beta = overlap_weight(5, 2, 3).double(), 5.0
    seen, context = guided_step(policy, obs, RealTimeGuidance(previous, weight, jacobian=jacobian))
    for x, _, moved, sigma in seen:
        t = (sigma / (1 + sigma))[:, None, None]
        tau = 1 - t
        y = (x / (1 + sigma)[:, None, None]).requires_grad_()
        estimate = policy.denoise(y * (1 + sigma)[:, None, None], sigma, context)
        velocity = (y - estimate) / t
        error = (weight[None, :, None] * (previous - estimate)).detach()
        if jacobian == "vjp":
            (error,) = torch.autograd.grad(estimate, y, error)
        gain = torch.clamp((1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2, max=beta)
        torch.testing.assert_close(y - t * (velocity - gain * error), moved, rtol=1e-6, atol=1e-7)


def test_weights_of_the_overlap():
    """H = 8, d = 2, s = 3: decided, fading over c = 3/4, 2/4, 1/4, and free."""
    fading = [c * math.expm1(c) / math.expm1(1) for c in (0.75, 0.5, 0.25)]
    torch.testing.assert_close(overlap_weight(8, 2, 5), torch.tensor([1, 1, *fading, 0, 0, 0]))
    assert overlap_weight(8, 4, 4).tolist() == [1] * 4 + [0] * 4
    assert overlap_weight(8, 4, 2).tolist() == [1] * 2 + [0] * 6  # a late chunk: less is left than was to be decided
    assert overlap_weight(8, 0, 0).tolist() == [0] * 8


def test_candidates_follow_the_chunk_of_their_observation_and_worlds_without_one_are_free(toys):
    policy, data = toys.make("edm-mlp")
    obs = toys.batch(data, policy.spec, 3)
    noise = torch.randn(3, 4, *policy.spec.noise_shape)
    left = torch.rand(3, 3, 3) - 0.5
    guide = continuing(left, 5, 2, torch.tensor([True, False, True]))
    context = policy.encode(obs)
    free, held = (policy.sample(context, n=4, noise=noise, guidance=g, steps=6).actions for g in ((), [guide]))
    torch.testing.assert_close(held[1], free[1], rtol=0, atol=1e-5)
    for row in (0, 2):
        near, far = ((actions[row, :, :2] - left[row, :2]).square().mean() for actions in (held, free))
        assert near < 0.2 * far
        one = continuing(left[row : row + 1], 5, 2)
        alone = policy.encode({key: value[row : row + 1] for key, value in obs.items() if key in policy.spec.observation})
        again = policy.sample(alone, n=4, noise=noise[row : row + 1], guidance=[one], steps=6).actions
        torch.testing.assert_close(again[0], held[row], rtol=0, atol=1e-5)


class TwoWays(policies.FlowPolicy):
    """The exact denoiser of chunks that go up or down: an even mixture of N(+0.5, 0.05^2) and N(-0.5, 0.05^2), all elements alike."""

    def encode(self, obs):
        return EmbeddingContext(torch.zeros(len(obs[STATE]), 1))

    def denoise(self, x, sigma, ctx):
        variance = sigma.square()[:, None, None]
        modes = [(0.05**2 * x + variance * mean) / (0.05**2 + variance) for mean in (0.5, -0.5)]
        odds = torch.sigmoid((x / (0.05**2 + variance)).sum((1, 2)))[:, None, None]  # of the upper mode
        return odds * modes[0] + (1 - odds) * modes[1]

    def _predict(self, y, t, ctx):
        """The velocity of that denoiser, v = (y - D) / t."""
        clean = self.denoise((y / (1 - t)).flatten(0, 1), (t / (1 - t)).expand(y.shape[0] * y.shape[1]), ctx)
        return (y - clean.view_as(y)) / t, y.flatten(2)


@pytest.mark.parametrize("jacobian", ["vjp", "identity"])
def test_chunks_join_where_naive_ones_jump(toys, jacobian):
    """Every second naive chunk goes the other way; of continued ones hardly any, and both ways are taken."""
    policy = policies.make("flow", toys.policy_spec(horizon=8), toys.ToyData().stats(), {"hidden": [8]})
    policy.net.embed_time = lambda level: level
    policy.__class__ = TwoWays
    worlds, delay, steps = 40, 2, 4
    obs = {key: torch.zeros(worlds, *spec.shape) for key, spec in policy.spec.observation.tensors.items()}
    jumps, ways = {}, {}
    for mode in ("async", "rtc"):
        executor = ChunkExecutor(policy, worlds, mode=mode, delay=delay, act_steps=steps, jacobian=jacobian)
        executor.reset(seeds=range(worlds))
        path = torch.stack([executor.plan(obs) for _ in range(6 * steps + delay)])
        entered = torch.arange(1, 6) * steps + delay
        jumps[mode] = (path[entered] - path[entered - 1]).abs().mean(-1)
        ways[mode] = (path[0].mean(-1) > 0).float().mean()
        assert (path.abs() - 0.5).abs().max() < 0.4  # on one of the two ways, not between them
    turned = {mode: (jump > 0.5).float().mean() for mode, jump in jumps.items()}
    assert 0.3 < turned["async"] < 0.7 and turned["rtc"] < 0.2 * turned["async"]
    assert jumps["rtc"].mean() < 0.2 * jumps["async"].mean()
    assert 0.2 < ways["rtc"] < 0.8


def test_what_does_not_fit_is_told():
    chunk = torch.zeros(2, 5, 3)
    with pytest.raises(SpecError, match="jacobian 'none' is unknown: known are vjp, identity"):
        RealTimeGuidance(chunk, torch.ones(5), jacobian="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="beta >= 0, not -1"):
        RealTimeGuidance(chunk, torch.ones(5), beta=-1)
    with pytest.raises(SpecError, match=r"weights \(4,\) do not fit a previous chunk \(2, 5, 3\)"):
        RealTimeGuidance(chunk, torch.ones(4))
