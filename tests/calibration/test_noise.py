"""Noise levels from residuals: the likelihood of the small sums is that of all corners at once, its derivatives those of differences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from calibration.noise import FACTORS, TYPICAL, Noise, Normal, estimate_noise, likelihood, widening


def made(seed: int, poses: int = 5, corners: int = 12, size: int = 4) -> tuple[Normal, np.ndarray, np.ndarray, np.ndarray]:
    """A linear model in sums; its derivatives by the robot's errors (P, 2 K, 6) and by what is shared (P, 2 K, size), and residuals."""
    rng = np.random.default_rng(seed)
    j, g, r = (rng.normal(size=(poses, 2 * corners, n)) * 100 for n in (6, size, 1))
    r = rng.normal(size=r.shape) * 0.4 + j @ (rng.normal(size=(poses, 6, 1)) * 1e-3)
    jt = np.swapaxes(j, 1, 2)
    inverse = np.linalg.inv(jt @ j)
    mixed, robot_r = inverse @ jt @ g, inverse @ jt @ r
    rest_g, rest_r = (g - j @ mixed).reshape(-1, size), (r - j @ robot_r).ravel()
    sums = Normal(
        jt @ j, inverse, mixed, robot_r[..., 0], rest_g.T @ rest_g, rest_g.T @ rest_r, float(rest_r @ rest_r), r.size
    )  # fmt: skip
    return sums, j, g, r[..., 0]


def dense(j: np.ndarray, g: np.ndarray, r: np.ndarray, prior: np.ndarray, x: np.ndarray) -> float:
    """The restricted likelihood by its definition, one covariance matrix of all residuals."""
    pixel, metres, radians = np.exp(x)
    robot = np.diag([metres**2] * 3 + [radians**2] * 3)
    n = r.size
    spread = np.zeros((n, n))
    for p, one in enumerate(j):
        rows = slice(p * len(one), (p + 1) * len(one))
        spread[rows, rows] = one @ robot @ one.T + pixel**2 * np.eye(len(one))
    flat, y = g.reshape(n, -1), r.ravel()
    weighted = np.linalg.solve(spread, np.column_stack([flat, y]))
    gg = flat.T @ weighted[:, :-1] + prior
    gr = flat.T @ weighted[:, -1]
    square = y @ weighted[:, -1] - gr @ np.linalg.solve(gg, gr)
    return 0.5 * float(square + np.linalg.slogdet(spread)[1] + np.linalg.slogdet(gg)[1])


def test_small_sums_tell_the_likelihood_of_all_corners():
    sums, j, g, r = made(0)
    prior, typical = np.diag([0.0, 3.0, 0.0, 50.0]), np.log([TYPICAL.pixel, TYPICAL.position_m, TYPICAL.rotation_rad])
    levels = np.log([[0.3, 1e-3, 2e-3], [0.5, 2e-4, 5e-3], [1.0, 1e-5, 1e-4]])
    ours = [likelihood(sums, np.zeros((5, 6)), prior, np.zeros(4), x)[0] - 0.5 * np.sum(((x - typical) / FACTORS) ** 2) for x in levels]
    theirs = [dense(j, g, r, prior, x) for x in levels]
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs), rtol=1e-6)


def test_gradient_is_that_of_differences_and_information_is_positive():
    sums, *_ = made(1)
    xi, prior, prior_d = np.random.default_rng(1).normal(size=(5, 6)) * 1e-3, np.diag([0.0, 3.0, 0.0, 50.0]), np.array([0.1, 0, 0, 0.2])
    for x in np.log([[0.3, 1e-3, 2e-3], [0.6, 1e-4, 5e-3]]):
        _, gradient, information = likelihood(sums, xi, prior, prior_d, x)
        h = 1e-5
        values = [[likelihood(sums, xi, prior, prior_d, x + s * h * axis)[0] for s in (1, -1)] for axis in np.eye(3)]
        np.testing.assert_allclose(gradient, [(a - b) / (2 * h) for a, b in values], rtol=1e-5, atol=1e-5)
        assert (np.linalg.eigvalsh(information) > 0).all()


@pytest.mark.parametrize("start", [Noise(0.5, 1e-3, 3e-3), Noise(5.0, 1e-5, 1e-2), Noise(0.05, 0.1, 1e-5)])
def test_the_minimum_is_found_from_anywhere(start):
    sums, *_ = made(2)
    args = (sums, np.zeros((5, 6)), np.eye(4), np.zeros(4))
    found = estimate_noise(*args, start)
    x = np.log([found.pixel, found.position_m, found.rotation_rad])
    best = likelihood(*args, x)[0]
    assert all(likelihood(*args, x + step)[0] > best - 1e-6 for axis in np.eye(3) for step in (0.05 * axis, -0.05 * axis))
    assert found.pixel == pytest.approx(0.4, rel=0.3) and found.position_m == pytest.approx(1e-3, rel=0.6)


def test_covariances_are_wider_the_less_the_noise_levels_are_known():
    factors = []
    for poses in (4, 10, 40, 400):
        sums, *_ = made(3, poses=poses)
        args = (sums, np.zeros((poses, 6)), np.eye(4) * 1e-6, np.zeros(4))
        levels = estimate_noise(*args, Noise(0.4, 1e-3, 1e-3))
        x = np.log([levels.pixel, levels.position_m, levels.rotation_rad])
        spread = np.exp(2 * x[0]) * sums.inverse + np.diag(np.repeat(np.exp(2 * x[1:]), 3))
        information = sums.shared / np.exp(2 * x[0]) + np.einsum("pig,pij,pjh->gh", sums.mixed, np.linalg.inv(spread), sums.mixed)
        factors.append(widening(*args, levels, np.linalg.inv(information + np.eye(4) * 1e-6), 4))
    assert all(a > b for a, b in pairwise(factors)) and 1.0 <= factors[-1] < 1.02 and factors[1] < 1.6, factors
