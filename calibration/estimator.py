"""The estimator: the most likely calibration when both the corners and the robot are noisy, and neither by a known amount.

Every view has a hidden error of the robot's pose besides its corners' errors. They are eliminated view by view (Schur), corners that
fit nothing lose their weight (Geman and McClure 1985) and are cast out before the end, and the noise levels come from the residuals
(`calibration.noise`). Bundle adjustment is the same without the hidden errors: it is worse wherever the robot is the noisy part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from calibration.camera import Camera
from calibration.model import Estimate, Free, Layout, Mount, linearise, residuals
from calibration.noise import FIRST, LEAST, Noise, Normal, estimate_noise, normal
from calibration.start import guesses
from calibration.views import Views, board_poses
from sinew.errors import DataError, InputError
from sinew.se3 import Array, se3_inverse, se3_log

OUTLIER = 4.0
"""Corners farther than this many standard deviations count for nothing."""
STEPS, ROUNDS = 25, 6
"""Steps of one minimisation at most, and rounds of minimising and of telling the noise."""
CONVERGED = 1e-5
"""A step this small, in units of its uncertainty, ends a minimisation."""
GOOD_PART = 0.5
"""A view with fewer good corners than this is cast out."""


@dataclass(frozen=True, kw_only=True)
class Priors:
    """What is known before."""

    focal: float = 0.01
    """Standard deviation of the focal lengths, as a part of them."""
    centre_px: float = 10.0
    distortion: float = 0.2
    scale: float = 0.03
    """Of the board's size, as a part of it."""
    time_s: float = 0.1
    joint_rad: float = 0.02
    X: Array | None = None
    """Where the cameras should be by the drawing (C, 4, 4)."""
    X_sigma_m: float = 0.01
    X_sigma_rad: float = float(np.deg2rad(3.0))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The outcome of an estimation."""

    estimate: Estimate
    noise: Noise
    free: Free
    layout: Layout
    covariance: Array
    """Of everything that views share (size, size), in the order of `layout`, each pose as a twist in its own frame."""
    information: Array
    """The same inverted, without what was known before."""
    weights: Array
    """(V, K): 1 for corners that were used."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Views that were not used, and why."""

    def covariance_of(self, camera: int = 0) -> Array:
        """Covariance (6, 6) of X of one camera: a twist in the camera's frame, metres and then radians."""
        part = self.layout.x[camera]
        return self.covariance[part, part]


def fit(views: Views, start: Estimate, *, free: Free | None = None, priors: Priors | None = None, noise: Noise | None = None) -> Fit:
    """Estimate from a first guess.

    Args:
        views: at least three poses.
        start: poses of board and cameras; wrong by less than a basin of attraction (`calibration.start` gives such).
        free: what is estimated besides.
        priors: what is known.
        noise: standard deviations where they are known; None to estimate them.

    Raises:
        InputError: fewer than three poses.
    """
    free, priors = free or Free(), priors or Priors()
    if len(views.robot) < 3:
        raise InputError(f"{len(views.robot)} poses of the robot are too few: at least 3 are needed, 10 or more are better")
    problem = _Problem(views, start, free, priors)
    levels = noise or replace(FIRST, pixel=max(FIRST.pixel, problem.typical_px(start)))
    estimate, weights = start, problem.weights(start, levels)
    rejected: dict[str, str] = {}
    for turn in range(ROUNDS):
        hard = turn >= 2
        before = levels
        estimate, weights = problem.minimise(estimate, levels, weights if hard else None)
        if hard or turn == 1:
            weights = problem.choose(estimate, levels, weights, rejected)
            if len(np.unique(views.pose[weights.any(1)])) < 3:
                raise DataError(DISAGREE)
        if noise is None:
            levels = problem.noise(estimate, weights, levels) if turn else problem.first_noise(estimate)
        change = np.abs(
            np.log([levels.pixel / before.pixel, levels.position_m / before.position_m, levels.rotation_rad / before.rotation_rad])
        )
        if turn >= 3 and change.max() < 0.03:
            break
    estimate, weights = problem.minimise(estimate, levels, weights)
    covariance, information = problem.covariance(estimate, levels, weights)
    return Fit(
        estimate=estimate, noise=levels, free=free, layout=problem.layout, covariance=covariance, information=information,
        weights=weights, rejected=rejected,
    )  # fmt: skip


