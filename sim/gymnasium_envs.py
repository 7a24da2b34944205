"""Our tasks as Gymnasium environments."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from sim import make_vec
from sinew.specs import TensorSpec


class TaskEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One world of a task under Gymnasium's interface: observations by LeRobot key, actions in physical units.

    Args:
        task: registered task.
        render_mode: None or "rgb_array".
        action: "ee_delta" or "joint_position".
        cameras: cameras that are part of the observation.
        image_size: height and width of their images in pixels.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self, task: str, render_mode: str | None = None, action: str = "ee_delta", cameras: tuple[str, ...] = (), image_size: int = 84
    ) -> None:
        self.task, self.render_mode = task, render_mode
        self._worlds = make_vec(task, 1, action=action, cameras=cameras, image_size=image_size, num_threads=1)
        self.max_episode_steps = self._worlds.max_episode_steps
        spaces: dict[str, gymnasium.Space[Any]] = {key: _box(spec) for key, spec in self._worlds.observation_spec.tensors.items()}
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(spaces)
        actions = self._worlds.action_spec
        self.action_space = gymnasium.spaces.Box(np.array(actions.low, np.float32), np.array(actions.high, np.float32), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; `seed` alone fixes it, without one the next of this environment's own stream."""
        super().reset(seed=seed)
        chosen = seed if seed is not None else int(self.np_random.integers(2**62))
        observation = self._worlds.reset([chosen])
        return _first(observation), {"seed": chosen, "success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One control step; the reward is 1 on the step that solves the task."""
        _, reward, terminated, truncated, info = self._worlds.step(torch.from_numpy(np.asarray(action, dtype=np.float32)[None]))
        observation = _first(info["final_observation"])
        return observation, float(reward[0]), bool(terminated[0]), bool(truncated[0]), {"success": bool(info["success"][0])}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The front camera's picture (240, 320, 3) uint8 in mode "rgb_array"."""
        return self._worlds.render("front", 240, 320)[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Free the world and its renderer."""
        self._worlds.close()


def _box(spec: TensorSpec) -> gymnasium.spaces.Box:
    if spec.dtype == "uint8":
        return gymnasium.spaces.Box(0, 255, spec.shape, np.uint8)
    # Radians, metres and their rates stay far inside; Gymnasium's checker dislikes infinite bounds.
    return gymnasium.spaces.Box(-1e3, 1e3, spec.shape, np.float32)


def _first(observation: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: value[0].numpy().copy() for key, value in observation.items()}
