"""The next best view: of hand poses that can be reached and keep the board in the picture, the one after which most is known.

What a view would tell follows from the linear model about the present estimate: its normal matrix, with the robot's hidden error
eliminated, adds to those of the views that there are. The choice is greedy and A-optimal: the least sum of variances, each in units of
the accuracy that is wanted. Source: Pukelsheim, Optimal Design of Experiments, 1993.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from calibration.camera import Camera
from calibration.estimator import Fit
from calibration.model import Estimate, Layout, linearise
from calibration.noise import Noise
from calibration.views import Views
from sinew.errors import InputError
from sinew.se3 import Array, se3, se3_act, se3_inverse, so3_exp, so3_log

CANDIDATES = 300
"""Poses among which is chosen."""
SURE = 3.0
"""Corners must be in the picture even where the estimate is this many standard deviations off."""
AGAIN_M, AGAIN_RAD = 0.02, float(np.deg2rad(8.0))
"""A pose as near as this to one where a view was taken shows the same errors of the robot again, and is not proposed."""
LEAST_KNOWN = 1e-13
"""Part of the best known direction below which nothing is known about one."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When a calibration is good enough."""

    position_m: float = 0.3e-3
    """Standard deviation of the worst direction of a camera's position."""
    rotation_rad: float = float(np.deg2rad(0.05))
    """The same of its orientation."""

    def __post_init__(self) -> None:
        if not (np.isfinite([self.position_m, self.rotation_rad]).all() and min(self.position_m, self.rotation_rad) > 0):
            raise InputError(f"the wanted accuracy must be above zero, given {self.position_m} m and {self.rotation_rad} rad")

    def reached(self, covariance: Array) -> bool:
        """Whether every camera's covariance (C, 6, 6; m, rad) is small enough."""
        blocks = [(covariance[:, s, s], limit) for s, limit in ((slice(0, 3), self.position_m), (slice(3, 6), self.rotation_rad))]
        return all(float(np.linalg.eigvalsh(block).max()) <= limit**2 for block, limit in blocks)


@dataclass(frozen=True, kw_only=True)
class Sector:
    """From where the board is looked at."""

    tilt_rad: float = float(np.deg2rad(45.0))
    """Largest angle between the line of sight and the board's normal."""
    roll_rad: float = np.pi
    """Largest turn of the picture, either way."""
    fill: tuple[float, float] = (0.3, 1.0)
    """The board's longer side as a part of the picture's shorter one, least and most: far and near."""
    margin: float = 0.02
    """Part of the picture's width along its border where no corner may be."""

    def __post_init__(self) -> None:
        if not 0 < self.fill[0] <= self.fill[1] <= 1 or not 0 <= self.tilt_rad < np.deg2rad(80) or not 0 <= self.roll_rad <= np.pi:
            raise InputError(
                f"a sector of tilt {self.tilt_rad} rad, roll {self.roll_rad} rad and fill {self.fill} cannot be: "
                "tilt below 80 degrees, roll up to pi, fill from above 0 up to 1"
            )
        if not 0 <= self.margin < 0.4:
            raise InputError(f"a margin of {self.margin} of the picture leaves no room for the board: give less than 0.4")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A view to take."""

    T_base_hand: Array
    """(4, 4) m."""
    covariance: Array
    """Of each camera's pose as expected after it, and after all choices before it, from views alone (C, 6, 6; m, rad)."""
    reaches: bool
    """Whether that is the wanted accuracy."""


def always(T_base_hand: Array) -> bool:
    """Every pose can be reached."""
    return True


def told_by(fit: Fit) -> Array:
    """Covariance of each camera's pose from the views alone, without a drawing (C, 6, 6; m, rad)."""
    return _cameras(_inverted(fit.information[None])[0], fit.layout)