def calibrate(
    views: Views,
    cameras: tuple[Camera, ...],
    mount: Mount,
    *,
    free: Free | None = None,
    priors: Priors | None = None,
    noise: Noise | None = None,
) -> Fit:
    """Estimate without a first guess: from the likeliest of several.

    Raises:
        InputError: the board's pose can be told in fewer than three pictures.
    """
    priors = priors or Priors()
    starts = [(g.estimate, g.error_px) for g in guesses(views, cameras, mount)]
    if priors.X is not None:
        x = np.reshape(priors.X, (-1, 4, 4))
        starts.append((replace(starts[0][0], X=x, Z=_board_place(views, x, cameras, mount)), FAR_PX))
    best: tuple[float, Estimate] | None = None
    for start, error in starts:
        problem = _Problem(views, start, Free(), priors)
        wide = replace(FIRST, pixel=min(max(FIRST.pixel, error), FAR_PX))
        estimate, _ = problem.minimise(start, wide, None, steps=8)
        cost = problem.cost(estimate, FIRST, None)
        if best is None or cost < best[0]:
            best = cost, estimate
    assert best is not None
    return fit(views, best[1], free=free, priors=priors, noise=noise)


def _board_place(views: Views, x: Array, cameras: tuple[Camera, ...], mount: Mount) -> Array:
    """Where the board is (4, 4) when the cameras are at x: the middle of what the pictures say."""
    boards, _ = board_poses(views, cameras)
    told = np.isfinite(boards).all((1, 2))
    robot = (views.robot if mount == "in_hand" else se3_inverse(views.robot))[views.pose[told]]
    places = robot @ x[views.camera[told]] @ boards[told]
    middle = np.median(places[:, :3, 3], axis=0)
    return places[int(np.argmin(np.linalg.norm(places[:, :3, 3] - middle, axis=1)))]


