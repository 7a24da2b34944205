"""Decoders: from the actions a policy gives to the joint targets a robot executes, the same in simulation and deployment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from sim.arrays import constant, namespace, numbers
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

    def to(self, device: Any) -> ArmLimits:
        """The same limits as tensors on a torch device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: constant(v, device) for name, v in values.items() if isinstance(v, np.ndarray)})


class ToolServo:
    """Differential inverse kinematics of N copies of one arm, damped least squares.

    Integrates on its own target, so that sensor noise and servo lag do not feed back, on a leash around the measurement, so
    that a blocked arm does not wind up. With a chain and limits on a torch device (`Chain.to`) it lives there.
    """

    def __init__(self, chain: Chain, limits: ArmLimits, num: int) -> None:
        self.chain, self.limits, xp = chain, limits, namespace(limits.home)
        home = chain.forward(limits.home[None])
        self.joint_target = xp.zeros_like(xp.broadcast_to(limits.home, (num, len(limits.home))))
        self.position = xp.zeros_like(xp.broadcast_to(home.position, (3, num)))
        self.rotation = xp.zeros_like(xp.broadcast_to(home.rotation, (3, 3, num)))
        self._home_rotation = home.rotation

    def reset(self, joint_position: np.ndarray, ids: np.ndarray) -> None:
        """Start worlds `ids` from measured joints (n, J); the tool orientation at the home posture is kept from now on."""
        self.joint_target[ids] = joint_position
        self.position[:, ids] = self.chain.forward(joint_position).position
        self.rotation[..., ids] = self._home_rotation

    def restart(self, which: Any, joint_position: Any) -> None:
        """`reset` of the worlds where `which` (N,) is true, given the joints (N, J) of all: nothing has to be counted."""
        xp, position = namespace(which), self.chain.forward(joint_position).position
        self.joint_target = xp.where(which[:, None], joint_position, self.joint_target)
        self.position = xp.where(which, position, self.position)
        self.rotation = xp.where(which, self._home_rotation, self.rotation)

    def move(self, delta: np.ndarray, yaw: np.ndarray | None, measured: np.ndarray) -> np.ndarray:
        """Move the target tool frame by delta (N, 3) metres and yaw (N,) rad about world z.

        Args:
            delta: displacement, world axes.
            yaw: rotation, or None.
            measured: (N, J) joints.

        Returns:
            (N, J) joint targets.
        """
        limits, num, xp = self.limits, len(measured), namespace(measured)
        both = self.chain.forward(xp.concatenate((self.joint_target, measured)))
        target, real = both.columns(slice(0, num)), both.columns(slice(num, None))
        goal = xp.clip(self.position + delta.T, limits.workspace_low[:, None], limits.workspace_high[:, None])
        lead = goal - real.position
        length = xp.sqrt(lead[0] * lead[0] + lead[1] * lead[1] + lead[2] * lead[2])
        self.position = real.position + lead * (limits.leash_m / length.clip(1e-9)).clip(None, 1.0)
        if yaw is not None:
            self.rotation = matmul3(_about_z(yaw), self.rotation)
        error = xp.concatenate((self.position - target.position, _rotation_error(target.rotation, self.rotation)))
        jacobian = self.chain.jacobian(target)
        if limits.rotation_weight != 1.0:
            error[3:] *= limits.rotation_weight
            jacobian[3:] *= limits.rotation_weight
        step = self._inverse(jacobian, error)
        scale = (1.0 / xp.amax(abs(step / limits.step_max[:, None]), 0).clip(1e-9)).clip(None, 1.0)
        self.joint_target = _followed(self.joint_target + (step * scale).T, measured, self.joint_target, limits)
        return self.joint_target + 0.0

    def _inverse(self, jacobian: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Joint step (J, N) for a tool error (6, N), posture in the null space: J'(JJ' + d²I)⁻¹(e − Jg) + g."""
        posture = _POSTURE_GAIN * (self.limits.home[:, None] - self.joint_target.T)
        gram: Any = 0.0
        remaining = error
        for k in range(jacobian.shape[1]):
            column = jacobian[:, k]
            gram = gram + column[:, None] * column[None]
            remaining = remaining - column * posture[k]
        for i in range(6):
            gram[i, i] += _DAMPING**2
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
        joint_position = numbers(joint_position)
        rows = np.arange(len(joint_position)) if ids is None else np.asarray(ids)
        for servo, joints in zip(self.servos, _parts(joint_position, len(self.servos)), strict=True):
            servo.reset(joints, rows)

    def decode(self, action: np.ndarray, joint_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joint targets (N, J) and gripper targets, (N,) for one gripper or else (N, G), for actions (N, A).

        Raises:
            SpecError: an action is not finite or of another width.
        """
        action = _checked(action, self.low, self.high)
        measured = numbers(joint_position)
        targets, openings = [], []
        for i, (servo, joints) in enumerate(zip(self.servos, _parts(measured, len(self.servos)), strict=True)):
            part = action[:, i * self._width : (i + 1) * self._width]
            targets.append(servo.move(part[:, :3], part[:, 3] if self.with_yaw else None, joints))
            openings.append(part[:, self._width - self.with_gripper :])
        xp = namespace(measured)
        return xp.concatenate(targets, axis=1), _squeezed(xp.concatenate(openings, axis=1))

    def restart(self, which: Any, joint_position: Any) -> None:
        """`reset` of the worlds where `which` (N,) is true, given the joints (N, J) of all."""
        for servo, joints in zip(self.servos, _parts(joint_position, len(self.servos)), strict=True):
            servo.restart(which, joints)

    @property
    def joint_target(self) -> np.ndarray:
        """(N, J) joint targets of the last step, rad."""
        targets = [servo.joint_target for servo in self.servos]
        return namespace(targets[0]).concatenate(targets, axis=1)


