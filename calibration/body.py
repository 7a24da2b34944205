"""A robot's own body as something to calibrate on: what draws it, and its rim, the points that make its outline in a picture.

Who draws is given: `robot_bridge.body.MujocoBody` does it with MuJoCo. Bodies are drawn through a lens without distortion that sees a
little more than the camera does; the points of the rim are then projected through the camera's own lens. That is exact, since which
points make the rim depends on where the camera is and not on its lens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from scipy.special import ndtri

from calibration.camera import Camera
from sinew.se3 import Array, se3_inverse

SMOOTH_PX = 1.0
"""Masks are smoothed by this much before their outline is found between pixels, drawn and seen ones alike."""
BORDER_PX = 3.0
"""An outline this near to the border of the picture is the border's."""
CLEAR_PX = 16
"""Smoothing does not reach farther than this."""
WIDEST = 3.0
"""Tangent of the largest angle from the lens's axis that is drawn."""
LARGEST_PX = 2400
MARGIN_PX = 12.0


@dataclass(frozen=True)
class Drawing:
    """A body as a camera sees it."""

    depth: np.ndarray
    """(height, width) float32, m along the lens's axis; meaningless where there is no body."""
    part: np.ndarray
    """(height, width) int32, a number of the part that is seen; -1 where there is none."""

    @property
    def mask(self) -> np.ndarray:
        """(height, width) bool."""
        return self.part >= 0


class Body(Protocol):
    """A robot that can be drawn; the frame of its base is the frame of all points."""

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the J joints, in the order of their positions (rad, or m where they slide)."""
        ...

    def bounds(self, joints: Array) -> tuple[Array, float]:
        """Middle (3,) and radius in m of a ball around the body at joints (J,)."""
        ...

    def draw(self, joints: Array, T_base_camera: Array, lens: Camera) -> Drawing:
        """The body at joints (J,) seen by a camera without distortion and with square pixels."""
        ...

    def point(self, name: str, position: Sequence[float], joints: Array) -> Array:
        """A point (3,) m of a part's own frame: its place in the base's frame and the number of the part (4,)."""
        ...

    def jacobians(self, joints: Array, points: Array, parts: np.ndarray) -> Array:
        """How points (N, 3) of the parts (N,) move with the joints (J,): (N, 3, J), m per rad or m."""
        ...


@dataclass(frozen=True)
class Outline:
    """Where a mask ends, between pixels."""

    pixels: Array
    """(N, 2)."""
    normals: Array
    """(N, 2), of length 1, pointing out of the mask."""
    at: np.ndarray
    """(N, 2) column and row of the pixel of the mask beside it."""
    line: np.ndarray
    """(N,) number of the closed line; neighbours on it stand side by side."""


def outline(mask: np.ndarray, smooth_px: float = SMOOTH_PX) -> Outline:
    """The outline of a mask (height, width) bool, with its holes; what lies at the border of the picture is left out."""
    import cv2

    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    x, y, shape = max(x - CLEAR_PX, 0), max(y - CLEAR_PX, 0), mask.shape
    mask = mask[y : y + high + 2 * CLEAR_PX, x : x + wide + 2 * CLEAR_PX]
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), smooth_px)
    softer = cv2.GaussianBlur(soft, (0, 0), np.sqrt(3) * smooth_px)  # directions need more smoothing than places
    slope_x, slope_y = (cv2.Sobel(softer, cv2.CV_32F, dx, 1 - dx, ksize=3, scale=0.125) for dx in (1, 0))
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    if not lines:
        return Outline(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2), dtype=int), np.zeros(0, dtype=int))
    at = np.concatenate(lines)[:, 0]
    line = np.repeat(np.arange(len(lines)), [len(one) for one in lines])
    column, row = at.T
    slope = np.stack([slope_x[row, column], slope_y[row, column]], -1).astype(float)
    size = np.linalg.norm(slope, axis=1)
    flat = 0.25 / (np.sqrt(2 * np.pi) * 2 * smooth_px)  # a quarter of the slope of a straight edge: thinner than the smoothing
    at = at + np.array([x, y])
    inside = (at >= BORDER_PX).all(1) & (at <= np.array(shape)[::-1] - 1 - BORDER_PX).all(1)
    good = inside & (size > flat)
    normals = -slope[good] / size[good, None]
    # across a straight edge the smoothed mask is a normal distribution's, widened by the pixels themselves
    further = np.clip(np.sqrt(smooth_px**2 + 1 / 12) * ndtri(soft[row, column][good].astype(float)), -1.5, 1.5)
    return Outline(at[good] + further[:, None] * normals, normals, at[good], line[good])


@dataclass(frozen=True)
class Rim:
    """The points of a body that make its outline in one picture."""

    points: Array
    """(N, 3) m, base frame."""
    parts: np.ndarray
    """(N,)."""
    in_camera: Array
    """(N, 3) m, the camera's frame."""
    pixels: Array
    """(N, 2) through the camera's own lens."""
    normals: Array
    """(N, 2), pointing out of the body."""
    line: np.ndarray
    """(N,) as in `Outline`."""


