"""A flow policy on the point mass, cloned from demonstrations of which half aim beside the goal: small enough to learn in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from point_mass import STATE, PointMass
from torch import Tensor

import policies
from policies.chain import ChainActor, ChainConfig
from policies.evaluate import evaluate
from sinew.specs import PolicySpec

HORIZON = 4
_cloned: dict[str, Tensor] = {}


def worlds(number: int) -> PointMass:
    """Episodes too short to go to the wrong point and then to the right one."""
    return PointMass(number, max_episode_steps=10)


def spec() -> PolicySpec:
    env = PointMass(1)
    return PolicySpec(observation=env.observation_spec, action=env.action_spec, horizon=HORIZON, n_obs_steps=1)


def fresh(seed: int = 0, steps: int = 4) -> Any:
    stats = {STATE: {"mean": np.zeros(4), "std": np.full(4, 0.5)}}
    return policies.make("flow", spec(), stats, {"hidden": [64, 64], "steps": steps}, seed=seed).eval()


def windows(states: Tensor) -> dict[str, Tensor]:
    return {STATE: states[:, None]}


def half_aimed(rows: int, generator: torch.Generator, bias_m: float = 0.25) -> tuple[Tensor, Tensor]:
    """States (B, 4) and chunks (B, H, 2): half go to the goal, half to a point beside it, and no state tells which."""
    state = torch.rand(rows, 4, generator=generator) * 1.6 - 0.8
    beside = (torch.rand(rows, 1, generator=generator) < 0.5) * torch.tensor([bias_m, 0.0])
    point, chunk = state[:, :2].clone(), []
    for _ in range(HORIZON):
        move = ((state[:, 2:] + beside - point) / 0.15).clamp(-1, 1)
        point = point + 0.15 * move
        chunk.append(move)
    return state, torch.stack(chunk, 1)


def cloned() -> Any:
    """A policy that clones `half_aimed`; trained once for all tests."""
    policy = fresh()
    if not _cloned:
        optimizer, stream = torch.optim.Adam(policy.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
        for _ in range(700):
            state, chunk = half_aimed(256, stream)
            drawn = policy.draw(256, stream)
            loss = policy.loss({**windows(state), "action": chunk}, t=drawn["t"], noise=drawn["noise"]).scalar
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        _cloned.update({k: v.clone() for k, v in policy.state_dict().items()})
    policy.load_state_dict(_cloned)
    return policy


def actor_of(policy: Any, num_envs: int = 1, **chain: Any) -> ChainActor:
    return ChainActor(policy, num_envs, ChainConfig(**chain))


def success(policy: Any, episodes: int = 100, first: int = 1_000_000) -> dict[str, int]:
    """{"k", "n"} on fixed seeds."""
    found = evaluate(policy, worlds(episodes), range(first, first + 1000 * episodes, 1000))
    return {"k": found.k, "n": found.n}
