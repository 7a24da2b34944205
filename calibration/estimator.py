"""The estimator: the most likely calibration when both the corners and the robot are noisy, and neither by a known amount.

Every view has a hidden error of the robot's pose besides its corners' errors. They are eliminated view by view (Schur), corners that
fit nothing lose their weight (Geman and McClure 1985) and are cast out before the end, and the noise levels come from the residuals
(`calibration.noise`). Bundle adjustment is the same without the hidden errors: it is worse wherever the robot is the noisy part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from calibration.camera import Camera
from calibration.model import Estimate, Free, Layout, Linear, Mount, linear
from calibration.noise import FIRST, LEAST, Noise, Normal, estimate_noise, widening
from calibration.start import guesses
from calibration.views import Views, board_poses
from sinew.errors import DataError, InputError
from sinew.se3 import Array, se3_inverse, se3_log

OUTLIER = 4.0
"""Corners farther than this many standard deviations count for nothing."""
STEPS, ROUNDS = 25, 8
"""Steps of one minimisation at most, and rounds of minimising and of telling the noise."""
ROUGH, CONVERGED = 0.02, 1e-5
"""A step this small, in units of its uncertainty, ends a minimisation, between rounds and at last."""
SETTLED = 0.01
"""Noise levels that change by a smaller part are told."""
GOOD_PART = 0.5
"""A view with fewer good corners than this is cast out."""
PROMISING, PROMISING_PX = 4.0, 5.0
"""First guesses are followed whose error is not this many times, and this many pixels, above the best one's."""


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


def fit(
    views: Views, start: Estimate, *, free: Free | None = None, priors: Priors | None = None, noise: Noise | None = None,
    after: Fit | None = None,
) -> Fit:  # fmt: skip
    """Estimate from a first guess.

    Args:
        views: at least three poses.
        start: poses of board and cameras; wrong by less than a basin of attraction (`calibration.start` gives such).
        free: what is estimated besides.
        priors: what is known.
        noise: standard deviations where they are known; None to estimate them.
        after: an estimate from the same views with less free, to begin with its noise levels and corners.

    Raises:
        InputError: fewer than three poses.
    """
    free, priors = free or Free(), priors or Priors()
    if len(views.robot) < 3:
        raise InputError(f"{len(views.robot)} poses of the robot are too few: at least 3 are needed, 10 or more are better")
    problem = _Problem(views, start, free, priors)
    at = problem.at(start)
    levels = noise or replace(FIRST, pixel=max(FIRST.pixel, problem.typical_px(at)))
    weights: Array | None = None
    if after is not None:
        levels, weights = noise or after.noise, after.weights
    rejected: dict[str, str] = {}
    for turn in range(ROUNDS if after is None else ROUNDS - 2):
        before = levels
        at, _ = problem.minimise(at, levels, weights, ROUGH)
        if turn >= 1 or after is not None:
            weights = problem.choose(at, levels, rejected)
            if len(np.unique(views.pose[weights.any(1)])) < 3:
                raise DataError(DISAGREE)
        if noise is None:
            levels = problem.first_noise(at) if weights is None else problem.noise(at, weights, levels)
        if turn >= (3 if after is None else 1) and _change(before, levels) < SETTLED:
            break
    at, weights = problem.minimise(at, levels, weights)
    covariance, information = problem.covariance(at, levels, weights)
    if noise is None:
        covariance = covariance * problem.widening(at, levels, weights, covariance)
    return Fit(
        estimate=at.estimate, noise=levels, free=free, layout=problem.layout, covariance=covariance, information=information,
        weights=weights, rejected=rejected,
    )  # fmt: skip


def _change(a: Noise, b: Noise) -> float:
    """The largest change of a noise level, as a part of it."""
    return max(abs(np.log(b.pixel / a.pixel)), abs(np.log(b.position_m / a.position_m)), abs(np.log(b.rotation_rad / a.rotation_rad)))


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
        starts.append((replace(starts[0][0], X=x, Z=board_place(views, x, cameras, mount)), FAR_PX))
    least = starts[0][1]
    best: tuple[float, Estimate] | None = None
    for start, error in starts:
        if error > PROMISING * least + PROMISING_PX and priors.X is None:
            continue
        problem = _Problem(views, start, Free(), priors)
        wide = replace(FIRST, pixel=min(max(FIRST.pixel, error), FAR_PX))
        at, _ = problem.minimise(problem.at(start), wide, None, ROUGH, steps=8)
        cost = problem.cost(at, FIRST, None)
        if best is None or cost < best[0]:
            best = cost, at.estimate
    assert best is not None
    return fit(views, best[1], free=free, priors=priors, noise=noise)


