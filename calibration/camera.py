"""Cameras: from points in front of the lens to pixels, with the derivatives that estimators need.

Three lens models, with OpenCV's parameters in OpenCV's order: "pinhole" (k1, k2, p1, p2, k3), "rational" (the same and k4, k5, k6),
"fisheye" (k1 to k4 of an equidistant lens). Sources: Brown 1971; Kannala and Brandt 2006; OpenCV's documentation of calib3d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sinew.errors import InputError
from sinew.se3 import Array

Model = Literal["pinhole", "rational", "fisheye"]
DISTORTIONS: dict[str, int] = {"pinhole": 5, "rational": 8, "fisheye": 4}
"""Distortion parameters of each model."""
NEAR_M = 1e-6
"""Nothing nearer to the plane of the lens than this can be projected."""
UNDISTORT_STEPS = 12
"""Newton steps from a pixel to its ray."""


@dataclass(frozen=True)
class Camera:
    """A camera's intrinsics, in pixels."""

    width: int
    height: int
    focal: tuple[float, float]
    """fx, fy."""
    centre: tuple[float, float]
    """cx, cy; the middle of the first pixel is 0, 0."""
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    model: Model = "pinhole"

    def __post_init__(self) -> None:
        if self.model not in DISTORTIONS:
            raise InputError(f"lens model {self.model!r} is not known; known are {', '.join(DISTORTIONS)}")
        if len(self.distortion) != DISTORTIONS[self.model]:
            raise InputError(f"a {self.model} lens has {DISTORTIONS[self.model]} distortion parameters, not {len(self.distortion)}")
        if not np.isfinite([*self.focal, *self.centre, *self.distortion]).all() or min(self.focal) <= 0 or min(self.width, self.height) < 1:
            raise InputError(f"focal lengths {self.focal}, centre {self.centre} and size {self.width} x {self.height} are no camera")

    @property
    def matrix(self) -> Array:
        """K (3, 3)."""
        return np.array([[self.focal[0], 0, self.centre[0]], [0, self.focal[1], self.centre[1]], [0, 0, 1.0]])

    @property
    def parameters(self) -> Array:
        """(4 + D,): fx, fy, cx, cy, distortion."""
        return np.array([*self.focal, *self.centre, *self.distortion])

    def with_parameters(self, parameters: Sequence[float] | Array) -> Camera:
        """The same camera with other `parameters`."""
        values = [float(v) for v in parameters]
        return replace(self, focal=(values[0], values[1]), centre=(values[2], values[3]), distortion=tuple(values[4:]))

    @classmethod
    def from_matrix(cls, matrix: Any, distortion: Sequence[float], width: int, height: int, model: Model | None = None) -> Camera:
        """From K (3, 3) and distortion parameters as OpenCV and ROS give them.

        Raises:
            InputError: their number fits no lens model.
        """
        k = np.asarray(matrix, dtype=float).reshape(3, 3)
        values = tuple(float(v) for v in np.ravel(np.asarray(distortion, dtype=float)))
        if model is None:
            model = "pinhole" if len(values) <= 5 else "rational"
        wanted = DISTORTIONS.get(model, 0)
        if len(values) > wanted and any(values[wanted:]):
            raise InputError(f"{len(values)} distortion parameters are too many for a {model} lens, which has {wanted}")
        values = (*values, *[0.0] * wanted)[:wanted]
        return cls(width, height, (float(k[0, 0]), float(k[1, 1])), (float(k[0, 2]), float(k[1, 2])), values, model)

    def project(self, points: Array) -> Array:
        """Pixels (..., 2) of points (..., 3) m in the camera's frame; NaN of what is behind the lens."""
        return self.project_with_jacobians(points, False)[0]

    def unproject(self, pixels: Array) -> Array:
        """Points (..., 2) at one metre before the lens that appear at `pixels` (..., 2); NaN where the lens sees nothing."""
        pixels = np.asarray(pixels, dtype=float)
        d = np.array(self.distortion)
        wanted = (pixels - np.array(self.centre)) / np.array(self.focal)
        guess = wanted.copy()
        if self.model == "fisheye":
            size = np.maximum(np.linalg.norm(wanted, axis=-1, keepdims=True), 1e-12)
            guess = wanted / size * np.tan(np.minimum(size, 1.5))
        lens = _fisheye if self.model == "fisheye" else _radial
        for _ in range(UNDISTORT_STEPS):
            xd, yd, slope, _ = lens(guess[..., 0], guess[..., 1], d, True, False)
            error = np.stack([xd, yd], -1) - wanted
            determinant = slope[..., 0, 0] * slope[..., 1, 1] - slope[..., 0, 1] * slope[..., 1, 0]
            step_x = (slope[..., 1, 1] * error[..., 0] - slope[..., 0, 1] * error[..., 1]) / determinant
            step_y = (slope[..., 0, 0] * error[..., 1] - slope[..., 1, 0] * error[..., 0]) / determinant
            guess = guess - np.stack([step_x, step_y], -1)
            if np.nanmax(np.abs(error), initial=0.0) < 1e-9:
                break
        xd, yd, _, _ = lens(guess[..., 0], guess[..., 1], d, False, False)
        found = np.abs(np.stack([xd, yd], -1) - wanted).max(-1) < 1e-6
        return np.where(found[..., None], guess, np.nan)

    def project_with_jacobians(self, points: Array, jacobians: bool = True, lens: bool = True) -> tuple[Array, Array, Array]:
        """Pixels and their derivatives.

        Args:
            points: (..., 3) m, x right, y down, z forward.
            jacobians: False leaves the derivatives empty.
            lens: False leaves those by the parameters empty.

        Returns:
            Pixels (..., 2), d pixel / d point (..., 2, 3), d pixel / d parameters (..., 2, 4 + D).
        """
        points = np.asarray(points, dtype=float)
        near = 1 / np.where(points[..., 2] > NEAR_M, points[..., 2], np.nan)
        x, y = points[..., 0] * near, points[..., 1] * near
        bend = _fisheye if self.model == "fisheye" else _radial
        xd, yd, slope, by_lens = bend(x, y, np.array(self.distortion), jacobians, jacobians and lens)
        focal = np.array(self.focal)
        pixels = np.stack([xd, yd], -1) * focal + np.array(self.centre)
        if not jacobians:
            return pixels, slope, by_lens
        by_point = np.empty((*slope.shape[:-1], 3))
        by_point[..., :2] = slope * focal[:, None]
        by_point[..., 2] = -(by_point[..., 0] * x[..., None] + by_point[..., 1] * y[..., None])
        by_point *= near[..., None, None]
        if not lens:
            return pixels, by_point, by_lens
        one, zero = np.ones_like(x), np.zeros_like(x)
        pinhole = np.stack([xd, zero, one, zero, zero, yd, zero, one], -1).reshape(*x.shape, 2, 4)
        return pixels, by_point, np.concatenate([pinhole, by_lens * focal[:, None]], -1)


