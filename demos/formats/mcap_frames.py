"""The frames of an episode out of the messages of a recording: vectors as they were known by then, pictures one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from demos.bags.bag import Bag
from demos.bags.topic import BagMessage, Topic
from demos.formats import messages
from demos.packets import StreamDecoder, is_key
from demos.video import decode_picture
from sinew.errors import DataError

LOOK_BACK_NS = 10_000_000_000
"""How long before an episode the key frame may be that its first pictures build on."""
STALE_S = 1.0
"""A value that stays away longer is told of with the episode."""
PAUSE_S = 60.0
"""Where nothing at all comes for longer, an episode ends: the recording was paused, or its clock was set anew."""


@dataclass
class Seen:
    """A topic as its first messages show it."""

    topic: Topic
    decode: messages.Decode | None = None
    kind: str = ""
    """"" for vectors, else as `messages.pictured` tells."""
    shape: tuple[int, int, int] = (0, 0, 0)
    vectors: dict[str, int] = field(default_factory=dict)
    """{path: D}."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stamps_ns: list[int] = field(default_factory=list)

    @property
    def rate_hz(self) -> float:
        """Messages per second where nothing pauses, 0 if unknown."""
        steps_ns = np.diff(self.stamps_ns)
        return 1e9 / float(np.median(steps_ns)) if len(steps_ns) and np.median(steps_ns) > 0 else 0.0

    def names_of(self, at: str) -> tuple[str, ...]:
        """Names of a vector's elements where they are told and differ."""
        names = self.names.get(at, ())
        return names if len(set(names)) == len(names) else ()


@dataclass(frozen=True)
class Span:
    """Where an episode is."""

    path: Path
    begin_ns: int = 0
    end_ns: int = 1 << 63
    task: str = ""
    success: bool | None = None


