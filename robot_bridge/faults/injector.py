"""Which faults of a schedule act now."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robot_bridge.faults.schedule import Event, Fault, Schedule


class Acted(NamedTuple):
    """A fault that began to act."""

    stamp_ns: int
    what: str


class Injector:
    """Follows the events that a schedule counts from. Used by one thread.

    Args:
        schedule: what shall happen.
        now_ns: monotonic time of the start.
    """

    def __init__(self, schedule: Schedule, now_ns: int) -> None:
        self.schedule = schedule
        self.random = np.random.default_rng(schedule.seed)
        self.acted: list[Acted] = []
        """Every fault that has acted, in order."""
        self._since: dict[Event, int] = {"start": now_ns, "reset": now_ns}
        self._of: dict[str, list[tuple[int, Fault]]] = {}
        for number, fault in enumerate(schedule.faults):
            self._of.setdefault(fault.what, []).append((number, fault))
        self._acting: set[int] = set()

    def tell(self, event: Event, now_ns: int) -> None:
        """Something happened; of commands and motion only the first since the last reset counts."""
        if event == "reset":
            self._since = {"start": self._since["start"], "reset": now_ns}
        else:
            self._since.setdefault(event, now_ns)

    def acting(self, what: str, now_ns: int) -> list[Fault]:
        """The faults of this kind that act now."""
        found = []
        for number, fault in self._of.get(what, ()):
            since_ns = self._since.get(fault.after)
            acts_s = -1.0 if since_ns is None else (now_ns - since_ns) / 1e9 - fault.at_s
            if acts_s < 0 or (fault.for_s is not None and acts_s >= fault.for_s):
                self._acting.discard(number)
                continue
            if number not in self._acting:
                self._acting.add(number)
                self.acted.append(Acted(now_ns, what))
            found.append(fault)
        return found

    def active(self, what: str, now_ns: int) -> Fault | None:
        """The first fault of this kind that acts now."""
        return next(iter(self.acting(what, now_ns)), None)

    def elapsed_s(self, fault: Fault, now_ns: int) -> float:
        """How long a fault that acts has been acting."""
        return (now_ns - self._since[fault.after]) / 1e9 - fault.at_s
