"""Devices that speak when they like: what they said last, taken without waiting, and forgotten when it grows old."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from robot_bridge.takeover import DeviceLost, Given, Request

MOST_WORDS = 32
"""Words that wait; older ones are forgotten, since nobody has asked for them."""


class Mailbox:
    """A `Takeover` that another thread fills: a network's, a serial port's.

    What is put is stamped, numbered and given until it is `max_age_s` old; a gap, a `release` and a device that comes back count as
    letting go, so that the next thing that is put takes hold anew and nothing jumps.

    Args:
        max_age_s: what was put longer ago does not count.
        now_ns: monotonic clock.
    """

    def __init__(self, max_age_s: float, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.max_age_s = max_age_s
        self.refused = 0
        """How often something was put that is not finite."""
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._given: Given | None = None
        self._seq = self._hold = 0
        self._words: deque[Request] = deque(maxlen=MOST_WORDS)
        self._lost = ""

    # ------------------------------------------------------------ for the device

    def put(self, given: Given) -> None:
        """The person is in control and asks this. Values that are not finite are not taken."""
        finite = all(np.isfinite([*part.values, part.open or 0.0]).all() for part in (given, *given.also))
        with self._lock:
            if not finite:
                self.refused += 1
                return
            now_ns = self._now_ns()
            if self._fresh(now_ns) is None:
                self._hold += 1
            self._seq += 1
            self._given = self._marked(replace(given, also=tuple(self._marked(part, now_ns) for part in given.also)), now_ns)

    def release(self) -> None:
        """The person has let go."""
        with self._lock:
            self._given = None

    def say(self, word: Request) -> None:
        """The person says a word."""
        with self._lock:
            self._words.append(word)

    def lose(self, why: str) -> None:
        """The device is gone; one line that says which and why. An empty one: it is back."""
        with self._lock:
            self._given, self._lost = None, why

    # ------------------------------------------------------------ for whoever asks

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        with self._lock:
            if self._lost:
                raise DeviceLost(self._lost)
            self._given = self._fresh(self._now_ns())
            return self._given

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        with self._lock:
            if not self._words and self._lost:
                raise DeviceLost(self._lost)
            return self._words.popleft() if self._words else None

    def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
        """See `Takeover.watch`."""

    def reopen(self) -> bool:
        """See `Takeover.reopen`; the device's thread tries by itself."""
        with self._lock:
            return not self._lost

    def close(self) -> None:
        """See `Takeover.close`."""

    def _marked(self, given: Given, now_ns: int) -> Given:
        return replace(given, stamp_ns=now_ns, seq=self._seq, hold=self._hold)

    def _fresh(self, now_ns: int) -> Given | None:
        given = self._given
        return None if given is None or now_ns - given.stamp_ns > self.max_age_s * 1e9 else given
