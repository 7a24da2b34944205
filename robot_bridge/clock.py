"""Time for control: the monotonic clock of the machine, or one that a test moves by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Monotonic nanoseconds, and waiting for them to pass."""

    def now_ns(self) -> int: ...

    def wait_until(self, deadline_ns: int) -> None:
        """Return at `deadline_ns`, at once if it has passed."""
        ...


class MonotonicClock:
    """The machine's monotonic clock; wall-clock changes do not touch it."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wait_until(self, deadline_ns: int) -> None:
        remaining = deadline_ns - time.monotonic_ns()
        if remaining > 0:
            time.sleep(remaining / 1e9)


@dataclass(eq=False)
class _Periodic:
    due_ns: int
    period_ns: int
    call: Callable[[], None]


class SteppedClock:
    """A clock that stands still but in `wait_until`, which runs what is due: no threads, every run alike."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._entries: list[_Periodic] = []

    def now_ns(self) -> int:
        return self._now_ns

    def every(self, period_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        """Run `call` each `period_ns` from one period on; of calls due together the first entered runs first.

        Returns:
            A function that ends it.
        """
        entry = _Periodic(self._now_ns + period_ns, period_ns, call)
        self._entries.append(entry)
        return lambda: self._entries.remove(entry)

    def wait_until(self, deadline_ns: int) -> None:
        while self._entries:
            due_ns = min(entry.due_ns for entry in self._entries)
            if due_ns > deadline_ns:
                break
            self._now_ns = max(self._now_ns, due_ns)
            for entry in [e for e in self._entries if e.due_ns == due_ns]:
                entry.due_ns += entry.period_ns
                entry.call()
        self._now_ns = max(self._now_ns, deadline_ns)


def sleep(clock: Clock, seconds: float) -> None:
    """Let `seconds` pass on `clock`."""
    clock.wait_until(clock.now_ns() + int(seconds * 1e9))
