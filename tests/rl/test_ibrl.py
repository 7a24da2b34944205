"""A base and an actor from scratch: critics choose, in the worlds and in the targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import torch
from test_rlpd import demonstrations

from policies.bootstrapped import BootstrappedConfig, Chooser
from rl.batch import Batch
from rl.critic import EnsembleMLP
from rl.ibrl import IbrlConfig, IbrlMethod, share_weights, train_ibrl
from rl.learner import LearnerConfig
from sinew.errors import InputError
from sinew.rundir import RunDir

SHORT = IbrlConfig(
    steps=1_200,
    random_steps=320,
    critic_only_updates=20,
    updates_per_step=0.5,
    critic_hidden=(16,),
    critic_heads=3,
    batch_size=32,
    evaluate_every=400,
    checkpoint_every=400,
)
LEARNS = replace(
    SHORT, steps=5_000, random_steps=1_500, critic_only_updates=500, updates_per_step=1.0, critic_hidden=(64, 64), critic_heads=2,
    batch_size=128, evaluate_every=1_000, checkpoint_every=1_000, stop_success=0.96,
)  # fmt: skip


def chooser_for(config: IbrlConfig, seed: int = 0) -> Chooser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Chooser(4, 2, BootstrappedConfig(hidden=(64, 64), critic_hidden=config.critic_hidden, critic_heads=config.critic_heads))


def learn(folder: Path, config: IbrlConfig, *, env: Any = None, demos: Any = None, evaluate: Any = True, executor: Any = None):
    chooser, env = chooser_for(config), env or point_mass.PointMass(8)
    executor = executor or point_mass.BiasedExecutor(env.num_envs)
    measure = (lambda: point_mass.rollout(Residue(chooser))) if evaluate is True else evaluate
    run = RunDir.create(folder, config)
    return train_ibrl(env, executor, chooser, point_mass.observe, run, config, demos=demos, evaluate=measure), chooser


class Residue(torch.nn.Module):
    """A chooser as what `point_mass.rollout` plays: the difference from the planned action."""

    def __init__(self, chooser: Chooser) -> None:
        super().__init__()
        self.chooser = chooser

    def forward(self, features, base_action):
        return self.chooser(features, base_action) - base_action


def method_and_learner(config: IbrlConfig = SHORT):
    method = IbrlMethod(point_mass.BiasedExecutor(4), chooser_for(config), point_mass.observe, config)
    frames = {"features": torch.randn(16, 4), "base_action": torch.rand(16, 2) * 2 - 1}
    return method, method.make_learner(frames), frames


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_base_that_rarely_hits_is_surpassed(tmp_path):
    """Far beside the goal, with noise: what the base reaches by luck, and demonstrations, are what the actor starts from."""
    chooser = chooser_for(LEARNS)

    def play(episodes: int, seed: int) -> dict[str, int]:
        return point_mass.rollout(Residue(chooser), episodes, seed, bias_m=0.25)

    base, run = play(200, 5_000_000), RunDir.create(tmp_path / "run", LEARNS)
    env, executor = point_mass.PointMass(8), point_mass.BiasedExecutor(8, bias_m=0.25)
    gate = lambda: play(50, 1_000_000)  # noqa: E731
    result = train_ibrl(env, executor, chooser, point_mass.observe, run, LEARNS, demos=demonstrations(), evaluate=gate)
    fresh = play(200, 5_000_000)
    assert base["k"] < 60 and fresh["k"] > 120, (base, fresh, result.history)
    assert bool(chooser.active)


def test_the_next_action_is_the_better_of_both_by_the_target_critics():
    """Two implementations: the learner's, and the choice written out over the target's values."""
    _, learner, frames = method_and_learner()
    learner.config = replace(learner.config, smoothing_std=0.0)
    for p in learner.critic_target.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    own = learner.actor_target(frames["features"])
    planned = frames["base_action"]
    values = [learner.critic_target(torch.cat((frames["features"], a), -1)).amin(0) for a in (planned, own)]
    wanted = torch.where((values[1] > values[0])[:, None], own, planned)
    chosen, log_p = learner.next_action(frames)
    torch.testing.assert_close(chosen, wanted)
    assert log_p is None
    picked = (chosen == planned).all(1)
    assert bool(picked.any()) and not bool(picked.all()), "both must be chosen somewhere for this test to mean anything"
    batch = Batch(frames, planned, torch.zeros(16), torch.full((16,), 0.9), frames, *[torch.zeros(16)] * 3)
    config = LearnerConfig(smoothing_std=0.0, target_heads=9, target_low=None, target_high=None)
    learner.config = config
    torch.testing.assert_close(learner.target(batch), 0.9 * torch.maximum(values[0], values[1]))


def test_the_base_is_a_floor_of_the_target():
    """Where critics prefer the planned action everywhere, targets are those of the base, whatever the actor does."""
    _, learner, frames = method_and_learner()
    learner.config = LearnerConfig(smoothing_std=0.1, target_heads=9, target_low=None, target_high=None)

    def near_the_plan(x, heads=None):  # value falls with the distance from the planned action
        features, action = x[:, :4], x[:, 4:]
        assert torch.equal(features, frames["features"])
        return -(action - frames["base_action"]).square().sum(-1)[None, :, None].expand(3, -1, -1)

    learner.target_engine.evaluate = near_the_plan
    assert torch.equal(learner.next_action(frames)[0], frames["base_action"])
    batch = Batch(frames, frames["base_action"], torch.ones(16), torch.full((16,), 0.9), frames, *[torch.zeros(16)] * 3)
    torch.testing.assert_close(learner.target(batch), torch.ones(16))


def test_acting_chooses_as_targets_do_and_before_learning_it_is_the_base():
    method, learner, frames = method_and_learner(replace(SHORT, exploration_std=0.0))
    stream = torch.Generator().manual_seed(0)
    assert torch.equal(method.act(frames, 0, stream), frames["base_action"])
    assert torch.equal(method.chooser(frames["features"], frames["base_action"]), frames["base_action"])
    for p in learner.critic_target.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=stream)
    learner.config = replace(learner.config, smoothing_std=0.0)
    learner.actor_target.load_state_dict(learner.actor.state_dict())
    acted = method.act(frames, SHORT.random_steps, stream)
    torch.testing.assert_close(acted, learner.next_action(frames)[0])
    with torch.no_grad():
        torch.testing.assert_close(method.chooser(frames["features"], frames["base_action"]), acted)


def test_the_choosers_critics_are_the_target_critics_in_value_and_in_storage(tmp_path):
    method, learner, frames = method_and_learner()
    x = torch.randn(7, 6)
    torch.testing.assert_close(method.chooser.critic(x), learner.critic_target(x))
    batch = Batch(frames, frames["base_action"], torch.rand(16), torch.full((16,), 0.9), frames, *[torch.zeros(16)] * 3)
    for _ in range(5):
        learner.update(batch)
    with torch.no_grad():
        torch.testing.assert_close(method.chooser.critic(x), learner.critic_target(x))
        assert not torch.allclose(learner.critic(x), learner.critic_target(x))
    with pytest.raises(InputError, match="another size"):
        share_weights(method.chooser.critic, EnsembleMLP(6, (17,), 1, 3))


def test_updates_never_ask_the_base(tmp_path):
    executor = point_mass.BiasedExecutor(8)
    learn(tmp_path / "run", replace(SHORT, critic_only_updates=200), executor=executor, evaluate=None)
    plans = sum(what == "plan" for what, _ in executor.log)
    starts = 1 + (SHORT.steps - 1) // SHORT.checkpoint_every
    assert plans == SHORT.steps // 8 + starts


@pytest.mark.parametrize("demos", [False, True], ids=["alone", "demonstrations"])
def test_stopped_and_resumed_equals_never_interrupted(tmp_path, demos):
    config, ring = replace(SHORT, stop_success=2.0), demonstrations(5) if demos else None
    _, whole = learn(tmp_path / "whole", config, demos=ring)

    class Dies(point_mass.PointMass):
        steps = 0

        def step(self, action):
            self.steps += 1
            if self.steps == 120:
                raise KeyboardInterrupt
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts", config, env=Dies(8), demos=ring)
    _, resumed = learn(tmp_path / "parts", config, demos=ring)
    assert same(whole, resumed)


def test_where_nothing_beats_the_base_it_is_left_as_it_was(tmp_path):
    scores = iter([30, 10, 29, 30, 5])
    result, chooser = learn(tmp_path / "run", SHORT, evaluate=lambda: {"k": next(scores), "n": 50})
    assert result.best == result.base and not bool(chooser.active)


def test_going_back_takes_the_actor_and_leaves_the_critics():
    method, learner, frames = method_and_learner()
    weights = {k: v.clone() for k, v in method.chooser.state_dict().items()}
    batch = Batch(frames, frames["base_action"], torch.rand(16), torch.full((16,), 0.9), frames, *[torch.zeros(16)] * 3)
    for _ in range(6):
        learner.update(batch)
    critics = {k: v.clone() for k, v in learner.critic_target.state_dict().items()}
    assert any(not torch.equal(v, weights[k]) for k, v in method.chooser.state_dict().items() if k.startswith("actor."))
    learner.return_to(weights)
    assert all(torch.equal(v, weights[k]) for k, v in method.chooser.state_dict().items() if k.startswith("actor."))
    assert all(torch.equal(v, critics[k]) for k, v in learner.critic_target.state_dict().items())