def by_twist(by_point: Array, points: Array) -> Array:
    """Derivatives by a twist (..., 2, 6) from those by the point (..., 2, 3): it moves a point p (..., 3) by rho + phi x p."""
    (x, y, z), (u, v, w) = np.moveaxis(points[..., None, :], -1, 0), np.moveaxis(by_point, -1, 0)
    return np.concatenate([by_point, np.stack([y * w - z * v, z * u - x * w, x * v - y * u], -1)], -1)


def _radial(x: Array, y: Array, d: Array, jacobians: bool, lens: bool) -> tuple[Array, Array, Array, Array]:
    """Distorted x and y, their derivatives by x and y (..., 2, 2) and by the parameters (..., 2, D); left out ones are empty."""
    k1, k2, p1, p2, k3 = d[:5]
    k4, k5, k6 = d[5:] if len(d) == 8 else (0.0, 0.0, 0.0)
    r2 = x * x + y * y
    over = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    under = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    c = over / under
    xd = x * c + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * c + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    empty = np.zeros((*x.shape, 2, 0))
    if not jacobians:
        return xd, yd, empty, empty
    slope = (k1 + r2 * (2 * k2 + 3 * r2 * k3) - c * (k4 + r2 * (2 * k5 + 3 * r2 * k6))) / under
    cross = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    xx = c + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
    yy = c + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
    by_xy = np.stack([xx, cross, cross, yy], -1).reshape(*x.shape, 2, 2)
    if not lens:
        return xd, yd, by_xy, empty
    powers = [r2, r2 * r2, r2 * r2 * r2]
    columns_x = [x * powers[0] / under, x * powers[1] / under, 2 * x * y, r2 + 2 * x * x, x * powers[2] / under]
    columns_y = [y * powers[0] / under, y * powers[1] / under, r2 + 2 * y * y, 2 * x * y, y * powers[2] / under]
    if len(d) == 8:
        columns_x += [-x * c * p / under for p in powers]
        columns_y += [-y * c * p / under for p in powers]
    return xd, yd, by_xy, np.stack([np.stack(columns_x, -1), np.stack(columns_y, -1)], -2)


def _fisheye(x: Array, y: Array, d: Array, jacobians: bool, lens: bool) -> tuple[Array, Array, Array, Array]:
    """As `_radial`, for an equidistant lens."""
    r = np.maximum(np.sqrt(x * x + y * y), 1e-12)
    angle = np.arctan(r)
    a2 = angle * angle
    bent = angle * (1 + a2 * (d[0] + a2 * (d[1] + a2 * (d[2] + a2 * d[3]))))
    c = bent / r
    xd, yd = x * c, y * c
    empty = np.zeros((*x.shape, 2, 0))
    if not jacobians:
        return xd, yd, empty, empty
    by_angle = 1 + a2 * (3 * d[0] + a2 * (5 * d[1] + a2 * (7 * d[2] + a2 * 9 * d[3])))
    slope = (by_angle / (1 + r * r) - c) / (r * r)  # d c / d (r^2 / 2)
    slope = np.where(r < 1e-6, 0.0, slope)
    cross = x * y * slope
    by_xy = np.stack([c + x * x * slope, cross, cross, c + y * y * slope], -1).reshape(*x.shape, 2, 2)
    if not lens:
        return xd, yd, by_xy, empty
    powers = [angle * a2 ** (i + 1) / r for i in range(4)]
    by_lens = np.stack([np.stack([x * p for p in powers], -1), np.stack([y * p for p in powers], -1)], -2)
    return xd, yd, by_xy, by_lens