class JointDecoder:
    """joint_position actions: every joint target in rad, then every gripper opening in metres; steps are limited."""

    def __init__(self, limits: ArmLimits, grippers: int, num: int, low: np.ndarray, high: np.ndarray) -> None:
        self.limits, self.grippers, self.low, self.high = limits, grippers, low, high
        xp = namespace(limits.home)
        self.joint_target = xp.zeros_like(xp.broadcast_to(limits.home, (num, len(limits.home))))

    def reset(self, joint_position: np.ndarray, gripper: np.ndarray | None = None, ids: Sequence[int] | np.ndarray | None = None) -> None:
        """Start worlds `ids` (None for all) from measured joints (n, J)."""
        self.joint_target[slice(None) if ids is None else np.asarray(ids)] = joint_position

    def restart(self, which: Any, joint_position: Any) -> None:
        """`reset` of the worlds where `which` (N,) is true, given the joints (N, J) of all."""
        self.joint_target = namespace(which).where(which[:, None], joint_position, self.joint_target)

    def decode(self, action: np.ndarray, joint_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joint targets (N, J) and gripper targets, (N,) for one gripper or (N, G), for actions (N, A)."""
        action = _checked(action, self.low, self.high)
        joints = action.shape[1] - self.grippers
        self.joint_target = _followed(action[:, :joints], numbers(joint_position), self.joint_target, self.limits)
        return self.joint_target + 0.0, _squeezed(action[:, joints:] + 0.0)


def _followed(wanted: Any, measured: Any, before: Any, limits: ArmLimits) -> Any:
    """Joint targets (N, J) near those wanted: on the leash, no further from the last than a step, within the limits."""
    xp = namespace(wanted)
    wanted = xp.clip(wanted, measured - limits.leash_rad, measured + limits.leash_rad)
    wanted = xp.clip(wanted, before - limits.step_max, before + limits.step_max)
    return xp.clip(wanted, limits.position_low, limits.position_high)


def _parts(values: Any, number: int) -> Any:
    """(N, number * J) → number arrays (N, J)."""
    width = values.shape[1] // number
    return [values[:, i * width : (i + 1) * width] for i in range(number)]


def _squeezed(openings: np.ndarray) -> np.ndarray:
    """(N, 1) → (N,); other widths stay."""
    return openings[:, 0] if openings.shape[1] == 1 else openings


def _checked(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    action, xp = numbers(action), namespace(action)
    if action.ndim != 2 or action.shape[1] != len(low):
        raise SpecError(f"actions of shape {tuple(action.shape)} given, (N, {len(low)}) expected")
    if not xp.isfinite(action).all():
        row, column = xp.argwhere(~xp.isfinite(action))[0]
        raise SpecError(f"action element {int(column)} of world {int(row)} is {float(action[row, column])}; actions must be finite")
    return xp.clip(action, low, high)


def _about_z(angle: np.ndarray) -> np.ndarray:
    xp = namespace(angle)
    sine, cosine, zero, one = xp.sin(angle), xp.cos(angle), xp.zeros_like(angle), xp.ones_like(angle)
    return xp.stack((cosine, -sine, zero, sine, cosine, zero, zero, zero, one)).reshape(3, 3, -1)


def _rotation_error(current: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Rotation vector (3, N), to first order, from rotation `current` to `goal` (3, 3, N), at most _ANGLE_MAX_RAD long."""
    xp = namespace(current)
    error = xp.zeros_like(current[0])
    for k in range(3):
        a, b = current[:, k], goal[:, k]
        error[0] += a[1] * b[2] - a[2] * b[1]
        error[1] += a[2] * b[0] - a[0] * b[2]
        error[2] += a[0] * b[1] - a[1] * b[0]
    error *= 0.5
    length = xp.sqrt(error[0] * error[0] + error[1] * error[1] + error[2] * error[2])
    return error * (_ANGLE_MAX_RAD / length.clip(1e-9)).clip(None, 1.0)


def _solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Solve symmetric positive definite systems (n, n, N), (n, N) by Cholesky decomposition, element by element; uses up `matrix`."""
    size, xp = len(vector), namespace(vector)
    solution = vector + 0.0
    for j in range(size):
        matrix[j:, j] /= xp.sqrt(matrix[j, j])
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
