"""How noisy corners and robot are, from the residuals themselves.

Restricted maximum likelihood: what the views share is integrated out, so that a handful of views does not look better than it is.
The model is linear about the estimate, y = J xi + G d + e, with e of the corners, xi of the robot per pose, and everything needed of
each pose is its 6 x 6 normal matrix; an evaluation costs microseconds whatever the number of corners.
Source: Patterson and Thompson 1971 (restricted likelihood), Woodbury's identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sinew.se3 import Array


@dataclass(frozen=True)
class Noise:
    """Standard deviations."""

    pixel: float
    """Of a corner, px, each axis."""
    position_m: float
    """Of the robot's position, each axis."""
    rotation_rad: float
    """Of the robot's orientation, each axis."""

    @property
    def robot_precision(self) -> Array:
        """Diagonal (6,) of the inverse covariance of the robot's errors."""
        return np.array([self.position_m**-2.0] * 3 + [self.rotation_rad**-2.0] * 3)


TYPICAL = Noise(0.25, 0.3e-3, float(np.deg2rad(0.05)))
"""What is expected before anything is seen; only weakly."""
FACTORS = np.log([3.0, 6.0, 6.0])
"""One standard deviation of that expectation, as the logarithm of a factor."""
FIRST = Noise(0.5, 1e-3, float(np.deg2rad(0.2)))
"""What an estimate begins with: generous, so that no good view is cast out."""


LEAST = Noise(0.02, 1e-6, 1e-6)
"""Nothing is better than this: poses from trackers, told as corners, would otherwise look free of noise."""


@dataclass(frozen=True)
class Normal:
    """The linear model r + J d + G step of all corners, its part along each pose's J and the rest apart.

    What robot and camera can explain alike lies along J, where differences of large sums would lose every digit: it is kept as
    coefficients instead, r = J c + rest and G = J B + rest.
    """

    robot: Array
    """P = J^T J per pose (P, 6, 6)."""
    inverse: Array
    """P^-1 (P, 6, 6)."""
    mixed: Array
    """B (P, 6, g)."""
    robot_r: Array
    """c (P, 6)."""
    shared: Array
    """G^T G of the rest (g, g)."""
    shared_r: Array
    """G^T r of the rest (g,)."""
    rr: float
    """r^T r of the rest."""
    count: int
    """Residuals."""


def normal(robot: Array, mixed: Array, shared: Array, robot_r: Array, shared_r: Array, rr: float, count: int) -> Normal:
    """From the sums J^T J (P, 6, 6), J^T G (P, 6, g), G^T G (g, g), J^T r (P, 6), G^T r (g,) and r^T r."""
    values, vectors = np.linalg.eigh(robot)
    values = np.maximum(values, 1e-10 * values[:, -1:] + 1e-9)
    inverse = (vectors / values[:, None]) @ np.swapaxes(vectors, 1, 2)
    b, c = inverse @ mixed, (inverse @ robot_r[..., None])[..., 0]
    rest = shared - np.einsum("pij,pik->jk", mixed, b)
    values, vectors = np.linalg.eigh(rest)
    rest = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return Normal(robot, inverse, b, c, rest, shared_r - np.einsum("pij,pi->j", mixed, c), max(rr - float(np.sum(robot_r * c)), 0.0), count)


