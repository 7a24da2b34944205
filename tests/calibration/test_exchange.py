"""Exchanged cameras are told from moved ones: by their lenses and frames, and by a board that they see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.camera import Camera
from calibration.drift import Picture
from calibration.exchange import by_board, by_lens
from calibration.results import Mounted
from calibration.simulate import board_points
from sinew.se3 import se3, se3_act, se3_exp, se3_inverse, so3_exp

BOARD = board_points((7, 5), 0.03)
FACING = se3(so3_exp(np.array([np.pi, 0, 0])), np.array([0, 0, 0.5]))


def lens(focal: float) -> Camera:
    return Camera(1280, 720, (focal, focal), (640.0, 360.0))


def cell(seed: int, second: str) -> tuple[list[Mounted], list[Picture]]:
    """Two cameras that see one board: on the table where one of them is on the hand, else in the hand."""
    rng = np.random.default_rng(seed)
    on = "base" if second == "in_hand" else "hand"
    board = se3(so3_exp(rng.normal(0, 0.2, 3)), np.array([0.5, 0.1, 0.1]))
    robot = se3(so3_exp(rng.normal(0, 0.4, 3)), np.array([0.3, 0.0, 0.5]))
    cameras, pictures = [], []
    for name, mount in (("front", "to_hand"), ("other", second)):
        seen = FACING @ se3_exp(np.concatenate([rng.uniform(-0.08, 0.08, 3), rng.uniform(-0.4, 0.4, 3)]))
        carrier = np.eye(4) if mount == "to_hand" else se3_inverse(robot)
        stands = robot @ board if on == "hand" else board
        pose = carrier @ stands @ se3_inverse(seen)
        usual = {"in_hand": "base", "to_hand": "hand"}[mount]
        cameras.append(
            Mounted(
                name=name, mount=mount, T=pose, covariance=1e-8 * np.eye(6), camera=lens(900.0), Z=board if usual == on else np.eye(4),
                pixel_sigma=0.3, robot_sigma_m=1e-4, robot_sigma_rad=1e-4,
            )
        )  # fmt: skip
        pixels = lens(900.0).project(se3_act(seen, BOARD)) + rng.normal(0, 0.3, (len(BOARD), 2))
        pictures.append(Picture(camera=name, robot=robot, points=BOARD, pixels=pixels, on=on))
    return cameras, pictures


def crossed(pictures: list[Picture]) -> list[Picture]:
    a, b = pictures
    return [replace(b, camera=a.camera), replace(a, camera=b.camera)]


@pytest.mark.parametrize("second", ["to_hand", "in_hand"])
def test_a_board_that_both_see_tells_an_exchange_from_a_bump(second):
    for seed in range(6):
        cameras, pictures = cell(seed, second)
        assert by_board(cameras, pictures) == ""
        told = by_board(cameras, crossed(pictures))
        assert told.startswith("cameras front and other are exchanged: the board is ") and "\n" not in told
        moved = [replace(cameras[0], T=cameras[0].T @ se3_exp(np.array([0.05, 0, 0.02, 0, 0.2, 0]))), cameras[1]]
        assert by_board(moved, pictures) == ""
    assert by_board(cameras, pictures[:1]) == ""


def test_lenses_and_frames_tell_too():
    cameras, _ = cell(0, "in_hand")
    cameras[1] = replace(cameras[1], camera=lens(700.0))
    straight = {"front": lens(905.0), "other": lens(702.0)}
    exchanged = {"front": lens(702.0), "other": lens(905.0)}
    assert by_lens(cameras, straight) == "" and by_lens(cameras, {"front": lens(702.0)}) == ""
    assert "fx 702 and 905" in by_lens(cameras, exchanged)
    assert by_lens(cameras, {"front": lens(1200.0), "other": lens(1200.0)}) == ""  # other lenses, and not each other's
    frames = {"front": "front_optical_frame", "other": "other_optical_frame"}
    assert by_lens(cameras, straight, frames) == ""
    assert "their frames are" in by_lens(cameras, {}, {"front": frames["other"], "other": frames["front"]})
    assert by_lens(cameras, {}, {"front": "camera_color_optical_frame", "other": "camera_color_optical_frame"}) == ""
    longer = [replace(cameras[0], name="cam"), replace(cameras[1], name="cam_2")]
    assert by_lens(longer, {}, {"cam": "cam_optical_frame", "cam_2": "cam_2_optical_frame"}) == ""
    assert by_lens(longer, {}, {"cam": "cam_2_optical_frame", "cam_2": "cam_optical_frame"})
