"""How well a trajectory of odometry agrees with forward kinematics, if the camera sat at X on the hand: a reward for `calibration.search`.

C_i = A_i X is where the camera was by the robot, V_i where it was by odometry or mapping, in a world of its own and, with one camera,
in a unit of its own. What is left between both after the best rigid motion (and scale) is the error. It is trimmed: odometry jumps.
Any other sensor that tells its own motion will do, such as LiDAR with an inertial unit.

Sources: Umeyama 1991 (alignment in closed form); L2Calib, 2025, arXiv 2508.06330 (the reward, and choosing data by rotation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.closed_form import nearest_rotation
from sinew.errors import DataError, InputError
from sinew.se3 import Array, so3_log

ROUNDS = 3
"""Alignments, each of what the one before fits best."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryReward:
    """Minus the root mean square of what is left (m), of poses X (B, 4, 4)."""

    robot: Array
    """T_base_hand (N, 4, 4)."""
    visual: Array
    """T_world_camera at the same times (N, 4, 4)."""
    scale: bool = False
    """Whether the unit of `visual` is unknown."""
    keep: float = 0.9
    """Part of the poses that counts; the rest may be wrong."""
    rotation_m: float = 0.2
    """A rotation off by one radian counts as so many metres."""

    def __post_init__(self) -> None:
        robot, visual = np.asarray(self.robot, dtype=float), np.asarray(self.visual, dtype=float)
        if robot.shape != visual.shape or robot.shape[1:] != (4, 4) or len(robot) < 4:
            raise InputError(f"trajectories of the same 4 or more poses (N, 4, 4) are aligned; given {robot.shape} and {visual.shape}")
        if not (np.isfinite(robot).all() and np.isfinite(visual).all()):
            raise DataError("a pose of a trajectory is not finite: leave out moments at which tracking was lost")
        if not (0.5 <= self.keep <= 1 and self.rotation_m > 0):
            raise InputError(f"keep is 0.5 to 1 and rotation_m above 0; given {self.keep} and {self.rotation_m}")
        if self.scale and np.ptp(visual[:, :3, 3], axis=0).max() < 1e-9:
            raise DataError("the odometry never moved: a scale cannot be told")

    def __call__(self, poses: Array) -> Array:
        """Rewards (B,)."""
        squares = self.squares(poses)[0]
        kept = np.sort(squares, 1)[:, : self._count]
        return -np.sqrt(kept.mean(1))

    def squares(self, poses: Array) -> tuple[Array, Array]:
        """Squared errors of every pose of the trajectory (B, N), m^2, and scales of the odometry (B,)."""
        poses = np.asarray(poses, dtype=float)
        n = len(self.robot)
        places = (poses[:, :3, 3] @ self.robot[:, :3, :3].reshape(-1, 3).T).reshape(-1, n, 3) + self.robot[:, :3, 3]
        # R_V R_C^T = R_V R_X^T R_A^T of all candidates and poses, linear in R_X
        linear = np.einsum("nij,nkl->ljnik", self.visual[:, :3, :3], self.robot[:, :3, :3]).reshape(9, -1)
        turns = (poses[:, :3, :3].reshape(-1, 9) @ linear).reshape(-1, n, 9)
        weight = np.ones(places.shape[:2])
        squares, scale = weight, np.ones(len(weight))
        for _ in range(ROUNDS if self.keep < 1 else 1):
            squares, scale = self._aligned(places, turns, weight / weight.sum(1, keepdims=True))
            limit = np.partition(squares, self._count - 1, axis=1)[:, self._count - 1 : self._count]
            weight = (squares <= limit).astype(float)
        return squares, scale

    @property
    def _count(self) -> int:
        return max(int(np.ceil(self.keep * len(self.robot))), 3)

    def _aligned(self, places: Array, turns: Array, weight: Array) -> tuple[Array, Array]:
        """What is left (B, N) after the best motion of places (B, N, 3) and turns R_V R_C^T (B, N, 9) by weights (B, N); scales (B,)."""
        seen = self.visual[:, :3, 3]
        p = places - weight[:, None] @ places
        v = seen - (weight @ seen)[:, None]
        cross = np.swapaxes(weight[..., None] * v, 1, 2) @ p
        turned = self.rotation_m**2 * (weight[:, None] @ turns).reshape(-1, 3, 3)
        scale = np.ones(len(p))
        if self.scale:  # first by the spreads alone, then with the rotation that this gives
            spread = np.maximum(np.sum(weight * np.sum(v * v, -1), 1), 1e-30)
            scale = np.sqrt(np.sum(weight * np.sum(p * p, -1), 1) / spread)
            rotation = nearest_rotation(scale[:, None, None] * cross + turned)
            scale = np.maximum(np.sum(rotation * cross, (1, 2)) / spread, 1e-6)
        rotation = nearest_rotation(scale[:, None, None] * cross + turned)
        left = p @ np.swapaxes(rotation, 1, 2) - scale[:, None, None] * v
        cosine = (turns @ rotation.reshape(-1, 9, 1))[..., 0]  # trace of R_V^T R R_C
        return np.sum(left**2, -1) + self.rotation_m**2 * np.maximum(3 - cosine, 0.0), scale


def rotation_information(robot: Array) -> float:
    """How much the turns of a stretch (N, 4, 4) tell of a camera's pose, rad^4: 0 where the hand turns about one axis or none.

    The sum of products of pairs of eigenvalues of the mean of phi phi^T, phi being the turns from the middle pose. L2Calib takes
    the same of hat(w)^T hat(w), which is not 0 for turns about one axis.
    """
    turns = so3_log(robot[len(robot) // 2, :3, :3].T @ robot[:, :3, :3])
    turns = turns - turns.mean(0)
    a, b, c = np.linalg.eigvalsh(turns.T @ turns / len(turns))
    return float(max(a * b + a * c + b * c, 0.0))


def informative(robot: Array, length: int, count: int) -> list[slice]:
    """The `count` stretches of `length` poses, not overlapping, that tell most, the best first; fewer if there are no more.

    Args:
        robot: T_base_hand (N, 4, 4).
        length: poses of a stretch; odometry drifts little in a short one.
        count: how many.

    Raises:
        InputError: a length below 4 or above that of the trajectory.
    """
    if not 4 <= length <= len(robot):
        raise InputError(f"stretches have 4 to {len(robot)} poses, the length of the trajectory; given {length}")
    starts = range(0, len(robot) - length + 1, max(length // 4, 1))
    ranked = sorted(starts, key=lambda s: -rotation_information(robot[s : s + length]))
    chosen: list[int] = []
    for start in ranked:
        if len(chosen) < count and all(abs(start - other) >= length for other in chosen):
            chosen.append(start)
    return [slice(s, s + length) for s in chosen]
