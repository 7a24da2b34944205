"""Lenses: OpenCV's projections to rounding, derivatives by differences, rays back from pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from calibration.camera import Camera
from sinew.errors import InputError

LENSES = {
    "pinhole": (-0.2, 0.1, 0.001, -0.002, 0.03),
    "rational": (-0.2, 0.1, 0.001, -0.002, 0.03, 0.01, 0.02, -0.01),
    "fisheye": (0.05, -0.02, 0.01, -0.003),
}


def camera(model: str) -> Camera:
    return Camera(1280, 720, (900.0, 905.0), (640.0, 355.0), LENSES[model], model)  # type: ignore[arg-type]


def points(count: int = 50) -> np.ndarray:
    return np.random.default_rng(0).uniform([-0.3, -0.2, 0.4], [0.3, 0.2, 1.0], (count, 3))


@pytest.mark.parametrize("model", LENSES)
def test_projection_is_opencvs(model):
    c, p = camera(model), points()
    project = cv2.fisheye.projectPoints if model == "fisheye" else cv2.projectPoints
    theirs = project(p[:, None], np.zeros(3), np.zeros(3), c.matrix, np.array(c.distortion))[0].reshape(-1, 2)
    np.testing.assert_allclose(c.project(p), theirs, atol=1e-9)


@pytest.mark.parametrize("model", LENSES)
def test_derivatives_are_those_of_differences(model):
    c, p, h = camera(model), points(), 1e-6
    _, by_point, by_lens = c.project_with_jacobians(p)
    numeric = np.stack([(c.project(p + e) - c.project(p - e)) / (2 * h) for e in h * np.eye(3)], -1)
    np.testing.assert_allclose(by_point, numeric, atol=2e-6)
    t = c.parameters
    shifted = [(c.with_parameters(t + e).project(p) - c.with_parameters(t - e).project(p)) / (2 * h) for e in h * np.eye(len(t))]
    np.testing.assert_allclose(by_lens, np.stack(shifted, -1), atol=2e-6)


@pytest.mark.parametrize("model", LENSES)
def test_rays_lead_back_to_points(model):
    c, p = camera(model), points()
    np.testing.assert_allclose(c.unproject(c.project(p)), p[:, :2] / p[:, 2:], atol=1e-9)


def test_what_is_behind_the_lens_has_no_pixel():
    assert np.isnan(camera("pinhole").project(np.array([[0.0, 0, -1], [0, 0, 0]]))).all()


def test_cameras_of_others_are_read():
    k = camera("rational").matrix
    assert Camera.from_matrix(k, LENSES["rational"], 1280, 720) == camera("rational")
    assert Camera.from_matrix(k.ravel(), [], 1280, 720).distortion == (0.0,) * 5
    with pytest.raises(InputError, match="too many"):
        Camera.from_matrix(k, [0.1] * 9, 1280, 720)
    with pytest.raises(InputError, match="no camera"):
        Camera(1280, 720, (0.0, 900.0), (640.0, 360.0))
