"""Joints whose zeros are off: estimated with the camera, exactly where the arm's forward kinematics is known.

The estimator takes the hand's twist per radian of each joint as constant. Here the poses are told anew about the offsets found, until
they stay, so that offsets of several degrees are no approximation. The first and the last joint's cannot be told apart from where base
and flange are, and stay zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from calibration.camera import Camera
from calibration.model import Mount
from calibration.solve import Result, solve
from calibration.views import Views
from sinew.errors import InputError
from sinew.se3 import Array, se3_exp, se3_right_jacobian_inverse

ROUNDS = 4
SETTLED_RAD = 1e-5


def solve_joints(
    views: Views,
    joints: Array,
    forward: Callable[[Array], Array],
    jacobian: Callable[[Array], Array],
    cameras: Sequence[Camera],
    mount: Mount,
    **more: Any,
) -> Result:
    """Calibrate cameras and joints.

    Args:
        views: what was seen.
        joints: as the arm told them, of every pose (P, J) rad.
        forward: T_base_hand (N, 4, 4) at joints (N, J).
        jacobian: twist of the hand in its own frame per joint (N, 6, J).
        cameras: their intrinsics as far as known.
        mount: "in_hand" or "to_hand".
        more: as `calibration.solve.solve` takes it.

    Raises:
        InputError: the joints do not fit the views' poses.
    """
    joints = np.asarray(joints, dtype=float)
    if joints.ndim != 2 or len(joints) != len(views.robot):
        raise InputError(f"joints {joints.shape} do not fit {len(views.robot)} poses of the robot: a row per pose is needed")
    offsets = np.zeros(joints.shape[1])
    for _ in range(ROUNDS):
        result = solve(about(views, joints, forward, jacobian, offsets), cameras, mount, joint_offsets=True, **more)
        found = result.fit.estimate.joint_offsets_rad
        moved, offsets = float(np.abs(found - offsets).max()), found
        if moved < SETTLED_RAD:
            break
    return result


def about(views: Views, joints: Array, forward: Callable[[Array], Array], jacobian: Callable[[Array], Array], offsets: Array) -> Views:
    """The views with poses and Jacobians such that the model is exact near offsets (J,), and offsets count from zero as before."""
    moved = joints + offsets
    ways = jacobian(moved)
    twists = ways @ offsets
    return replace(views, robot=forward(moved) @ se3_exp(-twists), joint_jacobians=se3_right_jacobian_inverse(twists) @ ways)
