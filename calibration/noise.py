"""How noisy corners and robot are, from the residuals themselves.

Restricted maximum likelihood: what the views share is integrated out, so that a handful of views does not look better than it is.
The model is linear about the estimate, y = J xi + G d + e, with e of the corners, xi of the robot per pose, and everything needed of
each pose is its 6 x 6 normal matrix; an evaluation costs a quarter of a millisecond whatever the number of corners.
Sources: Patterson and Thompson 1971 (restricted likelihood); Gilmour, Thompson and Cullis 1995 (average information).
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


def estimate_noise(n: Normal, xi: Array, prior: Array, prior_d: Array, start: Noise) -> Noise:
    """The most likely noise levels: Newton's steps on their logarithms with the average information (Gilmour 1995), damped."""
    x: Array = np.log(np.array([start.pixel, start.position_m, start.rotation_rad]))
    damping = 0.0
    value, gradient, information = likelihood(n, xi, prior, prior_d, x)
    for _ in range(STEPS):
        step: Array = -np.linalg.inv(information + damping * np.eye(3)) @ gradient
        step *= min(1.0, LONGEST / max(float(np.abs(step).max()), 1e-12))
        there = likelihood(n, xi, prior, prior_d, x + step)
        if there[0] > value:
            damping = max(10 * damping, 1.0)
            continue
        x, damping, (value, gradient, information) = x + step, damping / 10, there
        if np.abs(step).max() < SETTLED:
            break
    return Noise(*(float(max(v, least)) for v, least in zip(np.exp(x), (LEAST.pixel, LEAST.position_m, LEAST.rotation_rad), strict=True)))


STEPS, LONGEST = 15, 1.5
"""Newton steps at most, and the longest one."""
SETTLED = 2e-3
"""A step of this part of a noise level is the last."""
_BLOCKS = np.stack([np.diag([1.0, 1, 1, 0, 0, 0]), np.diag([0.0, 0, 0, 1, 1, 1])])
"""Which errors of the robot are of its position and which of its orientation (2, 6, 6)."""


def likelihood(n: Normal, xi: Array, prior: Array, prior_d: Array, x: Array) -> tuple[float, Array, Array]:
    """The restricted likelihood of noise levels, with what is expected of them, up to a constant.

    Args:
        n: the linear model about the estimate, of unweighted corners.
        xi: the robot's errors in the estimate (P, 6).
        prior: precision of what views share (g, g), apart from the corners.
        prior_d: the same times the estimate's distance from what was expected (g,).
        x: logarithms of the noise levels (3,): px, m, rad.

    Returns:
        Its negative logarithm, the gradient (3,) and the average of observed and expected information (3, 3).
    """
    pixel2, *robot2 = np.exp(2 * x)
    by_level = np.stack([pixel2 * n.inverse, *(np.broadcast_to(v * b, n.inverse.shape) for v, b in zip(robot2, _BLOCKS, strict=True))])
    spread = by_level.sum(0)
    m, left = np.linalg.inv(spread), (n.robot_r - xi)[..., None]
    weighted, size = m @ n.mixed, len(prior)
    flat = n.mixed.reshape(-1, size)
    gg = n.shared / pixel2 + prior + flat.T @ weighted.reshape(-1, size)
    gg = gg + np.diag(1e-12 * np.diag(gg) + 1e-12)
    gr = n.shared_r / pixel2 + prior_d + weighted.reshape(-1, size).T @ left.ravel()
    covariance = np.linalg.inv(gg)
    d = covariance @ gr
    rest_r = n.shared_r - n.shared @ d
    rest = max(n.rr - float(d @ (n.shared_r + rest_r)), 0.0)  # of corners, apart from the robot's part
    off = m @ left - weighted @ d[:, None]  # M e, e = c - xi - B d
    count = n.count - 6 * len(m)
    square = n.rr / pixel2 + float(np.sum(left * (m @ left))) - float(gr @ d)
    value = 0.5 * (square + count * np.log(pixel2) + float(np.linalg.slogdet(spread)[1].sum()) + float(np.linalg.slogdet(gg)[1]))

    q = by_level @ off  # half of what a level does to the errors, (3, P, 6, 1)
    mq = m @ q
    flat = q.reshape(3, -1)
    told = flat @ weighted.reshape(-1, size)
    told[0] += rest_r / pixel2
    information = 2 * (flat @ mq.reshape(3, -1).T - told @ covariance @ told.T)
    information[0, 0] += 2 * rest / pixel2
    inner = (by_level @ (weighted @ covariance)) * weighted
    traces = np.sum(by_level * m, (1, 2, 3)) - np.sum(inner, (1, 2, 3))
    gradient = traces - flat @ off.ravel()
    gradient[0] += count - (rest + float(np.sum(covariance * n.shared))) / pixel2
    away = (x - _TYPICAL) / FACTORS**2
    return value + 0.5 * float(away @ (x - _TYPICAL)), gradient + away, information + np.diag(FACTORS**-2.0)


def widening(n: Normal, xi: Array, prior: Array, prior_d: Array, noise: Noise, covariance: Array, size: int) -> float:
    """What a covariance must be multiplied by because the noise levels are estimates: its 95 % region is then one of 95 %.

    The regions of estimated variances are those of Fisher's F; how many degrees of freedom follows from how well the levels are
    known. Sources: Satterthwaite 1946; Kenward and Roger 1997.

    Args:
        n: the linear model about the estimate, of unweighted corners.
        xi: the robot's errors in the estimate (P, 6).
        prior: precision of what views share (g, g), apart from the corners.
        prior_d: the same times the estimate's distance from what was expected (g,).
        noise: the estimated levels.
        covariance: of what views share (g, g).
        size: the first so many parameters count: the cameras' poses.
    """
    from scipy.special import chdtri, fdtri

    x = np.log(np.array([noise.pixel, noise.position_m, noise.rotation_rad]))
    pixel2, *robot2 = np.exp(2 * x)
    m = np.linalg.inv(pixel2 * n.inverse + np.einsum("k,kij->ij", robot2, _BLOCKS))
    weighted = m @ n.mixed
    by_level = np.stack([pixel2 * n.inverse, *(np.broadcast_to(v * b, n.inverse.shape) for v, b in zip(robot2, _BLOCKS, strict=True))])
    told = np.einsum("pig,kpih->kgh", weighted, by_level @ weighted)
    told[0] += n.shared / pixel2
    grown = 2 * (covariance @ told @ covariance)[:, :size, :size]  # by the logarithm of each level
    slope = np.einsum("ij,kji->k", np.linalg.pinv(covariance[:size, :size], hermitian=True), grown) / size
    doubt = float(slope @ np.linalg.solve(likelihood(n, xi, prior, prior_d, x)[2], slope))
    degrees = max(2 / max(doubt, 1e-6), 3.0)
    return max(float(6 * fdtri(6, degrees, 0.95) / chdtri(6, 0.05)), 1.0)


_TYPICAL = np.log([TYPICAL.pixel, TYPICAL.position_m, TYPICAL.rotation_rad])