def left_out_px(found: Fit, views: Views, start: Estimate, priors: Priors | None = None, folds: int = 5) -> float:
    """How well views are predicted that an estimate was not made from: the median distance of their corners, px.

    Noise levels and views that fit nothing are those of the whole estimate; what is estimated without a part of the views follows from
    it by one Gauss-Newton step, whose length is a fraction of the uncertainty.

    Args:
        found: the estimate of all views.
        views: all of them.
        start: what `found` began with, around which the lens is held.
        priors: what is known.
        folds: so many parts are left out in turn.
    """
    problem = _Problem(views, start, found.free, priors or Priors())
    poses, errors, used = np.arange(len(views.robot)), [], found.weights.any(1)
    at = problem.at(found.estimate)
    believed = problem.at(replace(found.estimate, xi=np.zeros_like(found.estimate.xi))).linear
    for k in range(min(folds, len(poses))):
        out = (poses % folds == k)[views.pose]
        test = out & used
        if not test.any():
            continue
        step = problem.step(at, found.noise, np.where(out[:, None], 0.0, found.weights), 1e-9)[0]
        r = believed.r[test] + (believed.by_twist[test] @ (believed.shared[test] @ step)[:, None, :, None])[..., 0]
        distance = np.linalg.norm(r + believed.by_own[test] @ step[problem.layout.own], axis=-1)
        errors.append(distance[views.seen[test] & np.isfinite(distance)])
    return float(np.median(np.concatenate(errors))) if errors else np.inf


def board_place(views: Views, x: Array, cameras: tuple[Camera, ...], mount: Mount) -> Array:
    """Where the board is (4, 4) when the cameras are at x: the middle of what the pictures say."""
    boards, _ = board_poses(views, cameras)
    told = np.isfinite(boards).all((1, 2))
    robot = (views.robot if mount == "in_hand" else se3_inverse(views.robot))[views.pose[told]]
    places = robot @ x[views.camera[told]] @ boards[told]
    middle = np.median(places[:, :3, 3], axis=0)
    return places[int(np.argmin(np.linalg.norm(places[:, :3, 3] - middle, axis=1)))]


@dataclass(frozen=True)
class _At:
    """An estimate with its linear model."""

    estimate: Estimate
    linear: Linear
    squares: Array
    """Squared distance of every corner from where it was seen (V, K), px^2 of its relative standard deviation; infinite behind the lens."""


