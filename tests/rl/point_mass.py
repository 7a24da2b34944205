"""A point mass that must be brought to a goal, with a chunked base that aims beside it: small enough to learn in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

STATE = "observation.state"


class PointMass:
    """VecEnv: position p in [-1, 1]^2 m moves by the action (m per step); success within `radius_m` of the goal."""

    def __init__(self, num_envs: int = 4, max_episode_steps: int = 20, radius_m: float = 0.08, step_m: float = 0.15) -> None:
        self.num_envs, self.max_episode_steps, self.radius_m = num_envs, max_episode_steps, radius_m
        self.observation_spec = ObservationSpec({STATE: TensorSpec(shape=(4,), unit="m")})
        self.action_spec = ActionSpec(kind="joint_delta", low=(-step_m,) * 2, high=(step_m,) * 2, rate_hz=10.0, names=("x", "y"))
        self.seeds = [0] * num_envs
        self.state = torch.zeros(num_envs, 4)
        self.age = torch.zeros(num_envs, dtype=torch.int64)

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        worlds = list(range(self.num_envs) if ids is None else ids)
        seeds = [seed + i for i in range(len(worlds))] if isinstance(seed, int) else list(seed or [0] * len(worlds))
        for world, value in zip(worlds, seeds, strict=True):
            self._start(world, value)
        return {STATE: self.state.clone()}

    def _start(self, world: int, seed: int) -> None:
        self.seeds[world], self.age[world] = seed, 0
        self.state[world] = torch.from_numpy(np.random.default_rng(seed).uniform(-0.8, 0.8, 4).astype(np.float32))

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        self.state[:, :2] = (self.state[:, :2] + action).clamp(-1, 1)
        self.age += 1
        success = (self.state[:, :2] - self.state[:, 2:]).norm(dim=1) < self.radius_m
        truncated = (self.age >= self.max_episode_steps) & ~success
        info = {"success": success, "final_observation": {STATE: self.state.clone()}, "episode_length": self.age.clone()}
        for world in torch.nonzero(success | truncated)[:, 0].tolist():
            self._start(world, self.seeds[world] + 1)
        return {STATE: self.state.clone()}, success.float(), success, truncated, info

    def close(self) -> None:
        pass


class BrokenOffError(Exception):
    """What a world says that breaks."""


class Fragile(PointMass):
    """Breaks once, at the step that uses up `left`."""

    left = 10**9

    def step(self, action: Tensor) -> Any:
        self.left -= 1
        if not self.left:
            raise BrokenOffError
        return super().step(action)


class BiasedExecutor:
    """Chunks of `horizon` moves towards a point `bias_m` beside the goal, with noise that the episode's seed fixes."""

    def __init__(self, num_envs: int, horizon: int = 4, bias_m: float = 0.12, noise: float = 0.3, step_m: float = 0.15) -> None:
        self.num_envs, self.horizon, self.bias_m, self.noise, self.step_m = num_envs, horizon, bias_m, noise, step_m
        self.queues: list[list[Tensor]] = [[] for _ in range(num_envs)]
        self.random = [np.random.default_rng(i) for i in range(num_envs)]
        self.log: list[tuple[str, Any]] = []

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        worlds = list(range(self.num_envs) if ids is None else ids)
        self.log.append(("reset", worlds))
        for i, world in enumerate(worlds):
            self.queues[world] = []
            self.random[world] = np.random.default_rng(world if seeds is None else seeds[i])

    def _chunk(self, state: Tensor, random: np.random.Generator) -> list[Tensor]:
        p, goal = state[:2].clone(), state[2:] + torch.tensor([self.bias_m, 0.0])
        chunk = []
        for _ in range(self.horizon):
            move = ((goal - p) / self.step_m).clamp(-1, 1)
            p = p + move * self.step_m
            chunk.append((move + self.noise * torch.from_numpy(random.standard_normal(2).astype(np.float32))).clamp(-1, 1))
        return chunk

    def plan(self, obs: Mapping[str, Tensor]) -> Tensor:
        self.log.append(("plan", None))
        out = []
        for world in range(self.num_envs):
            if not self.queues[world]:
                self.queues[world] = self._chunk(obs[STATE][world], self.random[world])
            out.append(self.queues[world].pop(0))
        return torch.stack(out)

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        return self.plan(obs)

    def peek(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
        self.log.append(("peek", list(ids)))
        out = []
        for row, world in enumerate(ids):
            queue, random = self.queues[world], np.random.default_rng()
            random.bit_generator.state = self.random[world].bit_generator.state
            out.append(queue[0] if queue else self._chunk(obs[STATE][row], random)[0])
        return torch.stack(out)


class ToyActor(nn.Module):
    """Zero-initialised residual actor."""

    def __init__(self, features: int = 4, actions: int = 2, width: int = 64, scale: float = 0.8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(features + actions, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            self.last = nn.Linear(width, actions)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.scale = scale

    def forward(self, features: Tensor, base_action: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.last(self.body(torch.cat((features, base_action), -1))))


def observe(obs: Mapping[str, Tensor]) -> Tensor:
    """Features are the state."""
    return obs[STATE]


def rollout(actor: nn.Module, episodes: int = 50, seed: int = 1_000_000, **base: Any) -> dict[str, int]:
    """Successes of base plus actor on fixed seeds, all episodes side by side."""
    env, executor = PointMass(episodes), BiasedExecutor(episodes, **base)
    obs = env.reset(list(range(seed, seed + 1000 * episodes, 1000)))
    executor.reset(None, list(range(seed, seed + episodes)))
    done, won = torch.zeros(episodes, dtype=torch.bool), torch.zeros(episodes, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        planned = executor.plan(obs)
        with torch.no_grad():
            action = (planned + actor(observe(obs), planned)).clamp(-1, 1)
        obs, _, terminated, truncated, _ = env.step(env.action_spec.denormalize(action))
        won |= terminated & ~done
        done |= terminated | truncated
    return {"k": int(won.sum()), "n": episodes}
