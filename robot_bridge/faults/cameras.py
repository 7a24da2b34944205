"""Cameras of a simulated world as a perfect calibration tells them, for trials in which they are exchanged or bumped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calibration.camera import Camera
from calibration.results import Mounted
from robot_bridge.body import MujocoBody
from robot_bridge.calibrating.hand import hand_of_task
from robot_bridge.camera_check import CameraCheck
from sinew.se3 import se3_inverse

EXACT = 1e-4
"""Standard deviation that is told of it, m and rad."""


def true_cameras(world: Any, names: Sequence[str], size: tuple[int, int]) -> list[Mounted]:
    """Where the cameras of a `sim.RobotSim` are, for pictures of size (height, width); the wrist's is on the hand."""
    hand, made = hand_of_task(world.interface), []
    T_base_hand = hand.pose(world.joint_position)
    for name in names:
        on_hand = name == "wrist"
        T = se3_inverse(T_base_hand) @ world.camera_pose(name) if on_hand else world.camera_pose(name)
        lens = Camera.from_matrix(world.camera_matrix(name, *size), [0.0] * 5, size[1], size[0])
        made.append(
            Mounted(
                name=name, mount="in_hand" if on_hand else "to_hand", T=T, covariance=EXACT**2 * np.eye(6), camera=lens, Z=np.eye(4),
                pixel_sigma=0.3, robot_sigma_m=EXACT, robot_sigma_rad=EXACT,
            )
        )  # fmt: skip
    return made


def check_of(world: Any, names: Sequence[str], size: tuple[int, int]) -> CameraCheck:
    """What looks whether these cameras are exchanged, by the arm's body."""
    body = MujocoBody(world.scene.model, world.interface.robot_spec.joint_names, base="world")
    return CameraCheck(true_cameras(world, names, size), hand_of_task(world.interface), body=body)
