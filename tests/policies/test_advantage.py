"""Conditioning on advantages: the base until taught, guidance between bare and told, labels that reach the loss, and what it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import policies
from policies.advantage import ADVANTAGE, DROPPED, AdvantageConditioned, AdvantageTraining, Labelled
from policies.train import TrainConfig, train
from sinew.errors import DataError, SpecError
from sinew.rundir import RunDir

CASES = ("flow-mlp", "diffusion-mlp", "edm-transformer", "vla-bidirectional")


def made(toys, kind, guidance=1.0):
    """A policy that was told something, its base and a batch."""
    base, data = toys.make(kind)
    policy = AdvantageConditioned(base, guidance)
    if not policy.speaks:
        torch.nn.init.normal_(policy.words, std=0.5, generator=torch.Generator().manual_seed(0))
    policy.active.fill_(True)
    return policy.eval(), toys.batch(data, policy.spec)


def observed(policy, batch):
    keys = (*policy.spec.observation, *(("task",) if policy.speaks else ()))
    return {key: batch[key] for key in keys}


def noise(policy, rows=8, seed=0):
    return torch.randn(rows, 1, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", CASES)
def test_untaught_it_is_its_base_bit_for_bit(toys, kind):
    base, data = toys.make(kind)
    policy = AdvantageConditioned(base, guidance=2.0)
    obs, z = observed(policy, toys.batch(data, policy.spec)), noise(policy)
    assert torch.equal(policy.sample(policy.encode(obs), noise=z).actions, base.sample(base.encode(obs), noise=z).actions)


@pytest.mark.parametrize("kind", CASES)
def test_guidance_one_is_the_told_policy_and_zero_the_bare_one(toys, kind):
    policy, batch = made(toys, kind)
    obs, z = observed(policy, batch), noise(policy)
    told = policy.sample(policy.encode(obs), noise=z).actions
    context = policy.encode(obs)
    assert context.free is None  # nothing is compared, nothing is paid
    policy.config = replace(policy.config, guidance=2.0)
    compared = policy.encode(obs)
    policy.config = replace(policy.config, guidance=1.0)  # through the comparison, with weight 1
    torch.testing.assert_close(policy.sample(compared, noise=z).actions, told, rtol=0, atol=1e-5)
    policy.config = replace(policy.config, guidance=0.0)
    bare = policy.base.sample(policy.base.encode(obs), noise=z).actions
    torch.testing.assert_close(policy.sample(policy.encode(obs), noise=z).actions, bare, rtol=0, atol=1e-5)
    assert not torch.allclose(told, bare, atol=1e-3)


def test_guidance_is_linear_in_the_clean_estimate(toys):
    policy, batch = made(toys, "flow-mlp", guidance=2.5)
    context = policy.encode(observed(policy, batch))
    x, sigma = noise(policy)[:, 0] * 3, torch.full((8,), 3.0)
    told, bare = policy.base.denoise(x, sigma, context.inner), policy.base.denoise(x, sigma, context.free)
    torch.testing.assert_close(policy.denoise(x, sigma, context), bare + 2.5 * (told - bare))


@pytest.mark.parametrize("kind", ["flow-mlp", "edm-transformer", "vla-bidirectional"])
def test_a_dropped_label_is_no_label(toys, kind):
    """What is taught without knowing is the base's own loss, whatever the label says."""
    policy, batch = made(toys, kind)
    drawn = policy.draw(8, torch.Generator().manual_seed(1))
    t, z = drawn["t"], drawn["noise"]
    to = batch["action"].shape[0], policy.spec.n_obs_steps, 1
    good, poor = {**batch, ADVANTAGE: torch.ones(to)}, {**batch, ADVANTAGE: torch.zeros(to)}
    everything, nothing = torch.ones(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    base = policy.base.loss(batch, t=t, noise=z).per_sample
    for labelled in (good, poor):
        torch.testing.assert_close(policy.loss({**labelled, DROPPED: everything}, t=t, noise=z).per_sample, base)
    told = [policy.loss({**labelled, DROPPED: nothing}, t=t, noise=z).per_sample for labelled in (good, poor)]
    assert not torch.allclose(told[0], base) and not torch.allclose(told[0], told[1])
    torch.testing.assert_close(policy.loss(batch, t=t, noise=z).per_sample, told[0])  # without labels all are good


def test_labels_reach_the_batch_with_the_frame_they_belong_to(toys):
    data = toys.ToyData()
    labels = (np.arange(len(data)) % 3 == 0).astype(np.float32)
    labelled = Labelled(data, labels)
    window = labelled.window(np.array([0, 1, 3, 25]), 2, 4, ["observation.state", ADVANTAGE])
    assert window[ADVANTAGE].shape == (4, 2, 1) and window[ADVANTAGE][:, -1, 0].tolist() == [1, 0, 1, 0]
    assert len(labelled) == len(data) and labelled.column(ADVANTAGE).shape == (len(data), 1)
    assert list(labelled.column("frame_index")) == list(data.column("frame_index"))
    with pytest.raises(DataError, match="do not fit 120 frames"):
        Labelled(data, labels[:5])


def test_taught_on_two_ways_it_takes_the_better_one(toys, tmp_path):
    """In every state half of the recorded actions are 0.6 and good, half -0.6 and poor: the base has both, the taught policy one."""
    data = toys.ToyData(episodes=20)
    good = (np.arange(len(data)) // 20 % 2 == 0).astype(np.float32)
    sign = np.where(good > 0, 1.0, -1.0)[:, None]
    data.actions = toys.ACTION_SPEC.denormalize(0.6 * sign * np.ones((1, 3))).astype(np.float32)
    for value in data.frames.values():
        value[:] = value[0]  # nothing in the observation tells them apart
    spec = toys.policy_spec(horizon=2)
    base = policies.make("flow", spec, {k: {"mean": v.mean(0), "std": np.ones(v.shape[1])} for k, v in data.frames.items()},
                         {"hidden": (64, 64)}, seed=0)  # fmt: skip
    policy = AdvantageConditioned(base, dropout=0.3)
    run = RunDir.create(tmp_path / "run", {})
    train(AdvantageTraining(policy), Labelled(data, good), run, TrainConfig(steps=800, batch_size=64, learning_rate=3e-3, ema_decay=0.99))
    obs = {key: torch.from_numpy(value[:1, None]).expand(200, -1, -1) for key, value in data.frames.items()}
    z = torch.randn(200, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    first = policy.sample(policy.encode(obs), noise=z).actions[:, 0, 0, 0]
    assert (first > 0.2).float().mean() > 0.9
    policy.config = replace(policy.config, guidance=0.0)
    bare = policy.sample(policy.encode(obs), noise=z).actions[:, 0, 0, 0]
    assert 0.25 < (bare > 0).float().mean() < 0.75
    policy.config = replace(policy.config, guidance=1.0)
    loaded = policies.load(tmp_path / "run")
    assert torch.equal(loaded.sample(loaded.encode(obs), noise=z).actions[:, 0, 0, 0], first)


def test_what_cannot_be_taught_is_refused(toys):
    policy, _ = toys.make("energy-mlp")
    with pytest.raises(SpecError, match="flow, diffusion, edm or vla policy, not EnergyPolicy"):
        AdvantageConditioned(policy)
    base, _ = toys.make("flow-mlp")
    with pytest.raises(SpecError, match="guidance -1"):
        AdvantageConditioned(base, guidance=-1)
    spoken, batch = made(toys, "vla-bidirectional")
    with pytest.raises(SpecError, match="needs its instruction"):
        spoken.encode({key: batch[key] for key in spoken.spec.observation})
