"""Recordings of others: MCAP and SQLite bags without a contract, whatever their messages are (ROS 2's CDR, JSON, protocol buffers).

Frame k of an episode is for the first time at which all that is wanted has come, plus k periods, and is made of what had come by
then; it ends with the topic that ends first. Times are those of receipt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demos.bags.bag import METADATA, Bag, is_bag
from demos.formats import messages
from demos.formats.mcap_frames import Frames, Pictures, Seen, Span
from demos.formats.source import Choice, Described, Episode, chosen
from demos.packets import StreamDecoder
from demos.video import decode_picture
from sinew.errors import DataError, InputError, MissingDependency, unknown
from sinew.specs import ACTION

MARKERS = "/sinew/episode"
"""Topic of texts that tell where our own episodes begin and end."""
COMMANDS = re.compile(r"action|command|cmd|target|goal|desired|setpoint|leader", re.IGNORECASE)
"""Topics of such names hold what was asked of a robot."""
STATES = re.compile(r"joint_?states?|observation|proprio|robot_?state|state", re.IGNORECASE)
MAIN = ("position", "positions", "data", "value", "values", "actual.positions", "joints.position")
"""The vector of a message that is meant where only its topic is named."""
IDLE = ("image_raw", "compressed", "image", "image_rect", "color", "rgb", "video", "camera", "images", "observation", "theora", "h264")
"""Parts of a topic's name that do not name its camera."""
SAMPLES, MOST_LOOKED = 30, 200_000
"""Messages of each topic that its rate is taken from, and of all together."""
FASTEST_HZ, USUAL_HZ = 60, 30


def bags_of(path: Path) -> list[Path]:
    """The recordings at a path: itself, or those in a folder by name; none where there is none. A folder with rosbag2's metadata is one."""
    if is_bag(path) and (path.is_file() or (path / METADATA).is_file()):
        return [path]
    return sorted(p for p in path.iterdir() if not p.name.startswith(".") and is_bag(p)) if path.is_dir() else []


def is_it(path: Path) -> bool:
    """Whether a path is a bag or a folder of bags."""
    return bool(bags_of(path))


