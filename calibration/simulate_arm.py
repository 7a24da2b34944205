"""A made-up low-cost arm: joints whose zeros are off and encoders that are noisy, a camera on its hand or beside it, and what it commands.

Where base and flange are cannot be told from inside: an offset of the first joint turns the base, one of the last the flange. So a
calibration of such an arm is judged where it is used, at joints that are commanded later: how far the board is from where it should
appear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.model import Estimate, Mount
from calibration.simulate import CAMERA, board_points
from calibration.views import View
from sinew.se3 import Array, se3, se3_act, se3_adjoint, se3_exp, se3_inverse, so3_exp

AXES = np.array([[0, 0, 1.0], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])
ANCHORS = np.array([[0, 0, 0.0], [0, 0, 0.1], [0.12, 0, 0.1], [0.2, 0, 0.1], [0.28, 0, 0.1], [0.34, 0, 0.1]])
FLANGE = se3(np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]]), [0.4, 0, 0.1])
"""Of an arm stretched forward, 0.4 m long: turn, shoulder, elbow, roll, pitch, roll."""
HOME = np.deg2rad([0, -30.0, 60, 0, 60, 0])


def forward(joints: Array) -> Array:
    """T_base_hand (N, 4, 4) at joints (N, 6) rad: product of exponentials."""
    return _frames(np.atleast_2d(joints))[-1] @ FLANGE


def jacobian(joints: Array) -> Array:
    """Twist of the hand in its own frame per joint (N, 6, 6), m and then rad."""
    joints = np.atleast_2d(joints)
    frames, to_hand = _frames(joints), se3_inverse(forward(joints))
    twists = np.concatenate([-np.cross(AXES, ANCHORS), AXES], 1)
    return np.stack([(se3_adjoint(to_hand @ f) @ t) for f, t in zip(frames, twists, strict=True)], -1)


def _frames(joints: Array) -> Array:
    """What the joints up to each one do to the arm of zero joints (6, N, 4, 4)."""
    twists = np.concatenate([-np.cross(AXES, ANCHORS), AXES], 1)
    moved, frames = np.broadcast_to(np.eye(4), (len(joints), 4, 4)), []
    for j, twist in enumerate(twists):
        moved = moved @ se3_exp(joints[:, j, None] * twist)
        frames.append(moved)
    return np.array(frames)


@dataclass(frozen=True)
class ArmCalibration:
    """A calibration with a known answer."""

    views: list[View]
    joints: Array
    """As the arm tells them (N, 6)."""
    offsets: Array
    """True joint minus told one (6,), the encoders' noise apart."""
    X: Array
    Z: Array
    mount: Mount

    def board(self, joints: Array) -> Array:
        """Where the board truly is, T_camera_board (N, 4, 4), with the arm at told joints (N, 6) and quiet encoders."""
        return boards(self.mount, self.X, self.Z, forward(joints + self.offsets))


def boards(mount: Mount, x: Array, z: Array, hands: Array) -> Array:
    """T_camera_board (N, 4, 4)."""
    return se3_inverse(x) @ (se3_inverse(hands) if mount == "in_hand" else hands) @ z


def simulate_arm(
    seed: int, mount: Mount = "in_hand", views: int = 20, *, offset_rad: float = float(np.deg2rad(1.0)),
    encoder_rad: float = float(np.deg2rad(0.5)), sigma_px: float = 0.3,
) -> ArmCalibration:  # fmt: skip
    """An arm of 0.4 m that tells its joints with errors of these standard deviations; every view shows the whole board."""
    rng, points = np.random.default_rng(seed), board_points((7, 5), 0.03)
    offsets = rng.normal(0, offset_rad, 6)
    near = se3(so3_exp(rng.normal(0, 0.2, 3)), rng.uniform(-0.04, 0.04, 3))
    seen = se3(so3_exp(np.array([np.pi, 0, 0]) + rng.normal(0, 0.1, 3)), [0, 0, 0.4])
    hand = forward(HOME)[0]
    if mount == "in_hand":
        x = near
        z = hand @ x @ seen
    else:
        z = near
        x = hand @ z @ se3_inverse(seen)
    joints = reachable(rng, mount, x, z, points, views)
    told = joints - offsets - rng.normal(0, encoder_rad, joints.shape)
    poses, ways = forward(told), jacobian(told)
    made = []
    for i, board in enumerate(boards(mount, x, z, forward(joints))):
        pixels = CAMERA.project(se3_act(board, points)) + rng.normal(0, sigma_px, (len(points), 2))
        made.append(View(robot=poses[i], points=points, pixels=pixels, name=f"view {i}", joint_jacobian=ways[i]))
    return ArmCalibration(made, told, offsets, x, z, mount)


def reachable(rng: np.random.Generator, mount: Mount, x: Array, z: Array, points: Array, count: int) -> Array:
    """Joints (count, 6) about home at which the whole board is in the picture."""
    found: list[Array] = []
    while len(found) < count:
        tried = HOME + rng.uniform(-0.6, 0.6, (200, 6))
        pixels = CAMERA.project(se3_act(boards(mount, x, z, forward(tried))[:, None], points))
        inside = np.isfinite(pixels).all((1, 2)) & (pixels > 5).all((1, 2))
        inside &= (pixels < np.array([CAMERA.width, CAMERA.height]) - 5).all((1, 2))
        found += list(tried[inside])
    return np.array(found[:count])


def commanded_error(made: ArmCalibration, estimate: Estimate, seed: int = 0, count: int = 30) -> tuple[float, float]:
    """At joints commanded later: how far the board is from where the estimate has it, mm and px, medians."""
    points = board_points((7, 5), 0.03)
    joints = reachable(np.random.default_rng([seed, 1]), made.mount, made.X, made.Z, points, count) - made.offsets
    told = boards(made.mount, estimate.X[0], estimate.Z, forward(joints + estimate.joint_offsets_rad))
    true = made.board(joints)
    off = np.linalg.norm(told[:, :3, 3] - true[:, :3, 3], axis=1)
    px = np.linalg.norm(CAMERA.project(se3_act(told[:, None], points)) - CAMERA.project(se3_act(true[:, None], points)), axis=-1)
    return 1e3 * float(np.median(off)), float(np.median(px))
