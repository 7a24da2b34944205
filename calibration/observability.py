"""What the views can tell: how far each direction of a camera's pose is known, which motion is missing, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.estimator import Fit
from calibration.model import Mount
from calibration.views import Views
from sinew.se3 import Array, se3_inverse, so3_log

TURNED_RAD = float(np.deg2rad(10.0))
"""A hand that turns by less than this about an axis hardly turns about it."""
TURN_ADVICE = "30 degrees"


@dataclass(frozen=True)
class Direction:
    """A direction of the camera's translation or rotation, in its own frame."""

    kind: str
    """"translation" or "rotation"."""
    axis: tuple[float, float, float]
    sigma: float
    """Standard deviation, m or rad."""
    from_prior: float
    """Part of what is known that was known before, 0 to 1."""


@dataclass(frozen=True)
class Observability:
    """How well a camera's pose is told."""

    observable: bool
    """Whether every direction is known to the wanted accuracy from the views alone."""
    motion: str
    """"full", "one axis", "pure translation" or "small"."""
    directions: tuple[Direction, ...]
    """Of translation and of rotation, the worst first."""
    advice: str
    """What motion would help; empty when nothing is missing."""

    @property
    def worst_m(self) -> float:
        """Standard deviation of the worst direction of the translation."""
        return max(d.sigma for d in self.directions if d.kind == "translation")

    @property
    def worst_rad(self) -> float:
        """The same of the rotation."""
        return max(d.sigma for d in self.directions if d.kind == "rotation")


def observability(
    fit: Fit, views: Views, camera: int = 0, *, tolerance_m: float = 0.01, tolerance_rad: float = float(np.deg2rad(1.0))
) -> Observability:
    """Judge a fit.

    Args:
        fit: the outcome of the estimator.
        views: what it was made from.
        camera: which.
        tolerance_m: a direction of the translation known worse than this counts as unknown.
        tolerance_rad: the same of the rotation.
    """
    alone = _inverted(fit.information)
    part = fit.layout.x[camera]
    with_prior, without = fit.covariance[part, part], alone[part, part]
    directions = [*_directions("translation", with_prior, without, slice(0, 3)), *_directions("rotation", with_prior, without, slice(3, 6))]
    own = np.sqrt([np.linalg.eigvalsh(without[s, s])[-1] for s in (slice(0, 3), slice(3, 6))])
    fine = bool(own[0] <= tolerance_m and own[1] <= tolerance_rad)
    used = fit.weights.any(1) & (views.camera == camera)
    motion, axis, turned = motion_of(views, np.unique(views.pose[used]), fit.estimate.mount)
    return Observability(fine, motion, tuple(directions), "" if fine else _advice(motion, axis, turned))


def motion_of(views: Views, poses: np.ndarray, mount: Mount) -> tuple[str, Array, Array]:
    """What kind of motion poses make.

    Returns:
        "full", "one axis", "pure translation" or "small"; the axis that the hand turns about most (3,), in its own frame when the
        camera is on it and in the base's when it looks at it; by how much it turns about its three main axes, rad (3,).
    """
    robot = views.robot[poses] if mount == "in_hand" else se3_inverse(views.robot[poses])
    middle = len(robot) // 2
    turns = so3_log(robot[middle, :3, :3].T @ robot[:, :3, :3])
    _, sizes, axes = np.linalg.svd(turns - turns.mean(0), full_matrices=True)
    sizes = np.concatenate([sizes, np.zeros(3)])[:3] / np.sqrt(max(len(robot), 1)) * np.sqrt(3)  # half the range of an even spread
    if sizes[0] < np.deg2rad(0.5):
        return "pure translation", axes[0], sizes
    if sizes[1] < max(np.deg2rad(3.0), 0.1 * sizes[0]) and sizes[0] > TURNED_RAD:
        return "one axis", axes[0], sizes
    return ("small" if sizes[1] < TURNED_RAD else "full"), axes[0], sizes


def _advice(motion: str, axis: Array, turned: Array) -> str:
    told = ", ".join(f"{np.rad2deg(t):.0f}" for t in turned)
    if motion == "pure translation":
        return f"the hand never turned: turn it by {TURN_ADVICE} about two different axes"
    if motion == "one axis":
        about = " ".join(f"{v:+.2f}" for v in axis)
        by = f"{about}; by +-{told} degrees about its main axes"
        return f"the hand turned about one axis only ({by}): turn it by {TURN_ADVICE} about another"
    if motion == "small":
        return f"the hand turned by +-{told} degrees about its main axes: turn it by {TURN_ADVICE} about at least two"
    return "the views are too few or too noisy: take more, nearer to the board and with larger turns"


def _directions(kind: str, with_prior: Array, without: Array, part: slice) -> list[Direction]:
    values, axes = np.linalg.eigh(with_prior[part, part])
    result = []
    for value, axis in zip(values[::-1], axes.T[::-1], strict=True):
        own = float(axis @ without[part, part] @ axis)
        result.append(
            Direction(
                kind,
                (float(axis[0]), float(axis[1]), float(axis[2])),
                float(np.sqrt(max(value, 0.0))),
                float(np.clip(1 - value / own, 0, 1)),
            )
        )
    return result


def _inverted(information: Array) -> Array:
    """A covariance, very large along what is not told at all."""
    scale = 1 / np.sqrt(np.maximum(np.diag(information), 1e-30))
    values, vectors = np.linalg.eigh(information * scale[:, None] * scale)
    values = np.maximum(values, 1e-13)
    return scale[:, None] * ((vectors / values) @ vectors.T) * scale
