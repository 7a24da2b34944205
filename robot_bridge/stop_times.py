"""How fast a control loop stopped: from the reason to the first command that brakes, and to standstill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robot_bridge.gate import Verdict

KEPT = 100
"""Newest stops that are told of."""
BRAKING = ("hold", "latched")


@dataclass
class Stop:
    """One time that the stream was brought to rest."""

    reason: str
    asked_ns: int | None
    """When an e-stop came; None where nobody asked."""
    valid_ns: int | None
    """When the last valid target was taken."""
    sent_ns: int
    """When the first braking command had been sent."""
    still_ns: int | None = None
    """When the stream stood still."""


class StopTimes:
    """Kept by the control loop's thread; `asked` may come from any thread."""

    def __init__(self) -> None:
        self.stops: list[Stop] = []
        self._asked_ns: int | None = None
        self._valid_ns: int | None = None
        self._braking = False

    def asked(self, now_ns: int) -> None:
        """Somebody wants the robot stopped."""
        self._asked_ns = now_ns

    def valid(self, now_ns: int) -> None:
        """A target was taken."""
        self._valid_ns = now_ns

    def resume(self) -> None:
        """A new stream begins."""
        self._asked_ns = self._valid_ns = None
        self._braking = False

    def sent(self, verdict: Verdict, held: str, speed: float, now_ns: int) -> None:
        """A tick has ended: what the gate said, why the robot is held besides, the largest commanded joint speed in rad/s, and when."""
        braking = verdict.outcome in BRAKING
        new = braking and (not self._braking or (self._asked_ns is not None and self.stops and self.stops[-1].asked_ns is None))
        if new and (self._valid_ns is not None or self._asked_ns is not None):
            self.stops = [*self.stops[1 - KEPT :], Stop(held or verdict.reason, self._asked_ns, self._valid_ns, now_ns)]
            self._asked_ns = None
        if braking and self.stops and self.stops[-1].still_ns is None and speed == 0.0:
            self.stops[-1].still_ns = now_ns
        self._braking = braking

    def report(self) -> dict[str, Any]:
        """JSON-able: largest times in milliseconds, None where there was no such stop."""
        stops = self.stops
        return {
            "count": len(stops),
            "e_stop_to_command_ms": _most([s.sent_ns - s.asked_ns for s in stops if s.asked_ns is not None]),
            "last_target_to_hold_ms": _most([s.sent_ns - s.valid_ns for s in stops if s.asked_ns is None and s.valid_ns is not None]),
            "command_to_standstill_ms": _most([s.still_ns - s.sent_ns for s in stops if s.still_ns is not None]),
        }


def _most(times_ns: list[int]) -> float | None:
    return round(max(times_ns) / 1e6, 3) if times_ns else None
