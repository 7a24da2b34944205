"""The Bingham distribution on unit quaternions: samples, normaliser, log-probability and its gradients.

p(q) = exp(sum_k z_k (m_k . q)^2) / F(z) with z_k <= 0 and z_4 = 0: m_4 is the mode, and q and -q are equally likely, as they must be
for rotations. Densities are per uniform probability, so that F(0) = 1 and z = 0 is the uniform distribution of rotations. With
q = (sqrt(1 - u) e^(ia), sqrt(u) e^(ib)), u is uniform and the integrals over a and b are Bessel functions: F is one integral over u.

Sources: Bingham 1974; Kent, Ganeiber and Mardia 2013, arXiv 1310.8110 (sampling by the angular central Gaussian envelope).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import ive

from sinew.errors import InputError
from sinew.se3 import Array

NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)
LARGEST = 1e9
"""Of a concentration: a standard deviation of 0.003 degrees. SciPy's Bessel functions end soon after."""
LEAST = 1e-6
"""Of a concentration that is fitted; less is uniform."""
PLANES = tuple(combinations(range(4), 2))
"""Pairs of axes (i, j) in which the frame can turn."""


def moments(z: Array) -> tuple[float, Array, Array]:
    """What the distribution with concentrations z (4,) is on average.

    Returns:
        log F; E[c_k^2] (4,), the derivative of log F by z; E[c_i^2 c_j^2] (4, 4), for c = M^T q.
    """
    order = np.argsort(z)
    z1, z2, z3, z4 = z[order]
    reach = np.log1p(abs(float(z1)))
    grade = np.expm1(reach * (NODES + 1) / 2) / np.expm1(reach) if reach > 1e-9 else (NODES + 1) / 2
    slope = reach * np.exp(reach * (NODES + 1) / 2) / np.expm1(reach) if reach > 1e-9 else np.ones_like(NODES)
    w = np.minimum(grade, 1.0)  # 1 - u, finer where it is small: there the mass is
    x, y = w * (z1 - z2) / 2, (1 - w) * (z3 - z4) / 2
    a0, a1, a2 = (np.asarray(ive(n, x)) for n in range(3))
    b0, b1, b2 = (np.asarray(ive(n, y)) for n in range(3))
    mass = 0.5 * WEIGHTS * slope * np.exp(w * (z2 - z4))
    total = float(np.sum(mass * a0 * b0))
    first = (w * (a0 + a1) / 2, w * (a0 - a1) / 2, (1 - w) * (b0 + b1) / 2, (1 - w) * (b0 - b1) / 2)
    mean, second = np.zeros(4), np.zeros((4, 4))
    for k in range(4):
        mean[k] = np.sum(mass * first[k] * (b0 if k < 2 else a0))
    for start, v, (e0, e1, e2), other in ((0, w, (a0, a1, a2), b0), (2, 1 - w, (b0, b1, b2), a0)):
        scale = mass * v**2 * other / 8
        second[start, start] = np.sum(scale * (3 * e0 + 4 * e1 + e2))
        second[start + 1, start + 1] = np.sum(scale * (3 * e0 - 4 * e1 + e2))
        second[start, start + 1] = second[start + 1, start] = np.sum(scale * (e0 - e2))
    for i in (0, 1):
        for j in (2, 3):
            second[i, j] = second[j, i] = np.sum(mass * first[i] * first[j])
    back = np.argsort(order)
    return float(np.log(total) + z4), mean[back] / total, second[np.ix_(back, back)] / total


