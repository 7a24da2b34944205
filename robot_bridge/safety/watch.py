"""Watching what is measured: whether it is fresh, in order, possible, and follows what is commanded."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from robot_bridge.safety.config import GateConfig
from sinew.protocols import Observation

FUTURE_NS = 100_000_000
"""What a stamp may be ahead of the clock: whoever reads may be interrupted between looking at the clock and at the measurement."""
WINDOW_NS = 500_000_000
"""Over which the way commanded is compared with the way measured."""
WINDOW_TRAVEL_RAD = 0.1
"""What must be commanded in a window to be compared."""
WINDOW_SHARE = 0.1
"""Of the way commanded that must be measured."""
STANDING_RAD = 0.002
"""Joints that move less stand still."""


class Watch:
    """Compares measurements with one another and with the command."""

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        self.gripper_full = False
        """Whether the gripper presses with all the force that it may."""
        self.seed((), 0, 0)

    def seed(self, measured: Sequence[float], stamp_ns: int, now_ns: int) -> None:
        """Begin anew where the robot stands."""
        self._measured, self._stamp_ns = tuple(measured), stamp_ns
        self._changed_ns, self._changed_at = now_ns, tuple(measured)
        self._window = (now_ns, tuple(measured), tuple(measured))
        self._last_command: tuple[float, ...] = tuple(measured)
        self._moving_ns: int | None = None
        self._strained_ns: int | None = None
        self._astray_ns: int | None = None
        self._stood_ns, self._stood_at = now_ns, tuple(measured)
        self.gripper_full = False

    def check(self, observation: Observation, command: Sequence[float], now_ns: int) -> tuple[str, str]:
        """What is wrong with a measurement, given the last command (J,): reason and detail, empty where nothing is."""
        stamp_ns = observation.stamp_ns
        measured = joints_of(observation, len(command))
        if measured is None:
            return "bad_measurement", "measured joints are missing, of another number or not finite"
        if stamp_ns < self._stamp_ns or stamp_ns > now_ns + FUTURE_NS:
            apart_s = (stamp_ns - (self._stamp_ns if stamp_ns < self._stamp_ns else now_ns)) / 1e9
            return "measurement_order", f"stamped {apart_s:+.3f} s from {'the one before' if apart_s < 0 else 'now'}"
        if now_ns - stamp_ns > self.config.observation_ttl_s * 1e9:
            return "stale_observation", f"measured {(now_ns - stamp_ns) / 1e9:.3f} s ago"
        self._follow(command, now_ns)
        if stamp_ns == self._stamp_ns:
            return "", ""
        problem = self._jump(measured, stamp_ns)
        before, self._measured, self._stamp_ns = self._measured, measured, stamp_ns
        if measured != before:
            self._changed_ns, self._changed_at = now_ns, tuple(command)
        return (
            problem
            or self._frozen(command, now_ns)
            or self._strain(observation, now_ns)
            or self._astray(measured, command, now_ns)
            or ("", "")
        )

    def _follow(self, command: Sequence[float], now_ns: int) -> None:
        command = tuple(command)
        if command == self._last_command:
            self._moving_ns = None
        elif self._moving_ns is None:
            self._moving_ns = now_ns
        self._last_command = command

    def _jump(self, measured: tuple[float, ...], stamp_ns: int) -> tuple[str, str] | None:
        c = self.config
        elapsed_s = (stamp_ns - self._stamp_ns) / 1e9
        for j, (q, last, fastest) in enumerate(zip(measured, self._measured, c.velocity_max_rad_s, strict=True)):
            if abs(q - last) > c.measured_jump_max_rad + fastest * elapsed_s:
                return "measured_jump", f"joint {j} from {last:.3f} to {q:.3f} rad within {elapsed_s:.3f} s"
        return None

    def _frozen(self, command: Sequence[float], now_ns: int) -> tuple[str, str] | None:
        c = self.config
        if now_ns - self._changed_ns <= c.frozen_after_s * 1e9:
            return None
        if self._moving_ns is None or now_ns - self._moving_ns <= c.start_grace_s * 1e9:
            return None
        if _farthest(command, self._changed_at) <= c.frozen_travel_rad:
            return None
        return "frozen", f"the same joints for {(now_ns - self._changed_ns) / 1e9:.3f} s while they are commanded to move"

    def _strain(self, observation: Observation, now_ns: int) -> tuple[str, str] | None:
        c = self.config
        force = observation.values.get("gripper_effort")
        self.gripper_full = c.gripper_force_max_n is not None and force is not None and bool(np.max(np.abs(force)) > c.gripper_force_max_n)
        efforts = floats(observation.values.get("joint_effort"))
        over = [j for j, (e, most) in enumerate(zip(efforts or (), c.effort_max_nm, strict=False)) if abs(e) > most]
        if not over or efforts is None:
            self._strained_ns = None
        elif self._strained_ns is None:
            self._strained_ns = now_ns
        elif now_ns - self._strained_ns > c.effort_time_s * 1e9:
            return "effort", f"joint {over[0]} at {efforts[over[0]]:.1f} N m, {c.effort_max_nm[over[0]]:g} are allowed"
        return None

    def _astray(self, measured: tuple[float, ...], command: Sequence[float], now_ns: int) -> tuple[str, str] | None:
        c = self.config
        error = _farthest(measured, command)
        if error <= c.tracking_error_max_rad:
            self._astray_ns = None
        elif self._astray_ns is None:
            self._astray_ns = now_ns
        elif now_ns - self._astray_ns > c.tracking_time_s * 1e9:
            return "not_following", f"{error:.3f} rad from the command for {(now_ns - self._astray_ns) / 1e9:.2f} s"
        if error <= c.standing_error_max_rad or _farthest(measured, self._stood_at) > STANDING_RAD:
            self._stood_ns, self._stood_at = now_ns, measured
        elif now_ns - self._stood_ns > c.standing_time_s * 1e9:
            return "not_following", f"stands {error:.3f} rad from the command for {(now_ns - self._stood_ns) / 1e9:.2f} s"
        began_ns, was, was_commanded = self._window
        if now_ns - began_ns < WINDOW_NS:
            return None
        self._window = (now_ns, measured, tuple(command))
        for j, (q, q0, r, r0) in enumerate(zip(measured, was, command, was_commanded, strict=True)):
            if abs(r - r0) > WINDOW_TRAVEL_RAD and abs(q - q0) < WINDOW_SHARE * abs(r - r0):
                return "not_following", f"joint {j} moved {abs(q - q0):.4f} rad where {abs(r - r0):.3f} rad were commanded"
        return None


def _farthest(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def joints_of(observation: Observation, joints: int) -> tuple[float, ...] | None:
    """Measured joints, or None where they are missing, of another number or not finite."""
    values = floats(observation.values.get("joint_position"))
    return values if values is not None and len(values) == joints and all(map(isfinite, values)) else None


def floats(values: Any) -> tuple[float, ...] | None:
    """A number or a flat sequence of numbers as floats; None for anything else."""
    try:
        if isinstance(values, np.ndarray):
            numbers = values.ndim <= 1 and values.dtype.kind in "fiu"
            return tuple(np.atleast_1d(values).tolist()) if numbers else None
        return (float(values),) if isinstance(values, (int, float)) else tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        return None
