"""Closed forms: exact without noise, OpenCV's numbers with it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from calibration.closed_form import ABSOLUTE, RELATIVE, hand_eye, hand_eye_and_world
from sinew.errors import InputError
from sinew.se3 import se3, se3_exp, se3_inverse

METHODS = (*RELATIVE, *ABSOLUTE)
NUMBERS = {"tsai": 0, "park": 1, "horaud": 2, "daniilidis": 4, "shah": 0, "li": 1}


def made(seed: int, views: int, noise: float):
    rng = np.random.default_rng(seed)
    x = se3_exp(rng.normal(size=6) * [0.1, 0.1, 0.1, 1, 1, 1])
    z = se3_exp(rng.normal(size=6) * [0.5, 0.5, 0.5, 1, 1, 1])
    robot = se3_exp(rng.normal(size=(views, 6)) * [0.3, 0.3, 0.3, 0.5, 0.5, 0.5])
    return x, z, robot, se3_inverse(robot @ x) @ z @ se3_exp(rng.normal(size=(views, 6)) * noise)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("views", [3, 5, 20])
def test_exact_without_noise(method, views):
    if method == "li" and views < 4:
        return  # its linear system needs more
    for seed in range(5):
        x, z, robot, board = made(seed, views, 0.0)
        found = hand_eye_and_world(robot, board, method)
        np.testing.assert_allclose(found[0], x, atol=1e-8)
        np.testing.assert_allclose(found[1], z, atol=1e-8)


@pytest.mark.skipif(not hasattr(cv2, "calibrateHandEye"), reason=f"OpenCV {cv2.__version__} has no hand-eye calibration of its own")
@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_are_opencvs(method):
    for seed in range(10):
        for views in (4, 10):
            _, _, robot, board = made(seed, views, 1e-3)
            ours = hand_eye(robot, board, method)
            if method in RELATIVE:
                r, t = cv2.calibrateHandEye(  # the method by name: by position it would silently be Tsai's
                    robot[:, :3, :3], robot[:, :3, 3], board[:, :3, :3], board[:, :3, 3], method=NUMBERS[method]
                )
                theirs = se3(r, t.ravel())
            else:
                base = se3_inverse(robot)
                _, _, r, t = cv2.calibrateRobotWorldHandEye(
                    board[:, :3, :3], board[:, :3, 3], base[:, :3, :3], base[:, :3, 3], method=NUMBERS[method]
                )
                theirs = se3_inverse(se3(r, t.ravel()))
            if np.abs(theirs[:3, :3]).max() > 0:  # with too few turns Tsai's gives up there
                np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_bad_input_is_told():
    _, _, robot, board = made(0, 2, 0.0)
    with pytest.raises(InputError, match="at least 3"):
        hand_eye(robot, board)
    _, _, robot, board = made(0, 4, 0.0)
    with pytest.raises(InputError, match="unknown"):
        hand_eye(robot, board, "magic")
