"""Keeps what streams tell at their own rates: whoever measures hands over at once, a thread of its own writes."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from demos.native import Sample
from demos.writer import Writer
from sinew.errors import DataError, SinewError

MOST_WAITING = 100_000
"""Samples that may wait for a disk that does not answer; those after them are dropped and counted."""
log = logging.getLogger("robot_bridge")


class _Taken(NamedTuple):
    stream: str
    sample: Sample
    sequence: int | None


class SampleKeeper:
    """Writes samples and events beside the frames of the episode in progress.

    Nothing is kept while it is closed, as between episodes. What was handed over is on disk a moment later; a killed process loses
    the sample that was being written.

    Args:
        writer: of the dataset.
        offset_ns: recording's clock minus monotonic time.
        fail: told why nothing more can be written.
    """

    def __init__(self, writer: Writer, offset_ns: int, fail: Callable[[str], None]) -> None:
        self.open = False
        self.came: Counter[str] = Counter()
        """Samples handed over in this episode, by stream."""
        self.lost: Counter[str] = Counter()
        """Losses and drops noted in this episode, by what they are of."""
        self._writer, self._offset_ns, self._fail = writer, offset_ns, fail
        self._queue: queue.SimpleQueue[_Taken | Callable[[], None] | None] = queue.SimpleQueue()
        self._last: dict[str, int] = {}
        self._written: Counter[str] = Counter()
        self._choked = False
        self._thread = threading.Thread(target=self._work, name="samples", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """An episode begins."""
        self.came.clear()
        self.lost.clear()
        self._queue.put(self._anew)
        self.open = True

    def cut(self) -> None:
        """A pause begins: what is missing across it was not lost."""
        if self.open:
            self._queue.put(self._cut)

    def sample(self, stream: str, stamp_ns: int, receipt_ns: int, value: np.ndarray | None = None, sequence: int | None = None) -> None:
        """See `robot_bridge.interfaces.Tap`."""
        if not self.open:
            return
        self.came[stream] += 1
        if self._queue.qsize() < MOST_WAITING:
            self._choked = False
            self._queue.put(_Taken(stream, (stamp_ns + self._offset_ns, receipt_ns + self._offset_ns, value), sequence))
        elif not self._choked:  # one event for all that are dropped in a row: they are missing from the sequence or the stamps
            self._choked = True
            self.note("dropped", f"samples of {stream}: disk too slow")

    def kept(self, stream: str, stamp_ns: int, value: np.ndarray) -> None:
        """A sample of the recorder's own, which no stream lost or was late with."""
        self._queue.put(_Taken(stream, (stamp_ns + self._offset_ns, stamp_ns + self._offset_ns, value), None))

    def note(self, what: str, of: str, n: int = 1, **more: Any) -> None:
        """Keep an event of the episode; see `demos.native.Beside`."""
        if self.open:
            if what in ("lost", "dropped", "skipped", "clock_jump"):
                self.lost[of] += n
            self._queue.put(lambda: self._writer.note(what, of, n, **more))

    def end(self) -> None:
        """The episode ends; returns when all of it is written."""
        self.open = False
        written = threading.Event()
        self._queue.put(written.set)
        written.wait()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self.open = False
        self._queue.put(None)
        self._thread.join()

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        while True:
            items = [self._queue.get()]
            while not self._queue.empty() and len(items) < 1024:
                items.append(self._queue.get())
            taken: dict[str, list[Sample]] = {}
            for item in items:
                if isinstance(item, _Taken):
                    self._follow(item)
                    taken.setdefault(item.stream, []).append(item.sample)
                    continue
                self._write(taken)
                taken = {}
                if item is None:
                    return
                self._guarded(item)
            self._write(taken)

    def _anew(self) -> None:
        self._last.clear()
        self._written.clear()

    def _cut(self) -> None:
        self._last.clear()
        self._writer.note("cut", "pause", after=dict(self._written))

    def _follow(self, item: _Taken) -> None:
        """Look for holes in a stream's sequence."""
        if item.sequence is None:
            return
        last = self._last.get(item.stream)
        self._last[item.stream] = item.sequence
        if last is None:
            self._guarded(lambda: self._writer.note("numbered", item.stream))
        elif (lost := item.sequence - last - 1) > 0:
            self.lost[item.stream] += lost
            self._guarded(lambda: self._writer.note("lost", item.stream, lost))

    def _write(self, taken: dict[str, list[Sample]]) -> None:
        for stream, samples in taken.items():
            self._written[stream] += len(samples)
            self._guarded(lambda s=stream, v=samples: self._writer.add_samples(s, v))

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except DataError as e:  # a stream that changed its form: the frames go on without it
            why = str(e)
            log.warning("%s", why)
            self.lost["samples"] += 1
            self._guarded(lambda: self._writer.note("dropped", f"samples: {why}"))
        except SinewError as e:
            self._fail(str(e))
        except Exception as e:  # whoever waits for this thread must not wait for ever
            self._fail(f"samples cannot be kept: {type(e).__name__}: {e}")
