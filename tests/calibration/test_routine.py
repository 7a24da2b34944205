"""The routine, with a made-up robot whose pictures are drawn: it waits, looks, chooses, names what failed, and stops by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from calibration.boards import Board
from calibration.camera import Camera
from calibration.next_view import Goal
from calibration.routine import Mover, Outcome, Pace, run_routine
from sinew.errors import DataError, InputError
from sinew.se3 import Array, se3, se3_exp, se3_inverse, se3_log, so3_exp

BOARD, CAMERA = Board(), Camera(640, 480, (560.0, 560.0), (320.0, 240.0))
X = se3(so3_exp(np.array([0.1, -0.2, 0.3])), np.array([0.02, -0.04, 0.06]))
Z = se3(so3_exp(np.array([np.pi, 0.0, 0.2])), np.array([0.5, 0.1, 0.0]))


def hand_for(board: Array) -> Array:
    """The hand's pose at which the board is at T_camera_board."""
    return Z @ se3_inverse(X @ board)


def first_poses() -> list[Array]:
    turns = [[0.0, 0, 0], [0.4, 0, 0.3], [-0.1, 0.4, -0.4], [-0.3, -0.3, 0.1]]
    return [hand_for(se3(so3_exp(np.array(t)), np.array([0.0, 0, 0.42]))) for t in turns]


class Robot:
    """A hand that takes a while to stand still, a camera on it, and errors of the told pose."""

    def __init__(self, draw: Callable[..., np.ndarray], *, settles_after: int = 3, sigma_m: float = 0.1e-3) -> None:
        self.draw, self.rng = draw, np.random.default_rng(0)
        self.settles_after, self.sigma_m = settles_after, sigma_m
        self.at, self.told = np.eye(4), np.eye(4)
        self.left, self.moves, self.moving_pictures, self.slept = 0, 0, 0, 0.0
        self.refuse: list[int] = []
        self.dark: list[int] = []
        self.last: np.ndarray | None = None

    def move(self, T_base_hand: Array) -> None:
        number, self.moves = self.moves, self.moves + 1
        if number in self.refuse:
            raise InputError(f"move {number} was not confirmed")
        self.left, self.last = self.settles_after, None
        self.told = T_base_hand
        noise = np.concatenate([self.rng.normal(0, self.sigma_m, 3), self.rng.normal(0, np.deg2rad(0.02), 3)])
        self.at = T_base_hand @ se3_exp(noise)

    def pose(self) -> Array:
        return self.told

    def still(self) -> bool:
        self.left -= 1
        return self.left < 0

    def picture(self) -> np.ndarray:
        self.moving_pictures += self.left >= 0
        if self.moves - 1 in self.dark:
            return np.full((480, 640), 20, dtype=np.uint8)
        if self.last is None:
            self.last = self.draw(BOARD, CAMERA, se3_inverse(self.at @ X) @ Z, seed=self.moves)
        return self.last

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


def run(robot: Robot, first: list[Array] | None = None, **more: object) -> Outcome:
    mover: Mover = robot
    return run_routine(mover, first_poses() if first is None else first, BOARD, CAMERA, "in_hand", sleep=robot.sleep, **more)  # type: ignore[arg-type]


def test_it_stops_when_the_wanted_accuracy_is_reached(drawing):
    robot = Robot(drawing)
    goal = Goal(position_m=0.25e-3, rotation_rad=float(np.deg2rad(0.05)))
    outcome = run(robot, goal=goal)
    assert outcome.reached and outcome.why == "the wanted accuracy is reached" and 6 <= len(outcome.views) < 25
    assert robot.moving_pictures == 0 and robot.slept > 0
    error = se3_log(se3_inverse(outcome.fit.estimate.X[0]) @ X)
    assert float(error @ np.linalg.solve(outcome.covariance, error)) < 30
    assert np.linalg.norm(error[:3]) < 1e-3 and outcome.rejected == {}


def test_what_fails_is_named_and_another_pose_is_taken(drawing):
    robot = Robot(drawing)
    robot.refuse, robot.dark = [4, 6], [1, 5]
    outcome = run(robot, goal=Goal(position_m=1e-6), pace=Pace(least=4, most=6))
    assert not outcome.reached and outcome.why == "6 views were taken" and len(outcome.views) == 6
    assert set(outcome.rejected) == {"pose 1", "pose 4", "pose 5", "pose 6"}
    assert "not confirmed" in outcome.rejected["pose 4"] and "0 of 35" in outcome.rejected["pose 5"]


def test_it_gives_up_when_nothing_works_and_says_why(drawing):
    robot = Robot(drawing)
    robot.refuse = list(range(4, 100))
    outcome = run(robot, pace=Pace(failures=3))
    assert not outcome.reached and "3 poses in a row gave no view" in outcome.why and "not confirmed" in outcome.why
    assert robot.moves == 7 and len(outcome.views) == 4
    outcome = run(Robot(drawing), reachable=lambda hand: False)
    assert not outcome.reached and "none of" in outcome.why and len(outcome.views) == 4


def test_a_robot_that_never_stands_still_gives_no_view(drawing):
    robot = Robot(drawing, settles_after=10**6)
    with pytest.raises(DataError, match="did not stand still"):
        run(robot, pace=Pace(settle_s=0.5))
    assert robot.moving_pictures == 0


def test_bad_input_is_told(drawing):
    with pytest.raises(InputError, match="at least 3"):
        run(Robot(drawing), first_poses()[:2])
    with pytest.raises(InputError, match="upside down"):
        run_routine(Robot(drawing), first_poses(), Board(kind="checkerboard"), CAMERA, "in_hand")
    with pytest.raises(InputError, match="three views"):
        Pace(least=2)
