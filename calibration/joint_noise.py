"""Linear models of what pictures of the robot itself tell: shared unknowns, and what the robot got wrong at each joint of each view.

A residual of a view is e = G s + J q + noise. s is what views share (the camera's pose, how much too large masks are), q what the
joints were off at that view, N(0, sigma_rad^2) each and eliminated view by view; the noise is sigma_px, of neighbours that are alike:
`alike` of them count as one. Both levels are the most likely ones of the residuals, with s integrated out.
Source: Patterson and Thompson 1971 (restricted likelihood), Woodbury's identity; the integrated autocorrelation time for `alike`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from sinew.se3 import Array

TYPICAL = np.log([0.7, np.deg2rad(0.05)])
"""Logarithms of noise (px) and joint errors (rad) that are expected before anything is seen, only weakly."""
FACTORS = np.log([4.0, 8.0])
"""One standard deviation of that expectation."""
LEAST = np.log([0.02, 1e-6])
FARTHEST = 96
"""Neighbours that may be alike."""


@dataclass(frozen=True)
class Levels:
    """Standard deviations."""

    pixel: float
    joint_rad: float


@dataclass(frozen=True)
class Rows:
    """Residuals of one view, linear in what is sought."""

    e: Array
    """(n,) px, seen minus predicted with no error of the joints."""
    shared: Array
    """G (n, S)."""
    joints: Array
    """J (n, J)."""
    weight: Array
    """(n,), 0 for what is not used."""
    line: np.ndarray
    """(n,) which line of neighbours; -1 for what has none."""


@dataclass(frozen=True)
class Normals:
    """Sums of the rows of V views."""

    shared: Array
    """(V, S, S)."""
    mixed: Array
    """(V, J, S)."""
    joints: Array
    """(V, J, J)."""
    shared_e: Array
    """(V, S)."""
    joints_e: Array
    """(V, J)."""
    ee: Array
    """(V,)."""
    count: Array
    """(V,) residuals, those that are alike counted once."""


def normals(rows: Sequence[Rows], alike: float = 1.0) -> Normals:
    """Sum up, each row with its weight over `alike`."""
    parts: list[tuple[Array, ...]] = []
    for r in rows:
        w = r.weight / alike
        g, j = r.shared * w[:, None], r.joints * w[:, None]
        parts.append((g.T @ r.shared, j.T @ r.shared, j.T @ r.joints, g.T @ r.e, j.T @ r.e, w @ r.e**2, w.sum()))
    return Normals(*(np.array(p) for p in zip(*parts, strict=True)))


def marginal(n: Normals, levels: Levels) -> tuple[Array, Array, Array, Array]:
    """What each view tells of s once its joints' errors are eliminated.

    Returns:
        Information (V, S, S), gradient (V, S), square of the rest (V,), log-determinant of its covariance (V,) but for the noise's.
    """
    ratio = (levels.pixel / levels.joint_rad) ** 2
    size = n.joints.shape[1]
    inner = n.joints + ratio * np.eye(size)
    solved = np.linalg.solve(inner, np.concatenate([n.mixed, n.joints_e[..., None]], -1))
    across, own = solved[..., :-1], solved[..., -1]
    information = n.shared - np.swapaxes(n.mixed, 1, 2) @ across
    gradient = n.shared_e - np.einsum("vjs,vj->vs", n.mixed, own)
    square = n.ee - np.einsum("vj,vj->v", n.joints_e, own)
    log_size = np.linalg.slogdet(inner)[1] - size * np.log(ratio)
    noise2 = levels.pixel**2
    return information / noise2, gradient / noise2, np.maximum(square, 0.0) / noise2, log_size


def solve(n: Normals, levels: Levels, known: Array, away: Array) -> tuple[Array, Array, Array]:
    """The most likely step.

    Args:
        n: sums of residuals with no error of the joints.
        levels: noise.
        known: precision (S, S) of what was known of s before.
        away: how far s is from what was known (S,).

    Returns:
        Step of s (S,), errors of the joints (V, J), information of s with what was known (S, S).
    """
    information, gradient, _, _ = marginal(n, levels)
    total = information.sum(0) + known
    step = inverse(total) @ (gradient.sum(0) - known @ away)
    ratio = (levels.pixel / levels.joint_rad) ** 2
    right = n.joints_e - n.mixed @ step
    joints = np.linalg.solve(n.joints + ratio * np.eye(n.joints.shape[1]), right[..., None])[..., 0]
    return step, joints, total


def estimate_levels(n: Normals, known: Array, away: Array, start: Levels) -> Levels:
    """The most likely noise levels, given what was weakly expected."""
    first = np.log([start.pixel, start.joint_rad])
    corners = first + np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 1.0]])
    options = {"initial_simplex": corners, "xatol": 0.01, "fatol": 0.01, "maxiter": 120}
    found = minimize(_cost, first, (n, known, away), method="Nelder-Mead", options=options)
    pixel, joint = np.exp(np.maximum(found.x, LEAST))
    return Levels(float(pixel), float(joint))


def cautious(n: Normals, known: Array, away: Array, levels: Levels) -> Levels:
    """The same with the root mean square of all joint errors that the residuals allow: few views leave them uncertain by a factor."""
    x = np.log(levels.joint_rad) + np.linspace(-2.0, 2.0, 33)
    costs = np.array([_cost(np.array([np.log(levels.pixel), one]), n, known, away) for one in x])
    likely = np.exp(costs.min() - costs)
    return Levels(levels.pixel, float(np.sqrt(np.sum(likely * np.exp(2 * x)) / likely.sum())))


def _cost(x: Array, n: Normals, known: Array, away: Array) -> float:
    """Negative logarithm of the likelihood of logarithms of the levels, with what was expected of them."""
    x = np.maximum(x, LEAST)
    information, gradient, square, log_size = marginal(n, Levels(float(np.exp(x[0])), float(np.exp(x[1]))))
    total, g = information.sum(0) + known, gradient.sum(0) - known @ away
    value = square.sum() - g @ inverse(total) @ g + log_size.sum() + 2 * n.count.sum() * x[0] + np.linalg.slogdet(total)[1]
    return 0.5 * float(value) + 0.5 * float(np.sum(((x - TYPICAL) / FACTORS) ** 2))


def scatter(n: Normals, levels: Levels, step: Array) -> float:
    """How much more the views contradict one another than the noise levels explain, as a factor of variances; 1 or more."""
    information, gradient, _, _ = marginal(n, levels)
    scores = gradient - information @ step
    square, free = 0.0, -len(step)
    for score, h in zip(scores, information, strict=True):
        scale = 1 / np.sqrt(np.maximum(np.diag(h), 1e-30))
        values, vectors = np.linalg.eigh(h * scale[:, None] * scale)
        told = values > 1e-6 * values[-1]
        square += float(np.sum((vectors[:, told].T @ (scale * score)) ** 2 / values[told]))
        free += int(told.sum())
    return max(1.0, square / free) if free > 0 else 1.0


def freedom(n: Normals, levels: Levels) -> float:
    """How many parameters were fitted, those of the joints as far as they are free to follow the residuals."""
    inner = n.joints + (levels.pixel / levels.joint_rad) ** 2 * np.eye(n.joints.shape[1])
    return n.shared.shape[1] + float(np.trace(np.linalg.solve(inner, n.joints), axis1=1, axis2=2).sum())


def alike(rows: Sequence[Rows], left: Sequence[Array]) -> float:
    """How many neighbours count as one: the autocorrelation of what is left (n,) of each view, summed along the lines."""
    products, squares, pairs = np.zeros(FARTHEST), 0.0, np.zeros(FARTHEST)
    count = 0.0
    for r, e in zip(rows, left, strict=True):
        used = (r.weight > 0) & (r.line >= 0)
        squares, count = squares + float(np.sum(e[used] ** 2)), count + int(used.sum())
        for k in range(1, min(FARTHEST, len(e) - 1)):
            both = used[k:] & used[:-k] & (r.line[k:] == r.line[:-k])
            products[k] += float(e[k:][both] @ e[:-k][both])
            pairs[k] += int(both.sum())
    if count < 2 or squares <= 0:
        return 1.0
    rho = products / np.maximum(pairs, 1) / (squares / count)
    small = np.flatnonzero((rho[1:] < 0.05) | (pairs[1:] < 10))
    end = 1 + (int(small[0]) if len(small) else FARTHEST - 1)
    return float(max(1.0, 1 + 2 * rho[1:end].sum()))


def inverse(matrix: Array) -> Array:
    """Of an information matrix; very large along what is not told at all."""
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-30))
    values, vectors = np.linalg.eigh(matrix * scale[:, None] * scale)
    return scale[:, None] * ((vectors / np.maximum(values, 1e-13)) @ vectors.T) * scale
