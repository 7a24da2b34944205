"""Carries what an actor did to its learner over a socket, through the learner's absences."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rl.outpost import Outbox, Outpost
from rl.parcels import pack, pack_steps, pack_tensors, unpack
from rl.transport import Caller, Endpoint, Lost
from sinew.errors import DataError
from sinew.progress import SILENT, Progress
from sinew.protocols import VecEnv

BEAT_S = 2.0
"""An actor says something at least this often, and is answered at once."""
ANSWER_S = 15.0
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


T = TypeVar("T")


def act_for(
    learn: Callable[[Outpost], T],
    env: VecEnv,
    endpoint: Path,
    place: int,
    progress: Progress = SILENT,
    *,
    give_up_s: float = GIVE_UP_S,
) -> T:
    """Act in these worlds for the learner that listens at `endpoint`, until it has enough.

    Args:
        learn: what learns in worlds of its own when it is given worlds, for example `rl.residual.train_residual` with all else
            filled in; it is given an outpost, and acts.
        env: worlds.
        endpoint: file that the learner's run has (`rl.crew.ENDPOINT`).
        place: number of this actor.
        progress: told when the learner goes and comes back.
        give_up_s: an actor without a learner for so long ends.
    """
    outbox = Outbox(secrets.token_hex(4))
    link = Link(outbox, endpoint, place, progress, give_up_s)
    try:
        return learn(Outpost(env, outbox, place, progress))
    except BaseException as e:
        link.fail(str(e) or type(e).__name__)
        raise
    finally:
        link.close()


class Link:
    """A thread that sends and is answered.

    Args:
        outbox: whose steps are sent.
        endpoint: file that says where the learner listens; read again for every attempt.
        place: number of this actor.
        progress: told when the learner goes and comes back.
        give_up_s: an actor without a learner for so long ends.
    """

    def __init__(self, outbox: Outbox, endpoint: Path, place: int, progress: Progress = SILENT, give_up_s: float = GIVE_UP_S) -> None:
        self.outbox, self.endpoint, self.place, self.progress, self.give_up_s = outbox, endpoint, place, progress, give_up_s
        self.refused = ""
        self._last_word: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"actor {place}'s link", daemon=True)
        self._thread.start()

    def fail(self, text: str) -> None:
        """Tell the learner why this actor ends."""
        self._last_word = text

    def close(self, timeout_s: float = ANSWER_S) -> None:
        """Send what is left, and end."""
        self.outbox.end()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        seen_s = time.monotonic()
        away = False
        while not self.outbox.stop or self._last_word is not None:
            try:
                caller = Caller(Endpoint.read(self.endpoint), ANSWER_S)
                try:
                    self._introduce(caller)
                    if away:
                        self.progress.note(f"actor {self.place}: the learner is back; all that it has not seen is sent")
                    away = False
                    self._talk(caller)
                finally:
                    caller.close()
                    seen_s = seen_s if away else time.monotonic()
                return
            except (Lost, DataError) as e:
                if not away and not self.outbox.stop:
                    self.progress.note(
                        f"actor {self.place}: THE LEARNER IS GONE ({e}); acting on with the last weights, "
                        f"up to {self.outbox.room_steps} steps are kept; trying again for {self.give_up_s:.0f} s"
                    )
                away = True
                if time.monotonic() - seen_s > self.give_up_s or self._last_word is not None:
                    self.progress.note(f"actor {self.place}: no learner for {self.give_up_s:.0f} s: ended")
                    self.outbox.end()
                    return
                time.sleep(RETRY_S)

    def _introduce(self, caller: Caller) -> None:
        """Say who this is, and learn what has to be sent again."""
        while self.outbox.like is None and not self.outbox.stop:
            time.sleep(0.01)
        like = pack_tensors(self.outbox.like or {})
        _, numbers, _ = unpack(caller.ask(pack("hello", {"place": self.place, "life": self.outbox.life}, like)))
        if numbers.get("refused"):
            self.refused = str(numbers["refused"])
            self.progress.note(f"actor {self.place}: {self.refused}")
            self.outbox.end()
        self._started = self.outbox.begun and self.outbox.has(int(numbers.get("received", -1)))

    def _talk(self, caller: Caller) -> None:
        """Until there is no need for more."""
        while not self.outbox.stop:
            self.outbox.wait(BEAT_S if self.outbox.go else HELD_S)
            time.sleep(GATHER_S)
            if self.outbox.begun and not self._started:
                number, frames = self.outbox.base
                self._ask(caller, pack("start", {"number": number}, pack_tensors(frames)))
                self.outbox.has(number)
                self._started = True
            records = self.outbox.pending(TOGETHER) if self._started else []
            self._ask(caller, pack("steps", *pack_steps(records)) if records else pack("beat", {}))
            if records:
                self.outbox.sent = records[-1].number
        while (records := self.outbox.pending(TOGETHER)) and self._started:
            self._ask(caller, pack("steps", *pack_steps(records)))
            self.outbox.sent = records[-1].number
        if not self.refused:
            self._ask(caller, pack("end", {"why": self._last_word or ""}))
        self._last_word = None

    def _ask(self, caller: Caller, message: bytes) -> None:
        kind, numbers, weights = unpack(caller.ask(message))
        if kind != "answer":
            raise Lost(f"the learner answered {kind}")
        self.outbox.answered(numbers, weights)