class Frames:
    """Vectors at the times of frames, and which message of each camera is shown; read in one pass, only frames are kept."""

    def __init__(self, span: Span, wanted: Mapping[str, tuple[str, str]], cameras: Sequence[str], seen: Mapping[str, Seen]) -> None:
        self.span, self.wanted, self.seen = span, wanted, seen
        self.count = self.begin_ns = self.dropped = 0
        self.rows: dict[str, list[np.ndarray]] = {v: [] for v in wanted}
        self.shown: dict[str, list[int]] = {topic: [] for topic in cameras}
        """{camera's topic: number of the message that each frame shows}."""
        self._newest: dict[str, np.ndarray] = {}
        self._numbers = dict.fromkeys(cameras, -1)
        self._came_ns: dict[str, int] = {}
        self._topics = {topic for topic, _ in wanted.values()} | set(cameras)
        self._stale: dict[str, int] = {}
        self._paused = ""

    def read(self, bag: Bag, period_ns: int) -> None:
        """Go through the bag."""
        next_ns = 0
        for message in bag.messages(self._topics, (self.span.begin_ns, self.span.end_ns)):
            if not self.span.begin_ns <= message.log_ns < self.span.end_ns:
                continue
            if next_ns and message.log_ns - next_ns > PAUSE_S * 1e9:
                pause_s = (message.log_ns - next_ns) / 1e9
                self._paused = (
                    f"nothing came for {pause_s:.0f} s, and what came afterwards is left out: a pause, or a clock that was set anew"
                )
                break
            while next_ns and message.log_ns > next_ns:
                self._frame()
                next_ns += period_ns
            self._take(message)
            if not next_ns and len(self._came_ns) == len(self._topics) and len(self._newest) == len(self.wanted):
                next_ns = self.begin_ns = message.log_ns
        if next_ns:
            self._frame()
            self._cut(min(self._came_ns.values()), period_ns)

    def why(self) -> str:
        """Why there is no frame."""
        never = sorted(self._topics - self._came_ns.keys())
        odd = f" ({self.dropped} messages were not as the first ones)" if self.dropped else ""
        return f"{', '.join(never) or 'something'} never came{odd}"

    def notes(self) -> tuple[str, ...]:
        """What was odd."""
        lines = [f"{topic} stayed away for {ns / 1e9:.1f} s" for topic, ns in self._stale.items()]
        lines += [self._paused] if self._paused else []
        return (*lines, *([f"{self.dropped} messages could not be used"] if self.dropped else []))

    def _take(self, message: BagMessage) -> None:
        topic = message.topic
        if topic in self._numbers:
            self._numbers[topic] += 1
        else:
            try:
                decode = self.seen[topic].decode
                found = {path: (values, names) for path, values, names in messages.vectors(decode(message.data) if decode else {})}
                for vector, (of, at) in self.wanted.items():
                    if of == topic:
                        self._newest[vector] = self._ordered(vector, *found[at])
            except (DataError, KeyError, ValueError):
                self.dropped += 1
                return
        before = self._came_ns.get(topic, message.log_ns)
        if self.begin_ns and message.log_ns - before > STALE_S * 1e9:
            self._stale[topic] = max(self._stale.get(topic, 0), message.log_ns - before)
        self._came_ns[topic] = message.log_ns

    def _ordered(self, vector: str, values: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """The elements in the order of the first message."""
        topic, at = self.wanted[vector]
        first = self.seen[topic].names_of(at)
        if first and names != first:
            values = values[[names.index(name) for name in first]]
        if len(values) != self.seen[topic].vectors[at] or not np.isfinite(values).all():
            raise ValueError(f"{vector} is another")
        return values

    def _frame(self) -> None:
        for vector, rows in self.rows.items():
            rows.append(self._newest[vector][None].astype(np.float32))
        for topic, shown in self.shown.items():
            shown.append(self._numbers[topic])
        self.count += 1

    def _cut(self, last_ns: int, period_ns: int) -> None:
        """Leave the frames after the last word of whichever topic ends first."""
        self.count = min(self.count, max(1, (last_ns - self.begin_ns) // period_ns + 1))
        self.rows = {vector: rows[: self.count] for vector, rows in self.rows.items()}


class Pictures:
    """The pictures of a camera in an episode, in order; a pass through the file of its own."""

    def __init__(self, span: Span, seen: Seen, shown: Sequence[int]) -> None:
        self._span, self._seen, self._shown = span, seen, shown
        self._made: Iterator[tuple[int, np.ndarray]] = iter(())
        self._newest: tuple[int, np.ndarray | None] = (-1, None)
        self._ended = True

    def at(self, frame: int) -> np.ndarray:
        """The picture of a frame.

        Raises:
            DataError: it cannot be decoded, or is of another size than the first.
        """
        wanted = self._shown[frame]
        if self._ended or wanted < self._newest[0]:
            self._made, self._newest, self._ended = self._decoded(), (-1, None), False
        while self._newest[0] < wanted:
            found = next(self._made, None)
            if found is None:
                break  # a picture at the end of a damaged video: the one before stays
            self._newest = found
        picture = self._newest[1]
        if picture is None or picture.shape != self._seen.shape:
            shape = "missing" if picture is None else f"{picture.shape[1]} x {picture.shape[0]}"
            usual = f"{self._seen.shape[1]} x {self._seen.shape[0]}"
            raise DataError(f"{self._span.path}: picture {wanted} of {self._seen.topic.name} is {shape}, the others are {usual}")
        return picture

    def _decoded(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number, picture) of the messages in the episode."""
        kind, decode, span = self._seen.kind, self._seen.decode, self._span
        stream = StreamDecoder(kind) if kind not in ("raw", "image") else None
        early: list[bytes] = []  # a video's packets before the episode, from the last key frame on
        number = -1
        for message in Bag(span.path).messages([self._seen.topic.name], (span.begin_ns - LOOK_BACK_NS, span.end_ns)):
            told = decode(message.data) if decode else {}
            if message.log_ns >= span.end_ns:
                break
            if message.log_ns < span.begin_ns:
                if stream is not None:
                    data = messages.picture_bytes(told)
                    early = [data] if is_key(kind, data) else [*early, data]
                continue
            number += 1
            if stream is None:
                yield number, messages.raw_picture(told) if kind == "raw" else decode_picture(messages.picture_bytes(told))
                continue
            for before in early:
                yield from (found for found in stream.decode(-1, before) if found[0] >= 0)
            early = []
            yield from (found for found in stream.decode(number, messages.picture_bytes(told)) if found[0] >= 0)
        if stream is not None:
            yield from (found for found in stream.decode(0, b"") if found[0] >= 0)
