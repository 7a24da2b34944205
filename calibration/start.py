"""First guesses: closed forms on random triples of views, scored by all, so that wrong views and weak motions do not mislead.

Poses of the board in each picture alone (`views.board_poses`) give the guesses; a guess is judged by where it puts the board's
outline in every picture. For several cameras each gets its own X, and they share the board's place.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

from calibration.camera import Camera
from calibration.closed_form import hand_eye_and_world, mean_pose, nearest_rotation
from calibration.model import Estimate, Mount, first_estimate
from calibration.views import Views, board_poses
from sinew.errors import InputError
from sinew.se3 import Array, se3, se3_act, se3_inverse, so3_exp, so3_log

METHODS = ("park", "daniilidis", "shah")
"""Closed forms that are tried on all views: three ways to weigh rotations against translations."""
MOST = 60
"""Of more views so many are used, spread over all, since closed forms look at all pairs."""
TRIALS = 60
"""Random triples."""
TRUSTED = 0.6
"""Part of the views that a guess must fit: two in five may be wrong."""
NARROW, FLOOR_PX = 5.0, 2.0
"""Views within this many times the trusted views' error, and this many pixels, fit."""


@dataclass(frozen=True)
class Guess:
    """A first guess."""

    estimate: Estimate
    fits: np.ndarray
    """(V,) bool: views that agree with it."""
    error_px: float
    """Of the views that it was judged by, median."""


def guesses(views: Views, cameras: tuple[Camera, ...], mount: Mount, seed: int = 0) -> list[Guess]:
    """First guesses, the best first, clearly different ones only.

    Raises:
        InputError: the board's pose can be told in fewer than three pictures.
    """
    boards, _ = board_poses(views, cameras)
    told = np.isfinite(boards).all((1, 2))
    robot = views.robot if mount == "in_hand" else se3_inverse(views.robot)
    found: list[list[tuple[float, Array, Array, Array]]] = []
    for c in range(len(cameras)):
        rows = np.flatnonzero(told & (views.camera == c))
        if len(rows) < 3:
            who = "" if len(cameras) == 1 else f" of camera {c}"
            raise InputError(
                f"the board's pose can be told in {len(rows)} pictures{who} only: at least 3 are needed, 10 or more are better"
            )
        found.append(_of_one(robot[views.pose[rows]], boards[rows], _outline(views, rows), cameras[c], seed))
    result = []
    for rank in range(max(map(len, found))):
        best = [f[min(rank, len(f) - 1)] for f in found]
        z = mean_pose(np.array([b[2] for b in best])) if len(best) > 1 else best[0][2]
        errors = np.full(len(views), np.inf)
        for c, b in enumerate(best):
            errors[told & (views.camera == c)] = b[3]
        median = float(np.median([b[0] for b in best]))
        estimate = first_estimate(mount, np.array([b[1] for b in best]), z, cameras, views)
        result.append(Guess(estimate, errors < NARROW * median + FLOOR_PX, median))
    return result


def _of_one(robot: Array, boards: Array, outline: Array, camera: Camera, seed: int) -> list[tuple[float, Array, Array, Array]]:
    """(error, X, Z, error of every view) of one camera's guesses, the best first."""
    n, rng = len(robot), np.random.default_rng(seed)
    some = np.unique(np.linspace(0, n - 1, MOST).round().astype(int))
    candidates = [hand_eye_and_world(robot[some], boards[some], method) for method in METHODS]
    candidates += [_from_translations(robot, boards), *_about_one_axis(robot, boards)]
    if n > 3:
        triples = np.array([rng.choice(n, 3, replace=False) for _ in range(min(TRIALS, comb(n, 3)))])
        candidates += _of_triples(robot[triples], boards[triples])
    scored = _score(candidates, robot, boards, outline, camera)
    best = min(scored, key=lambda s: s[0])
    fits = best[3] < NARROW * best[0] + FLOOR_PX
    if 3 <= fits.sum() < n:  # once more from those that fit the best triple
        some = np.flatnonzero(fits)[np.unique(np.linspace(0, fits.sum() - 1, MOST).round().astype(int))]
        again = [hand_eye_and_world(robot[some], boards[some], method) for method in METHODS]
        scored += _score([*again, *_about_one_axis(robot[some], boards[some])], robot, boards, outline, camera)
    kept: list[tuple[float, Array, Array, Array]] = []
    left = sorted((guess for guess in scored if np.isfinite(guess[0])), key=lambda s: s[0])
    while left and len(kept) < KEPT:
        kept.append(left[0])
        apart = _apart(left[0][1], np.array([guess[1] for guess in left]))
        left = [guess for guess, other in zip(left, apart, strict=True) if other]
    return kept or [(np.inf, *candidates[0], np.full(n, np.inf))]


def _of_triples(robot: Array, boards: Array) -> list[tuple[Array, Array]]:
    """Park and Martin's method on many triples of views at once, robot and boards (T, 3, 4, 4)."""
    first, second = [0, 0, 1], [1, 2, 2]
    a = se3_inverse(robot[:, second]) @ robot[:, first]
    b = boards[:, second] @ se3_inverse(boards[:, first])
    turns = np.swapaxes(so3_log(a[..., :3, :3]), 1, 2) @ so3_log(b[..., :3, :3])
    rotation = nearest_rotation(turns)
    left = (a[..., :3, :3] - np.eye(3)).reshape(-1, 9, 3)
    right = (b[..., :3, 3] @ np.swapaxes(rotation, 1, 2) - a[..., :3, 3]).reshape(-1, 9, 1)
    x = se3(rotation, (np.linalg.pinv(left) @ right)[..., 0])
    places = (robot @ x[:, None] @ boards).mean(1)
    return list(zip(x, se3(nearest_rotation(places[:, :3, :3]), places[:, :3, 3]), strict=True))


