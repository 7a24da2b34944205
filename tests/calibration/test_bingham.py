"""The Bingham distribution: against quadrature over the sphere, against samples, derivatives by differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from calibration.bingham import PLANES, Bingham, concentrations, moments, most_likely
from sinew.errors import InputError

CASES = ([0.0, 0, 0, 0], [-1.0, -3, -0.5, 0], [-40.0, -2, -0.1, 0], [-200.0, -60, -7.3, 0], [-30.0, -30, -30, 0], [-150.0, 0, 0, 0])


def over_the_sphere(z: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The same averages in three angles, on a grid: the trapezoidal rule around, Gauss and Legendre from pole to pole."""
    around = np.arange(80) * np.pi / 80  # all is the same after half a turn
    nodes, weights = np.polynomial.legendre.leggauss(80)
    u, weights = (nodes + 1) / 2, weights / 2
    a, b = around[:, None, None], around[None, :, None]
    r, s = np.sqrt(1 - u), np.sqrt(u)
    c = [np.broadcast_to(v, (80, 80, 80)) for v in (r * np.cos(a), r * np.sin(a), s * np.cos(b), s * np.sin(b))]
    density = np.exp(sum(k * v * v for k, v in zip(z, c, strict=True))) * weights / 80**2
    total = density.sum()
    squares = [v * v for v in c]
    mean = np.array([(density * v).sum() for v in squares]) / total
    second = np.array([[(density * v * w).sum() for w in squares] for v in squares]) / total
    return float(np.log(total)), mean, second


def some_frame(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]


@pytest.mark.parametrize("z", CASES[:5])
def test_averages_are_those_of_quadrature_over_the_sphere(z):
    ours, theirs = moments(np.array(z)), over_the_sphere(np.array(z))
    for mine, grid in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, grid, rtol=1e-9, atol=1e-12)
    assert ours[1].sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(ours[2].sum(1), ours[1], atol=1e-12)


@pytest.mark.parametrize("z1", [-10.0, -1e3, -1e5])
def test_one_sharp_axis_is_a_plain_integral(z1):
    # of a single coordinate c of a point of the sphere the density is 2 / pi sqrt(1 - c^2)
    scale = 1 / np.sqrt(-z1)
    value = 2 * quad(lambda c: 2 / np.pi * np.sqrt(1 - c * c) * np.exp(z1 * c * c), 0, 1, points=[scale, 5 * scale], epsabs=0, limit=200)[0]
    assert moments(np.array([z1, 0, 0, 0]))[0] == pytest.approx(np.log(value), abs=1e-9)


def test_sharp_distributions_are_gaussians():
    z = np.array([-3e6, -1e6, -2e5, 0.0])
    log_f, mean, second = moments(z)
    # on the tangent space of the mode, one of two antipodes, whose volume is 2 pi^2
    assert log_f == pytest.approx(np.log(2 * np.prod(np.sqrt(np.pi / -z[:3])) / (2 * np.pi**2)), abs=1e-5)
    np.testing.assert_allclose(mean[:3], -0.5 / z[:3], rtol=1e-4)
    np.testing.assert_allclose(np.diag(second)[:3], 3 * mean[:3] ** 2, rtol=1e-4)


@pytest.mark.parametrize("z", CASES)
def test_samples_have_these_averages(z):
    made = Bingham(some_frame(0), np.array(z, dtype=float))
    q = made.sample(40_000, np.random.default_rng(1))
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), 1.0, atol=1e-12)
    squares = (q @ made.frame) ** 2
    _, mean, second = moments(made.z)
    error = np.sqrt(np.maximum(np.diag(second) - mean**2, 0) / len(q))
    assert (np.abs(squares.mean(0) - mean) < 5 * error + 1e-12).all()
    products = squares[:, :, None] * squares[:, None]
    assert (np.abs(products.mean(0) - second) < 5 * products.std(0) / np.sqrt(len(q)) + 1e-12).all()


def test_log_probability_is_normalised_and_blind_to_the_sign():
    made = Bingham(some_frame(2), np.array([-6.0, -3.0, -1.0, 0.0]))
    uniform = np.random.default_rng(0).normal(size=(200_000, 4))
    uniform /= np.linalg.norm(uniform, axis=1, keepdims=True)
    density = np.exp(made.log_prob(uniform))
    assert density.mean() == pytest.approx(1.0, abs=5 * density.std() / np.sqrt(len(uniform)))
    np.testing.assert_allclose(made.log_prob(uniform[:9]), made.log_prob(-uniform[:9]), atol=1e-12)
    assert made.log_prob(made.mode[None])[0] >= made.log_prob(uniform).max()


def test_gradients_are_those_of_differences_and_vanish_on_average():
    made, h = Bingham(some_frame(3), np.array([-40.0, -9.0, -2.0, 0.0])), 1e-5
    q = made.sample(20_000, np.random.default_rng(4))
    few = q[:50]
    for k in range(3):
        up, down = made.z.copy(), made.z.copy()
        up[k], down[k] = up[k] * np.exp(h), down[k] * np.exp(-h)
        numeric = (Bingham(made.frame, up).log_prob(few) - Bingham(made.frame, down).log_prob(few)) / (2 * h)
        np.testing.assert_allclose(made.gradient_concentration(few)[:, k], numeric, atol=1e-7)
    for k in range(len(PLANES)):
        angles = np.zeros(6)
        angles[k] = h
        numeric = (made.turned(angles).log_prob(few) - made.turned(-angles).log_prob(few)) / (2 * h)
        np.testing.assert_allclose(made.gradient_frame(few)[:, k], numeric, atol=1e-6)
    for gradient in (made.gradient_concentration(q), made.gradient_frame(q)):
        assert (np.abs(gradient.mean(0)) < 5 * gradient.std(0) / np.sqrt(len(q))).all()
    squares = made.gradient_frame(q) ** 2
    assert (np.abs(squares.mean(0) - made.fisher_frame()) < 5 * squares.std(0) / np.sqrt(len(q))).all()


def test_what_samples_come_from_is_found():
    for z in ([-2.0, -1.0, -0.3, 0.0], [-200.0, -60.0, -7.3, 0.0], [-3e6, -1e6, -2e5, 0.0]):
        np.testing.assert_allclose(concentrations(moments(np.array(z))[1][:3]), z, rtol=1e-6)
    made = Bingham(some_frame(5), np.array([-200.0, -60.0, -7.3, 0.0]))
    np.testing.assert_allclose(most_likely(made.scatter).z, made.z, rtol=1e-6)
    q = made.sample(40_000, np.random.default_rng(6))
    found = most_likely(q.T @ q / len(q))
    np.testing.assert_allclose(found.z[:3], made.z[:3], rtol=0.05)
    assert abs(found.mode @ made.mode) > 0.9999


def test_what_is_no_distribution_is_told():
    with pytest.raises(InputError, match="to 0"):
        Bingham(np.eye(4), np.array([1.0, 0, 0, 0]))
    with pytest.raises(InputError, match="orthogonal"):
        Bingham(np.ones((4, 4)), np.zeros(4))
    with pytest.raises(InputError, match="trace"):
        most_likely(np.eye(4))
