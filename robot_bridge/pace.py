"""How a recording goes, in a few numbers for the person who watches it: rate, lateness, ages, room on the disk."""

from __future__ import annotations

import time

from demos.forecast import Forecast, forecast, rate_of
from demos.layout import load_info
from demos.writer import Writer
from robot_bridge.interfaces import Frame

OFTEN_S = 2.0
"""The disk is asked for its room this often at most."""


class Pace:
    """Rate and lateness of frames since they were looked at last; frames are added on one thread, looked at from another.

    Args:
        period_s: between two frames.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self.cut()

    def cut(self) -> None:
        """A pause: what is counted begins anew."""
        self._first_ns = self._last_ns = self._frames = 0
        self._late_s = self._age_s = 0.0

    def add(self, frame: Frame) -> None:
        """A frame was handed over just now."""
        now_ns = time.monotonic_ns()
        self._first_ns = self._first_ns or now_ns
        self._last_ns, self._frames = now_ns, self._frames + 1
        late_ns = now_ns - frame.due_ns if frame.due_ns else 0
        self._late_s = max(self._late_s, late_ns / 1e9)
        oldest_ns = min(frame.measured.stamps_ns.values(), default=frame.measured.stamp_ns)
        self._age_s = max(self._age_s, (frame.measured.stamp_ns - oldest_ns) / 1e9)

    def look(self) -> dict[str, float]:
        """Frames per second, and the latest hand-over and oldest value in milliseconds, since the last look."""
        span_s = (self._last_ns - self._first_ns) / 1e9
        told = {"hz": (self._frames - 1) / span_s} if span_s > 0 else {}
        told |= {"late_ms": 1e3 * self._late_s, "age_ms": 1e3 * self._age_s} if self._frames else {}
        self.cut()
        return told


class Room:
    """Room on the disk at the rate at which a dataset grows.

    Args:
        writer: of the dataset.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._rate = rate_of(writer.root, load_info(writer.root))
        self._bytes, self._seconds = 0.0, 0.0
        self._asked_s, self._forecast = -OFTEN_S, forecast(writer.root, self._rate)

    def add(self) -> None:
        """The episode in progress is about to be saved: its size counts."""
        self._bytes += self._writer.episode_bytes
        self._seconds += self._writer.episode_length / self._writer.fps
        self._rate = self._bytes / self._seconds
        self._asked_s = -OFTEN_S

    def forecast(self) -> Forecast:
        """As it is now, or was a moment ago."""
        now_s = time.monotonic()
        if now_s - self._asked_s >= OFTEN_S:
            self._asked_s, self._forecast = now_s, forecast(self._writer.root, self._rate)
        return self._forecast
