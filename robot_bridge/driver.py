"""What a robot's own driver looks at before it obeys: the last check, and the count of what should never have come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sinew.protocols import RobotSpec

SLACK = 1e-9
"""Rounding that is let through, rad and m."""
DRIFT = 1e-3
"""Seconds per second that two clocks may run apart; the kernel adjusts them by half of that."""
PERIODS = 2.0
"""A command may be this many periods early or late before its step counts as sudden."""


class Arrivals:
    """Passes over commands that were sent before one that was taken already, or were on their way for too long.

    Messages of forward_command_controller have no stamp, but DDS tells when each sample was sent, by the sender's clock. It need not be
    ours: the least delay that was seen is taken for the clocks' difference. A sender whose clock is set back is passed over from then
    on, and the robot holds, until that sender has left: its commands cannot be told from old ones.

    Args:
        ttl_s: how much longer than the fastest one a command may be on its way.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_ns = int(ttl_s * 1e9)
        self.passed_over: Counter[str] = Counter()
        """Commands that were not looked at, by reason: old, out_of_order."""
        self.forget()

    def forget(self) -> None:
        """There is no sender: the next one's clock may be another."""
        self._sent_ns: int | None = None
        self._least_ns: float | None = None
        self._at_ns = 0

    def age_ns(self, sent_ns: int, now_ns: int) -> int | None:
        """How much longer than the fastest one a command was on its way; None where it is passed over.

        Args:
            sent_ns: sender's clock when it was written.
            now_ns: our clock, monotonic.
        """
        if self._sent_ns is not None and sent_ns <= self._sent_ns:
            self.passed_over["out_of_order"] += 1
            return None
        delay_ns = now_ns - sent_ns
        drifted_ns = DRIFT * (now_ns - self._at_ns)
        self._least_ns = delay_ns if self._least_ns is None else min(delay_ns, self._least_ns + drifted_ns)
        self._at_ns = now_ns
        age_ns = int(delay_ns - self._least_ns)
        if age_ns > self._ttl_ns:
            self.passed_over["old"] += 1
            return None
        self._sent_ns = sent_ns
        return age_ns


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
        self.last: np.ndarray | None = None
        """(J,) rad that were obeyed last in this episode."""
        self._last_ns = 0
        self.taken = 0
        """Commands that were obeyed."""
        self.refused: Counter[str] = Counter()
        """Commands that were not, by reason: damaged, shape, non_finite, position, gripper."""
        self.sudden = 0
        """Commands obeyed although their step is faster than the velocity limit, whatever the jitter of their sending."""
        self.largest_gap_s = 0.0

    def judge(self, values: np.ndarray, now_ns: int) -> str:
        """Why (J,) or (J + grippers,) values, which were sent at a time, are refused; empty where they are obeyed."""
        reason = self._reason(values)
        if reason:
            self.refused[reason] += 1
            return reason
        joints = values[: len(self._low)]
        if self.last is not None:
            elapsed_s = (now_ns - self._last_ns) / 1e9
            self.largest_gap_s = max(self.largest_gap_s, elapsed_s)
            most = self._velocity * (elapsed_s + PERIODS * self._period_s)
            self.sudden += bool((np.abs(joints - self.last) > most).any())
        self.last, self._last_ns = joints.copy(), now_ns
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
        self.last = None

    def report(self) -> dict[str, Any]:
        """JSON-able counts."""
        return {
            "taken": self.taken,
            "refused": dict(self.refused),
            "sudden": self.sudden,
            "largest_gap_s": round(self.largest_gap_s, 4),
        }
