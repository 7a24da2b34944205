"""Where a camera beside the robot is, from known points of its body that anything found: marks, corners, a network's points.

The points of all views are one big target in the base's frame, so that a pose follows from any six of them; it is refined with what the
joints are off at each view, and with weights that cast out wrong points. The noise is told by the points' own confidence up to a factor.
Sources: RANSAC and EPnP as in OpenCV for the start; Geman and McClure 1987.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.body import to_camera
from calibration.body_result import BodyResult, Limits, held_out, judge, lever_px, open_directions
from calibration.camera import Camera
from calibration.joint_noise import Levels, Rows, estimate_levels, inverse, marginal, normals, scatter, solve
from calibration.silhouettes import FARTHEST_RAD, FIRST, OUTLIER, Prior
from calibration.solve import UnobservableError
from sinew.errors import DataError, InputError
from sinew.se3 import Array, se3, se3_exp, se3_inverse, se3_log, so3_exp, so3_hat

LEAST_POINTS = 6
FAR_PX = 12.0
"""A point this far off is no inlier of the start."""
STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Points:
    """What was found in one view."""

    points: Array
    """(K, 3) m, where they are at the joints as told, base frame."""
    jacobians: Array
    """(K, 3, J), how they move with the joints."""
    pixels: Array
    """(K, 2) where they were seen."""
    confidence: Array
    """(K,) in (0, 1]; a point of confidence 0.5 has twice the standard deviation of one of confidence 1."""
    name: str


@dataclass(frozen=True, kw_only=True)
class PointFit:
    """The outcome."""

    T: Array
    """T_base_camera (4, 4)."""
    covariance: Array
    """(6, 6) of a twist in the camera's frame, m and then rad."""
    information: Array
    """(6, 6), from the points alone."""
    levels: Levels
    joint_errors: Array
    """(V, J)."""
    good: tuple[np.ndarray, ...]
    """Which points of each view fit (K,)."""
    rows: tuple[Rows, ...]


def fit_points(views: Sequence[Points], camera: Camera, *, prior: Prior | None = None, seed: int = 0) -> PointFit:
    """Estimate the camera's pose.

    Raises:
        InputError: too few points.
        DataError: the points contradict one another.
    """
    count = sum(len(v.pixels) for v in views)
    if count < LEAST_POINTS:
        raise InputError(f"{count} points in {len(views)} views are too few: at least {LEAST_POINTS} are needed, 30 are good")
    T = prior.T if prior is not None else _start(views, camera, seed)
    known = np.zeros((6, 6)) if prior is None else prior.precision
    joints, levels = np.zeros((len(views), views[0].jacobians.shape[2])), FIRST
    for turn in range(STEPS):
        width = max(32.0 / 2**turn, 2.0, OUTLIER * levels.pixel)
        rows = [_rows(v, camera, T, q, width) for v, q in zip(views, joints, strict=True)]
        away = np.zeros(6) if prior is None else se3_log(se3_inverse(prior.T) @ T)
        n = normals(rows)
        if turn >= 2:
            levels = estimate_levels(n, known, away, levels)
        step, joints, total = solve(n, levels, known, away)
        joints = np.clip(joints, -FARTHEST_RAD, FARTHEST_RAD)
        T = T @ se3_exp(step)
        if turn >= 6 and float(np.sqrt(step @ total @ step)) < 0.01:
            break
    rows = [_rows(v, camera, T, q, max(2.0, OUTLIER * levels.pixel)) for v, q in zip(views, joints, strict=True)]
    good = tuple(np.asarray(r.weight.reshape(-1, 2).any(1)) for r in rows)
    fine = sum(int(g.sum()) for g in good)
    if fine < max(LEAST_POINTS, 0.3 * count):
        raise DataError(f"only {fine} of {count} points fit one pose of the camera: check their names, the joints and the lens")
    n = normals(rows)
    information = marginal(n, levels)[0].sum(0) / scatter(n, levels, np.zeros(6))
    return PointFit(
        T=T, covariance=inverse(information + known), information=information, levels=levels, joint_errors=joints, good=good,
        rows=tuple(rows),
    )  # fmt: skip