KEPT = 3
APART_RAD, APART_M = 0.1, 0.05
"""Guesses that differ by less are one."""


def _apart(a: Array, b: Array) -> np.ndarray:
    """Which poses b (N, 4, 4) are not a (4, 4)."""
    turned = np.linalg.norm(so3_log(a[:3, :3].T @ b[:, :3, :3]), axis=-1)
    return np.asarray((turned > APART_RAD) | (np.linalg.norm(a[:3, 3] - b[:, :3, 3], axis=-1) > APART_M))


def _score(
    candidates: list[tuple[Array, Array]], robot: Array, boards: Array, outline: Array, camera: Camera
) -> list[tuple[float, Array, Array, Array]]:
    """How far each guess puts the board's outline from where the pictures show it: the error that most views keep."""
    xs, zs = np.array([c[0] for c in candidates]), np.array([c[1] for c in candidates])
    predicted = (se3_inverse(xs)[:, None] @ se3_inverse(robot)[None]) @ zs[:, None]
    near = np.linalg.norm(outline[:, 0] - outline[:, -1], axis=1)
    depth = np.maximum(boards[:, 2, 3], 0.1 * near)
    points = se3_act(predicted[:, :, None], outline[None]) - se3_act(boards[:, None], outline)[None]
    error = np.linalg.norm(points, axis=-1).mean(-1) / depth * camera.focal[0]
    rank = max(int(np.ceil(TRUSTED * len(robot))) - 1, 2)
    keep = np.sort(error, 1)[:, min(rank, len(robot) - 1)]
    return [(float(k), x, z, e) for k, x, z, e in zip(keep, xs, zs, error, strict=True)]


def _outline(views: Views, rows: np.ndarray) -> Array:
    """Four corners of the seen part of the board (V, 4, 3)."""
    result = []
    for i in rows:
        points = views.points[i, views.seen[i]]
        low, high = points.min(0), points.max(0)
        result.append([low, [high[0], low[1], low[2]], [low[0], high[1], high[2]], high])
    return np.array(result)


def _from_translations(robot: Array, boards: Array) -> tuple[Array, Array]:
    """For a hand that never turns: directions of motion give X's rotation; its translation cannot be told and is zero."""
    a = robot[:, :3, :3].mean(0)
    moved = (robot[:, :3, 3] - robot[:, :3, 3].mean(0)) @ nearest_rotation(a)
    seen = boards[:, :3, 3] - boards[:, :3, 3].mean(0)
    rotation = nearest_rotation(-(moved.T @ seen))
    x = se3(rotation, np.zeros(3))
    return x, mean_pose(robot @ x @ boards)


def _about_one_axis(robot: Array, boards: Array) -> list[tuple[Array, Array]]:
    """For a hand that turns about one axis only: what is left of X's rotation and its translation from a linear system.

    The axis in the hand's frame is that in the camera's frame turned by X; the angle about it, as cosine and sine, and the
    translation follow from R_A t_X + t_A = R_X t_B + t_X of all pairs with the first view. Along the axis t_X is the least one.
    """
    middle = len(robot) // 2
    a = se3_inverse(robot[middle]) @ np.delete(robot, middle, 0)
    b = boards[middle] @ se3_inverse(np.delete(boards, middle, 0))
    log_a, log_b = so3_log(a[:, :3, :3]), so3_log(b[:, :3, :3])
    u, v = (np.linalg.svd(log)[2][0] for log in (log_a, log_b))
    if np.sum((log_a @ u) * (log_b @ v)) < 0:
        v = -v
    first = _turn(v, u)
    axes = np.stack([b[:, :3, 3] @ first.T, np.cross(u, b[:, :3, 3] @ first.T)], -1)  # R_X t_B by angle about u
    along = (axes[..., 0] @ u)[:, None] * u
    left = np.concatenate([(a[:, :3, :3] - np.eye(3)), -(axes[..., :1] - along[..., None]), -axes[..., 1:]], 2).reshape(-1, 5)
    right = (along - a[:, :3, 3]).reshape(-1)
    solution = np.linalg.lstsq(left, right, rcond=1e-6)[0]
    result = []
    for sign in (0.0, np.pi):
        x = se3(so3_exp((np.arctan2(solution[4], solution[3]) + sign) * u) @ first, solution[:3])
        result.append((x, mean_pose(robot @ x @ boards)))
    return result


def _turn(v: Array, u: Array) -> Array:
    """A rotation (3, 3) that carries unit vector v to u."""
    cross, cosine = np.cross(v, u), float(v @ u)
    size = float(np.linalg.norm(cross))
    if size < 1e-9:
        if cosine > 0:
            return np.eye(3)
        other = np.cross(v, np.eye(3)[int(np.argmin(np.abs(v)))])
        return so3_exp(np.pi * other / np.linalg.norm(other))
    return so3_exp(cross / size * np.arctan2(size, cosine))
