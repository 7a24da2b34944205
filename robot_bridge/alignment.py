"""Frames from messages: the values of a contract at one time. A living robot and a recording are read by the same class.

All times are nanoseconds of one clock, the receiver's: monotonic time for a living robot, the log's for a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np

from robot_bridge.contract import Contract, Source
from robot_bridge.dds import codec
from robot_bridge.interfaces import Tap
from robot_bridge.readers import JointStates, Read, reader
from robot_bridge.timeline import Clocks, History, Kept
from robot_bridge.transforms import TransformTree
from sinew.errors import DataError

KEEP_S = 0.5
"""Vectors are kept this long beyond what delay and tolerance need, so that they can be asked for at a picture's time."""
STATIC = "/tf_static"
Decode = Callable[[], np.ndarray]


class Topic(NamedTuple):
    """A topic that an aligner wants to be fed."""

    name: str
    message: str
    qos: str


@dataclass(frozen=True)
class Frame:
    """The values of a contract at one time."""

    at_ns: int
    values: Mapping[str, np.ndarray]
    stamps_ns: Mapping[str, int]
    """When each value was true."""
    receipts_ns: Mapping[str, int]
    """When each value came; of one between two samples, the later's."""
    missing: tuple[str, ...]
    """Values that are not there, or too old."""


