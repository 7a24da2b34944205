"""What a robot's own driver looks at before it obeys: the last check, and the count of what should never have come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sinew.protocols import RobotSpec

SLACK = 1e-9
"""Rounding that is let through, rad and m."""
PERIODS = 2.0
"""A command may be this many periods early or late before its step counts as sudden."""


class DriverCheck:
    """Refuses commands beyond the limits of a robot, and counts.

    Args:
        spec: the limits.
        rate_hz: commands per second that are expected.
        grippers: how many openings follow the joints.
    """

    def __init__(self, spec: RobotSpec, rate_hz: float, grippers: int = 1) -> None:
        self._spec, self._grippers, self._period_s = spec, grippers, 1.0 / rate_hz
        self._low, self._high = np.array(spec.position_low_rad) - SLACK, np.array(spec.position_high_rad) + SLACK
        self._velocity = np.array(spec.velocity_max_rad_s)
        self._last: np.ndarray | None = None
        self._last_ns = 0
        self.taken = 0
        """Commands that were obeyed."""
        self.refused: Counter[str] = Counter()
        """Commands that were not, by reason: damaged, shape, non_finite, position, gripper."""
        self.sudden = 0
        """Commands obeyed although their step is faster than the velocity limit, whatever the jitter of their arrival."""
        self.largest_gap_s = 0.0

    def judge(self, values: np.ndarray, now_ns: int) -> str:
        """Why (J,) or (J + grippers,) values are refused; empty where they are obeyed."""
        reason = self._reason(values)
        if reason:
            self.refused[reason] += 1
            return reason
        joints = values[: len(self._low)]
        if self._last is not None:
            elapsed_s = (now_ns - self._last_ns) / 1e9
            self.largest_gap_s = max(self.largest_gap_s, elapsed_s)
            most = self._velocity * (elapsed_s + PERIODS * self._period_s)
            self.sudden += bool((np.abs(joints - self._last) > most).any())
        self._last, self._last_ns = joints.copy(), now_ns
        self.taken += 1
        return ""

    def _reason(self, values: np.ndarray) -> str:
        joints, opening = values[: len(self._low)], values[len(self._low) :]
        if values.ndim != 1 or len(joints) != len(self._low) or len(opening) not in (0, self._grippers):
            return "shape"
        if not np.isfinite(values).all():
            return "non_finite"
        if ((joints < self._low) | (joints > self._high)).any():
            return "position"
        if len(opening) and (opening.min() < self._spec.gripper_low_m - SLACK or opening.max() > self._spec.gripper_high_m + SLACK):
            return "gripper"
        return ""

    def restart(self) -> None:
        """A new episode: the next command follows none."""
        self._last = None

    def report(self) -> dict[str, Any]:
        """JSON-able counts."""
        return {
            "taken": self.taken,
            "refused": dict(self.refused),
            "sudden": self.sudden,
            "largest_gap_s": round(self.largest_gap_s, 4),
        }
