"""How one arm follows a person: through its clutch, into its elements of the action, no faster than it may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robot_bridge.clutch import GripClutch, JointClutch, PoseClutch
from robot_bridge.robot_interface import STEP_SHARE
from robot_bridge.servo import ArmServo
from robot_bridge.takeover import Given
from sinew.errors import SpecError
from sinew.protocols import RobotSpec
from sinew.se3 import quaternion_to_matrix
from sinew.specs import ActionSpec

SAG_RAD = 0.1
"""Where all joints are this near to what was commanded last, the command goes on from there, so that no arm sinks under its weight."""
LEASH_RAD = 0.3
"""Joint targets stay this close to what is measured."""
Limits = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Lowest and highest joint positions (J,) and the most that each may change in a step."""


class Arm:
    """One arm's part of the action, and its clutch.

    Args:
        elements: where its motion is in the action.
        limits: of its joints.
        step: (metres, rad) that its tool may move in one step.
    """

    def __init__(self, elements: Sequence[int], limits: Limits, step: tuple[float, float]) -> None:
        self.elements, self.limits, self.step, self.joints = list(elements), limits, step, len(limits[0])
        self._hand, self._leader, self._grip = PoseClutch(), JointClutch(), GripClutch()
        self._held: tuple[str, str, int] | None = None

    def act(self, given: Given | None, measured: np.ndarray) -> np.ndarray:
        """This arm's elements of the action.

        Args:
            given: what is asked of it; None to stay where it is.
            measured: (J,) its joints, rad.
        """
        held = None if given is None else (given.kind, given.frame, given.hold)
        if held != self._held:
            self._release()
        self._held = held
        return self._stay(measured) if given is None else self._move(given, measured)

    def forget(self, action: np.ndarray | None) -> None:
        """The person does not act: a policy does, whose whole action (A,) was executed, or nobody."""
        self._held = None
        self._release()

    def opening(self, given: Given, at: float) -> float:
        """The share of the gripper's opening to command. One that is not of steps is followed from when it has come by `at`."""
        if given.open is None:
            return at
        return given.open if given.kind == "steps" else self._grip.step(given.open, at)

    def moved(self, given: Given) -> bool:
        """Whether the person does more than to hold still."""
        if given.kind == "steps":
            return any(given.values) or given.open is not None
        return self._hand.away or self._leader.away

    def _release(self) -> None:
        for clutch in (self._hand, self._leader, self._grip):
            clutch.release()

    def _stay(self, measured: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _move(self, given: Given, measured: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _motion(self, given: Given, R_world_tool: np.ndarray, *, yaw_only: bool) -> tuple[np.ndarray, np.ndarray]:
        """(3,) displacement of the tool in metres and (3,) rotation vector, world axes, that steps or a pose ask for."""
        values, (most_m, most_rad) = np.array(given.values, dtype=float), self.step
        if given.kind == "pose":
            axes = R_world_tool if given.frame == "tool" else None
            return self._hand.step(values[:3], quaternion_to_matrix(values[3:]), most_m, most_rad, axes, yaw_only=yaw_only)
        axes = R_world_tool if given.frame == "tool" else np.eye(3)
        return axes @ np.clip(values[:3], -1, 1) * most_m, axes @ np.clip(values[3:], -1, 1) * most_rad


class ToolArm(Arm):
    """For actions that displace the tool: dx, dy, dz and perhaps a turn about the vertical; joints are followed by where they bring it."""

    def __init__(self, elements: Sequence[int], limits: Limits, step: tuple[float, float], chain: Any) -> None:
        super().__init__(elements, limits, step)
        self._chain = chain
        self._target: np.ndarray | None = None

    def _release(self) -> None:
        super()._release()
        self._target = None

    def _stay(self, measured: np.ndarray) -> np.ndarray:
        return np.zeros(len(self.elements))

    def _move(self, given: Given, measured: np.ndarray) -> np.ndarray:
        if given.kind == "joints":
            low, high, most = self.limits
            at = measured if self._target is None else self._target
            self._target = np.clip(at + self._leader.step(np.array(given.values, dtype=float), at, most), low, high)
            tool = self._chain.forward(self._target[None])
            way, turn = self._hand.step(tool.position[:, 0], tool.rotation[..., 0], *self.step, yaw_only=True)
        else:
            rotation = self._chain.forward(measured[None]).rotation[..., 0]  # tool axes in the world, as columns
            way, turn = self._motion(given, rotation, yaw_only=True)
        return np.array([*way, turn[2]])[: len(self.elements)]


class JointArm(Arm):
    """For actions that are joint targets: what the device's joints say, or differential inverse kinematics.

    Args:
        elements: see `Arm`.
        limits: see `Arm`.
        step: see `Arm`.
        servo: of its tool, or why there is none.

    Raises:
        SpecError: a motion of the tool is given, and there is no servo.
    """

    def __init__(self, elements: Sequence[int], limits: Limits, step: tuple[float, float], servo: ArmServo | SpecError) -> None:
        super().__init__(elements, limits, step)
        self._servo = servo
        self._target: np.ndarray | None = None
        self._serving = False

    def forget(self, action: np.ndarray | None) -> None:
        """See `Arm.forget`; it goes on from where a policy has brought it."""
        super().forget(action)
        self._target = None if action is None else np.array(action, dtype=float)[self.elements]

    def _release(self) -> None:
        super()._release()
        self._serving = False

    def _stay(self, measured: np.ndarray) -> np.ndarray:
        self._target = self._begin(measured)
        return self._target

    def _begin(self, measured: np.ndarray) -> np.ndarray:
        """Where the arm is: as it was commanded, or as it is measured where that is elsewhere."""
        if self._target is not None and np.abs(self._target - measured).max() <= SAG_RAD:
            return self._target
        return np.clip(measured, *self.limits[:2])

    def _move(self, given: Given, measured: np.ndarray) -> np.ndarray:
        low, high, most = self.limits
        at = self._begin(measured) if self._target is None or not self._serving else self._target
        if given.kind == "joints":
            wanted = at + self._leader.step(np.array(given.values, dtype=float), at, most)
            wanted = np.clip(np.clip(wanted, measured - LEASH_RAD, measured + LEASH_RAD), at - most, at + most)
        else:
            wanted = self._serve(given, at, measured)
        self._target, self._serving = np.clip(wanted, low, high), True
        return self._target

    def _serve(self, given: Given, at: np.ndarray, measured: np.ndarray) -> np.ndarray:
        if isinstance(self._servo, SpecError):
            raise self._servo
        if not self._serving:
            self._servo.begin(at)
        real = self._servo.chain.forward(measured[None]).rotation[..., 0]
        way, turn = self._motion(given, real, yaw_only=False)
        target = self._servo.move(way, turn, measured)
        if given.kind == "pose":
            left = 1.0 - self._servo.share
            self._hand.undo(left * way, left * turn)
        return target


def tool_arms(interface: Any) -> list[Arm]:
    """The arms of a task whose actions displace their tools."""
    spec, chains = interface.action_spec, interface.chains
    width, names, arms = spec.dim // len(chains), spec.names, []
    for i, (chain, limits) in enumerate(zip(chains, _limits(interface.robot_spec, spec, len(chains)), strict=True)):
        moving = [k for k in range(i * width, (i + 1) * width) if not names[k].endswith("gripper")]
        turn = spec.high[moving[3]] if len(moving) > 3 else 0.0
        arms.append(ToolArm(moving, limits, (spec.high[moving[0]], turn), chain))
    return arms


def joint_arms(interface: Any) -> list[Arm]:
    """The arms of a task whose actions are joint targets; where the robot's frames are not known, joints alone can be given."""
    try:
        servos = [ArmServo(chain, limits) for chain, limits in zip(interface.chains, interface.arm_limits, strict=True)]
    except SpecError as e:
        servos = [e] * interface.config.arms
    arms: list[Arm] = []
    at = 0
    for servo, limits in zip(servos, _limits(interface.robot_spec, interface.action_spec, len(servos)), strict=True):
        arms.append(JointArm(range(at, at + len(limits[0])), limits, interface.tool_step, servo))
        at += len(limits[0])
    return arms


def _limits(robot: RobotSpec, action: ActionSpec, arms: int) -> list[Limits]:
    low, high = np.array(robot.position_low_rad), np.array(robot.position_high_rad)
    most = STEP_SHARE * np.array(robot.velocity_max_rad_s) / action.rate_hz
    return list(zip(*(np.split(v, arms) for v in (low, high, most)), strict=True))
