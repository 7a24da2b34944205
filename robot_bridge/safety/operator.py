"""The operator's switches: a software emergency stop and a dead-man switch, read by the gate at every tick.

They are plain values that any thread may set: no lock is shared with motion, so that a stop never waits for anything. This is
software, on a computer, and no rated emergency stop.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Operator:
    """What the operator says, by whatever way: a key, a topic, a service, a page.

    Args:
        dead_man_s: the robot moves only while `beat` was called within this time; None for no dead-man switch.
        on_press: called with the reason in the thread that presses, for what must not wait for the next tick: `robot.stop`.
    """

    def __init__(self, dead_man_s: float | None = None, on_press: Callable[[str], None] | None = None) -> None:
        self.dead_man_s = dead_man_s
        self.on_press: list[Callable[[str], None]] = [] if on_press is None else [on_press]
        self.pressed = ""
        """Reason of the emergency stop; empty when it is not pressed."""
        self.log: deque[tuple[int, str]] = deque(maxlen=1000)
        """(monotonic ns, what happened) of presses and releases."""
        self._beat_ns: int | None = None

    def press(self, reason: str = "pressed") -> None:
        """Stop the robot now; it stays stopped until `release`, and then until the gate is released too. Never waits."""
        self.pressed = self.pressed or reason or "pressed"
        self.log.append((time.monotonic_ns(), f"pressed: {reason}"))
        for call in tuple(self.on_press):
            with suppress(Exception):  # the stop is set already; what is broken here must not keep others from being told
                call(reason)

    def release(self, by: str) -> None:
        """Take the emergency stop back; nothing moves before the gate is released as well."""
        self.log.append((time.monotonic_ns(), f"released by {by}"))
        self.pressed = ""

    def beat(self, now_ns: int | None = None) -> None:
        """The dead-man switch is held at this moment, of the loop's clock."""
        self._beat_ns = time.monotonic_ns() if now_ns is None else now_ns

    def let_go(self) -> None:
        """The dead-man switch is let go."""
        self._beat_ns = None

    def alive(self, now_ns: int) -> bool:
        """Whether the dead-man switch is held, or there is none."""
        beat_ns = self._beat_ns
        return self.dead_man_s is None or (beat_ns is not None and now_ns - beat_ns <= self.dead_man_s * 1e9)