def next_views(
    fit: Fit,
    views: Views,
    points: Array,
    *,
    goal: Goal | None = None,
    count: int = 1,
    sector: Sector | None = None,
    reachable: Callable[[Array], bool] = always,
    candidates: Array | None = None,
    seed: int = 0,
) -> list[Choice]:
    """Choose views, each the best one after those before it.

    Args:
        fit: the present estimate.
        views: what it was made from.
        points: corners on the board (K, 3) m.
        goal: the accuracy at which to stop.
        count: at most so many.
        sector: from where the board is looked at.
        reachable: whether the robot can go to a T_base_hand (4, 4); asked of good candidates only, so it may be slow.
        candidates: T_base_hand (N, 4, 4) to choose from; None to make them around the board.
        seed: of the candidates.

    Returns:
        The choices; fewer than `count` when the goal is reached before, none when it is reached already.

    Raises:
        InputError: no candidate keeps the board in view and can be reached.
    """
    goal, sector, layout = goal or Goal(), sector or Sector(), fit.layout
    if goal.reached(told_by(fit)):
        return []
    fresh = around_board(fit.estimate, views, points, sector, CANDIDATES, seed) if candidates is None else np.asarray(candidates, float)
    hands = fresh[_apart(fresh, views.robot)]
    sight, keep = _in_sight(fit, views, points, hands, sector)
    hands, gains = hands[keep], _gains(fit.estimate, sight, layout, fit.noise)[keep]
    weight = np.zeros(layout.size)
    for part in layout.x:
        weight[part] = [goal.position_m**-2.0] * 3 + [goal.rotation_rad**-2.0] * 3
    information, left, chosen = fit.information, np.ones(len(hands), dtype=bool), []
    while len(chosen) < count:
        covariances = _inverted(information + gains)
        cost = np.einsum("nii,i->n", covariances, weight)
        best = next((int(i) for i in np.argsort(cost) if left[i] and _ask(reachable, hands[i], left, int(i))), None)
        if best is None:
            break
        left &= _apart(hands, hands[best : best + 1])
        information = information + gains[best]
        expected = _cameras(covariances[best], layout)
        chosen.append(Choice(T_base_hand=hands[best], covariance=expected, reaches=goal.reached(expected)))
        if chosen[-1].reaches:
            break
    if not chosen:
        raise InputError(
            f"none of {len(fresh)} hand poses around the board is reachable, new and keeps the board in view ({len(hands)} are new and in "
            "view): move the board to where the arm has more room, or take a few views by hand that turn it about two axes"
        )
    return chosen


def information_by_pose(estimate: Estimate, views: Views, layout: Layout, noise: Noise) -> Array:
    """What each pose's corners tell of what views share, the robot's hidden error eliminated (P, size, size)."""
    _, by_shared, by_robot = linearise(estimate, views, layout)
    root = np.where(views.seen, 1 / (noise.pixel * np.where(views.seen, views.sigma, 1.0)), 0.0)[..., None, None]
    v, k = views.sigma.shape
    g, j = (by_shared * root).reshape(v, 2 * k, layout.size), (by_robot * root).reshape(v, 2 * k, 6)
    sums = []
    for a, b in ((g, g), (j, g), (j, j)):
        total = np.zeros((len(views.robot), a.shape[2], b.shape[2]))
        np.add.at(total, views.pose, np.swapaxes(a, 1, 2) @ b)
        sums.append(total)
    shared, mixed, robot = sums
    return shared - np.swapaxes(mixed, 1, 2) @ np.linalg.solve(robot + np.diag(noise.robot_precision), mixed)


def around_board(estimate: Estimate, views: Views, points: Array, sector: Sector, count: int = CANDIDATES, seed: int = 0) -> Array:
    """Hand poses T_base_hand (count, 4, 4) from which a camera looks at the board, on the side that the views show.

    The cameras take turns. By the estimate the whole board is in the picture of nearly all of them; `next_views` checks.
    """
    rng = np.random.default_rng(seed)
    flipped = float(np.median(estimate.boards(views)[:, 2, 2])) < 0
    upright = so3_exp(np.array([np.pi, 0, 0])) if flipped else np.eye(3)
    middle = se3(np.eye(3), -0.5 * (points.min(0) + points.max(0)))
    numbers = np.arange(count) % len(estimate.cameras)
    boards = np.zeros((count, 4, 4))
    for c, camera in enumerate(estimate.cameras):
        mine = numbers == c
        boards[mine] = _looks(camera, np.ptp(points, axis=0) * np.exp(estimate.log_scale), sector, upright, int(mine.sum()), rng)
    boards = boards @ middle
    if estimate.mount == "in_hand":
        return estimate.Z @ se3_inverse(estimate.X[numbers] @ boards)
    return estimate.X[numbers] @ boards @ se3_inverse(estimate.Z)


def _looks(camera: Camera, size: Array, sector: Sector, upright: Array, count: int, rng: np.random.Generator) -> Array:
    """T_camera_middle (count, 4, 4) of a board of this size, all over the picture and the sector."""
    fill, picture = rng.uniform(*sector.fill, count), np.array([camera.width, camera.height])
    distance = float((np.array(camera.focal) / picture).max() * size[:2].max()) / fill
    aim = picture * (0.5 + 0.5 * rng.uniform(-1, 1, (count, 2)) * (1 - 0.8 * fill[:, None]))
    rays = np.concatenate([np.nan_to_num(camera.unproject(aim)), np.ones((count, 1))], 1)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    tilt = sector.tilt_rad * np.sqrt(rng.random(count))  # even over the disc of directions
    azimuth = rng.uniform(-np.pi, np.pi, count)
    leaned = so3_exp(np.stack([tilt * np.cos(azimuth), tilt * np.sin(azimuth), np.zeros(count)], -1))
    rolled = so3_exp(np.stack([np.zeros(count), np.zeros(count), rng.uniform(-1, 1, count) * sector.roll_rad], -1))
    off_axis = np.arccos(np.clip(rays[:, 2], -1, 1))
    across = np.stack([-rays[:, 1], rays[:, 0], np.zeros(count)], -1)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    return se3(so3_exp(off_axis[:, None] * across) @ leaned @ rolled @ upright, rays * distance[:, None])


