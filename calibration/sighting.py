"""One picture's word on where its camera is: known points and where they were seen, condensed into six numbers and their information.

The points hang together rigidly (a board, or keypoints of the robot's hand), so that whatever moved shows as one twist of the camera
between where it was and where this picture alone puts it. Corners that fit no rigid motion are left out by Geman and McClure's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.camera import Camera
from sinew.se3 import Array, se3_act, se3_exp, se3_inverse, se3_log, so3_exp, so3_hat

STEPS = 15
CONVERGED = 0.01
"""A step this small, in standard deviations, is the last."""
OUTLIER = 4.0
"""Corners farther than this many standard deviations are left out."""
ANYWHERE = np.diag([0.5**-2.0] * 3 + [1.0**-2.0] * 3)
"""Keeps directions that few points cannot tell near where they were, m and rad."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What one picture says."""

    twist: Array
    """(6,) m and rad in the camera's frame: the camera is at X exp(twist)."""
    information: Array
    """(6, 6), the inverse covariance of the twist by the corners' noise; singular where few points cannot tell."""
    used: int
    """Corners that fit."""
    px: float
    """Root mean square distance per axis of the used corners from a rigid body."""


def sight(camera: Camera, place: Array, points: Array, pixels: Array, sigma: Array) -> Sighting | None:
    """Condense one picture.

    Args:
        camera: the lens.
        place: where the points should be, T_camera_points (4, 4).
        points: (K, 3) m in their own frame.
        pixels: where they were seen (K, 2); rows that are not finite were not seen.
        sigma: standard deviation of each (K,), px.

    Returns:
        None where fewer than two points were seen, or fewer than half of them fit any rigid motion.
    """
    seen = np.isfinite(pixels).all(1) & (se3_act(place, points)[:, 2] > 0)
    points, pixels, sigma = points[seen], pixels[seen], sigma[seen]
    if len(points) < 2:
        return None
    now, width = place, np.inf
    for i in range(STEPS):
        r, j = _linear(camera, now, points, pixels, sigma)
        square = np.sum(r * r, -1)
        width = min(width, max(OUTLIER, 3.0 * float(np.sqrt(np.median(square))))) if i else np.inf
        weight = (1 + square / width**2) ** -2.0
        flat, root = j.reshape(-1, 6), np.repeat(weight, 2)
        normal = (flat * root[:, None]).T @ flat + ANYWHERE
        step = -np.linalg.solve(normal, flat.T @ (root * r.ravel()))
        now = se3_exp(-step) @ now
        if width == OUTLIER and step @ normal @ step < CONVERGED**2:
            break
    r, j = _linear(camera, now, points, pixels, sigma)
    good = np.sum(r * r, -1) < OUTLIER**2
    if good.sum() < max(2, 0.5 * len(points)) or not np.isfinite(now).all():
        return None
    r, j = r[good], j[good]
    free = max(2 * len(r) - 6, 0)
    spread = max(1.0, float(np.sum(r * r)) / free) if free else 1.0  # corners noisier than they were tell less
    square_px = np.sum((r * sigma[good][:, None]) ** 2) / (2 * len(r))
    return Sighting(
        twist=-se3_log(now @ se3_inverse(place)), information=np.einsum("kij,kil->jl", j, j) / spread, used=len(r), px=float(square_px**0.5)
    )


def _linear(camera: Camera, place: Array, points: Array, pixels: Array, sigma: Array) -> tuple[Array, Array]:
    """Residuals (K, 2) in standard deviations and their derivatives (K, 2, 6) by a twist of the camera; 0 behind the lens."""
    there = se3_act(place, points)
    shown, by_point, _ = camera.project_with_jacobians(there)
    by_twist = by_point @ np.concatenate([np.broadcast_to(-np.eye(3), (len(points), 3, 3)), so3_hat(there)], -1)
    ahead = np.isfinite(shown.sum(1))[:, None]
    r = np.where(ahead, (shown - pixels) / sigma[:, None], 1e6)
    return r, np.where(ahead[..., None], by_twist / sigma[:, None, None], 0.0)


AMBIGUOUS, SMALL_PX = 2.0, 0.3
"""Of two poses one is sure when the other one's error is so many times larger, and not below this, px."""
SAME_RAD = 0.05
"""Poses turned by less from each other are one."""


def sure_pose(camera: Camera, place: Array, points: Array, pixels: Array) -> bool:
    """Whether a picture of a flat board tells one pose: of a small board seen from the front two look nearly alike.

    Args:
        camera: the lens.
        place: the pose found, T_camera_board (4, 4).
        points: (K, 3) m.
        pixels: (K, 2).
    """
    one = np.ones(len(points))
    found, sight_line = sight(camera, place, points, pixels, one), place[:3, 3] / np.linalg.norm(place[:3, 3])
    normal = place[:3, 2]
    mirrored = 2.0 * (sight_line @ normal) * sight_line - normal
    axis = np.cross(normal, mirrored)
    if found is None or np.linalg.norm(axis) < 1e-9:
        return found is not None
    turn = axis / np.linalg.norm(axis) * np.arctan2(np.linalg.norm(axis), normal @ mirrored)
    other = place.copy()
    other[:3, :3] = so3_exp(turn) @ place[:3, :3]
    second = sight(camera, other, points, pixels, one)
    if second is None:
        return True
    apart = se3_log(se3_exp(-found.twist) @ place @ se3_inverse(se3_exp(-second.twist) @ other))
    return float(np.linalg.norm(apart[3:])) < SAME_RAD or second.px > max(AMBIGUOUS * found.px, SMALL_PX)