def estimate_noise(n: Normal, xi: Array, prior: Array, prior_d: Array, start: Noise) -> Noise:
    """The most likely noise levels: Newton's steps on their logarithms, all points of a step evaluated together."""
    typical = np.log([TYPICAL.pixel, TYPICAL.position_m, TYPICAL.rotation_rad])
    x = np.log([start.pixel, start.position_m, start.rotation_rad])

    def cost(points: Array) -> Array:
        return negative_log_likelihood(n, xi, prior, prior_d, np.exp(points)) + 0.5 * np.sum(((points - typical) / FACTORS) ** 2, 1)

    for _ in range(STEPS):
        values = cost(x + LENGTH * _STENCIL)
        here = values[0]
        gradient, hessian = _derivatives(values)
        eigenvalues, axes = np.linalg.eigh(hessian)
        step = -axes @ ((axes.T @ gradient) / np.maximum(np.abs(eigenvalues), 0.3))
        step *= min(1.0, 1.5 / max(float(np.abs(step).max()), 1e-12))
        trials = x + np.array([1.0, 0.5, 0.25, 0.1])[:, None] * step
        costs = cost(trials)
        if not costs.min() < here:
            break
        x = trials[int(np.argmin(costs))]
        if here - costs.min() < 1e-4:
            break
    return Noise(*(float(max(v, least)) for v, least in zip(np.exp(x), (LEAST.pixel, LEAST.position_m, LEAST.rotation_rad), strict=True)))


STEPS = 12
LENGTH = 0.02
_EYE = np.eye(3)
_PAIRS = [(0, 1), (0, 2), (1, 2)]
_STENCIL = np.array([np.zeros(3), *_EYE, *-_EYE, *[_EYE[i] + _EYE[j] for i, j in _PAIRS], *[-_EYE[i] - _EYE[j] for i, j in _PAIRS]])


def _derivatives(values: Array) -> tuple[Array, Array]:
    """Gradient (3,) and Hessian (3, 3) from the values on the stencil, by central differences."""
    here, plus, minus, both, neither = values[0], values[1:4], values[4:7], values[7:10], values[10:13]
    hessian = np.diag((plus - 2 * here + minus) / LENGTH**2)
    for k, (i, j) in enumerate(_PAIRS):
        mixed = both[k] + neither[k] + 2 * here - plus[i] - plus[j] - minus[i] - minus[j]
        hessian[i, j] = hessian[j, i] = mixed / (2 * LENGTH**2)
    return (plus - minus) / (2 * LENGTH), hessian


def negative_log_likelihood(n: Normal, xi: Array, prior: Array, prior_d: Array, levels: Array) -> Array:
    """Of several noise levels (S, 3; px, m, rad) at once, up to a constant (S,).

    Args:
        n: the linear model about the estimate, of unweighted corners.
        xi: the robot's errors in the estimate (P, 6).
        prior: precision of what views share (g, g), apart from the corners.
        prior_d: the same times the estimate's distance from what was expected (g,).
        levels: noise levels.
    """
    levels = np.atleast_2d(levels)
    pixel2 = levels[:, 0] ** 2
    robot2 = np.repeat(levels[:, 1:] ** 2, 3, axis=1)
    spread = pixel2[:, None, None, None] * n.inverse + robot2[:, None, :, None] * np.eye(6)
    lower = np.linalg.cholesky(0.5 * (spread + np.swapaxes(spread, 2, 3)))
    right = np.concatenate([n.mixed, (n.robot_r - xi)[..., None]], -1)
    half = np.linalg.solve(lower, np.broadcast_to(right, (len(levels), *right.shape)))
    flat = half.reshape(len(levels), -1, half.shape[-1])
    products = np.swapaxes(flat, 1, 2) @ flat
    gg = n.shared / pixel2[:, None, None] + prior + products[:, :-1, :-1]
    gr = n.shared_r / pixel2[:, None] + prior_d + products[:, :-1, -1]
    ridge = 1e-12 * np.einsum("sii->si", gg) + 1e-12
    gg = gg + ridge[..., None] * np.eye(gg.shape[1])
    log_gg = np.linalg.slogdet(gg)[1]
    square = n.rr / pixel2 + products[:, -1, -1] - np.sum(np.linalg.solve(gg, gr[..., None])[..., 0] * gr, 1)
    log_spread = 2 * np.log(np.einsum("spii->spi", lower)).sum((1, 2))
    return 0.5 * (square + (n.count - 6 * len(n.robot)) * np.log(pixel2) + log_spread + log_gg)
