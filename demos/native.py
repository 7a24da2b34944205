"""What a recording keeps beside its frames: every sample of every stream at its own rate, and what was lost, episode by episode.

While an episode is recorded, each stream is a file of fixed-size rows with a checksum, and each loss is a line of its own, so that a
killed process leaves all but the sample that it was writing. A saved episode has one Parquet file under native/, which LeRobot passes over.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from sinew.errors import DataError

SAMPLES, EVENTS = ".samples", "events.jsonl"
FRAMES = "frames"
"""Stream with one sample per frame: its time, and how old each value was that it shows, seconds."""
GAP = 1.5
"""Times the usual interval of a stream, beyond which messages are missing."""
SAME_S = 1e-6
"""Stamps nearer to each other are of the same picture."""
WIDEST = 4096
"""No sample has more values: a larger number in a file is damage."""
Sample = tuple[int, int, "np.ndarray | None"]
"""When it was true and when it came, nanoseconds on the recording's clock, and its values (D,); None for a picture."""


@dataclass(frozen=True)
class Samples:
    """All samples of one stream, in the order in which they came."""

    stamps_ns: np.ndarray
    """(n,) int64: when each was true."""
    receipts_ns: np.ndarray
    """(n,) int64: when each came."""
    values: np.ndarray
    """(n, D); D is 0 for pictures."""

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def between(self, first_ns: int, end_ns: int) -> Samples:
        """The samples that were true from one time up to, and without, another."""
        chosen = (self.stamps_ns >= first_ns) & (self.stamps_ns < end_ns)
        return Samples(self.stamps_ns[chosen], self.receipts_ns[chosen], self.values[chosen])


@dataclass(frozen=True)
class Beside:
    """What was kept beside the frames of an episode."""

    streams: Mapping[str, Samples] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()
    """What happened: "what", "of" and "n". Counted are "lost", "dropped", "skipped" and "clock_jump". "numbered" names a stream whose
    losses its sequence tells, "cut" a pause ("after": samples that each stream had by then), "ages" what the stream of frames tells the
    ages of ("names"), "alignment" how values of different times became frames ("policy")."""

    def __bool__(self) -> bool:
        return bool(self.streams) or bool(self.events)


