"""Many worlds, a distribution, running statistics: learned from scratch, resumed exactly, and without the known mistakes."""

from dataclasses import replace

import point_mass
import pytest
import torch
from ppo_toys import Tanh, success

from rl.fast_td3 import FastTd3Config, FastTd3Method, train_fast_td3
from rl.learner import LearnerConfig
from rl.replay import Ring
from rl.running_norm import NormalisedActor, RunningNorm
from sinew.errors import InputError
from sinew.rundir import RunDir

WORLDS = 32


def make_actor() -> NormalisedActor:
    return NormalisedActor(Tanh(), 4)


def config(**settings) -> FastTd3Config:
    values = {"steps": 960, "random_steps": 320, "critic_hidden": (16,), "batch_size": 32, "evaluate_every": 10**6, "critic_bins": 11}
    return FastTd3Config(**{**values, "checkpoint_every": 10**6, **settings})


def test_a_small_task_is_learned_from_scratch(tmp_path):
    actor = make_actor()
    learner = replace(FastTd3Config().learner, actor_lr=1e-3, critic_lr=1e-3)
    sizes = {"steps": 16_000, "critic_hidden": (64, 64), "batch_size": 256, "critic_bins": 31}
    cfg = config(**sizes, random_steps=2_000, n_step=3, gamma=0.95, updates_per_step=1 / 8, learner=learner)
    before = success(actor)
    train_fast_td3(point_mass.PointMass(WORLDS, radius_m=0.12), actor, point_mass.observe, RunDir.create(tmp_path / "run", cfg), cfg)
    after = success(actor)
    assert before < 0.4 and after > 0.9
    folded = actor.fold()
    assert success(folded) == after


def test_each_world_explores_with_noise_of_its_own_drawn_with_every_episode():
    method = FastTd3Method(make_actor(), point_mass.observe, 1000, config(noise_low=0.1, noise_high=0.5))
    method.reset(None, list(range(1000)))
    first = method.noise.clone()
    assert float(first.min()) >= 0.1 and float(first.max()) <= 0.5 and float(first.std()) == pytest.approx(0.4 / 12**0.5, rel=0.1)
    method.reset([3], [77])
    changed = (method.noise != first)[:, 0]
    assert changed.nonzero()[:, 0].tolist() == [3]
    method.noise.fill_(0.3)
    method.noise[500:] = 0.0
    frames = {"features": torch.zeros(1000, 4)}
    action = method.act(frames, 0, torch.Generator().manual_seed(0))
    mean = method.actor(frames["features"]).detach()
    assert torch.equal(action[500:], mean[500:])
    assert float((action - mean)[:500].std()) == pytest.approx(0.3, rel=0.1)


def test_running_statistics_are_those_of_everything_seen():
    torch.manual_seed(0)
    norm, seen = RunningNorm(3), [torch.randn(n, 3) * torch.tensor([0.1, 1.0, 30.0]) + 5.0 for n in (1, 7, 300, 44)]
    for x in seen:
        norm.update(x)
    everything = torch.cat(seen)
    torch.testing.assert_close(norm.mean, everything.mean(0))
    torch.testing.assert_close(norm.variance, everything.var(0, correction=0), rtol=1e-4, atol=1e-5)
    assert float(norm.count) == 352
    torch.testing.assert_close(norm(everything)[:, 1:].std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_folding_is_the_same_function():
    actor = make_actor()
    actor.norm.update(torch.randn(100, 4) * 3 + torch.tensor([0.0, 5.0, -2.0, 100.0]))
    x = torch.randn(20, 4) * 3 + torch.tensor([0.0, 5.0, -2.0, 100.0])
    before = actor(x).detach()
    torch.testing.assert_close(actor.fold()(x).detach(), before, atol=1e-4, rtol=1e-4)


def test_statistics_are_those_of_sampled_batches_and_are_saved(tmp_path):
    run = RunDir.create(tmp_path / "run", config())
    actor = make_actor()
    train_fast_td3(point_mass.PointMass(WORLDS), actor, point_mass.observe, run, config())
    updates = (960 - 320) // 32
    assert float(actor.norm.count) == updates * 32
    assert float(actor.norm.variance.min()) > 0 and not torch.equal(actor.norm.variance, torch.ones(4))
    from safetensors.torch import load_file

    assert torch.equal(load_file(run / "actor.safetensors")["norm.mean"], actor.norm.mean)


def test_resuming_computes_what_an_uninterrupted_run_computes(tmp_path):
    cfg = config(checkpoint_every=320)
    whole = make_actor()
    train_fast_td3(point_mass.PointMass(WORLDS), whole, point_mass.observe, RunDir.create(tmp_path / "a", cfg), cfg)
    env, run = point_mass.Fragile(WORLDS), RunDir.create(tmp_path / "b", cfg)
    env.left = 25  # of 30 steps; the last checkpoint is at 20
    with pytest.raises(point_mass.BrokenOffError):
        train_fast_td3(env, make_actor(), point_mass.observe, run, cfg)
    resumed = make_actor()
    train_fast_td3(point_mass.PointMass(WORLDS), resumed, point_mass.observe, run, cfg)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_no_transition_of_a_run_crosses_an_episode_and_each_is_discounted_by_its_span(tmp_path):
    """The release summed rewards over the ends of episodes and took gamma^n for the discount of spans shorter than n."""
    rings: list[Ring] = []

    class Spy(Ring):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            rings.append(self)

    cfg = config(n_step=5, gamma=0.9)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("rl.memory", "rl.runner"):
            patch.setattr(f"{module}.Ring", Spy)
        env = point_mass.PointMass(WORLDS, max_episode_steps=7, radius_m=0.3)
        train_fast_td3(env, make_actor(), point_mass.observe, RunDir.create(tmp_path / "run", cfg), cfg)
    ring = rings[0]
    starts = ring.starts()
    batch = ring.gather(starts, n_step=5, gamma=0.9)
    goal, after = batch.frames["features"][:, 2:], batch.next_frames["features"][:, 2:]
    bootstraps = batch.discount > 0
    assert torch.equal(goal[bootstraps], after[bootstraps])  # the goal stands still within an episode and jumps between two
    torch.testing.assert_close(batch.discount[bootstraps], 0.9 ** batch.span[bootstraps].float())
    # a reward is 1 at the end of a success: what a span is worth is when it ended
    won = ~bootstraps
    torch.testing.assert_close(batch.reward[won], 0.9 ** (batch.span[won].float() - 1))
    assert bool((batch.reward[bootstraps] == 0).all())
    ended_by_time = ring.truncated[starts % (ring.length * WORLDS)]
    assert bool((batch.span[ended_by_time] == 1).all()) and bool(bootstraps[ended_by_time].all())
    assert int(won.sum()) > 20 and int(ended_by_time.sum()) > 20 and int((batch.span < 5).sum()) > 50


def test_the_defaults_are_those_of_the_paper_as_far_as_they_go():
    usual = FastTd3Config()
    learner = usual.learner
    assert usual.critic_head == "c51" and usual.critic_heads == 2 and learner.target_reduce == learner.actor_reduce == "min"
    assert not learner.target_actor and learner.actor_every == 2 and learner.tau == 0.1
    assert isinstance(learner, LearnerConfig)


def test_noise_that_is_no_range_is_refused():
    with pytest.raises(InputError, match="noise"):
        FastTd3Config(noise_low=0.5, noise_high=0.1)
