"""Learning from scratch: demonstrations help, and without them it is plain SAC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import point_mass
import pytest
import torch
from test_dsrl import Actor
from torch import Tensor

from rl.episodes import add_episode
from rl.replay import Ring
from rl.rlpd import RlpdConfig, train_rlpd
from sinew.rundir import RunDir

SHORT = RlpdConfig(
    steps=1_200, random_steps=320, critic_hidden=(16,), critic_heads=3, batch_size=32, evaluate_every=400, checkpoint_every=400
)
LEARNS = replace(SHORT, steps=6_000, random_steps=800, critic_hidden=(64, 64), batch_size=128, evaluate_every=1_000, stop_success=0.96)


def rollout(actor: Any, episodes: int = 100, seed: int = 1_000_000) -> dict[str, int]:
    env = point_mass.PointMass(episodes)
    obs = env.reset(list(range(seed, seed + 1000 * episodes, 1000)))
    done, won = torch.zeros(episodes, dtype=torch.bool), torch.zeros(episodes, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        with torch.no_grad():
            obs, _, terminated, truncated, _ = env.step(env.action_spec.denormalize(actor(obs[point_mass.STATE])))
        won |= terminated & ~done
        done |= terminated | truncated
    return {"k": int(won.sum()), "n": episodes}


def demonstrations(episodes: int = 30) -> Ring:
    """Straight ways to the goal."""
    ring = Ring(2_000, 1, {"features": ((4,), torch.float32), "base_action": ((2,), torch.float32)}, 2)
    env = point_mass.PointMass(1)
    for seed in range(episodes):
        obs: Mapping[str, Tensor] = env.reset([seed])
        features, actions, over = [], [], False
        while not over:
            state = obs[point_mass.STATE]
            features.append(state[0].clone())
            actions.append(((state[:, 2:] - state[:, :2]) / 0.15).clamp(-1, 1)[0])
            obs, _, terminated, truncated, _ = env.step(env.action_spec.denormalize(actions[-1][None]))
            over = bool(terminated | truncated)
        add_episode(ring, torch.stack(features), torch.stack(actions), success=bool(terminated))
    return ring


def learn(folder, config: RlpdConfig, demos: Ring | None = None, env=None):
    actor = Actor(bound=1.0)
    run = RunDir.create(folder, config)
    made = train_rlpd(env or point_mass.PointMass(8), actor, point_mass.observe, run, config, demos=demos, evaluate=lambda: rollout(actor))
    return made, actor


def test_it_learns_from_demonstrations_and_its_own_steps(tmp_path):
    result, actor = learn(tmp_path / "run", LEARNS, demonstrations())
    fresh = rollout(actor, 200, seed=5_000_000)
    assert result.base is not None and result.base.rate < 0.1 and fresh["k"] > 100, (result.base, fresh, result.reason)


@pytest.mark.parametrize("demos", [False, True], ids=["sac", "rlpd"])
def test_killed_and_resumed_equals_never_interrupted(tmp_path, demos):
    config, ring = replace(SHORT, stop_success=2.0), demonstrations(5) if demos else None
    _, whole = learn(tmp_path / "whole", config, ring)

    class Dies(point_mass.PointMass):
        steps = 0

        def step(self, action):
            self.steps += 1
            if self.steps == 120:
                raise KeyboardInterrupt
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts", config, ring, env=Dies(8))
    _, resumed = learn(tmp_path / "parts", config, ring)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
