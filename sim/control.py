"""Decoders: from the actions a policy gives to the joint targets a robot executes, the same in simulation and deployment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.kinematics import Chain, matmul3
from sinew.errors import SpecError

_DAMPING = 0.02
_POSTURE_GAIN = 0.05
_ANGLE_MAX_RAD = 0.2


@dataclass(frozen=True, kw_only=True)
class ArmLimits:
    """What a decoder keeps to."""

    position_low: np.ndarray
    """(J,) rad."""
    position_high: np.ndarray
    """(J,) rad."""
    step_max: np.ndarray
    """(J,) rad a target may move per step."""
    workspace_low: np.ndarray
    """(3,) m."""
    workspace_high: np.ndarray
    """(3,) m."""
    home: np.ndarray
    """(J,) rad, the posture that redundant joints return to."""
    rotation_weight: float = 1.0
    """How much the tool's rotation counts; 0 for arms of fewer than six joints, which cannot keep it."""
    leash_m: float = 0.035
    """The commanded tool position stays this close to the measured one."""
    leash_rad: float = 0.3
    """The joint targets stay this close to the measured joints."""


class ToolServo:
    """Differential inverse kinematics of N copies of one arm, damped least squares.

    Integrates on its own target, so that sensor noise and servo lag do not feed back, on a leash around the measurement, so
    that a blocked arm does not wind up.
    """

    def __init__(self, chain: Chain, limits: ArmLimits, num: int) -> None:
        self.chain, self.limits = chain, limits
        joints = len(limits.home)
        self.joint_target = np.zeros((num, joints))
        self.position = np.zeros((3, num))
        self.rotation = np.zeros((3, 3, num))
        self._home_rotation = chain.forward(limits.home[None]).rotation

    def reset(self, joint_position: np.ndarray, ids: np.ndarray) -> None:
        """Start worlds `ids` from measured joints (n, J); the tool orientation at the home posture is kept from now on."""
        self.joint_target[ids] = joint_position
        self.position[:, ids] = self.chain.forward(joint_position).position
        self.rotation[..., ids] = self._home_rotation

    def move(self, delta: np.ndarray, yaw: np.ndarray | None, measured: np.ndarray) -> np.ndarray:
        """Move the target tool frame by delta (N, 3) metres and yaw (N,) rad about world z.

        Args:
            delta: displacement, world axes.
            yaw: rotation, or None.
            measured: (N, J) joints.

        Returns:
            (N, J) joint targets.
        """
        limits, num = self.limits, len(measured)
        both = self.chain.forward(np.concatenate((self.joint_target, measured)))
        target, real = both.columns(slice(0, num)), both.columns(slice(num, None))
        goal = np.clip(self.position + delta.T, limits.workspace_low[:, None], limits.workspace_high[:, None])
        lead = goal - real.position
        length = np.sqrt(lead[0] * lead[0] + lead[1] * lead[1] + lead[2] * lead[2])
        self.position = real.position + lead * np.minimum(1.0, limits.leash_m / np.maximum(length, 1e-9))
        if yaw is not None:
            self.rotation = matmul3(_about_z(yaw), self.rotation)
        error = np.concatenate((self.position - target.position, _rotation_error(target.rotation, self.rotation)))
        jacobian = self.chain.jacobian(target)
        if limits.rotation_weight != 1.0:
            error[3:] *= limits.rotation_weight
            jacobian[3:] *= limits.rotation_weight
        step = self._inverse(jacobian, error)
        scale = np.minimum(1.0, 1.0 / np.maximum(np.abs(step / limits.step_max[:, None]).max(axis=0), 1e-9))
        wanted = self.joint_target + (step * scale).T
        wanted = np.clip(wanted, measured - limits.leash_rad, measured + limits.leash_rad)
        wanted = np.clip(wanted, self.joint_target - limits.step_max, self.joint_target + limits.step_max)
        self.joint_target = np.clip(wanted, limits.position_low, limits.position_high)
        return self.joint_target.copy()

    def _inverse(self, jacobian: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Joint step (J, N) for a tool error (6, N), posture in the null space: J'(JJ' + d²I)⁻¹(e − Jg) + g."""
        posture = _POSTURE_GAIN * (self.limits.home[:, None] - self.joint_target.T)
        gram = np.zeros((6, 6, error.shape[1]))
        remaining = error
        for k in range(jacobian.shape[1]):
            column = jacobian[:, k]
            gram += column[:, None] * column[None]
            remaining = remaining - column * posture[k]
        gram[range(6), range(6)] += _DAMPING**2
        solution = _solve(gram, remaining)
        step = posture
        for i in range(6):
            step = step + jacobian[i] * solution[i]
        return step


class EndEffectorDecoder:
    """ee_delta actions: per arm dx, dy, dz (and dyaw), then the gripper opening in metres where there is a gripper."""

    def __init__(self, servos: Sequence[ToolServo], with_yaw: bool, with_gripper: bool, low: np.ndarray, high: np.ndarray) -> None:
        self.servos, self.with_yaw, self.with_gripper, self.low, self.high = tuple(servos), with_yaw, with_gripper, low, high
        self._width = 3 + with_yaw + with_gripper

    def reset(self, joint_position: np.ndarray, gripper: np.ndarray | None = None, ids: Sequence[int] | np.ndarray | None = None) -> None:
        """Start worlds `ids` (None for all) from measured joints (n, J) and openings (n,) or (n, G)."""
        joint_position = np.asarray(joint_position, dtype=np.float64)
        rows = np.arange(len(joint_position)) if ids is None else np.asarray(ids)
        for servo, joints in zip(self.servos, np.split(joint_position, len(self.servos), axis=1), strict=True):
            servo.reset(joints, rows)

    def decode(self, action: np.ndarray, joint_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joint targets (N, J) and gripper targets, (N,) for one gripper or else (N, G), for actions (N, A).

        Raises:
            SpecError: an action is not finite or of another width.
        """
        action = _checked(action, self.low, self.high)
        measured = np.asarray(joint_position, dtype=np.float64)
        targets, openings = [], []
        for i, (servo, joints) in enumerate(zip(self.servos, np.split(measured, len(self.servos), axis=1), strict=True)):
            part = action[:, i * self._width : (i + 1) * self._width]
            targets.append(servo.move(part[:, :3], part[:, 3] if self.with_yaw else None, joints))
            openings.append(part[:, self._width - self.with_gripper :])
        return np.concatenate(targets, axis=1), _squeezed(np.concatenate(openings, axis=1))


    @property
    def joint_target(self) -> np.ndarray:
        """(N, J) joint targets of the last step, rad."""
        return np.concatenate([servo.joint_target for servo in self.servos], axis=1)


