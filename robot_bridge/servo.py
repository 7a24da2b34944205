"""Differential inverse kinematics of one arm for a person's motions: in the direction that was asked for, or not at all.

Where joints reach a limit of position or speed, others take over as far as the arm is redundant, and what remains is slowed down as
a whole, so that the tool never leaves the way it was sent. Near singular poses the inverse is damped. Nothing winds up: what the arm
could not do is forgotten, and where nothing is asked nothing moves.

Source: saturation in the null space: Flacco, De Luca and Khatib, "Control of redundant robots under hard joint constraints", IEEE
Transactions on Robotics 31(3), 2015, algorithm 1. Damping by the smallest singular value: Nakamura and Hanafusa 1986, with the
quadratic schedule of Chiaverini 1997.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sinew.se3 import so3_exp, so3_log

DAMPING, NEAR_SINGULAR = 0.05, 0.08
"""Largest damping, and the smallest singular value (m/rad and rad/rad mixed) from which on there is some."""
POSTURE_GAIN = 0.05
"""Share of the way to the home posture that redundant joints go in a step of full size."""
KEPT_M, KEPT_RAD = 0.02, 0.1
"""Error of the linearisation that is made up for in the next steps; more is forgotten."""
SLOWEST = 0.1
"""Share of the joints' speeds that is left at a singular pose."""
SMALLEST = 1e-9


class ArmServo:
    """Moves the tool of one arm by small steps, on its own joint target.

    Args:
        chain: a `sim.kinematics.Chain`.
        limits: a `sim.control.ArmLimits`.
    """

    def __init__(self, chain: Any, limits: Any) -> None:
        self.chain, self.limits = chain, limits
        self.joint_target = np.array(limits.home, dtype=float)
        """(J,) rad."""
        self.share = 1.0
        """How much of the last motion was done."""
        self._pose = (np.zeros(3), np.eye(3))
        self._rows = 6 if limits.rotation_weight else 3

    def begin(self, joints: np.ndarray) -> None:
        """Start from joints (J,), with the rotation that the tool has there."""
        self.joint_target = np.array(joints, dtype=float)
        self._pose = self._forward(self.joint_target)

    def move(self, way: np.ndarray, turn: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Move the tool's target.

        Args:
            way: (3,) metres, world axes.
            turn: (3,) rotation vector in rad, world axes.
            measured: (J,) joints, rad.

        Returns:
            (J,) joint targets, within the limits and near to what is measured.
        """
        limits, start = self.limits, self.joint_target
        position, rotation = self._forward(start)
        way, turn = self._allowed(way, measured), np.asarray(turn, dtype=float)
        jacobian = self.chain.jacobian(self.chain.forward(start[None]))[: self._rows, :, 0]
        clear = 1.0 - nearness(jacobian)  # at a singular pose the error's own correction would overshoot again and again
        kept = _short(self._pose[0] - position, KEPT_M) * clear, _short(so3_log(self._pose[1] @ rotation.T), KEPT_RAD) * clear
        asked = np.concatenate((way, turn))[: self._rows]
        most = limits.step_max * (SLOWEST + (1.0 - SLOWEST) * clear)
        low = np.maximum(-most, np.minimum(limits.position_low - start, 0.0))
        high = np.minimum(most, np.maximum(limits.position_high - start, 0.0))
        size = min(1.0, float(np.abs(asked).max()) / 0.01)  # redundant joints move only where the tool does
        posture = np.clip(POSTURE_GAIN * size * (limits.home - start), low, high)
        self.share, step = saturated_step(jacobian, asked + np.concatenate(kept)[: self._rows], low, high, posture)
        wanted = np.clip(start + step, measured - limits.leash_rad, measured + limits.leash_rad)
        wanted = np.clip(wanted, start - limits.step_max, start + limits.step_max)
        self.joint_target = np.clip(wanted, limits.position_low, limits.position_high)
        self._pose = (position + kept[0] + self.share * way, so3_exp(self.share * turn) @ so3_exp(kept[1]) @ rotation)
        return self.joint_target.copy()

    def _forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        frames = self.chain.forward(joints[None])
        return frames.position[:, 0], frames.rotation[..., 0]

    def _allowed(self, way: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """What of a displacement stays in the box, and near to where the tool is."""
        limits, at = self.limits, self._pose[0]
        goal = np.clip(at + way, np.minimum(limits.workspace_low, at), np.maximum(limits.workspace_high, at))
        lead = goal - self._forward(measured)[0]
        return goal - lead * max(0.0, 1.0 - limits.leash_m / max(float(np.linalg.norm(lead)), SMALLEST)) - at


def saturated_step(
    jacobian: np.ndarray, error: np.ndarray, low: np.ndarray, high: np.ndarray, posture: np.ndarray
) -> tuple[float, np.ndarray]:  # fmt: skip
    """The joint step that goes as far as it may in the direction of a tool's error.

    Args:
        jacobian: (m, J).
        error: (m,) of the tool.
        low: (J,) smallest change of each joint, not above 0.
        high: (J,) largest, not below 0.
        posture: (J,) change that is wanted besides, where it does not move the tool.

    Returns:
        The share of `error`, 0 to 1, and the change (J,); no change where there is none in that direction.
    """
    best = 0.0, np.zeros_like(posture)
    free, fixed = np.ones(len(posture), dtype=bool), posture.copy()
    while free.sum() >= min(len(error), len(posture)):
        inverse, regular = _inverse(jacobian[:, free])
        if not regular and not free.all():
            break
        along, rest = np.zeros_like(fixed), fixed.copy()
        along[free] = inverse @ error
        rest[free] -= inverse @ (jacobian @ fixed)
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.sort([(low - rest) / along, (high - rest) / along], axis=0)
        still = np.abs(along) < SMALLEST
        inside = (low - SMALLEST <= rest) & (rest <= high + SMALLEST)
        upper, lower = np.where(still, np.where(inside, np.inf, -np.inf), ends[1]), np.where(still, -np.inf, ends[0])
        share = min(1.0, float(upper.min()))
        if share >= max(0.0, float(lower.max()) - SMALLEST) and (share > best[0] or not best[1].any()):
            best = share, np.clip(share * along + rest, low, high)
        if share >= 1.0:
            break
        critical = int(np.argmin(np.where(free, upper, np.inf)))
        if not free[critical]:
            break
        free[critical] = False
        fixed[critical] = high[critical] if along[critical] > 0 else low[critical]
    if best[0] <= 0.0 and posture.any():
        return saturated_step(jacobian, error, low, high, np.zeros_like(posture))
    return best


def nearness(jacobian: np.ndarray) -> float:
    """How near to a singular pose: 0 where there is no need to care, 1 at one."""
    return max(0.0, 1.0 - float(np.linalg.svd(jacobian, compute_uv=False)[-1]) / NEAR_SINGULAR)


def _inverse(jacobian: np.ndarray) -> tuple[np.ndarray, bool]:
    """Damped pseudo-inverse (J, m), and whether it was far from singular."""
    u, s, vt = np.linalg.svd(jacobian, full_matrices=False)
    near = max(0.0, 1.0 - float(s[-1]) / NEAR_SINGULAR)
    return vt.T @ (s / (s * s + (DAMPING * near) ** 2 + SMALLEST**2) * u).T, near == 0.0


def _short(vector: np.ndarray, most: float) -> np.ndarray:
    """A vector, no longer than that."""
    return vector * min(1.0, most / max(float(np.linalg.norm(vector)), SMALLEST))
