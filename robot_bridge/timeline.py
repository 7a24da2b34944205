"""When a message was true, and what a value was at a time: stamps brought to one clock, and samples kept in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from robot_bridge.contract import Alignment

AGREEING = 3
"""Samples in a row that must agree on another clock before it is believed."""
UNSTAMPED_NS = 1_000_000_000
"""Headers below this were left as they were made: their senders do not stamp."""


class Clocks:
    """Brings the senders' header stamps of one topic to the receiver's clock.

    A header is trusted while the delay that it implies is within the tolerance. A sender whose clock was set anew is
    followed once some messages in a row advance as fast as our own clock does; a burst of old messages, as after a
    partition, does not, and is dropped.

    Args:
        offset_ns: receiver's clock minus sender's, as far as known.
        tolerance_ns: largest believable delay, and largest difference between the clocks.
    """

    def __init__(self, offset_ns: int, tolerance_ns: int) -> None:
        self.offset_ns, self._tolerance_ns = offset_ns, tolerance_ns
        self.jumps = 0
        """How often the sender's clock was found to be set anew."""
        self.ahead_ns = 0
        """By how much the sender's clock is ahead of what was given; 0 while it agrees."""
        self._given_ns = offset_ns
        self._suspects: list[tuple[int, int]] = []

    def stamp(self, header_ns: int, receipt_ns: int) -> int | None:
        """The time of a message on the receiver's clock; None for one that must not be used."""
        if header_ns < UNSTAMPED_NS:
            return receipt_ns
        stamp_ns = header_ns + self.offset_ns
        if abs(receipt_ns - stamp_ns) <= self._tolerance_ns:
            self._suspects.clear()
            if not self.jumps:
                self.ahead_ns = 0
            return stamp_ns
        self.ahead_ns = header_ns + self._given_ns - receipt_ns
        self._suspects.append((header_ns, receipt_ns))
        if len(self._suspects) < AGREEING:
            return None
        del self._suspects[:-AGREEING]
        (h0, r0), (h1, r1) = self._suspects[0], self._suspects[-1]
        if not 0 < r1 - r0 <= 2 * (h1 - h0) <= 4 * (r1 - r0):
            return None
        self.offset_ns = min(r - h for h, r in self._suspects)
        self.jumps += 1
        self._suspects.clear()
        return header_ns + self.offset_ns


class Kept(NamedTuple):
    """One sample of a value."""

    stamp_ns: int
    receipt_ns: int
    value: Any


class History:
    """The newest samples of one value, in the order of their stamps.

    Args:
        keep_ns: how far back from the newest one; one sample older than that is kept besides.
    """

    def __init__(self, keep_ns: int) -> None:
        self._keep_ns = keep_ns
        self._samples: deque[Kept] = deque()

    def add(self, stamp_ns: int, receipt_ns: int, value: Any) -> bool:
        """Append a sample; False for one that is no newer than the last one, which is passed over."""
        samples = self._samples
        if samples and stamp_ns <= samples[-1].stamp_ns:
            return False
        samples.append(Kept(stamp_ns, receipt_ns, value))
        while len(samples) > 2 and samples[1].stamp_ns < stamp_ns - self._keep_ns:
            samples.popleft()
        return True

    @property
    def newest(self) -> Kept | None:
        """The last sample."""
        return self._samples[-1] if self._samples else None

    def around(self, at_ns: int) -> tuple[Kept | None, Kept | None]:
        """The last sample up to a time, and the first one after it."""
        after = None
        for sample in reversed(tuple(self._samples)):  # a copy: another thread may append
            if sample.stamp_ns <= at_ns:
                return sample, after
            after = sample
        return None, after

    def at(
        self,
        at_ns: int,
        alignment: Alignment,
        tolerance_ns: int,
        age_max_ns: int,
        between: Callable[[Any, Any, float], Any] | None = None,
    ) -> Kept | None:
        """The value at a time; None where there is none that may be used.

        Args:
            at_ns: the time.
            alignment: newest, nearest or interpolate.
            tolerance_ns: nearest and interpolate use no sample farther away.
            age_max_ns: no sample older than this is used.
            between: value at a fraction of the way between two; None for numbers, on a straight line.
        """
        before, after = self.around(at_ns)
        if before is not None and at_ns - before.stamp_ns > age_max_ns:
            before = None
        if alignment == "newest":
            return before
        if before is not None and at_ns - before.stamp_ns > tolerance_ns:
            before = None
        if after is not None and after.stamp_ns - at_ns > tolerance_ns:
            after = None
        if before is None or after is None:
            return before or after
        fraction = (at_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
        if alignment == "nearest":
            return before if fraction <= 0.5 else after
        value = (between or straight)(before.value, after.value, fraction)
        return Kept(at_ns, max(before.receipt_ns, after.receipt_ns), value)


def straight(a: np.ndarray, b: np.ndarray, fraction: float) -> np.ndarray:
    """A fraction of the way from a to b."""
    return a + fraction * (b - a)


def pose_between(a: np.ndarray, b: np.ndarray, fraction: float) -> np.ndarray:
    """Poses (7,), xyz and wxyz: position on a straight line, rotation along the shorter great arc (Shoemake 1985)."""
    p, q = a[3:], b[3:]
    cosine = float(p @ q)
    if cosine < 0.0:
        q, cosine = -q, -cosine
    if cosine > 1.0 - 1e-9:
        rotation = straight(p, q, fraction)
    else:
        angle = np.arccos(cosine)
        rotation = (np.sin((1.0 - fraction) * angle) * p + np.sin(fraction * angle) * q) / np.sin(angle)
    return np.concatenate((straight(a[:3], b[:3], fraction), rotation / np.linalg.norm(rotation)))
