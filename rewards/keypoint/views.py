"""A picture with what is known of it, and the way between its pixels and metres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rewards.files import CameraView, RewardUnavailable
from rewards.vlm.oracle import Truth

FARTHEST_M = 5.0
"""No point of a task is farther from the camera."""
APART_M = 0.02
"""Rays of two views that pass each other farther than this do not mean the same point."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What one camera sees."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    camera: CameraView | None = None
    """Its calibration; None where there is none."""
    depth_m: np.ndarray | None = None
    """(H, W) along the optical axis, where it is known."""
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Object → (H, W) bool, where it is known."""

    def project(self, points_m: np.ndarray) -> np.ndarray:
        """Pixels (K, 2) of world points (K, 3); NaN behind the camera."""
        camera = self.calibrated()
        T = np.linalg.inv(camera.T_world_camera)
        seen = np.asarray(points_m, dtype=np.float64).reshape(-1, 3) @ T[:3, :3].T + T[:3, 3]
        pixels = seen @ camera.matrix.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(seen[:, 2:] > 1e-6, pixels[:, :2] / pixels[:, 2:], np.nan)

    def ray(self, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Origin (3,) and direction (3,) in the world of what a pixel (u, v) shows; one along the direction is one of depth."""
        camera = self.calibrated()
        direction = np.linalg.inv(camera.matrix) @ np.array([pixel[0], pixel[1], 1.0])
        return camera.T_world_camera[:3, 3], camera.T_world_camera[:3, :3] @ direction

    def on_plane(self, pixel: np.ndarray, height_m: float) -> np.ndarray:
        """(3,) where the ray of a pixel meets the horizontal plane at a height.

        Raises:
            RewardUnavailable: it does not, or too far away.
        """
        origin, direction = self.ray(pixel)
        along = (height_m - origin[2]) / direction[2] if abs(direction[2]) > 1e-9 else -1.0
        if not 0 < along <= FARTHEST_M:
            raise RewardUnavailable(
                f"the place at pixel {pixel[0]:.0f}, {pixel[1]:.0f} is not {100 * height_m:.0f} cm high anywhere in reach"
            )
        return origin + along * direction

    def at_depth(self, pixel: np.ndarray) -> np.ndarray | None:
        """(3,) what is seen at a pixel, by its depth; None where that is not known."""
        if self.depth_m is None:
            return None
        height, width = self.depth_m.shape
        u, v = round(float(pixel[0])), round(float(pixel[1]))
        if not (0 <= u < width and 0 <= v < height):
            return None
        depth = float(self.depth_m[v, u])
        origin, direction = self.ray(np.array([u, v]))
        return origin + depth * direction if 0 < depth <= FARTHEST_M else None

    def calibrated(self) -> CameraView:
        """The camera's calibration.

        Raises:
            RewardUnavailable: there is none.
        """
        if self.camera is None:
            raise RewardUnavailable("the camera is not calibrated, so that no point can be lifted to metres")
        return self.camera


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is seen of a world as an episode begins, and what is known of it."""

    view: View
    """What tiles and marks are of."""
    second: View | None = None
    """The same from aside."""
    poses: Mapping[str, np.ndarray] = field(default_factory=dict)
    """{object, or "tool": (4, 4)} in the world, where they are known."""
    truth: Truth | None = None
    """Answers as an oracle; None where nobody knows."""


def triangulate(first: View, pixel: np.ndarray, second: View, other: np.ndarray) -> np.ndarray:
    """(3,) the point nearest to the rays of two pixels in two views.

    Raises:
        RewardUnavailable: the rays pass each other, so that the pixels show different points, or they are parallel.
    """
    (o1, d1), (o2, d2) = first.ray(pixel), second.ray(other)
    d1, d2 = d1 / np.linalg.norm(d1), d2 / np.linalg.norm(d2)
    system = np.array([[d1 @ d1, -d1 @ d2], [d1 @ d2, -d2 @ d2]])
    if abs(np.linalg.det(system)) < 1e-4:
        raise RewardUnavailable("the two cameras look along the same line, so that two views tell no more than one")
    s, t = np.linalg.solve(system, np.array([d1 @ (o2 - o1), d2 @ (o2 - o1)]))
    a, b = o1 + s * d1, o2 + t * d2
    gap = float(np.linalg.norm(a - b))
    if gap > APART_M or not 0 < s <= FARTHEST_M or not 0 < t <= FARTHEST_M:
        raise RewardUnavailable(f"the points named in the two views are not the same: their rays pass each other at {100 * gap:.0f} cm")
    return (a + b) / 2
