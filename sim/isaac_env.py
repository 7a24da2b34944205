"""What the worlds of Isaac Lab and of Isaac Gym share: they are those of `sim.warp_env`, moved by another engine, quaternions turned about.

Quaternions of ours are wxyz, those of both Isaacs xyzw: `to_xyzw` and `to_wxyz` stand wherever a pose goes in or out.
"""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mujoco
import torch
from torch import Tensor

from sim.warp_env import WarpVecEnv
from sinew.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sim.render import SceneRenderer


def to_xyzw(quaternion: Tensor) -> Tensor:
    """(..., 4) wxyz → xyzw."""
    return quaternion.roll(-1, -1)


def to_wxyz(quaternion: Tensor) -> Tensor:
    """(..., 4) xyzw → wxyz."""
    return quaternion.roll(1, -1)


def rotated(quaternion: Tensor, vector: Tensor) -> Tensor:
    """Vectors (..., 3) turned by unit quaternions (..., 4) wxyz."""
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    twice = 2 * torch.linalg.cross(imaginary, vector)
    return vector + real * twice + torch.linalg.cross(imaginary, twice)


def inverse(quaternion: Tensor) -> Tensor:
    """Unit quaternions (..., 4) wxyz that turn back."""
    return quaternion * quaternion.new_tensor([1.0, -1.0, -1.0, -1.0])


class IsaacVecEnv(WarpVecEnv):
    """Worlds that one of the two Isaacs moves; everything else, cameras and randomisation aside, is `WarpVecEnv`'s."""

    ENGINE = "Isaac"
    """For messages."""

    def _make_physics(self, device: str, differing: Sequence[str], **more: int) -> Any:
        if self.randomiser is not None:
            raise InputError(f"worlds of {self.ENGINE} are not randomised; use --backend mujoco or warp")
        return self._engine(device)

    def _engine(self, device: str) -> Any:
        raise NotImplementedError

    def _make_views(self) -> Any:
        return Drawn(self.scene.model, self.physics, self.interface.image_size)

    def close(self) -> None:
        """Give back what the engine holds."""
        self.physics.close()
        if self.views is not None:
            self.views.close()


class Drawn:
    """Cameras of the worlds as `sim.render` draws them from their states: the pictures of MuJoCo's backend, one world after the other."""

    def __init__(self, model: mujoco.MjModel, physics: Any, size: int) -> None:
        from sim.render import SceneRenderer

        self.physics, self.size = physics, size
        self._renderer: SceneRenderer = SceneRenderer(model)
        self._qpos: np.ndarray | None = None

    def look(self) -> None:
        """Take the states as they are now."""
        self._qpos = self.physics.qpos.double().cpu().numpy()

    def images(self, camera: str) -> Tensor:
        """(N, H, W, 3) uint8 of the last `look`."""
        images = self._renderer.images(self._qpos, camera, self.size, self.size)  # type: ignore[arg-type]
        return torch.from_numpy(images).to(self.physics.device)

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()
