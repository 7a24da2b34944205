"""A VecEnv whose reward is computed by a Reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sinew.protocols import Reward, VecEnv


class Rewarded:
    """`env` with `reward` in place of its own; everything else passes through.

    A reward that remembers something of an episode has `begin(obs, ids)`: it is called when episodes start in worlds `ids`, with the
    observations of all worlds, after the last reward of the episodes before.
    """

    def __init__(self, env: VecEnv, reward: Reward) -> None:
        self.env, self.source = env, reward
        self.num_envs, self.max_episode_steps = env.num_envs, env.max_episode_steps
        self.observation_spec, self.action_spec = env.observation_spec, env.action_spec
        self._begin = getattr(reward, "begin", None)
        self.curriculum = getattr(env, "curriculum", None)
        self._obs: dict[str, Tensor] = {}

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """See VecEnv.reset."""
        self._obs = self.env.reset(seed, ids)
        if self._begin is not None:
            self._begin(self._obs, range(self.num_envs) if ids is None else ids)
        return self._obs

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """See VecEnv.step."""
        obs, _, terminated, truncated, info = self.env.step(action)
        after = {f"next.{k}": v for k, v in info["final_observation"].items()}
        transition = {**self._obs, **after, "action": action, "success": info["success"]}
        transition |= {"terminated": terminated, "truncated": truncated}
        self._obs = obs
        reward = self.source.reward(transition, {})
        ended = terminated | truncated
        if self._begin is not None and bool(ended.any()):
            self._begin(obs, ended.nonzero()[:, 0].tolist())
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()
