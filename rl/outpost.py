"""Worlds whose learning half is elsewhere: they act with the newest weights that reach them and keep what is not safe there yet."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from rl.loop_config import LoopConfig, LoopResult
from rl.parcels import Record, unpack_tensors
from rl.worlds import Method, Step, Worlds
from sinew.protocols import VecEnv

BUFFER_BYTES = 256 * 2**20
"""What an actor keeps of steps that are in no checkpoint of the learner yet."""


class Outbox:
    """Steps on their way: numbered, kept until the learner has them in a checkpoint, as far as there is room.

    Safe to be used by the thread that acts and by the one that sends. When the learner went away and comes back from a
    checkpoint, it says what it has, and everything after that is sent again.

    Args:
        room: bytes. What the learner has received is dropped first; where it has not, acting waits.
    """

    def __init__(self, room: int = BUFFER_BYTES) -> None:
        self.life, self.room = secrets.token_hex(4), room
        self.base: tuple[int, Mapping[str, Tensor]] = (0, {})
        """Number of the last step that was dropped, and the frames after it."""
        self.like: Mapping[str, Tensor] | None = None
        """What frames look like."""
        self.begun = False
        self.step = self.version = self.sent = 0
        self.go = self.stop = False
        self.waited_s = 0.0
        self._weights: bytes | None = None
        self._records: deque[tuple[Record, int]] = deque()
        self.made = 0
        """Steps so far."""
        self._received = self._bytes = 0
        self._size = 1
        self._changed = threading.Condition()

    def introduce(self, frames: Mapping[str, Tensor]) -> bool:
        """Tell the learner what frames look like, and wait for the first weights. False if there is no need for any."""
        with self._changed:
            self.like = frames
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._weights is not None or self.stop)
            return not self.stop

    def begin(self, frames: Mapping[str, Tensor]) -> None:
        """The stream starts with all worlds anew."""
        with self._changed:
            self.base, self.begun = (0, frames), True
            self._changed.notify_all()

    def put(self, step: Step, version: int) -> bool:
        """Keep a step to be sent; waits while there is no room or the learner asks to. False if there is no need for more."""
        with self._changed:
            if self.stop:
                return False
            parts = (step.action, step.reward, *step.frames.values(), *(step.final or {}).values())
            self._size = sum(v.nbytes for v in parts) + 64
            self.made += 1
            self._records.append((Record(self.made, step, version), self._size))
            self._bytes += self._size
            self._make_room()
            self._changed.notify_all()
            started = time.monotonic()
            while not self.stop and (not self.go or self._bytes > self.room):
                self._changed.wait(1.0)
            self.waited_s += time.monotonic() - started
            return not self.stop

    def _make_room(self) -> None:
        """Drop what the learner has, though in no checkpoint, where there is no room for all of it."""
        while self._bytes > self.room and self._records and self._records[0][0].number <= self._received:
            self._drop()

    def _drop(self) -> None:
        gone, size = self._records.popleft()
        self.base = (gone.number, gone.step.frames)
        self._bytes -= size

    @property
    def room_steps(self) -> int:
        """Steps of all its worlds that fit, by the size of the newest."""
        return self.room // max(1, self._size)

    def pending(self, limit: int) -> list[Record]:
        """The next steps to send, at most `limit`."""
        with self._changed:
            if not self._records:
                return []
            start = max(0, self.sent + 1 - self._records[0][0].number)
            return [self._records[i][0] for i in range(start, min(len(self._records), start + limit))]

    def wait(self, timeout_s: float) -> None:
        """Until there is something to send, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.made > self.sent or self.stop, timeout_s)

    def has(self, received: int) -> bool:
        """Whether everything after step `received` is still here; if so it is what is sent next."""
        with self._changed:
            there = self.base[0] <= received <= self.made
            self.sent = self._received = received if there else self.base[0]
            return there

    def answered(self, numbers: Mapping[str, Any], weights: bytes) -> None:
        """Take in what the learner says: what it has, what is safe, whether to go on, and new weights."""
        with self._changed:
            self._received, self.step = int(numbers["received"]), int(numbers["step"])
            self.go, self.stop = bool(numbers["go"]), self.stop or bool(numbers["stop"])
            while self._records and self._records[0][0].number <= int(numbers["safe"]):
                self._drop()
            self._make_room()
            if weights:
                self._weights, self.version = weights, int(numbers["version"])
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing is wanted any more."""
        with self._changed:
            self.stop = True
            self._changed.notify_all()

    def new_weights(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest weights and the updates behind them, once."""
        with self._changed:
            found, self._weights = self._weights, None
            version = self.version
        return None if found is None else (version, unpack_tensors(found))


class Outpost:
    """Given to a runner in place of worlds: it acts for a learner that is elsewhere.

    New weights are taken in between two steps. A decision of a method holds for its `stride`, so a chunk is always of one
    set of weights.

    Args:
        env: the worlds.
        outbox: what was done goes there, and weights come from there.
        place: number of this place, from 0.
    """

    def __init__(self, env: VecEnv, outbox: Outbox, place: int) -> None:
        self.env, self.outbox, self.place, self._paused = env, outbox, place, False
        self.num_envs, self.action_spec = env.num_envs, env.action_spec
        self.max_episode_steps, self.observation_spec = env.max_episode_steps, env.observation_spec

    def act(self, method: Method, config: LoopConfig) -> LoopResult:
        """Act until the learner has enough, or somebody who stands beside the worlds asks to stop."""
        outbox = self.outbox
        stream = (config.seed, 1 + self.place, int(outbox.life, 16))
        worlds = Worlds(self.env, method, stream, int(np.random.SeedSequence(stream).generate_state(1)[0]))
        frames, steps, successes, version = worlds.start(0, 0), 0, 0, 0
        keys = tuple(method.layout(frames))
        if outbox.introduce(_kept(frames, keys)):
            version = self._take_weights(method, version)
            outbox.begin(_kept(worlds.start(1, outbox.step), keys))
        while not outbox.stop and self._may_act(worlds):
            version = self._take_weights(method, version)
            made = worlds.step(outbox.step)
            steps, successes = steps + self.num_envs, successes + int(sum(made.success))
            final = None if made.final is None else _kept(made.final, keys)
            if not outbox.put(replace(made, frames=_kept(made.frames, keys), final=final), version):
                break
        return LoopResult(steps, 0, None, None, (), successes, "the learner has enough")

    def _take_weights(self, method: Method, version: int) -> int:
        new = self.outbox.new_weights()
        if new is None:
            return version
        method.actor.load_state_dict(new[1])
        return new[0]

    def _may_act(self, worlds: Worlds) -> bool:
        """Obey requests: False to stop."""
        asked = worlds.control() if worlds.control is not None else None
        while asked == "pause" or (asked is None and self._paused):
            self._paused = True
            time.sleep(0.02)
            if self.outbox.stop:
                return False
            asked = worlds.control() if worlds.control is not None else "resume"
        self._paused = False
        return asked != "stop"


def _kept(frames: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Tensor]:
    """Copies: worlds may use their tensors again."""
    return {key: frames[key].detach().cpu().clone() for key in keys}