class Aligner:
    """Takes the messages of a contract's topics and tells their values at any recent time.

    `feed` may be called from several threads, each with topics of its own, while another asks for values.

    Args:
        contract: what is wanted.
        sources: those of the contract that are read; None for all. A living robot has `contract.live`.
        offset_ns: receiver's clock minus the clock of the headers: monotonic minus wall-clock time for a living robot,
            0 for a recording.
        eager: decode pictures as they are fed, so that whoever asks for values never waits for that.
    """

    def __init__(self, contract: Contract, *, sources: Sequence[Source] | None = None, offset_ns: int = 0, eager: bool = False) -> None:
        self.contract, self._eager = contract, eager
        self.sources = tuple(contract.sources if sources is None else sources)
        self.stamps_ns: dict[str, int] = {}
        """When each value of the last `values` was true."""
        self.dropped = 0
        """Messages that were damaged, or older than one before."""
        self.late = 0
        """Messages, and transforms, whose stamps are too far from the time when they were fed."""
        self.problem = ""
        """What was wrong with the last damaged one."""
        self.tap: Tap | None = None
        """Takes every sample, on the thread on which it is fed."""
        self._delay_ns = _ns(contract.delay_s)
        transforms = [s for s in self.sources if s.field == "transform"]
        self._tree = TransformTree(self._keep_ns(transforms)) if transforms else None
        self._histories = [History(self._keep_ns([s])) for s in self.sources]
        self._last_ns = [-(1 << 62)] * len(self.sources)
        self._index = {id(s): i for i, s in enumerate(self.sources)}
        self._groups = {key: [i for i, s in enumerate(self.sources) if s.key == key] for key in dict.fromkeys(s.key for s in self.sources)}
        self._names = [
            s.key if len(self._groups[s.key]) == 1 else f"{s.key}.{self._groups[s.key].index(i)}" for i, s in enumerate(self.sources)
        ]
        self._static = {STATIC if s.topic == "/tf" else s.topic + "_static" for s in transforms}
        self._followed = {s.child for s in transforms}
        tolerance_ns = _ns(contract.clock_tolerance_s)
        self._clocks = {name: Clocks(offset_ns, tolerance_ns) for name in {s.topic for s in self.sources}}
        self._read: dict[str, Read] = {}
        for name in self._clocks:
            wanted = [s for s in self.sources if s.topic == name]
            if wanted[0].field != "transform":
                self._read[name] = reader(wanted[0].message, wanted)
        self._by_receipt = {name: all(s.stamp == "receipt" for s in self.sources if s.topic == name) for name in self._clocks}

    @property
    def topics(self) -> tuple[Topic, ...]:
        """What must be fed; where transforms are wanted, the fixed ones too."""
        named = {s.topic: Topic(s.topic, s.message, "tf" if s.field == "transform" else s.qos) for s in self.sources}
        return (*named.values(), *(Topic(name, "tf2_msgs/TFMessage", "latched") for name in sorted(self._static)))

    # ------------------------------------------------------------ taking

    def feed(self, topic: str, data: bytes, receipt_ns: int, source_ns: int = 0) -> bool:
        """Take a message.

        Args:
            topic: where it came.
            data: CDR payload.
            receipt_ns: when it came, on the receiver's clock.
            source_ns: when it was sent, on the sender's clock; used where there is no header.

        Returns:
            Whether it was used; `dropped`, `late` and `problem` tell of the others.
        """
        take, late = self._take if topic in self._read else self._take_transforms, self.late
        try:
            used = take(topic, data, receipt_ns, source_ns)
        except DataError as e:
            self.problem, used = str(e), False
            if self.tap is not None:
                self.tap.happened("dropped", f"{topic}: damaged")
        self.dropped += not used and self.late == late
        if self.tap is not None and self.late != late:
            self.tap.happened("dropped", f"{topic}: of another time", self.late - late)
        return used

    def _take(self, topic: str, data: bytes, receipt_ns: int, source_ns: int) -> bool:
        header_ns, values = self._read[topic](data)
        by_receipt = self._by_receipt[topic]
        clocks, used = self._clocks[topic], False
        jumps = clocks.jumps
        stamp_ns = clocks.stamp(header_ns or (0 if by_receipt else source_ns), receipt_ns)
        if self.tap is not None and clocks.jumps != jumps:
            self.tap.happened("clock_jump", topic)
        if stamp_ns is None:
            self.late += 1
            return False
        for source, value in values:
            index = self._index[id(source)]
            if stamp_ns <= self._last_ns[index]:
                continue
            self._last_ns[index] = stamp_ns
            kept: Any = value if not callable(value) else value() if self._eager else _Picture(cast(Decode, value))
            own_ns = receipt_ns if source.stamp == "receipt" else stamp_ns
            used |= self._histories[index].add(own_ns, receipt_ns, kept)
            if self.tap is not None:
                self.tap.sample(self._names[index], stamp_ns, receipt_ns, None if source.image else kept)
        return used

    def _take_transforms(self, topic: str, data: bytes, receipt_ns: int, source_ns: int) -> bool:
        tree, used = self._tree, False
        if tree is None or (topic not in self._clocks and topic not in self._static):
            raise DataError(f"topic {topic} is none of those wanted: {', '.join(t.name for t in self.topics)}")
        for t in codec.decode_transforms(data):
            if topic in self._static:
                used |= tree.add(t.parent, t.child, np.array(t.pose), 0, receipt_ns, fixed=True)
                continue
            stamp_ns = receipt_ns if self._by_receipt[topic] else self._clocks[topic].stamp(t.stamp_ns, receipt_ns)
            if stamp_ns is None:
                self.late += 1
            else:
                new = tree.add(t.parent, t.child, np.array(t.pose), stamp_ns, receipt_ns)
                used |= new
                if new and self.tap is not None and t.child in self._followed:
                    self.tap.sample(f"tf.{t.child}", stamp_ns, receipt_ns, np.array(t.pose))
        return used

    # ------------------------------------------------------------ telling

    def values(self, at_ns: int) -> dict[str, np.ndarray]:
        """The values at a time, of what has been fed; those that are missing or too old are left out. See `stamps_ns`."""
        frame = self.frame(at_ns)
        self.stamps_ns = dict(frame.stamps_ns)
        return dict(frame.values)

    def frame(self, at_ns: int) -> Frame:
        """The values at a time, with their stamps and what is missing."""
        return self._collect(at_ns, lambda i, source: self._at(i, source, at_ns))

    def newest(self, now_ns: int) -> Frame:
        """The last sample of everything, however old: what a control loop looks at, which judges ages itself."""
        return self._collect(now_ns, lambda i, source: self._newest(i, source, now_ns))

    def seen(self, topic: str) -> tuple[str, ...]:
        """Joints that a topic's joint states have named."""
        read = self._read.get(topic)
        return tuple(read.seen) if isinstance(read, JointStates) else ()

    def ahead_s(self) -> dict[str, float]:
        """Topics whose senders' clocks differ from ours, with how far they are ahead, seconds."""
        return {name: clocks.ahead_ns / 1e9 for name, clocks in self._clocks.items() if clocks.ahead_ns}

    def _collect(self, at_ns: int, pick: Callable[[int, Source], Kept | None]) -> Frame:
        values: dict[str, np.ndarray] = {}
        stamps: dict[str, int] = {}
        receipts: dict[str, int] = {}
        missing = []
        for key, group in self._groups.items():
            found = [pick(i, self.sources[i]) for i in group]
            parts = [kept for kept in found if kept is not None]
            if len(parts) != len(found):
                missing.append(key)
                continue
            try:
                values[key] = _joined(key, parts)
            except DataError as e:
                self.problem = str(e)
                missing.append(key)
                continue
            stamps[key] = min(kept.stamp_ns for kept in parts)
            receipts[key] = min(kept.receipt_ns for kept in parts)
        return Frame(at_ns, values, stamps, receipts, tuple(missing))

    def _at(self, index: int, source: Source, at_ns: int) -> Kept | None:
        tolerance_ns, age_ns = _ns(source.tolerance_s), _ns(source.age_max_s)
        if source.field == "transform":
            tree = self._tree
            return None if tree is None else tree.lookup(source.frame, source.child, at_ns, source.alignment, tolerance_ns, age_ns)
        return self._histories[index].at(at_ns, source.alignment, tolerance_ns, age_ns)

    def _newest(self, index: int, source: Source, now_ns: int) -> Kept | None:
        if source.field == "transform":
            tree = self._tree
            kept = None if tree is None else tree.lookup(source.frame, source.child, 1 << 62, "newest", 1 << 62, 1 << 62)
            return kept and kept._replace(stamp_ns=min(kept.stamp_ns, now_ns), receipt_ns=min(kept.receipt_ns, now_ns))
        return self._histories[index].newest

    def _keep_ns(self, sources: Sequence[Source]) -> int:
        least = self._delay_ns + max(_ns(s.tolerance_s) for s in sources)
        return least if all(s.image for s in sources) else least + _ns(KEEP_S)