class JointDecoder:
    """joint_position actions: every joint target in rad, then every gripper opening in metres; steps are limited."""

    def __init__(self, limits: ArmLimits, grippers: int, num: int, low: np.ndarray, high: np.ndarray) -> None:
        self.limits, self.grippers, self.low, self.high = limits, grippers, low, high
        self.joint_target = np.zeros((num, len(limits.home)))

    def reset(self, joint_position: np.ndarray, gripper: np.ndarray | None = None, ids: Sequence[int] | np.ndarray | None = None) -> None:
        """Start worlds `ids` (None for all) from measured joints (n, J)."""
        self.joint_target[slice(None) if ids is None else np.asarray(ids)] = joint_position

    def decode(self, action: np.ndarray, joint_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joint targets (N, J) and gripper targets, (N,) for one gripper or (N, G), for actions (N, A)."""
        action = _checked(action, self.low, self.high)
        measured, limits = np.asarray(joint_position, dtype=np.float64), self.limits
        joints = action.shape[1] - self.grippers
        wanted = np.clip(action[:, :joints], measured - limits.leash_rad, measured + limits.leash_rad)
        wanted = np.clip(wanted, self.joint_target - limits.step_max, self.joint_target + limits.step_max)
        self.joint_target = np.clip(wanted, limits.position_low, limits.position_high)
        return self.joint_target.copy(), _squeezed(action[:, joints:].copy())


def _squeezed(openings: np.ndarray) -> np.ndarray:
    """(N, 1) → (N,); other widths stay."""
    return openings[:, 0] if openings.shape[1] == 1 else openings


def _checked(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    action = np.asarray(action, dtype=np.float64)
    if action.ndim != 2 or action.shape[1] != len(low):
        raise SpecError(f"actions of shape {action.shape} given, (N, {len(low)}) expected")
    if not np.isfinite(action).all():
        row, column = np.argwhere(~np.isfinite(action))[0]
        raise SpecError(f"action element {column} of world {row} is {action[row, column]}; actions must be finite")
    return np.clip(action, low, high)


def _about_z(angle: np.ndarray) -> np.ndarray:
    rotation = np.zeros((3, 3, len(angle)))
    rotation[0, 0] = rotation[1, 1] = np.cos(angle)
    rotation[1, 0] = np.sin(angle)
    rotation[0, 1] = -rotation[1, 0]
    rotation[2, 2] = 1.0
    return rotation


def _rotation_error(current: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Rotation vector (3, N), to first order, from rotation `current` to `goal` (3, 3, N), at most _ANGLE_MAX_RAD long."""
    error = np.zeros_like(current[0])
    for k in range(3):
        a, b = current[:, k], goal[:, k]
        error[0] += a[1] * b[2] - a[2] * b[1]
        error[1] += a[2] * b[0] - a[0] * b[2]
        error[2] += a[0] * b[1] - a[1] * b[0]
    error *= 0.5
    length = np.sqrt(error[0] * error[0] + error[1] * error[1] + error[2] * error[2])
    return error * np.minimum(1.0, _ANGLE_MAX_RAD / np.maximum(length, 1e-9))


def _solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Solve symmetric positive definite systems (n, n, N), (n, N) by Cholesky decomposition, element by element; uses up `matrix`."""
    size = len(vector)
    solution = vector.copy()
    for j in range(size):
        matrix[j:, j] /= np.sqrt(matrix[j, j])
        solution[j] /= matrix[j, j]
        if j + 1 < size:
            below = matrix[j + 1 :, j]
            matrix[j + 1 :, j + 1 :] -= below[:, None] * below[None]
            solution[j + 1 :] -= below * solution[j]
    for j in reversed(range(size)):
        solution[j] /= matrix[j, j]
        if j:
            solution[:j] -= matrix[j, :j] * solution[j]
    return solution
