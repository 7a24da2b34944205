"""Draws progress on standard error: a bar with rate and ETA on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from sinew.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

RATE_WINDOW_S = 20.0
"""The rate, and with it the ETA, is taken over this much of the past: stages slow down and speed up."""


class StageClock:
    """Counts the work of one stage and foretells its end.

    Args:
        name: of the stage.
        total: units of work; 0 if unknown.
        done: units finished by an earlier run, which say nothing about today's speed.
        now: monotonic clock, seconds.
    """

    def __init__(self, name: str, total: int, done: int, now: Callable[[], float] = lambda: time.monotonic()) -> None:
        self.name, self.total, self.done, self._now = name, total, done, now
        self.started_s = now()
        self._marks = [(self.started_s, done)]

    def advance(self, n: int) -> None:
        """`n` more units are done."""
        self.done += n
        self._marks.append((self._now(), self.done))
        while len(self._marks) > 2 and self._marks[1][0] < self._marks[-1][0] - RATE_WINDOW_S:
            self._marks.pop(0)
        if len(self._marks) > 512:  # keep every other one: the ends are what the rate is made of
            self._marks = [self._marks[0], *self._marks[1:-1:2], self._marks[-1]]

    @property
    def rate(self) -> float | None:
        """Units per second over the recent past; None before the first is done."""
        (t0, d0), (t1, d1) = self._marks[0], self._marks[-1]
        return (d1 - d0) / (t1 - t0) if d1 > d0 and t1 > t0 else None

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the end of the stage; None while unknown."""
        if self.total and self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.rate if self.rate and self.total else None


class ConsoleProgress(Progress):
    """Shows stages on a stream, and with `plan` how far the whole command is; use it as a context manager.

    A command of several phases says which one begins with `phase`; within it any number of stages may start. The time left
    in all is what the plan foresees for the rest, corrected by how much faster or slower the finished phases were.

    Args:
        plan: expected seconds of each phase, in order.
        stream: where to write; standard error.
        every_s: seconds between plain lines.
    """

    def __init__(self, plan: Mapping[str, float] | None = None, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        self.plan = dict(plan or {})
        self.stream = stream if stream is not None else sys.stderr
        self.every_s = every_s
        self.interactive = bool(getattr(self.stream, "isatty", lambda: False)())
        self.stage: StageClock | None = None
        self._phase: tuple[str, float] | None = None
        self._spent: dict[str, float] = {}
        self._began_s = time.monotonic()
        self._last_line_s = -float("inf")
        self._lock = threading.RLock()
        self._bars: Bars | None = None
        self._task: Any = None
        self._overall: Any = None
        self._console: Console | None = None

    def __enter__(self) -> ConsoleProgress:
        if self.interactive:
            self._open_bars()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._end_stage()
            self._end_phase()
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def phase(self, name: str) -> None:
        """A phase of the plan begins; phases that an earlier run finished are simply not told."""
        with self._lock:
            self._end_stage()
            self._end_phase()
            self._phase = (name, time.monotonic())
            if name in self.plan:
                place = f"{list(self.plan).index(name) + 1}/{len(self.plan)}"
                left = self.overall_remaining_s()
                self.note(f"[{place}] {name}" + (f", about {duration(left)} left in all" if left is not None else ""))

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage begins."""
        with self._lock:
            self._end_stage()
            self.stage = StageClock(stage, total, done)
            if self._bars is not None:
                self._task = self._bars.add_task(stage, total=total or None, completed=done, detail="")
                self._draw({})
            else:
                note = f", {done} done before" if done else ""
                self._line(f"{stage}: {total} to do{note}" if total else f"{stage}: begins")

    def advance(self, n: int = 1, **values: float) -> None:
        """`n` more units are done; the values stand beside the bar."""
        with self._lock:
            if self.stage is None:
                return
            self.stage.advance(n)
            if self._bars is not None:
                self._draw(values)
            elif time.monotonic() - self._last_line_s >= self.every_s:
                self._line(self.describe(values))

    def note(self, text: str) -> None:
        """One line that stays."""
        with self._lock:
            if self._bars is not None:
                self._bars.console.print(text, highlight=False, markup=False)
            else:
                self._line(text)

    def describe(self, values: Mapping[str, float]) -> str:
        """The stage in one plain line: count, percent, rate, ETA, values."""
        stage = self.stage
        if stage is None:
            return ""
        percent = f" ({100 * stage.done / stage.total:.0f} %)" if stage.total else ""
        parts = [f"{stage.name}: {stage.done}/{stage.total or '?'}{percent}", *self._estimates(), *_shown(values)]
        return ", ".join(parts)

    def overall_remaining_s(self) -> float | None:
        """Seconds to the end of the whole command; None without a plan or outside its phases."""
        name, began_s = self._phase or ("", 0.0)
        if name not in self.plan:
            return None
        names = list(self.plan)
        later = sum(self.plan[n] for n in names[names.index(name) + 1 :])
        planned = sum(self.plan[n] for n in self._spent)
        pace = min(max(sum(self._spent.values()) / planned, 0.2), 5.0) if planned else 1.0
        current = max(pace * self.plan[name] - (time.monotonic() - began_s), 0.0)
        if self.stage is not None and self.stage.remaining_s is not None:
            current = max(current, self.stage.remaining_s)
        return current + pace * later

    # ------------------------------------------------------------ parts

    def _estimates(self) -> list[str]:
        stage, parts = self.stage, []
        if stage is None:
            return parts
        if stage.rate is not None:
            parts.append(f"{stage.rate:.3g}/s")
        if stage.remaining_s is not None:
            parts.append(f"{duration(stage.remaining_s)} left")
        overall = self.overall_remaining_s()
        if overall is not None and len(self.plan) > 1:
            parts.append(f"{duration(overall)} left in all")
        return parts

    def _end_stage(self) -> None:
        if self.stage is None:
            return
        stage, took_s = self.stage, time.monotonic() - self.stage.started_s
        self.stage = None
        text = f"{stage.name}: {stage.done}/{stage.total or stage.done} in {duration(took_s)}"
        if self._bars is not None:
            self._bars.remove_task(self._task)
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            self._line(text)

    def _end_phase(self) -> None:
        if self._phase is not None and self._phase[0] in self.plan:
            self._spent[self._phase[0]] = time.monotonic() - self._phase[1]
        self._phase = None

    def _line(self, text: str) -> None:
        self._last_line_s = time.monotonic()
        print(text, file=self.stream, flush=True)

    def _open_bars(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bars = Progress(
            TextColumn("{task.description:<10}"), BarColumn(bar_width=28), TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[detail]}", style="dim"), console=Console(file=self.stream), transient=True,
        )  # fmt: skip
        self._bars.start()
        if len(self.plan) > 1:
            self._overall = self._bars.add_task("all", total=1.0, detail="")

    def _draw(self, values: Mapping[str, float]) -> None:
        if self._bars is None or self.stage is None:
            return
        own = [part for part in self._estimates() if not part.endswith("in all")]
        self._bars.update(self._task, completed=self.stage.done, detail="  ".join([*own, *_shown(values)]))
        overall = self.overall_remaining_s()
        if self._overall is not None and overall is not None:
            spent = time.monotonic() - self._began_s
            self._bars.update(self._overall, completed=spent / max(spent + overall, 1e-9), detail=f"{duration(overall)} left")


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _shown(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in values.items()]