def frames(
    contract: Contract,
    messages: Iterable[tuple[str, bytes, int, int]],
    rate_hz: float | None = None,
    required: Collection[str] | None = None,
    aligner: Aligner | None = None,
) -> Iterator[Frame]:
    """The frames of a recording, as a living robot would have given them.

    Frame k is for the time of the first complete one plus k periods, and is made of what had come by `delay_s` after it:
    what came later is not used, as it could not have been.

    Args:
        contract: what is wanted.
        messages: (topic, CDR payload, receipt in ns, sender's time in ns) in the order of their receipt; other topics are
            passed over.
        rate_hz: frames per second; the contract's own by default.
        required: values without which no frame is complete; those that the contract requires by default.
        aligner: a new one, for whoever wants to know what it dropped.
    """
    aligner = aligner or Aligner(contract)
    wanted = {topic.name for topic in aligner.topics}
    needed = {s.key for s in aligner.sources if s.required} if required is None else set(required)
    period_ns, delay_ns = round(1e9 / (rate_hz or contract.rate_hz)), _ns(contract.delay_s)
    at_ns: int | None = None
    last_ns = 0
    for topic, data, receipt_ns, source_ns in messages:
        while at_ns is not None and receipt_ns > at_ns + delay_ns:
            yield aligner.frame(at_ns)
            at_ns += period_ns
        last_ns = receipt_ns
        if topic not in wanted:
            continue
        aligner.feed(topic, data, receipt_ns, source_ns)
        if at_ns is None and needed.isdisjoint(aligner.frame(receipt_ns).missing):
            at_ns = receipt_ns
    while at_ns is not None and at_ns + delay_ns <= last_ns:
        yield aligner.frame(at_ns)
        at_ns += period_ns


class _Picture:
    """A picture that is decoded when it is first looked at."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    @cached_property
    def image(self) -> np.ndarray:
        return self._decode()


def _joined(key: str, parts: Sequence[Kept]) -> np.ndarray:
    """The value of one or more sources of a key; a single gripper is a number."""
    values = [kept.value.image if isinstance(kept.value, _Picture) else kept.value for kept in parts]
    joined = values[0] if len(values) == 1 else np.concatenate([np.atleast_1d(v) for v in values])
    return joined[0] if key.endswith("gripper") and joined.shape == (1,) else joined


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


__all__ = ["Aligner", "Frame", "Topic", "frames"]
