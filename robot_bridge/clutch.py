"""A clutch that never jumps: what an absolute device says becomes steps from where the robot is.

Taking hold changes nothing: whatever the device says then means the pose that the robot has. From then on the robot follows the
device's changes, no faster than it may, and never more than a short way behind: what a person did faster than that is given up
rather than made up for later. A value that leaps between two ticks is a tracker's mistake and is not followed.
"""

from __future__ import annotations

import numpy as np

from sinew.se3 import so3_exp, so3_log

LEAD_M, LEAD_RAD = 0.10, 0.5
"""The device is at most this far ahead of the robot."""
LEAP_M, LEAP_RAD = 0.25, 1.0
"""A change between two ticks that no hand makes."""
CATCH_UP = 0.2
"""While a joint of the device moves, its robot's joint comes nearer to saying the same by this share of the motion."""
TREMBLE_RAD = 0.004
"""Motions of a device's joint that are none: noise of its encoder."""
NEAR = 0.05
"""Share of a gripper's opening that two are alike within."""


class PoseClutch:
    """One arm's clutch for the pose of a hand."""

    def __init__(self) -> None:
        self.release()

    def release(self) -> None:
        """The person has let go."""
        self._followed: tuple[np.ndarray, np.ndarray] | None = None
        self._seen = self._begun = (np.zeros(3), np.eye(3))
        self._axes = np.eye(3)

    def step(
        self, position: np.ndarray, rotation: np.ndarray, most_m: float, most_rad: float, R_world_tool: np.ndarray | None = None,
        *, yaw_only: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """What to do in this tick to follow the hand.

        Args:
            position: (3,) metres.
            rotation: (3, 3) of the hand.
            most_m: largest displacement along an axis.
            most_rad: largest turn.
            R_world_tool: (3, 3) of the tool, where motions along the hand's axes shall go along the tool's; None: the world's.
            yaw_only: the tool turns about the vertical alone.

        Returns:
            (3,) displacement in metres and (3,) rotation vector in rad, along the world's axes; none when the hold begins.
        """
        leap = np.linalg.norm(position - self._seen[0]) > LEAP_M or np.linalg.norm(so3_log(rotation @ self._seen[1].T)) > LEAP_RAD
        self._seen = (position, rotation)
        if self._followed is None:
            self._followed = self._begun = self._seen
            self._axes = np.eye(3) if R_world_tool is None else R_world_tool @ rotation.T
        elif leap:  # the way to it is left out
            self._begun = (self._begun[0] + position - self._followed[0], rotation @ self._followed[1].T @ self._begun[1])
            self._followed = self._seen
        at, facing = self._followed
        lead = self._axes @ (position - at)
        way = lead * min(1.0, most_m / max(np.abs(lead).max(), 1e-12))
        turn = self._axes @ so3_log(rotation @ facing.T)
        if yaw_only:
            turn = np.array([0.0, 0.0, _yaw_of(self._axes @ rotation @ facing.T @ self._axes.T)])
        turned = turn * min(1.0, most_rad / max(np.linalg.norm(turn), 1e-12))
        at = at + self._axes.T @ (way + _beyond(lead - way, LEAD_M))
        facing = so3_exp(self._axes.T @ (turned + _beyond(turn - turned, LEAD_RAD))) @ facing
        self._followed = (at, facing)
        return way, turned

    def undo(self, way: np.ndarray, turn: np.ndarray) -> None:
        """That much of the last step, (3,) metres and (3,) rad, was not done: it is still to come."""
        assert self._followed is not None
        at, facing = self._followed
        self._followed = (at - self._axes.T @ way, so3_exp(-(self._axes.T @ turn)) @ facing)

    @property
    def away(self) -> bool:
        """Whether the hand has moved since it took hold, by more than it trembles."""
        if self._followed is None:
            return False
        (p, R), (p0, R0) = self._followed, self._begun
        return bool(np.linalg.norm(p - p0) > 0.002 or np.linalg.norm(so3_log(R @ R0.T)) > 0.02)


class JointClutch:
    """One arm's clutch for joints that correspond to its own.

    What is left of the difference when the hold begins shrinks while the device moves, so that in the end they correspond.
    """

    def __init__(self) -> None:
        self.release()

    def release(self) -> None:
        """The person has let go."""
        self._told: np.ndarray | None = None
        self._offset = self._begun = np.zeros(0)

    def step(self, told: np.ndarray, at: np.ndarray, most: np.ndarray) -> np.ndarray:
        """Changes (J,) of the targets in this tick.

        Args:
            told: (J,) rad, what the device says.
            at: (J,) rad, where the targets are.
            most: (J,) rad, largest change of each.
        """
        if self._told is None:
            self._told, self._begun, self._offset = told, told, at - told
        moved = np.abs(told - self._told)
        if (moved > LEAP_RAD).any():
            self._offset = at - told
        else:
            share = CATCH_UP * np.where(moved > TREMBLE_RAD, moved, 0.0)
            self._offset = self._offset - np.clip(self._offset, -share, share)
        self._told = told
        lead = told + self._offset - at
        change = np.clip(lead, -most, most)
        left = lead - change
        self._offset = self._offset - (left - np.clip(left, -LEAD_RAD, LEAD_RAD))
        return change

    @property
    def away(self) -> bool:
        """Whether the device has moved since the person took hold, by more than it trembles."""
        return self._told is not None and bool(np.abs(self._told - self._begun).max() > 0.02)


class GripClutch:
    """A gripper's clutch: it follows from when the device has come by where it is, so that nothing is let fall by taking hold."""

    def __init__(self) -> None:
        self.release()

    def release(self) -> None:
        """The person has let go."""
        self._follows, self._told = False, np.nan

    def step(self, told: float, at: float) -> float:
        """The share of the opening to command: `told` by the device while it is followed, else `at`, where the gripper is."""
        before, self._told = self._told, told
        self._follows = self._follows or abs(told - at) <= NEAR or bool((before - at) * (told - at) < 0)
        return told if self._follows else at


def _beyond(vector: np.ndarray, most: float) -> np.ndarray:
    """What of a vector is beyond a length."""
    length = float(np.linalg.norm(vector))
    return vector * max(0.0, 1.0 - most / max(length, 1e-12))


def _yaw_of(rotation: np.ndarray) -> float:
    """The turn about the vertical in a rotation, rad: the twist of its swing and twist."""
    return float(np.arctan2(rotation[1, 0] - rotation[0, 1], rotation[0, 0] + rotation[1, 1]))