class _Problem:
    """One set of views with one set of free parameters."""

    def __init__(self, views: Views, start: Estimate, free: Free, priors: Priors) -> None:
        self.views, self.layout, self.priors, self.start = views, Layout(start, free), priors, start
        self.seen = views.seen
        self.inverse_sigma2 = np.where(self.seen, views.sigma, np.inf) ** -2.0
        self.first = np.unique(views.pose, return_index=True)[1]
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

    def at(self, estimate: Estimate) -> _At:
        """Linearise."""
        there = linear(estimate, self.views, self.layout)
        return _At(estimate, there, np.nan_to_num(np.sum(there.r**2, -1) * self.inverse_sigma2, nan=np.inf))

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

    def typical_px(self, at: _At) -> float:
        """How far corners are off, in the middle and per axis."""
        squares = at.squares[self.seen]
        return float(np.sqrt(np.median(squares) / 1.39)) if len(squares) else np.inf

    def follow(self, at: _At, noise: Noise) -> Array:
        """Geman and McClure's weights (V, K)."""
        return np.where(self.seen, (1 + at.squares / (noise.pixel * OUTLIER) ** 2) ** -2.0, 0.0)

    def cost(self, at: _At, noise: Noise, weights: Array | None) -> float:
        """What is minimised; `weights` None for Geman and McClure's."""
        squares = at.squares / noise.pixel**2
        if weights is None:
            corners = OUTLIER**2 * (1 - 1 / (1 + squares / OUTLIER**2))
        else:
            corners = np.where(weights > 0, squares, 0.0) * weights
        d = self.distance(at.estimate)
        return float(corners.sum() + np.sum(at.estimate.xi**2 * noise.robot_precision) + d @ self.known @ d)

    def minimise(self, at: _At, noise: Noise, weights: Array | None, close: float = CONVERGED, steps: int = STEPS) -> tuple[_At, Array]:
        """Levenberg and Marquardt; `weights` None lets them follow the residuals.

        Returns:
            The estimate, and the weights at it.
        """
        cost, damping = self.cost(at, noise, weights), 1e-6
        for _ in range(steps):
            current = self.follow(at, noise) if weights is None else weights
            step, xi, size = self.step(at, noise, current, damping)
            there = self.at(self.layout.move(at.estimate, step, xi))
            new = self.cost(there, noise, weights)
            if np.isfinite(new) and new <= cost * (1 + 1e-12):
                at, damping = there, max(damping / 10, 1e-9)
                if size < close or cost - new < 1e-2 * close * cost:
                    break
                cost = new
            elif damping > 1e6:
                break
            else:
                damping = max(damping * 10, 1e-4)
        return at, self.follow(at, noise) if weights is None else weights

    def step(self, at: _At, noise: Noise, weights: Array, damping: float) -> tuple[Array, Array, float]:
        """One damped Gauss-Newton step: of what views share (size,), the new robot errors (P, 6), and its length in deviations."""
        n, xi = self.normal(at.linear, weights / noise.pixel**2), at.estimate.xi
        hessian, weighted = self.eliminated(n, noise)
        hessian = hessian + self.known
        gradient = n.shared_r + self.known @ self.distance(at.estimate) + weighted.T @ (n.robot_r - xi).ravel()
        scale = 1 / np.sqrt(np.maximum(np.diag(hessian), 1e-12))
        scaled = hessian * scale[:, None] * scale + damping * np.eye(len(scale))
        step = -scale * np.linalg.solve(scaled, scale * gradient)
        # the most likely error of the robot between what the corners ask for and none at all
        asked = xi - n.mixed @ step - n.robot_r
        xi = (np.linalg.inv(n.robot + np.diag(noise.robot_precision)) @ (n.robot @ asked[..., None]))[..., 0]
        return step, xi, float(np.sqrt(max(step @ hessian @ step, 0.0)))

    def eliminated(self, n: Normal, noise: Noise) -> tuple[Array, Array]:
        """Information about what views share without the robot's errors (size, size), and what each pose adds to it (6 P, size)."""
        size = self.layout.size
        weighted = (np.linalg.inv(n.inverse + np.diag(1 / noise.robot_precision)) @ n.mixed).reshape(-1, size)
        return n.shared + n.mixed.reshape(-1, size).T @ weighted, weighted

    def normal(self, at: Linear, weights: Array) -> Normal:
        """The linear model, each corner with its weight (V, K).

        A view's corners enter through 6 x 6 sums; of what views share, that which a twist of its hand does alike is told exactly.
        """
        v, k = weights.shape
        root = np.sqrt(weights * self.inverse_sigma2)[..., None]
        r = (np.where(root > 0, np.nan_to_num(at.r), 0.0) * root).reshape(v, 2 * k, 1)
        j = (at.by_twist * root[..., None]).reshape(v, 2 * k, 6)
        own = (at.by_own * root[..., None]).reshape(v, 2 * k, -1)
        jt, hand, columns = np.swapaxes(j, 1, 2), np.swapaxes(at.robot, 1, 2), self.layout.own
        twists, twists_r, twists_own = jt @ j, jt @ r, jt @ own
        robot, robot_r = self.by_pose(hand @ twists @ at.robot), self.by_pose(hand @ twists_r)[..., 0]
        values, vectors = np.linalg.eigh(robot)
        inverse = (vectors / np.maximum(values, 1e-10 * values[:, -1:] + 1e-9)[:, None]) @ np.swapaxes(vectors, 1, 2)

        alike = np.linalg.solve(at.robot[self.first], at.shared[self.first])
        beyond = at.shared - at.robot @ alike[self.views.pose]
        across = twists @ beyond
        across[..., columns] += twists_own
        mixed = self.by_pose(hand @ across)
        flat, size = beyond.reshape(-1, self.layout.size), self.layout.size
        shared = flat.T @ across.reshape(-1, size)
        shared[columns] += np.einsum("vie,vig->eg", twists_own, beyond)
        shared[np.ix_(columns, columns)] += np.einsum("vie,vif->ef", own, own)
        shared_r = flat.T @ twists_r.ravel()
        shared_r[columns] += np.einsum("vie,vio->e", own, r)

        b, c = inverse @ mixed, (inverse @ robot_r[..., None])[..., 0]
        shared = shared - b.reshape(-1, size).T @ mixed.reshape(-1, size)
        shared_r = shared_r - mixed.reshape(-1, size).T @ c.ravel()
        told = (values[:, -1] > 0)[:, None, None]
        rr = max(float(np.sum(r * r)) - float(np.sum(robot_r * c)), 0.0)
        return Normal(
            robot, inverse, np.where(told, alike + b, 0.0), c, 0.5 * (shared + shared.T), shared_r, rr, 2 * int((weights > 0).sum())
        )

    def by_pose(self, of_views: Array) -> Array:
        """Sums over the views of each pose (P, ...)."""
        if len(self.first) == len(self.views):
            return of_views[self.first]
        total = np.zeros((len(self.first), *of_views.shape[1:]))
        np.add.at(total, self.views.pose, of_views)
        return total

    def first_noise(self, at: _At) -> Noise:
        """Noise levels by medians, which up to half of the views may spoil."""
        middle = [float(np.median(np.linalg.norm(at.estimate.xi[:, part], axis=1))) / 1.54 for part in (slice(0, 3), slice(3, 6))]
        return Noise(max(self.typical_px(at), LEAST.pixel), max(middle[0], LEAST.position_m), max(middle[1], LEAST.rotation_rad))

    def noise(self, at: _At, weights: Array, before: Noise) -> Noise:
        """The most likely noise levels, from the corners that count."""
        n = self.normal(at.linear, np.where(weights > 0, 1.0, 0.0))
        return estimate_noise(n, at.estimate.xi, self.known, self.known @ self.distance(at.estimate), before)

    def widening(self, at: _At, levels: Noise, weights: Array, covariance: Array) -> float:
        """By what the covariance grows because the noise levels are estimates."""
        n = self.normal(at.linear, np.where(weights > 0, 1.0, 0.0))
        d = self.known @ self.distance(at.estimate)
        return widening(n, at.estimate.xi, self.known, d, levels, covariance, self.layout.z.start)

    def choose(self, at: _At, noise: Noise, rejected: dict[str, str]) -> Array:
        """Which corners are used from here on (V, K), 0 or 1; views that do not fit are named in `rejected`."""
        good = self.seen & (at.squares < (OUTLIER * noise.pixel) ** 2)
        part = good.sum(1) / np.maximum(self.seen.sum(1), 1)
        bad, xi = part < GOOD_PART, at.estimate.xi
        far = np.sum(xi**2 * noise.robot_precision, 1)[self.views.pose] > UNLIKELY
        rejected.clear()
        for i in np.flatnonzero(bad | far):
            pixels = float(np.sqrt(np.median(at.squares[i][self.seen[i]]))) if self.seen[i].any() else np.inf
            millimetres = 1e3 * float(np.linalg.norm(xi[self.views.pose[i], :3]))
            told = (
                f"its corners are {pixels:.1f} px from where the others put them"
                if bad[i]
                else f"the robot's pose would be {millimetres:.1f} mm off"
            )
            rejected[self.views.names[i]] = told
        good[bad | far] = False
        return np.where(good, 1.0, 0.0)

    def covariance(self, at: _At, noise: Noise, weights: Array) -> tuple[Array, Array]:
        """Covariance of what views share, and its information without priors of X; each (size, size)."""
        information = self.eliminated(self.normal(at.linear, weights / noise.pixel**2), noise)[0] + self.precision
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
