"""How regularly a loop runs, where its time goes, and which stage made it late."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

KEPT = 1 << 16
"""Newest ticks that percentiles are taken over."""
WAKING = "waking"
"""What an overrun tick was due to whose thread was woken later than any of its stages took."""
FIFO_PRIORITY = 50
FAVOURED_NICE = -10
TASKS = "/proc/self/task"
"""One entry for each thread, where the system has it."""
SWITCH_INTERVAL_S = 2e-4


class Cadence:
    """Durations of the stages of every tick, and how late each tick began. Written by one thread.

    Args:
        stages: names of the stages, in the order in which they are told.
        period_s: what the loop should keep.
    """

    def __init__(self, stages: Sequence[str], period_s: float) -> None:
        self.stages = tuple(stages)
        self.period_s = period_s
        self.ticks = 0
        self.late = 0
        """Ticks that began more than a period after their deadline."""
        self.missed = 0
        """Deadlines that passed without a tick, because the one before them overran."""
        self.overran = 0
        """Ticks that ended after the next one's deadline."""
        self.blamed: Counter[str] = Counter()
        """What each overrun tick was due to: its longest stage, or "waking"."""
        # filled, so that all of it is taken now: the memory of a deployment does not grow
        self._marks = np.full((KEPT, len(self.stages)), 0, dtype=np.int64)
        self._lateness = np.full(KEPT, 0, dtype=np.int64)
        self._last_ns: int | None = None
        self._due_ns = 0
        self._running_ns = self._gaps = 0

    def add(self, deadline_ns: int, marks_ns: Sequence[int]) -> None:
        """One tick: when it was due, and the times at its start and after each stage (stages + 1 values)."""
        i = self.ticks % KEPT
        lateness = marks_ns[0] - deadline_ns
        self._lateness[i] = lateness
        row = self._marks[i]
        for j in range(len(self.stages)):
            row[j] = marks_ns[j + 1] - marks_ns[j]
        period_ns = self.period_s * 1e9
        if self._last_ns is not None:
            self._running_ns += marks_ns[0] - self._last_ns
            self._gaps += 1
            self.missed += max(round((deadline_ns - self._due_ns) / period_ns) - 1, 0)
        self.late += lateness > period_ns
        if marks_ns[-1] > deadline_ns + period_ns:
            self.overran += 1
            longest = max(range(len(self.stages)), key=row.__getitem__)
            self.blamed[WAKING if lateness > row[longest] else self.stages[longest]] += 1
        self._last_ns, self._due_ns = marks_ns[0], deadline_ns
        self.ticks += 1

    def resume(self) -> None:
        """The next tick follows a pause, which does not count as a slow tick."""
        self._last_ns = None

    def report(self) -> dict[str, Any]:
        """JSON-able: rate wanted and achieved, ticks, late ticks, lateness and stages in microseconds."""
        n = min(self.ticks, KEPT)
        running_s = self._running_ns / 1e9
        return {
            "rate_hz": round(1.0 / self.period_s, 3),
            "achieved_hz": round(self._gaps / running_s, 3) if running_s else None,
            "ticks": self.ticks,
            "late_ticks": self.late,
            "missed_deadlines": self.missed,
            "overrun_ticks": self.overran,
            "due_to": dict(self.blamed),
            "lateness_us": quantiles_us(self._lateness[:n]),
            "stages_us": {name: quantiles_us(self._marks[:n, j]) for j, name in enumerate(self.stages)},
        }


def quantiles_us(values_ns: np.ndarray) -> dict[str, float] | None:
    """p50, p99 and max of durations in nanoseconds, as microseconds; None of none."""
    if not len(values_ns):
        return None
    us = values_ns / 1e3
    return {"p50": round(float(np.percentile(us, 50)), 1), "p99": round(float(np.percentile(us, 99)), 1), "max": round(float(us.max()), 1)}


def raise_priority() -> str:
    """Put the calling thread under SCHED_FIFO where the system allows it.

    Returns:
        What it runs under now, for the report: "SCHED_FIFO 50" or "SCHED_OTHER (why)".
    """
    if not hasattr(os, "sched_setscheduler"):
        return "default (this system has no SCHED_FIFO)"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except OSError as e:
        return f"SCHED_OTHER ({e.strerror}: grant CAP_SYS_NICE or an rtprio limit)"
    return f"SCHED_FIFO {FIFO_PRIORITY}"


def realtime_allowed() -> bool:
    """Whether threads of this process may run under SCHED_FIFO; tried on a thread that ends at once."""
    allowed = []
    thread = threading.Thread(target=lambda: allowed.append(raise_priority().startswith("SCHED_FIFO")))
    thread.start()
    thread.join()
    return allowed == [True]


@contextmanager
def quiet_interpreter() -> Iterator[None]:
    """Let a control thread get the interpreter lock soon, and keep collections of what is already loaded out of the loop."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)


@contextmanager
def favoured() -> Iterator[None]:
    """Let other programs wait for this one, where the system allows it and nobody has made it wait for others.

    A control thread under SCHED_FIFO still waits for whichever thread holds the interpreter lock. If that one was put aside for another
    program, the control thread waits for that program too: so all threads of this process go first, those included that begin meanwhile.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)

    def give(nice: int) -> None:
        for task in os.listdir(TASKS):
            with suppress(OSError):  # not allowed, or the thread has just ended
                os.setpriority(os.PRIO_PROCESS, int(task), nice)

    if before > 0 or not os.path.isdir(TASKS):
        yield
        return
    give(min(before, FAVOURED_NICE))
    try:
        yield
    finally:
        give(before)


def next_deadline(deadline_ns: int, period_ns: int, now_ns: int) -> int:
    """The next deadline on the grid; periods that have passed are skipped, never made up for in a burst."""
    missed = max(0, (now_ns - deadline_ns) // period_ns)
    return deadline_ns + (missed + 1) * period_ns