def solve_keypoints(
    views: Sequence[Points], camera: Camera, joints: Array, names: Sequence[str], *, prior: Prior | None = None,
    limits: Limits | None = None, seed: int = 0,
) -> BodyResult:  # fmt: skip
    """Calibrate one camera, with what is asked of every calibration.

    Args:
        views: what was found.
        camera: its intrinsics.
        joints: positions (V, J) of the views.
        names: of the joints.
        prior: where the camera should be.
        limits: what counts as known.
        seed: of the random subsets.

    Raises:
        InputError: too few points.
        DataError: the points contradict one another.
        UnobservableError: a direction cannot be told and there is no prior.
    """
    fit = fit_points(views, camera, prior=prior, seed=seed)
    used = np.array([bool(g.any()) for g in fit.good])
    known = np.zeros((6, 6)) if prior is None else prior.precision
    seen = judge(fit.information, known, joints[used], names, limits or Limits())
    if not seen.observable and prior is None:
        raise UnobservableError(open_directions(seen))
    nothing = "none of its points is where the other views put it"
    rejected = {v.name: nothing for v, u in zip(views, used, strict=True) if not u}
    lost = {v.name: int((~g).sum()) for v, g in zip(views, fit.good, strict=True) if g.any() and not g.all()}
    swap = [3, 4, 5, 0, 1, 2]
    return BodyResult(
        T=fit.T, covariance=fit.covariance[np.ix_(swap, swap)], camera=camera, model="keypoints",
        held_out_px=held_out(fit.rows, used, fit.levels, known, per=2), used=tuple(v.name for v, u in zip(views, used, strict=True) if u),
        rejected=rejected, observability=seen, levels=fit.levels, lever_px=lever_px(fit.rows, per=2),
        more={"points": int(sum(g.sum() for g in fit.good)), "points_left_out": lost},
    )  # fmt: skip


def _rows(view: Points, camera: Camera, T: Array, joint_errors: Array, width_px: float) -> Rows:
    """Two rows per point, in units of a point of confidence 1."""
    points = view.points + view.jacobians @ joint_errors
    in_camera = to_camera(T, points)
    pixels, by_point, _ = camera.project_with_jacobians(in_camera)
    e = view.pixels - pixels
    by_shared = np.concatenate([-by_point, by_point @ so3_hat(in_camera)], -1)
    by_joints = by_point @ T[:3, :3].T @ view.jacobians
    unit = view.confidence[:, None]
    with np.errstate(invalid="ignore"):
        near = np.linalg.norm(e * unit, axis=1) < np.sqrt(2) * width_px
    good = np.repeat(near & np.isfinite(e).all(1), 2)
    scale = np.repeat(view.confidence, 2)
    flat = np.where(good, (e * unit).ravel(), 0.0)
    shared = np.where(good[:, None], by_shared.reshape(len(good), -1) * scale[:, None], 0.0)
    joints = np.where(good[:, None], by_joints.reshape(len(good), -1) * scale[:, None], 0.0)
    return Rows(flat + joints @ joint_errors, shared, joints, good.astype(float), np.full(len(good), -1))


def _start(views: Sequence[Points], camera: Camera, seed: int) -> Array:
    """From random subsets of all points."""
    import cv2

    points, pixels = np.concatenate([v.points for v in views]), np.concatenate([v.pixels for v in views])
    rays = camera.unproject(pixels)
    fine = np.isfinite(rays).all(1)
    if int(fine.sum()) < LEAST_POINTS:
        raise DataError("the points are outside of what the lens sees: check the intrinsics")
    cv2.setRNGSeed(seed)
    api, focal = cv2, float(np.mean(camera.focal))
    found, rotation, translation, inliers = api.solvePnPRansac(
        points[fine], rays[fine], np.eye(3), np.zeros(5), iterationsCount=500, reprojectionError=FAR_PX / focal, confidence=0.9999,
        flags=cv2.SOLVEPNP_SQPNP,
    )  # fmt: skip
    if not found or inliers is None or len(inliers) < LEAST_POINTS:
        raise DataError(f"no pose of the camera fits {LEAST_POINTS} of {len(points)} points: check their names, the joints and the lens")
    return se3_inverse(se3(so3_exp(np.ravel(rotation)), np.ravel(translation)))
