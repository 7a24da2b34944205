"""A bounded, drawn correction that comes in progressively."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import torch

from policies.decorated import DecoratedConfig, Decoration
from rl.policy_decorator import DecoratorConfig, DecoratorMethod, critic_input, train_decorator
from sinew.errors import InputError
from sinew.rundir import RunDir

SCALE = 0.6
SHORT = DecoratorConfig(
    steps=1_200,
    random_steps=320,
    progressive_steps=0,
    critic_only_updates=20,
    critic_hidden=(16,),
    batch_size=32,
    evaluate_every=400,
    checkpoint_every=400,
)
LEARNS = replace(
    SHORT, steps=10_000, random_steps=1_500, progressive_steps=3_000, critic_only_updates=500, critic_hidden=(64, 64), batch_size=128,
    evaluate_every=1_000, checkpoint_every=1_000, stop_success=0.96,
)  # fmt: skip


def actor_of(sees_base: bool = True, scale: float = SCALE) -> Decoration:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoration(4, 2, DecoratedConfig(scale=scale, hidden=(64, 64), sees_base=sees_base))


class Likeliest(torch.nn.Module):
    """A decoration as `point_mass.rollout` plays it."""

    def __init__(self, actor: Decoration) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, features, base_action):
        return self.actor(self.actor.sight(features, base_action)) * self.actor.active


def learn(folder: Path, config: DecoratorConfig, *, env: Any = None, evaluate: Any = True, executor: Any = None, actor: Any = None):
    actor, env = actor or actor_of(), env or point_mass.PointMass(8)
    executor = executor or point_mass.BiasedExecutor(env.num_envs)
    measure = (lambda: point_mass.rollout(Likeliest(actor))) if evaluate is True else evaluate
    run = RunDir.create(folder, config)
    return train_decorator(env, executor, actor, point_mass.observe, run, config, evaluate=measure), actor


@pytest.mark.parametrize("kind", ["sum", "residual", "concat"])
def test_a_biased_base_is_corrected_whatever_the_critics_see(tmp_path, kind):
    result, actor = learn(tmp_path / "run", replace(LEARNS, critic_input=kind))
    fresh = point_mass.rollout(Likeliest(actor), episodes=200, seed=5_000_000)
    assert result.base is not None and result.base.rate < 0.9
    assert fresh["k"] > 185, (result.base, fresh, result.reason)


def test_what_critics_see_is_the_sum_the_correction_or_both():
    frames = {"features": torch.tensor([[7.0]]), "base_action": torch.tensor([[0.2, -0.9]])}
    executed = torch.tensor([[0.5, -1.0]])  # the second element was clipped: what was executed counts
    assert critic_input("sum", 0.5)(frames, executed).tolist() == [[7.0, 0.5, -1.0]]
    torch.testing.assert_close(critic_input("residual", 0.5)(frames, executed), torch.tensor([[7.0, 0.6, -0.2]]))
    torch.testing.assert_close(critic_input("concat", 0.5)(frames, executed), torch.tensor([[7.0, 0.2, -0.9, 0.6, -0.2]]))


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (500, 0.25), (1_000, 0.5), (2_000, 1.0), (9_000, 1.0)])
def test_the_share_of_corrected_ticks_is_min_of_t_over_h_and_one(step, share):
    method = DecoratorMethod(point_mass.BiasedExecutor(1), actor_of(), point_mass.observe, replace(SHORT, progressive_steps=2_000))
    frames = {"features": torch.randn(4_000, 4), "base_action": torch.zeros(4_000, 2)}
    action = method.act(frames, step, torch.Generator().manual_seed(0))
    used = (action != 0).any(1).float().mean()
    assert abs(float(used) - share) < 0.03
    assert float(action.abs().max()) <= SCALE + 1e-6


def test_actions_stay_within_the_scale_of_the_plan_and_within_bounds():
    method = DecoratorMethod(point_mass.BiasedExecutor(1), actor_of(scale=0.1), point_mass.observe, SHORT)
    frames = {"features": 30 * torch.randn(500, 4), "base_action": torch.rand(500, 2) * 2 - 1}
    for step in (0, SHORT.random_steps):
        action = method.act(frames, step, torch.Generator().manual_seed(0))
        assert float((action - frames["base_action"]).abs().max()) <= 0.1 + 1e-6 and float(action.abs().max()) <= 1


def test_the_temperature_holds_the_entropy_that_was_asked_for():
    method = DecoratorMethod(point_mass.BiasedExecutor(1), actor_of(), point_mass.observe, replace(SHORT, entropy_per_element=-0.5))
    learner = method.make_learner({"features": torch.randn(8, 4), "base_action": torch.zeros(8, 2)})
    assert learner.config.target_entropy == -1.0  # two elements


def test_an_actor_that_does_not_look_at_the_plan_does_not():
    blind, seeing = actor_of(sees_base=False), actor_of()
    features, plans = torch.randn(5, 4), [torch.zeros(5, 2), torch.ones(5, 2)]
    assert torch.equal(*(blind(blind.sight(features, plan)) for plan in plans))
    assert not torch.equal(*(seeing(seeing.sight(features, plan)) for plan in plans))


def test_stopped_and_resumed_equals_never_interrupted(tmp_path):
    config = replace(SHORT, stop_success=2.0, progressive_steps=600)
    _, whole = learn(tmp_path / "whole", config)

    class Dies(point_mass.PointMass):
        steps = 0

        def step(self, action):
            self.steps += 1
            if self.steps == 120:
                raise KeyboardInterrupt
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts", config, env=Dies(8))
    _, resumed = learn(tmp_path / "parts", config)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_where_nothing_beats_the_base_it_is_left_as_it_was(tmp_path):
    scores = iter([30, 10, 29, 30, 5])
    result, actor = learn(tmp_path / "run", SHORT, evaluate=lambda: {"k": next(scores), "n": 50})
    assert result.best == result.base and not bool(actor.active)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="critic_input 'both'"):
        DecoratorConfig(critic_input="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="progressive_steps -1"):
        DecoratorConfig(progressive_steps=-1)