@dataclass(frozen=True)
class Bingham:
    """A distribution of rotations as quaternions wxyz."""

    frame: Array
    """M (4, 4), orthogonal; its last column is the mode."""
    z: Array
    """(4,), none above 0, the last one 0."""

    def __post_init__(self) -> None:
        frame, z = np.asarray(self.frame, dtype=float), np.asarray(self.z, dtype=float)
        if frame.shape != (4, 4) or not np.allclose(frame.T @ frame, np.eye(4), atol=1e-6):
            raise InputError("the frame of a Bingham distribution is an orthogonal matrix (4, 4)")
        if z.shape != (4,) or not ((z <= 0).all() and (z > -2 * LARGEST).all() and z[3] == 0):
            raise InputError(f"the concentrations of a Bingham distribution are four of -{LARGEST:g} to 0, the last one 0; given {z}")

    @property
    def mode(self) -> Array:
        """The likeliest quaternion (4,)."""
        return self.frame[:, 3]

    @property
    def scatter(self) -> Array:
        """E[q q^T] (4, 4)."""
        return (self.frame * moments(self.z)[1]) @ self.frame.T

    def sample(self, count: int, rng: np.random.Generator) -> Array:
        """Quaternions (count, 4), of either sign."""
        a = -self.z
        low, high = 1.0, 4.0
        for _ in range(60):
            b = 0.5 * (low + high)
            low, high = (b, high) if np.sum(1 / (b + 2 * a)) > 1 else (low, b)
        b = 0.5 * (low + high)
        omega = 1 + 2 * a / b
        bound = -(4 - b) / 2 + 2 * np.log(4 / b)
        found: list[Array] = []
        left = count
        while left > 0:
            y = rng.normal(size=(2 * left + 16, 4)) / np.sqrt(omega)
            y /= np.linalg.norm(y, axis=1, keepdims=True)
            chance = -(y * y) @ a + 2 * np.log((y * y) @ omega) - bound
            y = y[np.log(rng.random(len(y))) < chance][:left]
            found.append(y)
            left -= len(y)
        return np.concatenate([np.zeros((0, 4)), *found]) @ self.frame.T

    def log_prob(self, q: Array) -> Array:
        """(N,) of unit quaternions (N, 4), per uniform probability of rotations."""
        return (q @ self.frame) ** 2 @ self.z - moments(self.z)[0]

    def gradient_concentration(self, q: Array) -> Array:
        """Derivative (N, 3) of the log-probability by log(-z_k): z_k (c_k^2 - E[c_k^2])."""
        return self.z[:3] * ((q @ self.frame) ** 2 - moments(self.z)[1])[:, :3]

    def gradient_frame(self, q: Array) -> Array:
        """Derivative (N, 6) of the log-probability by the angle by which the frame turns in each plane of `PLANES`; see `turned`."""
        c = q @ self.frame
        return np.stack([2 * (self.z[j] - self.z[i]) * c[:, i] * c[:, j] for i, j in PLANES], 1)

    def fisher_frame(self) -> Array:
        """E[gradient_frame^2] (6,): 2 (z_i - z_j) (E[c_i^2] - E[c_j^2]), by integration by parts."""
        mean = moments(self.z)[1]
        return np.array([2 * (self.z[i] - self.z[j]) * (mean[i] - mean[j]) for i, j in PLANES])

    def turned(self, angles: Array) -> Bingham:
        """The same about a frame turned by angles (6,) rad, M exp(sum of angle (e_i e_j^T - e_j e_i^T))."""
        from scipy.linalg import expm

        turn = np.zeros((4, 4))
        for angle, (i, j) in zip(angles, PLANES, strict=True):
            turn[i, j], turn[j, i] = angle, -angle
        return Bingham(orthogonal(self.frame @ np.asarray(expm(turn))), self.z)


def orthogonal(matrix: Array) -> Array:
    """The orthogonal matrix nearest to one that is nearly so."""
    u, _, vt = np.linalg.svd(matrix)
    return u @ vt


def concentrations(mean: Array) -> Array:
    """Concentrations (4,) of wanted E[c_k^2] of the first three axes (3,), none above that of the last: the most likely ones of samples."""
    wanted = np.clip(np.asarray(mean, dtype=float), 0.5 / LARGEST, None)
    wanted = wanted * min(1.0, 0.7499 / float(wanted.sum()))
    log = np.log(np.clip(0.5 / wanted, LEAST, LARGEST))
    for _ in range(60):
        z = np.append(-np.exp(log), 0.0)
        _, first, second = moments(z)
        off = np.log(first[:3] / wanted)
        if np.abs(off).max() < 1e-8:
            break
        # derivative of log E_k by log(-z_l); nearly -1 on the diagonal when concentrated, nearly 0 when uniform
        slope = (second - np.outer(first, first))[:3, :3] * z[:3] / first[:3, None]
        step = np.linalg.solve(slope.T @ slope + 1e-12 * np.eye(3), -slope.T @ off)
        log = np.clip(log + np.clip(step, -1.0, 1.0), np.log(LEAST), np.log(LARGEST))
    return np.append(-np.exp(log), 0.0)


def most_likely(scatter: Array) -> Bingham:
    """The distribution under which samples with the mean of q q^T (4, 4) are the most likely.

    Raises:
        InputError: it is none of unit quaternions.
    """
    if np.shape(scatter) != (4, 4) or not abs(float(np.trace(scatter)) - 1) < 1e-6:
        raise InputError("a Bingham distribution is fitted to the mean (4, 4) of q q^T of unit quaternions, whose trace is 1")
    values, frame = np.linalg.eigh(scatter)
    return Bingham(frame, concentrations(np.maximum(values[:3], 0.0)))