class Reader:
    """See `demos.formats.source.Source`. A vector is named by its topic and the path of its field, "/joint_states.position"; the topic
    alone means its positions or data. What is not chosen is guessed by names.

    Args:
        path: a bag, or a folder of bags, each of which is an episode unless our markers tell more.
        choice: topics or vectors by name.

    Raises:
        DataError: no bag, or nothing of it can be read.
        InputError: something was chosen that is not there, or the action cannot be guessed.
    """

    def __init__(self, path: Path, choice: Choice) -> None:
        self.path = path
        self.damage: list[str] = []
        self._bags = bags_of(path)
        self._seen = _look(Bag(self._bags[0]), self.damage)
        self._vectors = {f"{name}.{at}": (name, at) for name, s in self._seen.items() for at in s.vectors}
        self._cameras = self._named([name for name, s in self._seen.items() if s.kind], choice.cameras)
        action = self._pick((choice.action,), "action") if choice.action else self._guess_action()
        state = self._pick(choice.state, "vector") if choice.state else self._guess_state()
        environment = self._pick(choice.environment, "vector") or tuple(
            v for n in self._seen if "environment" in n and (v := self._main(n))
        )
        self._action = action[0]
        wanted = {v: self._seen[self._vectors[v][0]] for v in dict.fromkeys((*state, *environment, self._action))}
        self._wanted = {vector: self._vectors[vector] for vector in wanted}
        width = {vector: self._width(vector) for vector in wanted}
        self._spans = [span for bag in self._bags for span in _spans(bag)]
        self.described = Described(
            fps=choice.fps or self._rate(),
            vectors={v: width[v] for v in wanted},
            names={v: named for v in wanted if (named := wanted[v].names_of(self._vectors[v][1]))},
            state=state,
            environment=tuple(v for v in environment if v not in state),
            cameras={name: self._seen[topic].shape for name, topic in self._cameras.items()},
            action=self._action,
            action_dim=width[self._action],
            action_kind=choice.action_kind or "joint_position",
            episodes=len(self._spans),
        )

    def episode(self, index: int) -> Episode:
        """See `Source`; pictures are to be asked for in order."""
        span = self._spans[index]
        bag = Bag(span.path)
        for topic in {*self._cameras.values(), *(name for name, _ in self._wanted.values())} - bag.topics.keys():
            raise DataError(f"{span.path} has no topic {topic}, which the first recording has")
        frames = Frames(span, self._wanted, list(self._cameras.values()), self._seen)
        frames.read(bag, round(1e9 / self.described.fps))
        self.damage += [line for line in bag.damage if line not in self.damage]
        if not frames.count:
            raise DataError(f"{span.path}: episode {index} has no frame: {frames.why()}")
        vectors = {v: np.concatenate(rows) for v, rows in frames.rows.items()}
        vectors[ACTION] = vectors[self._action]
        pictures = {name: Pictures(span, self._seen[topic], frames.shown[topic]) for name, topic in self._cameras.items()}
        tasks = [span.task] * frames.count if span.task else ()
        shown = lambda camera, at: pictures[camera].at(at)  # noqa: E731
        return Episode(frames.count, vectors, shown, tasks, span.success, frames.begin_ns, frames.notes())

    def close(self) -> None:
        """Nothing stays open."""

    def _width(self, vector: str) -> int:
        name, at = self._vectors[vector]
        return self._seen[name].vectors[at]

    def _named(self, topics: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
        """{camera: topic}."""
        short = {topic: camera_of(topic) for topic in topics}
        clash = len(set(short.values())) < len(short)
        named = {re.sub(r"\W+", "_", topic).strip("_") if clash else name: topic for topic, name in short.items()}
        names = {**named, **{topic: topic for topic in topics}}
        picked = [names[name] for name in chosen(wanted, list(names), "camera")]
        return {name: topic for name, topic in named.items() if not wanted or topic in picked}

    def _pick(self, wanted: Sequence[str], what: str) -> tuple[str, ...]:
        return tuple(v if v in self._vectors else self._main(v) or _refuse(what, v, self._vectors, self.path) for v in wanted)

    def _main(self, topic: str) -> str | None:
        """The vector that is meant where a topic is named."""
        there = self._seen[topic].vectors if topic in self._seen else {}
        return next((f"{topic}.{at}" for at in (*MAIN, *there) if at in there), None)

    def _guess_action(self) -> tuple[str]:
        found = [vector for name in self._seen if COMMANDS.search(name) and (vector := self._main(name))]
        if len(found) == 1:
            return (found[0],)
        there = ", ".join(found[:5] or list(self._vectors)[:12])
        why = "each could be" if found else "none says that it is"
        raise InputError(f"{self.path}: of {there or 'its topics'} {why} the action: choose with --action, or give --contract")

    def _guess_state(self) -> tuple[str, ...]:
        topics = [name for name in self._seen if STATES.search(name) and not COMMANDS.search(name) and "environment" not in name]
        found = tuple(v for name in topics if (v := self._main(name)))
        if not found:
            there = ", ".join(list(self._vectors)[:12])
            raise InputError(f"{self.path}: of {there} none says that it is the state: choose with --state, or give --contract")
        return found

    def _rate(self) -> int:
        """That of the slowest camera, else of the action; at most `FASTEST_HZ`."""
        rates = [rate for topic in self._cameras.values() if (rate := self._seen[topic].rate_hz)]
        rate = min(rates) if rates else self._seen[self._vectors[self._action][0]].rate_hz or USUAL_HZ
        return max(1, min(FASTEST_HZ, round(rate)))


def _refuse(what: str, name: str, known: Mapping[str, Any], path: Path) -> str:
    raise unknown(f"{what} of {path.name}", name, known)


def camera_of(topic: str) -> str:
    """The camera's name in a topic's: "/camera/front/color/image_raw/compressed" is "front"."""
    parts = [p for p in topic.split("/") if p and p.lower() not in IDLE]
    return re.sub(r"\W+", "_", parts[-1]) if parts else "front"


def _look(bag: Bag, damage: list[str]) -> dict[str, Seen]:
    """Every topic that can be read, by the first messages."""
    topics = bag.topics
    seen = {name: Seen(topic) for name, topic in topics.items()}
    left = {name for name, count in bag.counts.items() if count}
    unread: dict[str, str] = {}
    for number, message in enumerate(bag.messages(topics.keys())):
        one = seen[message.topic]
        if len(one.stamps_ns) < SAMPLES:
            one.stamps_ns.append(message.log_ns)
        if one.decode is None and message.topic not in unread:
            try:
                _learn(one, message.data)
            except (DataError, MissingDependency) as e:
                unread[message.topic] = str(e)
        if len(one.stamps_ns) >= min(SAMPLES, bag.counts[message.topic]):
            left.discard(message.topic)
        if not left or number > MOST_LOOKED:
            break
    damage += [line for line in unread.values() if line not in damage]
    found = {name: one for name, one in seen.items() if one.decode is not None and (one.kind or one.vectors)}
    if not found:
        raise DataError(f"{bag.path} holds nothing that can be read: {next(iter(unread.values()), 'it has no messages')}")
    return found


def _learn(seen: Seen, data: bytes) -> None:
    decode = messages.decoder(seen.topic)
    message = decode(data)
    seen.kind = messages.pictured(message)
    if seen.kind:
        picture = _first_picture(seen.kind, message)
        if picture is None:
            return  # a stream may begin between key frames: the next message tells
        seen.shape = (picture.shape[0], picture.shape[1], 3)
    else:
        for path, values, names in messages.vectors(message):
            seen.vectors[path], seen.names[path] = len(values), names
    seen.decode = decode


def _first_picture(kind: str, message: Mapping[str, Any]) -> np.ndarray | None:
    if kind == "raw":
        return messages.raw_picture(message)
    data = messages.picture_bytes(message)
    if kind == "image":
        return decode_picture(data)
    decoder = StreamDecoder(kind)
    found = [picture for part in (data, b"") for _, picture in decoder.decode(0, part)]
    return found[0] if found else None


def _spans(path: Path) -> list[Span]:
    """The episodes of a bag: as our markers tell them, else all of it is one."""
    bag = Bag(path)
    if MARKERS not in bag.topics:
        return [Span(path)]
    decode, found, begun = messages.decoder(bag.topics[MARKERS]), [], None
    for message in bag.messages([MARKERS]):
        try:
            told = json.loads(str(decode(message.data).get("data")))
            event, task, success = str(told["event"]), str(told.get("task") or ""), told.get("success")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(f"{path}: a marker on {MARKERS} cannot be read") from None
        if begun is not None:
            found.append(Span(path, *begun[:1], message.log_ns, begun[1], success if isinstance(success, bool) else None))
        begun = (message.log_ns, task) if event == "begin" else None
    if begun is not None:
        found.append(Span(path, begun[0], 1 << 63, begun[1]))
    return found or [Span(path)]