class _Problem:
    """One set of views with one set of free parameters."""

    def __init__(self, views: Views, start: Estimate, free: Free, priors: Priors) -> None:
        self.views, self.layout, self.priors, self.start = views, Layout(start, free), priors, start
        self.inverse_sigma2 = np.where(views.seen, views.sigma, np.inf) ** -2.0
        size = self.layout.size
        self.precision = np.zeros((size, size))
        for part, camera in zip(self.layout.lens, start.cameras, strict=False):
            sigma = np.concatenate(
                [priors.focal * np.array(camera.focal), np.full(2, priors.centre_px), np.full(len(camera.distortion), priors.distortion)]
            )
            self.precision[part, part] = np.diag(sigma**-2.0)
        for part, sigma in ((self.layout.scale, priors.scale), (self.layout.time, priors.time_s), (self.layout.joints, priors.joint_rad)):
            self.precision[part, part] = np.eye(part.stop - part.start) * sigma**-2.0
        self.known = self.precision.copy()
        if priors.X is not None:
            sigma = np.array([priors.X_sigma_m] * 3 + [priors.X_sigma_rad] * 3)
            for part in self.layout.x:
                self.known[part, part] += np.diag(sigma**-2.0)

    def distance(self, estimate: Estimate) -> Array:
        """From what was known to the estimate (size,)."""
        d, layout = np.zeros(self.layout.size), self.layout
        if self.priors.X is not None:
            for part, x, known in zip(layout.x, estimate.X, np.reshape(self.priors.X, (-1, 4, 4)), strict=True):
                d[part] = se3_log(se3_inverse(known) @ x)
        for part, camera, first in zip(layout.lens, estimate.cameras, self.start.cameras, strict=False):
            d[part] = camera.parameters - first.parameters
        d[layout.scale] = estimate.log_scale
        d[layout.time] = estimate.time_offset_s
        d[layout.joints] = estimate.joint_offsets_rad[1:-1][: layout.joints.stop - layout.joints.start]
        return d

    def squares(self, estimate: Estimate, noise: Noise) -> Array:
        """Squared distance of every corner in standard deviations (V, K); infinite behind the lens."""
        r = residuals(estimate, self.views)
        return np.nan_to_num(np.sum(r * r, -1) * self.inverse_sigma2 / noise.pixel**2, nan=np.inf)

    def typical_px(self, estimate: Estimate) -> float:
        """How far corners are off, in the middle and per axis."""
        e2 = self.squares(estimate, Noise(1.0, 1.0, 1.0))[self.views.seen]
        return float(np.sqrt(np.median(e2) / 1.39)) if len(e2) else np.inf

    def weights(self, estimate: Estimate, noise: Noise) -> Array:
        """Geman and McClure's weights (V, K)."""
        return np.where(self.views.seen, (1 + self.squares(estimate, noise) / OUTLIER**2) ** -2.0, 0.0)

    def cost(self, estimate: Estimate, noise: Noise, weights: Array | None) -> float:
        e2 = self.squares(estimate, noise)
        if weights is None:
            c2 = OUTLIER**2
            corners = np.where(self.views.seen, np.where(np.isfinite(e2), c2 * e2 / (c2 + np.where(np.isfinite(e2), e2, 0.0)), c2), 0.0)
        else:
            corners = np.where(weights > 0, e2, 0.0) * np.where(weights > 0, weights, 0.0)
        d = self.distance(estimate)
        return float(corners.sum() + np.sum(estimate.xi**2 * noise.robot_precision) + d @ self.known @ d)

    def minimise(self, estimate: Estimate, noise: Noise, weights: Array | None, steps: int = STEPS) -> tuple[Estimate, Array]:
        """Levenberg and Marquardt; `weights` None lets them follow the residuals.

        Returns:
            The estimate, and the weights at it.
        """
        cost, damping = self.cost(estimate, noise, weights), 1e-6
        for _ in range(steps):
            current = self.weights(estimate, noise) if weights is None else weights
            step, xi, size = self.step(estimate, noise, current, damping)
            moved = self.layout.move(estimate, step, xi)
            new = self.cost(moved, noise, weights)
            if np.isfinite(new) and new <= cost * (1 + 1e-12):
                estimate, damping = moved, max(damping / 10, 1e-9)
                if size < CONVERGED or cost - new < 1e-7 * cost:
                    break
                cost = new
            elif damping > 1e6:
                break
            else:
                damping = max(damping * 10, 1e-4)
        return estimate, self.weights(estimate, noise) if weights is None else weights

    def step(self, estimate: Estimate, noise: Noise, weights: Array, damping: float) -> tuple[Array, Array, float]:
        """One damped Gauss-Newton step: of what views share (size,), the new robot errors (P, 6), and its length in deviations."""
        n = self.normal(estimate, weights / noise.pixel**2)
        weight = np.linalg.inv(n.inverse + np.diag(1 / noise.robot_precision))
        off = n.robot_r - estimate.xi
        hessian = n.shared + self.known + np.einsum("pij,pik,pkl->jl", n.mixed, weight, n.mixed, optimize=True)
        gradient = n.shared_r + self.known @ self.distance(estimate) + np.einsum("pij,pik,pk->j", n.mixed, weight, off, optimize=True)
        diagonal = np.maximum(np.diag(hessian), 1e-12)
        scale = 1 / np.sqrt(diagonal)
        scaled = hessian * scale[:, None] * scale + damping * np.eye(len(scale))
        step = -scale * np.linalg.lstsq(scaled, scale * gradient, rcond=1e-14)[0]
        # the most likely error of the robot between what the corners ask for and none at all
        asked = -(n.mixed @ step + n.robot_r) + estimate.xi
        xi = (np.linalg.solve(n.robot + np.diag(noise.robot_precision), n.robot @ asked[..., None]))[..., 0]
        return step, xi, float(np.sqrt(max(step @ hessian @ step, 0.0)))

    def normal(self, estimate: Estimate, weights: Array) -> Normal:
        """The linear model about an estimate, each corner with its weight (V, K)."""
        r, by_shared, by_robot = linearise(estimate, self.views, self.layout)
        v, k = r.shape[:2]
        root = np.sqrt(weights * self.inverse_sigma2)[..., None]
        r = np.where(root > 0, np.nan_to_num(r), 0.0) * root
        g = (by_shared * root[..., None]).reshape(v, 2 * k, -1)
        j = (by_robot * root[..., None]).reshape(v, 2 * k, 6)
        r = r.reshape(v, 2 * k)
        jt = np.swapaxes(j, 1, 2)
        poses = len(self.views.robot)
        robot, mixed, robot_r = np.zeros((poses, 6, 6)), np.zeros((poses, 6, g.shape[2])), np.zeros((poses, 6))
        np.add.at(robot, self.views.pose, jt @ j)
        np.add.at(mixed, self.views.pose, jt @ g)
        np.add.at(robot_r, self.views.pose, (jt @ r[..., None])[..., 0])
        flat = g.reshape(-1, g.shape[2])
        return normal(robot, mixed, flat.T @ flat, robot_r, flat.T @ r.reshape(-1), float((r * r).sum()), 2 * int((weights > 0).sum()))

    def first_noise(self, estimate: Estimate) -> Noise:
        """Noise levels by medians, which up to half of the views may spoil."""
        middle = [float(np.median(np.linalg.norm(estimate.xi[:, part], axis=1))) / 1.54 for part in (slice(0, 3), slice(3, 6))]
        return Noise(max(self.typical_px(estimate), LEAST.pixel), max(middle[0], LEAST.position_m), max(middle[1], LEAST.rotation_rad))

    def noise(self, estimate: Estimate, weights: Array, before: Noise) -> Noise:
        """The most likely noise levels, from the corners that count."""
        n = self.normal(estimate, np.where(weights > 0, 1.0, 0.0))
        return estimate_noise(n, estimate.xi, self.known, self.known @ self.distance(estimate), before)

    def choose(self, estimate: Estimate, noise: Noise, weights: Array, rejected: dict[str, str]) -> Array:
        """Which corners are used from here on (V, K), 0 or 1; views that do not fit are named in `rejected`."""
        e2, seen = self.squares(estimate, noise), self.views.seen
        good = seen & (e2 < OUTLIER**2)
        part = good.sum(1) / np.maximum(seen.sum(1), 1)
        bad = part < GOOD_PART
        far = np.sum(estimate.xi**2 * noise.robot_precision, 1)[self.views.pose] > UNLIKELY
        rejected.clear()
        for i in np.flatnonzero(bad | far):
            pixels = float(np.sqrt(np.median(e2[i][seen[i]])) * noise.pixel) if seen[i].any() else np.inf
            millimetres = 1e3 * float(np.linalg.norm(estimate.xi[self.views.pose[i], :3]))
            told = (
                f"its corners are {pixels:.1f} px from where the others put them"
                if bad[i]
                else f"the robot's pose would be {millimetres:.1f} mm off"
            )
            rejected[self.views.names[i]] = told
        good[bad | far] = False
        return np.where(good, 1.0, 0.0)

    def covariance(self, estimate: Estimate, noise: Noise, weights: Array) -> tuple[Array, Array]:
        """Covariance of what views share, and its information without priors of X; each (size, size)."""
        n = self.normal(estimate, weights / noise.pixel**2)
        weight = np.linalg.inv(n.inverse + np.diag(1 / noise.robot_precision))
        information = n.shared + np.einsum("pij,pik,pkl->jl", n.mixed, weight, n.mixed, optimize=True) + self.precision
        total = information + self.known - self.precision
        scale = 1 / np.sqrt(np.maximum(np.diag(total), 1e-30))
        covariance = scale[:, None] * np.linalg.pinv(total * scale[:, None] * scale, rcond=1e-14, hermitian=True) * scale
        return covariance, information


FAR_PX = 50.0
"""A first guess may be this far off."""
DISAGREE = (
    "the views do not agree with one another: check that the poses belong to the pictures, that they are T_base_hand in metres, "
    "and that the mount is the right one"
)
UNLIKELY = 45.0
"""Squared error of the robot at a view, in standard deviations, that happens once in ten million (chi-square of 6)."""
