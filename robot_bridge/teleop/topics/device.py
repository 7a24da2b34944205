"""Taking over by topics: what arrives moves the robot while it is fresh."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast, get_args

from robot_bridge.dds import codec
from robot_bridge.takeover import Given, Request
from robot_bridge.teleop.mailbox import Mailbox
from robot_bridge.teleop.topics.config import TopicConfig
from robot_bridge.teleop.topics.reading import Said, reader_of
from robot_bridge.transport import DEFAULT, Profile, Subscription, Transport
from sinew.errors import DataError, InputError

MOTION = Profile(reliable=False, depth=1)
"""Only the newest counts; best effort matches every publisher."""
POLL_S = 0.02
TOLD_S = 5.0
"""A message that cannot be read is told of no more often than this."""
_log = logging.getLogger(__name__)


class TopicTakeover(Mailbox):
    """Topics that move the arms.

    Args:
        config: which topics.
        node: of the network; closed with this.
        joints: of each arm, in the robot's order.
        speed: largest speeds of a tool, m/s and rad/s.

    Raises:
        InputError: a topic moves an arm or a joint that the robot does not have.
    """

    def __init__(self, config: TopicConfig, node: Transport, joints: Sequence[Sequence[str]], speed: tuple[float, float]) -> None:
        super().__init__(config.max_age_s)
        wrong = [s for s in config.sources if s.arm >= len(joints)]
        if wrong:
            raise InputError(f"{wrong[0].topic} moves arm {wrong[0].arm}; the robot has {len(joints)}, counted from 0")
        for source in config.sources:
            foreign = sorted(set(source.joints) - set(joints[source.arm]))
            if foreign:
                raise InputError(f"joint {foreign[0]!r} is none of arm {source.arm}'s: {', '.join(joints[source.arm])}")
        self._node = node
        self._sources = [
            (s, node.subscription(s.topic, s.message, MOTION), reader_of(s, joints[s.arm], len(joints), speed)) for s in config.sources
        ]
        self._enable = node.subscription(config.enable, "std_msgs/Bool", MOTION) if config.enable else None
        self._enabled_s = -1e9
        self._parts: dict[str, tuple[float, Said]] = {}
        self._told_s = -1e9
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name="teleop topics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `Takeover.close`."""
        self._quit.set()
        self._thread.join()
        self._node.close()

    def _run(self) -> None:
        while not self._quit.is_set():
            self._sources[0][1].wait(POLL_S)
            if self._listen(time.monotonic()):
                given = self._together(time.monotonic())
                self.release() if given is None else self.put(given)

    def _listen(self, now_s: float) -> bool:
        """Take what has arrived; whether anything has."""
        heard = False
        for sample in self._enable.take() if self._enable else ():
            heard = True
            self._enabled_s = now_s if self._is_true(sample.data) else -1e9
        for source, subscription, read in self._sources:
            for sample in subscription.take():
                heard = True
                try:
                    said = read(sample.data)
                except DataError as e:
                    said = Said()
                    self._warn(e)
                for word in said.words:
                    self.say(word)
                self._parts[source.topic] = (now_s, said)
        return heard

    def _is_true(self, data: bytes) -> bool:
        try:
            return bool(codec.decode(data, "std_msgs/Bool").data)
        except DataError as e:
            self._warn(e)
            return False

    def _warn(self, problem: DataError) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s > TOLD_S:
            self._told_s = now_s
            _log.warning("%s", problem)

    def _together(self, now_s: float) -> Given | None:
        """What all topics ask that are fresh; None where the person is not in control."""
        if self._enable is not None and now_s - self._enabled_s > self.max_age_s:
            return None
        fresh = [(source, said) for source, _, _ in self._sources if (said := self._fresh_part(source.topic, now_s)) is not None]
        openings = {source.arm: said.opening for source, said in fresh if said.opening is not None}
        moving: dict[int, Given] = {}
        for _, said in fresh:
            if said.given is not None:
                moving.setdefault(said.given.arm, said.given)
        given = [replace(part, open=openings.get(arm, part.open)) for arm, part in moving.items()]
        return replace(given[0], also=tuple(given[1:])) if given else None

    def _fresh_part(self, topic: str, now_s: float) -> Said | None:
        at_s, said = self._parts.get(topic, (-1e9, None))
        return said if now_s - at_s <= self.max_age_s else None


class TopicWords(Mailbox):
    """Words by topic, for a device beside it: std_msgs/String.

    Args:
        node: of the network; closed with this.
        topic: its name.
    """

    def __init__(self, node: Transport, topic: str) -> None:
        super().__init__(1.0)
        self._node = node
        self._subscription: Subscription = node.subscription(topic, "std_msgs/String", DEFAULT)

    def request(self) -> Request | None:
        """See `Takeover.request`; what is no word is said so and passed over."""
        for sample in self._subscription.take():
            try:
                word = str(codec.decode(sample.data, "std_msgs/String").data).strip().lower()
            except DataError as e:
                word = str(e)
            if word in get_args(Request):
                self.say(cast(Request, word))
            else:
                _log.warning("%s: %r is no word; there are %s", self._subscription.topic, word, ", ".join(get_args(Request)))
        return super().request()

    def close(self) -> None:
        """See `Takeover.close`."""
        self._node.close()
