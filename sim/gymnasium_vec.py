"""Any Gymnasium environment as a VecEnv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from sim.seeds import next_seed, seeds_of_reset
from sinew.errors import InputError, SpecError
from sinew.specs import IMAGES, STATE, ActionSpec, ObservationSpec, TensorSpec


class GymnasiumVecEnv:
    """N copies of a Gymnasium environment, stepped one after the other. The VecEnv of `sinew.protocols`.

    A vector observation becomes "observation.state"; in a Dict observation the keys of our vocabulary keep their names, other
    pictures (uint8, height x width x 3) become "observation.images.<key>" and other vectors are joined to "observation.state"
    in the order of the space. Rewards are passed on. "success" is the environment's own flag in `info` ("success" or
    "is_success"), or else whether the episode terminated.

    Args:
        env_id: id that `gymnasium.make` knows.
        num_envs: N.
        seed: copies start with seeds seed, seed + 1, … where `reset` is called without one.
        max_episode_steps: limit, needed where the environment has none of its own.
        make_kwargs: passed to `gymnasium.make`.

    Raises:
        InputError: unknown id, actions that are not a bounded Box, or observations that are not Boxes.
    """

    def __init__(
        self, env_id: str, num_envs: int, seed: int = 0, max_episode_steps: int | None = None, make_kwargs: dict[str, Any] | None = None
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs is {num_envs}; at least one world is needed")
        try:
            self._envs = [gymnasium.make(env_id, max_episode_steps=max_episode_steps, **(make_kwargs or {})) for _ in range(num_envs)]
        except gymnasium.error.Error as e:
            raise InputError(f"Gymnasium cannot make {env_id!r}: {str(e).splitlines()[0]}") from None
        first = self._envs[0]
        self.num_envs, self.env_id = num_envs, env_id
        own = first.spec.max_episode_steps if first.spec else None
        limit = max_episode_steps or own or getattr(first.unwrapped, "max_episode_steps", None)
        if limit is None:
            raise InputError(f"{env_id!r} has no time limit of its own; give max_episode_steps")
        self.max_episode_steps = int(limit)
        self.observation_spec, self.action_spec = _observation_spec(env_id, first.observation_space), _action_spec(env_id, first)
        self.seeds = np.array([seed + i for i in range(num_envs)], dtype=np.int64)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._rows: list[dict[str, np.ndarray]] = [{} for _ in range(num_envs)]
        self._resting = np.zeros(num_envs, dtype=bool)
        self._started = False
        self.reset()

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Start new episodes; see `sinew.protocols.VecEnv`."""
        rows, seeds = seeds_of_reset(seed, ids, self.seeds, self._started)
        for row, value in zip(rows, seeds, strict=True):
            self._start(row, value)
        self._started = True
        return _stack(self._rows)

    def rest(self, ids: Sequence[int]) -> None:
        """Worlds `ids` stand still, and cost nothing, until they are reset: their episodes are over for who asks."""
        self._resting[list(ids)] = True

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all worlds but those that rest; see `sinew.protocols.VecEnv`."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (self.num_envs, self.action_spec.dim) or not np.isfinite(values).all():
            raise SpecError(f"finite actions of shape ({self.num_envs}, {self.action_spec.dim}) expected, got shape {values.shape}")
        values = values.clip(self.action_spec.low, self.action_spec.high)
        reward, terminated, truncated, success = (np.zeros(self.num_envs, d) for d in (np.float32, bool, bool, bool))
        for i in np.flatnonzero(~self._resting):
            env = self._envs[i]
            space = env.action_space
            observation, reward[i], terminated[i], truncated[i], info = env.step(values[i].reshape(space.shape).astype(space.dtype))
            self._rows[i] = self._flatten(observation)
            success[i] = bool(info.get("success", info.get("is_success", terminated[i])))
        self._length += ~self._resting
        truncated &= ~terminated
        details = {
            "success": torch.from_numpy(success),
            "final_observation": _stack(self._rows),
            "episode_length": torch.from_numpy(self._length.copy()),
            "seed": torch.from_numpy(self.seeds.copy()),
        }
        for i in np.flatnonzero(terminated | truncated):
            self._start(int(i), next_seed(int(self.seeds[i])))
        return _stack(self._rows), torch.from_numpy(reward), torch.from_numpy(terminated), torch.from_numpy(truncated), details

    def close(self) -> None:
        """Close every copy."""
        for env in self._envs:
            env.close()

    def _start(self, row: int, seed: int) -> None:
        # Gymnasium's generators take any non-negative integer; some environments pass it on to 32-bit ones.
        observation, _ = self._envs[row].reset(seed=seed % 2**31)
        self._rows[row] = self._flatten(observation)
        self.seeds[row], self._length[row], self._resting[row] = seed, 0, False

    def _flatten(self, observation: Any) -> dict[str, np.ndarray]:
        if not isinstance(observation, dict):
            observation = {STATE: observation}
        values: dict[str, np.ndarray] = {}
        vectors = []
        for key, value in observation.items():
            name = _name(key, self.observation_spec)
            if name == STATE:
                vectors.append(np.asarray(value, dtype=np.float32).reshape(-1))
            else:
                values[name] = np.asarray(value)
        if vectors:
            values[STATE] = np.concatenate(vectors)
        return {key: values[key] for key in self.observation_spec}


def _name(key: str, spec: ObservationSpec) -> str:
    if key in spec.tensors:
        return key
    return IMAGES + key if IMAGES + key in spec.tensors else STATE


def _observation_spec(env_id: str, space: gymnasium.Space) -> ObservationSpec:
    spaces = dict(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else {STATE: space}
    tensors: dict[str, TensorSpec] = {}
    width = 0
    for key, part in spaces.items():
        if not isinstance(part, gymnasium.spaces.Box):
            raise InputError(f"{env_id!r} observes {key!r} as {type(part).__name__}; only Box observations can be used")
        if part.dtype == np.uint8 and len(part.shape) == 3:
            tensors[key if key.startswith(IMAGES) else IMAGES + key] = TensorSpec(shape=part.shape, dtype="uint8", low=0, high=255)
        elif key.startswith("observation.") and key != STATE:
            tensors[key] = TensorSpec(shape=part.shape)
        else:
            width += int(np.prod(part.shape))
    if width:
        tensors[STATE] = TensorSpec(shape=(width,))
    return ObservationSpec(tensors)


def _action_spec(env_id: str, env: gymnasium.Env) -> ActionSpec:
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise InputError(f"{env_id!r} takes actions {space}; only bounded Box actions can be used")
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    # Gymnasium does not say what an action commands; its numbers are passed on as they are.
    return ActionSpec(
        kind="joint_position",
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        rate_hz=float(env.metadata.get("render_fps") or 20),
        names=tuple(f"action_{i}" for i in range(len(low))),
    )


def _stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}


def from_gymnasium(
    env_id: str, num_envs: int, seed: int = 0, max_episode_steps: int | None = None, make_kwargs: dict[str, Any] | None = None
) -> GymnasiumVecEnv:
    """Any Gymnasium environment with bounded Box actions as a VecEnv; arguments as for `GymnasiumVecEnv`."""
    return GymnasiumVecEnv(env_id, num_envs, seed, max_episode_steps, make_kwargs)
