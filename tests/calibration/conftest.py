"""Pictures of boards, drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from calibration.boards import Board
from calibration.camera import Camera
from sinew.se3 import se3, so3_exp

FINE = 3
"""Pictures are drawn so many times larger, then made smaller."""


def draw(board: Board, camera: Camera, pose: np.ndarray, *, blur: float = 0.6, noise: float = 3.0, seed: int = 0) -> np.ndarray:
    """A picture (height, width) uint8 of a board at T_camera_board; the lens without distortion."""
    per_m, margin = 6000.0, 120
    sheet = cv2.copyMakeBorder(board.picture(per_m), *[margin] * 4, cv2.BORDER_CONSTANT, value=(235,))
    width, height = board.size_m
    to_board = np.array(
        [[1 / per_m, 0, (0.5 - margin) / per_m - width / 2], [0, 1 / per_m, (0.5 - margin) / per_m - height / 2], [0, 0, 1.0]]
    )
    k = camera.matrix * FINE
    k[:2, 2] = FINE * (np.array(camera.centre) + 0.5) - 0.5
    k[2, 2] = 1.0
    onto = k @ np.column_stack([pose[:3, 0], pose[:3, 1], pose[:3, 3]]) @ to_board
    picture = cv2.warpPerspective(sheet, onto, (camera.width * FINE, camera.height * FINE), flags=cv2.INTER_LINEAR, borderValue=(120,))
    picture = cv2.resize(cv2.GaussianBlur(picture, (0, 0), blur * FINE), (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    noisy = picture.astype(float) + np.random.default_rng(seed).normal(0, noise, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def drawn():
    """(board, pictures, camera, poses) of a kind of board."""
    made = {}

    def of(kind: str, count: int = 4):
        if (kind, count) not in made:
            boards = {
                "charuco": Board(),
                "apriltag": Board(kind="apriltag", columns=5, rows=4, square_m=0.04, marker_m=0.03),
                "checkerboard": Board(kind="checkerboard"),
                "circles": Board(kind="circles", columns=7, rows=5, marker_m=0.012),
            }
            board, camera, rng = boards[kind], Camera(960, 720, (800.0, 800.0), (480.0, 360.0)), np.random.default_rng(0)
            turns, places = rng.uniform(-0.5, 0.5, (count, 3)), rng.uniform([-0.04, -0.04, 0.36], [0.04, 0.04, 0.5], (count, 3))
            poses = list(se3(so3_exp(turns), places))
            made[kind, count] = board, [draw(board, camera, p, seed=i) for i, p in enumerate(poses)], camera, poses
        return made[kind, count]

    return of


@pytest.fixture(scope="session")
def drawing():
    """`draw`, for pictures that a test makes as it goes."""
    return draw
