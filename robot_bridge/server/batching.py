"""One thread per policy that does all its work: in order, several clients' samples in one, and never more than can wait."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import torch

from policies.wire import BusyError
from robot_bridge.server.limits import Limits
from robot_bridge.server.metrics import SAMPLES, Metrics
from robot_bridge.server.requests import MAX_ROWS, Sample, together

_log = logging.getLogger(__name__)

Work = Sample | Callable[[Any], dict[str, Any]]


@dataclass(eq=False)
class Job:
    """A request that waits for its policy."""

    work: Work
    until: float
    """Monotonic seconds after which nobody waits for the answer any more."""
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class Worker:
    """Does the work of one policy, in one thread.

    Args:
        policy: in evaluation mode.
        name: what clients call it.
        limits: how much may wait, and how much is computed in one.
        metrics: told the sizes of the batches.
    """

    def __init__(self, policy: Any, name: str, limits: Limits, metrics: Metrics) -> None:
        self.policy, self.name = policy, name
        self.clients = 0
        """Clients that have asked for something and are still there: no more requests than these can wait."""
        self._limits, self._metrics = limits, metrics
        self._waiting: deque[Job] = deque()
        self._taken: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"policy {name}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def busy_s(self) -> float:
        """Seconds that the work under way has taken so far; 0 when there is none."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def alive(self) -> bool:
        """Whether it works at all."""
        return self._thread.is_alive()

    def answer(self, work: Work, wait_s: float) -> dict[str, Any]:
        """Do something for a client.

        Args:
            work: what.
            wait_s: how long the client waits for it.

        Raises:
            BusyError: too many wait already, or it did not come to this in time.
        """
        job = Job(work, time.monotonic() + wait_s)
        with self._changed:
            if self._closed:
                raise BusyError("the server is being closed")
            if len(self._waiting) >= self._limits.waiting:
                raise BusyError(f"{len(self._waiting)} requests wait for policy {self.name} already: ask again later, or less often")
            self._waiting.append(job)
            self._changed.notify_all()
        return job.answer.result()

    def join(self, change: int) -> None:
        """A client more, or less."""
        with self._changed:
            self.clients += change
            self._changed.notify_all()

    def close(self) -> None:
        """Refuse what waits and what is under way; the thread ends when the policy lets it."""
        with self._changed:
            self._closed = True
            left = [*self._taken, *self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for job in left:
            _settle(job, BusyError("the server is being closed"))

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        with torch.no_grad():
            while jobs := self._take():
                self._taken = jobs
                self._since = time.monotonic()
                self._metrics.observe("sinew_batch_size", len(jobs), SAMPLES, policy=self.name)
                try:
                    self._do(jobs)
                finally:
                    self._since, self._taken = None, []

    def _take(self) -> list[Job]:
        """The next job and those that can be done with it; none when closed."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return []
                first = self._waiting.popleft()
                if self._late(first):
                    continue
                alike = first.work.alike if isinstance(first.work, Sample) else None
                return [first] if alike is None or self._limits.batch == 1 else self._gather(first, alike)

    def _gather(self, first: Job, alike: tuple[Any, ...]) -> list[Job]:
        """The first job and those like it that wait, or come before the window closes."""
        jobs, until = [first], time.monotonic() + self._limits.window_s
        rows = _rows(first)
        while not self._closed:
            for job in list(self._waiting):
                fits = isinstance(job.work, Sample) and job.work.alike == alike and rows + _rows(job) <= MAX_ROWS
                if len(jobs) < self._limits.batch and fits:
                    self._waiting.remove(job)
                    if not self._late(job):
                        jobs.append(job)
                        rows += _rows(job)
            left = until - time.monotonic()
            if len(jobs) >= self._limits.batch or len(jobs) + len(self._waiting) >= self.clients or left <= 0:
                break
            self._changed.wait(left)
        return jobs

    def _late(self, job: Job) -> bool:
        if time.monotonic() <= job.until:
            return False
        _settle(job, BusyError(f"policy {self.name} did not come to the request in time: too much is asked of the server"))
        return True

    def _do(self, jobs: list[Job]) -> None:
        if len(jobs) > 1:
            try:
                answers = together(self.policy, [job.work for job in jobs if isinstance(job.work, Sample)])
            except Exception as e:  # one of them may have spoiled it for the others: each alone
                _log.info("a batch of %d failed (%s); each is done alone", len(jobs), e)
            else:
                for job, answer in zip(jobs, answers, strict=True):
                    _settle(job, answer)
                return
        for job in jobs:
            try:
                _settle(job, job.work.work(self.policy) if isinstance(job.work, Sample) else job.work(self.policy))
            except Exception as e:  # told to the one who asked
                _settle(job, e)


def _rows(job: Job) -> int:
    return len(job.work.noise) * job.work.n if isinstance(job.work, Sample) else 0


def _settle(job: Job, answer: dict[str, Any] | Exception) -> None:
    with contextlib.suppress(InvalidStateError):  # refused by `close` in the same moment
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
