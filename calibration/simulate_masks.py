"""Made-up masks of a robot with a known truth, for tests and benchmarks of the markerless calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.body import Body, drawing_lens, pixels_in
from calibration.camera import Camera
from calibration.silhouettes import Look
from sinew.se3 import Array, se3

FINE = 3.0
"""Masks are drawn so many times finer than they are kept."""


@dataclass(frozen=True, kw_only=True)
class Spoiling:
    """What is wrong with the masks."""

    joint_rad: float = float(np.deg2rad(0.05))
    """Standard deviation of what each joint is off at each view."""
    edge_px: float = 0.7
    """Standard deviation of where the mask ends, off the true edge."""
    edge_length_px: float = 5.0
    """Along an edge it is off alike over about this length."""
    bleed_px: float = 0.0
    """Masks are larger by this much."""
    occluded: float = 0.0
    """Part of each mask that something before the robot hides."""


def looks_at(
    body: Body, joints: Sequence[Array] | Array, camera: Camera, T_base_camera: Array, spoiling: Spoiling, rng: np.random.Generator
) -> list[Look]:
    """Views of a body at joint positions (V, J) as the robot tells them, the masks as a segmenter would give them."""
    return [
        Look(joints=np.asarray(q, dtype=float), mask=mask_of(body, q, camera, T_base_camera, spoiling, rng), name=f"view {v}")
        for v, q in enumerate(joints)
    ]


def mask_of(body: Body, joints: Array, camera: Camera, T_base_camera: Array, spoiling: Spoiling, rng: np.random.Generator) -> np.ndarray:
    """One mask (height, width) bool; its edge is known to a part of a pixel before it is spoilt and cut into pixels."""
    import cv2

    true = joints + spoiling.joint_rad * rng.normal(size=len(joints))
    lens = drawing_lens(camera, FINE)
    drawn = body.draw(true, T_base_camera, lens).mask
    inside, outside = (cv2.distanceTransform((drawn == side).astype(np.uint8), cv2.DIST_L2, 5) for side in (True, False))
    away = np.where(drawn, inside - 0.5, 0.5 - outside) * (camera.focal[0] / lens.focal[0])
    at = pixels_in(lens, camera)
    away = cv2.remap(away.astype(np.float32), at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderValue=(-1e3,))
    noise = cv2.GaussianBlur(rng.normal(size=away.shape), (0, 0), spoiling.edge_length_px)
    mask = away + spoiling.bleed_px + spoiling.edge_px * noise / noise.std() > 0
    if spoiling.occluded and mask.any():
        mask = _covered(mask, spoiling.occluded, rng)
    return mask


def _covered(mask: np.ndarray, part: float, rng: np.random.Generator) -> np.ndarray:
    """The mask behind an upright block that hides about a part of it."""
    row, column = np.nonzero(mask)
    at = rng.integers(len(row))
    size, wanted = 4.0, part * len(row)
    while True:
        hidden = (np.abs(row - row[at]) < 1.5 * size) & (np.abs(column - column[at]) < size)
        if hidden.sum() >= wanted or size > max(mask.shape):
            left = mask.copy()
            left[row[hidden], column[hidden]] = False
            return left
        size *= 1.05


def look_from(position: Array, target: Array, roll_rad: float = 0.0) -> Array:
    """T_base_camera (4, 4) of a camera at a position (3,) m that looks at a target (3,) m, its picture upright but for a roll."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    upright = np.stack([right, np.cross(forward, right), forward], 1)
    c, s = np.cos(roll_rad), np.sin(roll_rad)
    return se3(upright @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]), position)