@lru_cache(maxsize=64)
def drawing_lens(camera: Camera, scale: float = 1.0) -> Camera:
    """A lens without distortion and with square pixels that sees a little more than the camera, `scale` times as finely."""
    across = np.linspace(-0.5, camera.width - 0.5, 33), np.linspace(-0.5, camera.height - 0.5, 33)
    edges = [(x, y) for x in across[0] for y in (-0.5, camera.height - 0.5)] + [
        (x, y) for y in across[1] for x in (-0.5, camera.width - 0.5)
    ]
    rays = np.nan_to_num(camera.unproject(np.array(edges)), nan=np.inf)
    rays = np.where(np.isfinite(rays), rays, WIDEST * np.sign(np.array(edges) - np.array(camera.centre)))
    low, high = np.maximum(rays.min(0), -WIDEST), np.minimum(rays.max(0), WIDEST)
    focal = scale * float(np.sqrt(camera.focal[0] * camera.focal[1]))
    focal = min(focal, LARGEST_PX / float((high - low).max()))
    margin = MARGIN_PX * scale
    width, height = (int(np.ceil(v * focal + 2 * margin)) for v in high - low)
    return Camera(width, height, (focal, focal), (float(margin - low[0] * focal - 0.5), float(margin - low[1] * focal - 0.5)))


def rim(drawing: Drawing, lens: Camera, camera: Camera, T_base_camera: Array, scale: float = 1.0) -> Rim:
    """The rim of a drawn body, as far as it is in the camera's picture.

    Args:
        drawing: by `lens`.
        lens: `drawing_lens(camera, scale)`.
        camera: its own lens counts for `pixels` and `normals`.
        T_base_camera: where it is (4, 4).
        scale: as given to `drawing_lens`.
    """
    line = outline(drawing.mask, max(SMOOTH_PX * scale, 0.7))
    column, row = line.at.T
    depth = drawing.depth[row, column].astype(float)[:, None]
    rays = np.concatenate([(line.pixels - np.array(lens.centre)) / np.array(lens.focal), np.ones((len(depth), 1))], 1)
    in_camera = rays * depth
    along = np.stack([-line.normals[:, 1], line.normals[:, 0], np.zeros(len(depth))], -1) / lens.focal[0]
    pixels, by_point, _ = camera.project_with_jacobians(in_camera)
    tangent = (by_point @ (along * depth)[..., None])[..., 0]
    normals = np.stack([tangent[:, 1], -tangent[:, 0]], -1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    size = np.array([camera.width, camera.height])
    with np.errstate(invalid="ignore"):
        seen = np.isfinite(pixels).all(1) & (pixels >= BORDER_PX).all(1) & (pixels <= size - 1 - BORDER_PX).all(1)
    points = in_camera[seen] @ T_base_camera[:3, :3].T + T_base_camera[:3, 3]
    return Rim(points, drawing.part[row, column][seen], in_camera[seen], pixels[seen], normals[seen], line.line[seen])


def pixels_in(lens: Camera, camera: Camera) -> np.ndarray:
    """Where the camera's pixels are in a drawing by `lens`: (height, width, 2) float32, far outside where the camera sees nothing."""
    grid = np.stack(np.meshgrid(np.arange(camera.width, dtype=float), np.arange(camera.height, dtype=float)), -1)
    at = camera.unproject(grid) * np.array(lens.focal) + np.array(lens.centre)
    return np.nan_to_num(at, nan=-1e4).astype(np.float32)


def to_camera(T_base_camera: Array, points: Array) -> Array:
    """Points (..., 3) of the base frame in the camera's."""
    inverse = se3_inverse(T_base_camera)
    return points @ inverse[:3, :3].T + inverse[:3, 3]