def _in_sight(fit: Fit, views: Views, points: Array, hands: Array, sector: Sector) -> tuple[Views, np.ndarray]:
    """What the cameras would see from each pose, corners surely in the picture only; which poses show some camera the whole board."""
    estimate, n, cameras = fit.estimate, len(hands), len(fit.estimate.cameras)
    pose, camera = np.repeat(np.arange(n), cameras), np.tile(np.arange(cameras), n)
    everything = Views(
        robot=hands, points=np.broadcast_to(points, (n * cameras, *points.shape)).copy(), pixels=np.zeros((n * cameras, len(points), 2)),
        sigma=np.ones((n * cameras, len(points))), camera=camera, pose=pose, twists=np.zeros((n, 6)),
        joint_jacobians=np.zeros((n, *views.joint_jacobians.shape[1:])), names=("",) * (n * cameras),
    )  # fmt: skip
    there = at(estimate, n)
    pixels, by_shared, _ = linearise(there, everything, fit.layout)
    half = _half_root(_inverted(fit.information[None])[0])
    doubt = SURE * np.linalg.norm(by_shared @ half, axis=-1)
    in_camera = se3_act(there.boards(everything)[:, None], points * np.exp(estimate.log_scale))
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    for c, lens in enumerate(estimate.cameras):
        mine, border = camera == c, sector.margin * lens.width
        room = doubt[mine] + border
        fits = (pixels[mine] >= room) & (pixels[mine] <= np.array([lens.width - 1, lens.height - 1]) - room)
        inside[mine] = fits.all(-1) & _before(lens, in_camera[mine])
    whole = np.asarray(inside.all(1))
    sight = replace(everything, pixels=np.nan_to_num(pixels), sigma=np.where(whole[:, None], everything.sigma, np.inf))
    return sight, np.asarray(whole.reshape(n, cameras).any(1))


def at(estimate: Estimate, poses: int) -> Estimate:
    """The same estimate for other views: the robot's errors at them are not known."""
    return replace(estimate, xi=np.zeros((poses, 6)))


def _gains(estimate: Estimate, sight: Views, layout: Layout, noise: Noise) -> Array:
    return information_by_pose(at(estimate, len(sight.robot)), sight, layout, noise)


def _before(camera: Camera, points: Array) -> np.ndarray:
    """Which points (..., 3) lie within the cone of the picture: a lens model may fold others back into it."""
    w, h = camera.width - 1, camera.height - 1
    rays = camera.unproject(np.array([[0, 0], [w, 0], [0, h], [w, h], [w / 2, 0], [w / 2, h], [0, h / 2], [w, h / 2]]))
    widest = float(np.nanmax(np.linalg.norm(rays, axis=-1), initial=0.0)) or np.inf
    return (points[..., 2] > 0) & (np.linalg.norm(points[..., :2], axis=-1) <= widest * np.maximum(points[..., 2], 0.0))


def _apart(hands: Array, others: Array) -> np.ndarray:
    """(N,) bool: which poses differ from all others."""
    moved = np.linalg.norm(hands[:, None, :3, 3] - others[None, :, :3, 3], axis=-1)
    turned = np.linalg.norm(so3_log(np.swapaxes(others[None, :, :3, :3], -1, -2) @ hands[:, None, :3, :3]), axis=-1)
    return np.asarray(((moved > AGAIN_M) | (turned > AGAIN_RAD)).all(1))


def _ask(reachable: Callable[[Array], bool], hand: Array, left: np.ndarray, i: int) -> bool:
    """Whether a pose can be reached; one that cannot is not asked for again."""
    left[i] = bool(reachable(hand))
    return bool(left[i])


def _cameras(covariance: Array, layout: Layout) -> Array:
    return np.array([covariance[part, part] for part in layout.x])


def _inverted(information: Array) -> Array:
    """Covariances (N, size, size), very large along what is not told at all."""
    scale = 1 / np.sqrt(np.maximum(np.einsum("nii->ni", information), 1e-30))
    values, vectors = np.linalg.eigh(information * scale[:, :, None] * scale[:, None])
    values = np.maximum(values, LEAST_KNOWN)
    return scale[:, :, None] * ((vectors / values[:, None]) @ np.swapaxes(vectors, 1, 2)) * scale[:, None]


def _half_root(covariance: Array) -> Array:
    """S (size, size) with S S^T the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))
