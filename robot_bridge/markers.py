"""Where episodes begin and end in a recording: messages on a topic, ours or anybody's."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from demos.bags import BagMessage
from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank
from sinew.errors import DataError

EPISODES = "/sinew/episode"
"""std_msgs/String holding JSON: {"event": "begin", "task": text} and {"event": "end", "success": true, false or null}."""
TEXT, TRUTH = "std_msgs/String", "std_msgs/Bool"


@dataclass(frozen=True)
class Episode:
    """What the markers tell of an episode."""

    begin_ns: int
    end_ns: int = (1 << 63) - 1
    """Frames at this time are not in it any more."""
    task: str = ""
    success: bool | None = None


def begin(task: str) -> bytes:
    """The message that an episode begins with."""
    return _text({"event": "begin", "task": task})


def end(success: bool | None) -> bytes:
    """The message that it ends with."""
    return _text({"event": "end", "success": success})


def text(said: str) -> bytes:
    """std_msgs/String."""
    return bytes(codec.encode(blank(TEXT, data=said)))


def _text(said: dict[str, Any]) -> bytes:
    return text(json.dumps(said))


class Markers:
    """Watches the messages of a recording pass and tells which episode a frame is in.

    Without a topic of episodes all of it is one. A Bool begins an episode with true and ends it with false; a String holds our
    JSON, or the task of the episode that begins (an empty one ends it); any other message begins one and ends the one before.

    Args:
        topic: where episodes are told; empty for nowhere.
        message: its type, "std_msgs/Bool".
        success: topic of std_msgs/Bool whose last word in an episode tells whether it succeeded; empty for none.
    """

    def __init__(self, topic: str = "", message: str = "", success: str = "") -> None:
        self.topic, self.message, self.success = topic, message, success
        self._events: deque[tuple[int, bool, str | None, bool | None]] = deque()
        self._current: Episode | None = None if topic else Episode(0)

    def watch(self, messages: Iterable[BagMessage]) -> Iterator[tuple[str, bytes, int, int]]:
        """Messages as `alignment.frames` takes them."""
        for message in messages:
            if self.topic and message.topic == self.topic:
                self._mark(message)
            elif self.success and message.topic == self.success:
                said = bool(codec.decode(message.data, TRUTH).data)
                self._events.append((message.log_ns, False, None, said))
            yield message.topic, message.data, message.log_ns, message.publish_ns

    def at(self, at_ns: int) -> tuple[Episode | None, Episode | None]:
        """The episode that has ended by a time and was not told yet, and the one that a frame at this time is in.

        To be asked in the order of time, again while it tells an end.
        """
        while self._events and self._events[0][0] <= at_ns:
            event_ns, begins, task, success = self._events.popleft()
            if begins or task == "":
                ended, self._current = self._current, Episode(event_ns, task=task or "") if begins else None
                if ended is not None:
                    told = ended if success is None else replace(ended, success=success)
                    return replace(told, end_ns=event_ns), self._current
            elif self._current is not None:
                self._current = replace(self._current, success=success)
        return None, self._current

    def finish(self) -> Episode | None:
        """The episode that the recording ends in, if it does."""
        return self._current

    def _mark(self, message: BagMessage) -> None:
        """(time, begins, task; "" where one ends, success)."""
        if self.message == TRUTH:
            begins, task, success = bool(codec.decode(message.data, TRUTH).data), None, None
        elif self.message == TEXT:
            begins, task, success = _said(codec.decode(message.data, TEXT).data)
        else:
            begins, task, success = True, None, None
        self._events.append((message.log_ns, begins, task if begins else "", success))


def _said(said: str) -> tuple[bool, str | None, bool | None]:
    """Whether a text begins an episode, its task, and success where it ends one."""
    if not said.lstrip().startswith("{"):
        return bool(said.strip()), said.strip(), None
    try:
        told = json.loads(said)
        event, task, success = told["event"], told.get("task"), told.get("success")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DataError(f"a marker of episodes cannot be read ({e}): {said[:80]!r}") from None
    if event not in ("begin", "end") or not isinstance(task, str | None) or not isinstance(success, bool | None):
        form = '{"event": "begin" or "end", "task": text, "success": true, false or null}'
        raise DataError(f"a marker of episodes is {said[:80]!r}, it must be {form}")
    return event == "begin", task, success
