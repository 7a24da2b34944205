"""Carries what an actor did to its learner, over a socket or whatever else carries bytes, through the learner's absences."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rl.outpost import Outbox
from rl.parcels import pack, pack_steps, pack_tensors, unpack
from rl.transport import Caller, Endpoint, Lost
from sinew.errors import DataError
from sinew.progress import SILENT, Progress

BEAT_S = 2.0
"""An actor says something at least this often, and is answered at once."""
ANSWER_S = 30.0
"""A learner that does not answer for so long is gone."""
GIVE_UP_S = 600.0
"""An actor without a learner for so long ends."""
HELD_S = 0.05
"""An actor that was told to wait asks again after so long."""
RETRY_S = 0.5
GATHER_S = 0.05
"""Steps of so long travel together."""
TOGETHER = 64
"""Most steps in a message."""


class Dialogue:
    """What an actor says next, and what it makes of the answer.

    Args:
        outbox: whose steps are told.
        place: number of this actor.
    """

    def __init__(self, outbox: Outbox, place: int) -> None:
        self.outbox, self.place = outbox, place
        self.last_word: str | None = None
        """Why it ends, where that was an error."""
        self.refused = ""
        self.anew()

    def anew(self) -> None:
        """There is a new connection: everybody introduces himself."""
        self._state, self._started, self._last = "hello", False, 0

    def next(self, beat_s: float = BEAT_S) -> bytes | None:
        """The next message, after at most about `beat_s`; None when all was said."""
        if self._state == "hello":
            return self._hello()
        if self._state == "ended" or self.refused:
            return None
        outbox = self.outbox
        if not outbox.stop:
            outbox.wait(min(beat_s, BEAT_S if outbox.go else HELD_S))
            time.sleep(GATHER_S)
        if outbox.begun and not self._started:
            number, frames = outbox.base
            outbox.has(number)
            self._started = True
            return pack("start", {"number": number}, pack_tensors(frames))
        records = outbox.pending(TOGETHER) if self._started else []
        if records:
            self._last = records[-1].number
            return pack("steps", *pack_steps(records))
        if outbox.stop:
            self._state = "ended"
            return pack("end", {"why": self.last_word or ""})
        return pack("beat", {})

    def _hello(self) -> bytes:
        outbox = self.outbox
        while outbox.like is None and not outbox.stop:
            time.sleep(0.01)
        return pack("hello", {"place": self.place, "life": outbox.life}, pack_tensors(outbox.like or {}))

    def answered(self, data: bytes) -> None:
        """Take in the answer to the last message.

        Raises:
            DataError: it is none.
        """
        kind, numbers, weights = unpack(data)
        if kind not in ("welcome", "answer"):
            raise DataError(f"a learner does not answer {kind!r:.20}")
        if kind == "answer":
            self.outbox.answered(numbers, weights)
            self.outbox.sent = max(self.outbox.sent, self._last)
            return
        self._state = "talk"
        self.refused = str(numbers.get("refused", ""))
        if self.refused:
            self.outbox.end()
        self._started = self.outbox.begun and self.outbox.has(int(numbers.get("received", -1)))
        self._last = self.outbox.sent


class Link:
    """A thread that talks to a learner as long as the context lasts; an error that ends it is told to the learner.

    Args:
        outbox: whose steps are sent.
        endpoint: file that says where the learner listens; read again for every attempt.
        place: number of this actor.
        progress: told when the learner goes and comes back.
        give_up_s: an actor without a learner for so long ends.
    """

    def __init__(self, outbox: Outbox, endpoint: Path, place: int, progress: Progress = SILENT, give_up_s: float = GIVE_UP_S) -> None:
        self.outbox, self.endpoint, self.place, self.progress, self.give_up_s = outbox, endpoint, place, progress, give_up_s
        self._dialogue = Dialogue(outbox, place)
        self._away, self._heard_s = False, time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"actor {place}'s link", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Send what is left and why it ends, and end."""
        if error is not None:
            self._dialogue.last_word = str(error) or type(error).__name__
        self.outbox.end()
        self._thread.join(ANSWER_S)

    def _run(self) -> None:
        while True:
            try:
                caller = Caller(Endpoint.read(self.endpoint), ANSWER_S)
                try:
                    return self._talk(caller)
                finally:
                    caller.close()
            except (Lost, DataError) as e:
                if self.outbox.stop:
                    return
                if not self._away:
                    self._say(f"THE LEARNER IS GONE ({e}); acting on with the last weights, up to {self.outbox.room_steps} steps are kept")
                self._away = True
                if time.monotonic() - self._heard_s > self.give_up_s:
                    self._say(f"no learner for {self.give_up_s:.0f} s: ended")
                    return self.outbox.end()
                time.sleep(RETRY_S)

    def _talk(self, caller: Caller) -> None:
        """Until there is no need for more."""
        self._dialogue.anew()
        while (message := self._dialogue.next()) is not None:
            self._dialogue.answered(caller.ask(message))
            if self._away:
                self._say("the learner is back; all that it has not seen is sent")
            self._away, self._heard_s = False, time.monotonic()
        if self._dialogue.refused:
            self._say(self._dialogue.refused)

    def _say(self, text: str) -> None:
        self.progress.note(f"actor {self.place}: {text}")
