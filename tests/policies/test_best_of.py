"""Best of n: the choice, its noise, and what each scorer needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import policies
from policies.best_of import BestOfN, candidates
from policies.counts import CountConfig, make_counts
from policies.executor import ChunkExecutor
from sinew.errors import InputError, SpecError
from sinew.protocols import Chunk


@pytest.fixture
def base(toys):
    return toys.make("flow-mlp")


def observed(toys, policy, data, rows=5):
    batch = toys.batch(data, policy.spec, rows)
    return {key: batch[key] for key in policy.spec.observation}


def counted(base, **config):
    return make_counts(base.spec.feature_dim, CountConfig(hidden=16, **config)).eval()


def test_one_candidate_is_the_base_bit_for_bit(toys, base):
    policy, data = base
    one, obs = BestOfN(policy, 1, counted(policy)), observed(toys, policy, data)
    noise = torch.randn(5, 3, *policy.spec.noise_shape)
    got, expected = (p.sample(p.encode(obs), n=3, noise=noise) for p in (one, policy))
    assert torch.equal(got.actions, expected.actions) and torch.equal(got.noise, noise)


def test_the_best_by_pseudo_counts_of_its_own_candidates_is_taken(toys, base):
    policy, data = base
    counts, obs = counted(policy), observed(toys, policy, data)
    best = BestOfN(policy, 6, counts)
    noise = torch.randn(5, 2, *policy.spec.noise_shape)
    got = best.sample(best.encode(obs), n=2, noise=noise, features=True)
    for row in range(5):
        context = policy.encode({key: value[row : row + 1] for key, value in obs.items()})
        for place in range(2):
            chunk = policy.sample(context, n=6, noise=candidates(noise[row, place][None, None], 6)[:, 0], features=True)
            choice = int(counts.novelty(chunk.features[0]).argmin())
            torch.testing.assert_close(got.actions[row, place], chunk.actions[0, choice], rtol=0, atol=1e-5)
            torch.testing.assert_close(got.features[row, place], chunk.features[0, choice], rtol=0, atol=1e-4)


def test_candidates_noise_is_normal_and_a_function_of_the_first_alone():
    noise = torch.randn(40, 2, 3, 5)
    many = candidates(noise, 64)
    assert many.shape == (40, 2, 64, 3, 5) and torch.equal(many[:, :, 0], noise)
    assert torch.equal(candidates(noise[7:8, 1:], 64)[0, 0], many[7, 1])
    assert torch.equal(candidates(noise, 8), many[:, :, :8])  # more candidates go on where fewer end
    others = many[:, :, 1:].flatten()
    assert abs(float(others.mean())) < 0.01 and abs(float(others.var()) - 1) < 0.02
    with_first = (many[:, :, 1:] * noise.unsqueeze(2)).mean()
    assert abs(float(with_first)) < 0.01 and not torch.equal(many[0, 0, 1], many[0, 1, 1])


class Ranked(policies.FlowPolicy):
    """A flow policy with an energy: the mean of the chunk."""

    def energy(self, x, ctx):
        assert ctx.batch == len(x)
        return x.mean((1, 2))


def test_energy_ranks_by_the_samples_own_or_by_the_policys(toys, base, monkeypatch):
    policy, data = base
    policy.spec, policy.__class__ = replace(policy.spec, capabilities=(*policy.spec.capabilities, "energy")), Ranked
    best, obs = BestOfN(policy, 8, "energy"), observed(toys, policy, data)
    noise = torch.randn(5, 1, *policy.spec.noise_shape)
    every = policy.sample(policy.encode(obs), n=8, noise=candidates(noise, 8)[:, 0]).actions
    got = best.sample(best.encode(obs), noise=noise)
    torch.testing.assert_close(got.actions.mean((2, 3))[:, 0], every.mean((2, 3)).amin(1))
    assert torch.equal(best.energy(every[:, 0], policy.encode(obs)), every[:, 0].mean((1, 2)))

    def sample(self, ctx, **options):  # the sampler knows better: the last candidate is best
        chunk = policies.FlowPolicy.sample(self, ctx, **options)
        return Chunk(chunk.actions, chunk.noise, chunk.features, -torch.arange(8.0).expand(5, 8))

    monkeypatch.setattr(Ranked, "sample", sample)
    got = best.sample(best.encode(obs), noise=noise)
    torch.testing.assert_close(got.actions[:, 0], every[:, 7], rtol=0, atol=1e-5)
    assert torch.equal(got.energy, torch.full((5, 1), -7.0))


def test_values_rank_by_the_newest_observation_and_the_chunk(toys):
    policy, data = toys.make("flow-mlp-camera")

    def value(features, chunks):
        return features[:, 0] * chunks[:, 0].sum(-1)  # up or down with the sign of the first feature

    best, obs = BestOfN(policy, 8, value), observed(toys, policy, data)
    noise = torch.randn(5, 1, *policy.spec.noise_shape)
    every = policy.sample(policy.encode(obs), n=8, noise=candidates(noise, 8)[:, 0]).actions
    first = policy.observe({key: tensor[:, -1] for key, tensor in obs.items()})[:, 0]
    expected = (first[:, None] * every[:, :, 0].sum(-1)).amax(1)
    for got in (best.sample(best.encode(obs), noise=noise), best.sample(best.encode(obs).expand(1), noise=noise)):
        torch.testing.assert_close(first * got.actions[:, 0, 0].sum(-1), expected)
    with pytest.raises(InputError, match="critic is not part of it: save its base"):
        policies.save(best, "nowhere")


def test_in_the_executor_the_scene_fixes_what_is_chosen(toys, base):
    policy, data = base
    best = BestOfN(policy, 5, counted(policy))
    frames = {key: torch.from_numpy(data.frames[key][:7]) for key in policy.spec.observation}
    alone, among = ChunkExecutor(best, 1), ChunkExecutor(best, 7)
    alone.reset(seeds=[4])
    among.reset(seeds=[9, 8, 4, 7, 6, 5, 3])
    one = alone.act({key: value[2:3] for key, value in frames.items()})
    torch.testing.assert_close(among.act(frames)[2], one[0], rtol=0, atol=1e-5)


def test_what_a_scorer_needs_is_told_with_a_remedy(toys, base):
    policy, _ = base
    with pytest.raises(SpecError, match=r"best-of by energy needs a policy with capability 'energy'; FlowPolicy has: .*: train one with"):
        BestOfN(policy, 4, "energy")
    blind = toys.make("flow-mlp")[0]
    blind.spec = replace(blind.spec, capabilities=("noise",), feature_dim=0)
    with pytest.raises(SpecError, match="best-of by count needs a policy with capability 'features'; FlowPolicy has: noise: rank by"):
        BestOfN(blind, 4, counted(policy))
    with pytest.raises(SpecError, match=r"'observe'.*: rank by count"):
        BestOfN(blind, 4, lambda features, chunks: features[:, 0])
    with pytest.raises(SpecError, match=r"needs what it ranks by: fit_counts\(policy, data\)"):
        BestOfN(policy, 4, "count")
    with pytest.raises(SpecError, match="scorer 'luck' is unknown: known are count, energy, q"):
        BestOfN(policy, 4, "luck")
    with pytest.raises(SpecError, match="at least 1 candidate, not 0"):
        BestOfN(policy, 0, counted(policy))
    with pytest.raises(SpecError, match=r"of 3 features do not fit a policy that gives \d+"):
        BestOfN(policy, 4, make_counts(3, CountConfig(hidden=8)))
    act, _ = toys.make("act-state")
    with pytest.raises(SpecError, match=r"needs a policy with capability 'noise'; ActPolicy has: .*: its candidates would all be alike"):
        BestOfN(act, 4, counted(act))
