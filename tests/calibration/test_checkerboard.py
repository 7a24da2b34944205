"""Checkerboards: seen at a slant, more exactly than a square window tells; Gazebo's middle of the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from calibration.boards import Board
from calibration.camera import Camera
from calibration.detection import detect
from calibration.foreign import read_session
from sinew.se3 import Array, se3, se3_act, so3_exp

BOARD = Board(kind="checkerboard", columns=5, rows=4, square_m=0.05)
CAMERA = Camera(1280, 960, (1200.0, 1200.0), (639.5, 479.5))


def poses(tilt_deg: float) -> list[Array]:
    turns = np.random.default_rng(0).uniform(-0.2, 0.2, (6, 3)) + np.array([0, np.deg2rad(tilt_deg), 0])
    return [se3(so3_exp(turn), [0.02 * i - 0.05, 0.01 * i, 0.9]) for i, turn in enumerate(turns)]


def off(pixels: Array, pose: Array) -> Array:
    """Distances (K,) from where the corners are, in the better of the two orders that look alike."""
    truth = CAMERA.project(se3_act(pose, BOARD.points))
    return min((np.linalg.norm(p - truth, axis=1) for p in (pixels, pixels[::-1])), key=np.sum)


def test_boards_at_a_slant_are_found_and_told_better_than_by_square_windows(drawing):
    ours, theirs = [], []
    for pose in poses(65):
        picture = drawing(BOARD, CAMERA, pose, noise=2.0)
        found = detect(picture, BOARD)
        assert not found.refused, found.refused
        ours.append(off(found.pixels, pose))
        start = CAMERA.project(se3_act(pose, BOARD.points)).astype(np.float32)
        spacing = np.median(np.linalg.norm(np.diff(start.reshape(3, 4, 2), axis=1), axis=-1))
        half = int(np.clip(spacing / 4, 2, 11))
        refined = cv2.cornerSubPix(picture, start[:, None].copy(), (half, half), (-1, -1), (3, 40, 1e-3))
        theirs.append(off(refined.reshape(-1, 2).astype(float), pose))
    size = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (ours, theirs)]
    assert size[0] < 0.7 * size[1] and size[0] < 0.1, size


@pytest.mark.parametrize(("told", "meant"), [(("320.5", "240.5"), (319.5, 239.5)), (("320.5", "239.0"), (320.5, 239.0))])
def test_the_middle_of_the_picture_as_gazebo_tells_it(tmp_path, told, meant):
    lines = ["camera_folder_prefix: camera", "pattern_type: checkerboard", "size: 0.05", "number_of_rows: 3", "number_of_columns: 4"]
    (tmp_path / "CalibrationInfo.yaml").write_text("\n".join([*lines, "calibration_setup: 1"]))
    (tmp_path / "camera1/image").mkdir(parents=True)
    lens = f"fx: 500\nfy: 500\ncx: {told[0]}\ncy: {told[1]}\nimg_width: 640\nimg_height: 480\n"
    (tmp_path / "camera1/intrinsic_pars_file.yaml").write_text(lens)
    camera = read_session(tmp_path).cameras[0]
    assert camera is not None and camera.centre == meant