class SampleLog:
    """Appends samples and events to the folder of an episode in progress; used by one thread.

    Args:
        folder: of the journal; it is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bytes = folder, 0
        self._files: dict[str, int] = {}
        self._widths: dict[str, int] = {}

    def add(self, stream: str, samples: Iterable[Sample]) -> None:
        """Write samples of one stream; when this returns they survive the end of this process.

        Raises:
            DataError: a sample has another number of values than those before it.
            OSError: the disk is full.
        """
        rows = bytearray()
        for stamp_ns, receipt_ns, value in samples:
            numbers = np.zeros(0) if value is None else np.ravel(np.asarray(value, dtype=np.float64))
            width = self._widths.setdefault(stream, len(numbers))
            if len(numbers) != width:
                raise DataError(f"{stream} has {len(numbers)} values now and had {width} before in this episode")
            row = int(stamp_ns).to_bytes(8, "little", signed=True) + int(receipt_ns).to_bytes(8, "little", signed=True) + numbers.tobytes()
            rows += row + zlib.crc32(row).to_bytes(4, "little")
        if stream not in self._files:
            head = json.dumps({"stream": stream, "width": self._widths[stream]}).encode() + b"\n"
            self._files[stream] = _open(self.folder / (quote(stream, safe="") + SAMPLES))
            rows[:0] = head
        self._write(stream, bytes(rows))

    def note(self, what: str, of: str, n: int = 1, **more: Any) -> None:
        """Write an event.

        Raises:
            OSError: the disk is full.
        """
        if EVENTS not in self._files:
            self._files[EVENTS] = _open(self.folder / EVENTS)
        self._write(EVENTS, json.dumps({"what": what, "of": of, "n": n, **more}).encode() + b"\n")

    def flush(self) -> None:
        """Ask the disk to hold what was written."""
        for fd in tuple(self._files.values()):
            os.fdatasync(fd)

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _write(self, name: str, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._files[name], view) :]
        self.bytes += len(data)


def read_log(folder: Path) -> Beside:
    """Every whole sample and event of an episode in progress; what a killed process tore is left out."""
    streams = {}
    for path in sorted(folder.glob(f"*{SAMPLES}")):
        head, _, data = path.read_bytes().partition(b"\n")
        try:
            told = json.loads(head)
            name, width = str(told["stream"]), int(told["width"])
        except (ValueError, KeyError, TypeError):
            continue
        if 0 <= width <= WIDEST:
            streams[name] = _whole_rows(data, width)
    events = []
    for line in (folder / EVENTS).read_bytes().split(b"\n")[:-1] if (folder / EVENTS).exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            break
        if isinstance(event, dict):
            events.append(event)
    return Beside({k: v for k, v in streams.items() if len(v)}, events)


def _whole_rows(data: bytes, width: int) -> Samples:
    kind = np.dtype([("stamp", "<i8"), ("receipt", "<i8"), ("value", "<f8", (width,)), ("crc", "<u4")])
    rows = np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], kind)
    good, size = len(rows), kind.itemsize
    for i, crc in enumerate(rows["crc"].tolist()):
        if zlib.crc32(data[i * size : (i + 1) * size - 4]) != crc:
            good = i
            break
    rows = rows[:good]
    return Samples(rows["stamp"].astype(np.int64), rows["receipt"].astype(np.int64), rows["value"].reshape(good, width).astype(np.float32))


def account(beside: Beside) -> dict[str, Any]:
    """What came, what was used and what was lost, of one episode; JSON-able.

    Returns:
        "streams": per stream "came", "rate_hz", "lost" (None where neither sequence nor a sender's stamps tell), "longest_gap_s", and of
        cameras "shown" (different pictures in the frames), "passed_over" (came and not shown) and "repeated" (frames that show the picture
        of the frame before). "frames"; "dropped", "skipped" and "clock_jumps": counts by reason; "ages" and "alignment" as in the events.
    """
    cuts = _cuts(beside)
    counts: dict[str, Counter[str]] = {"lost": Counter(), "dropped": Counter(), "skipped": Counter(), "clock_jump": Counter()}
    for event in beside.events:
        if event.get("what") in counts:
            counts[event["what"]][str(event.get("of", ""))] += int(event.get("n", 1))
    numbered = {str(e.get("of")) for e in beside.events if e.get("what") == "numbered"}
    streams = {
        k: _stream(v, cuts.get(k, ()), counts["lost"][k] if k in numbered else None) for k, v in beside.streams.items() if k != FRAMES
    }
    frames = beside.streams.get(FRAMES)
    names = next((e["names"] for e in beside.events if e.get("what") == "ages"), [])
    for i, name in enumerate(names if frames is not None and frames.values.shape[1] == len(names) else []):
        if frames is not None and name in streams and beside.streams[name].values.shape[1] == 0:
            shown = frames.stamps_ns - np.round(frames.values[:, i].astype(np.float64) * 1e9).astype(np.int64)
            different = 1 + int((np.diff(shown) > SAME_S * 1e9).sum())
            came = streams[name]["came"]
            streams[name] |= {"shown": different, "passed_over": max(came - different, 0), "repeated": len(frames) - different}
    told = {"streams": streams, "frames": len(frames) if frames is not None else 0, "ages": list(names)}
    told |= {"cuts": cuts} if cuts else {}
    told["alignment"] = next((e["policy"] for e in beside.events if e.get("what") == "alignment"), None)
    return told | {"dropped": dict(counts["dropped"]), "skipped": dict(counts["skipped"]), "clock_jumps": dict(counts["clock_jump"])}


def _cuts(beside: Beside) -> dict[str, list[int]]:
    """Stamps of the first sample of each stream after each pause."""
    found: dict[str, list[int]] = {}
    for event in beside.events:
        if event.get("what") == "cut":
            for name, stream in beside.streams.items():
                count = int(event.get("after", {}).get(name, 0))
                found.setdefault(name, []).extend(stream.stamps_ns[count : count + 1].tolist())
        elif event.get("what") == "cuts":
            for name, stamps in event["stamps"].items():
                found.setdefault(name, []).extend(stamps)
    return {name: stamps for name, stamps in found.items() if stamps and name != FRAMES}


def _stream(samples: Samples, cuts: Sequence[int], numbered: int | None) -> dict[str, Any]:
    stamps = samples.stamps_ns
    steps = np.diff(stamps)
    across = np.zeros(len(steps), bool)
    for cut in cuts:
        across |= (stamps[:-1] < cut) & (stamps[1:] >= cut)
    steps = steps[~across]
    usual = float(np.median(steps)) if len(steps) else 0.0
    own_clock = not np.array_equal(stamps, samples.receipts_ns)
    lost = numbered
    if lost is None and own_clock and usual > 0:
        gaps = steps[steps > GAP * usual]
        lost = int((np.round(gaps / usual) - 1).sum())
    span_s = float(steps.sum()) / 1e9
    return {
        "came": len(samples),
        "rate_hz": round(len(steps) / span_s, 2) if span_s > 0 else None,
        "lost": lost,
        "longest_gap_s": round(float(steps.max()) / 1e9, 4) if len(steps) else None,
    }


def trimmed(beside: Beside, told: Mapping[str, Any], first_ns: int, end_ns: int) -> tuple[Beside, dict[str, Any]]:
    """What lies beside a part of an episode, and its account: what came and was lost is worked out anew where stamps tell it.

    Args:
        beside: of the whole episode; it has no events.
        told: its account, whose drops and skipped ticks have no times: they stay as they are, marked "of_whole_episode".
        first_ns: stamp of the first frame that is kept.
        end_ns: stamp of the frame behind the last one.
    """
    parts = {name: part for name, s in beside.streams.items() if len(part := s.between(first_ns, end_ns))}
    events = [{"what": "ages", "names": told.get("ages", [])}, {"what": "alignment", "policy": told.get("alignment")}]
    events.append({"what": "cuts", "stamps": told.get("cuts", {})})
    part = Beside(parts, events)
    kept = {k: told.get(k, {}) for k in ("dropped", "skipped", "clock_jumps")}
    return part, account(part) | kept | {"of_whole_episode": list(kept)}


def losses(told: Mapping[str, Any]) -> dict[str, int]:
    """What an account tells of as missing, in words for people: {"messages of joint_position missing": 3}; empty where nothing is."""
    missing: dict[int, list[str]] = {}
    for name, stream in told.get("streams", {}).items():
        if stream.get("lost"):
            missing.setdefault(stream["lost"], []).append(name)
    found = {f"messages of {', '.join(names)} missing": n for n, names in missing.items()}
    found |= {f"frames dropped ({_words(k)})": n for k, n in told.get("dropped", {}).items() if n}
    found |= {f"ticks skipped ({_words(k)})": n for k, n in told.get("skipped", {}).items() if n}
    return found | {f"clock jumps of {k}": n for k, n in told.get("clock_jumps", {}).items() if n}


_SHOWN = ("images.", "joint_position", "sent.joint_position")
_REASONS = {
    "queue_full": "encoding too slow",
    "deadline": "loop too late",
    "thinking": "policy still computing",
    "link": "policy's server lost",
}


def _words(reason: str) -> str:
    return _REASONS.get(reason, f"{reason} too old" if "." in reason or reason.startswith("joint") else reason)


def line(told: Mapping[str, Any]) -> str:
    """An account in one line: rates of cameras, joints and commands, and every loss."""
    shown = {k: s for k, s in told.get("streams", {}).items() if k.startswith(_SHOWN) and s.get("rate_hz")}
    streams = [f"{k.removeprefix('images.')} {s['rate_hz']:.4g}/s" for k, s in shown.items()]
    lost = [f"{n} {what}" for what, n in losses(told).items()]
    parts = [f"{told.get('frames', 0)} frames", *streams]
    return ", ".join(parts) + "; " + (", ".join(lost) or "nothing lost")


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
