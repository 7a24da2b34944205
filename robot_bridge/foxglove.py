"""A dataset as an MCAP file to look at: Foxglove and every reader of ROS 2's bags know its messages, and video stays as it is.

Source: foxglove's schema CompressedVideo (one picture for each message, in Annex B, parameter sets with every key frame, no B-frames).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from demos import tables
from demos.bags import BagWriter, Topic
from demos.dataset import Dataset
from demos.layout import cameras
from demos.packets import FORMATS, packets, video_codec
from robot_bridge import markers
from robot_bridge.bags import Converted
from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, definition, full_name, type_hash
from robot_bridge.images import encode_png
from sinew.errors import DataError
from sinew.progress import SILENT, Progress
from sinew.specs import ACTION, IMAGES

VIDEO = "foxglove_msgs/msg/CompressedVideo"
VIDEO_DEFINITION = f"""builtin_interfaces/Time timestamp
string frame_id
uint8[] data
string format
{"=" * 80}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
JOINTS, LOG, TRUTH, PICTURE = "sensor_msgs/JointState", "rcl_interfaces/Log", "std_msgs/Bool", "sensor_msgs/CompressedImage"
LOGGED, SUCCESS = "/log", "/episode/success"
INFORMATION, WARNING = 20, 30
"""Levels of rcl_interfaces/Log."""
GAP_S = 2.0
"""Between the end of an episode and the beginning of the next."""
BEFORE_NS = 1000
"""Pictures that only serve to decode an episode's first one stand this much before it, one after the other."""


def to_foxglove(root: Path, out: Path, progress: Progress = SILENT) -> Converted:
    """Write a dataset as an MCAP file of well-known messages.

    Cameras become foxglove's CompressedVideo without being encoded anew, or PNG where the dataset keeps pictures; every vector and the
    action a JointState with the names of its elements; episodes and outcomes lines of a log, markers and a Bool. Frames lie at exact
    multiples of the dataset's period, from the first one's stamp on.

    Args:
        root: dataset.
        out: a new .mcap file or folder.
        progress: told of every episode.

    Raises:
        DataError: no dataset, a damaged one, or a video that cannot be passed through.
        InputError: the file cannot be written.
    """
    data = Dataset(root, cache_bytes=0)
    done, period_ns = Converted(), round(1e9 / data.fps)
    stamps = data.column("timestamp_ns") if "timestamp_ns" in data.info["features"] else None
    at_ns = max(1_000_000_000, int(stamps[0, 0])) if stamps is not None and len(data) else 1_000_000_000
    rows = tables.read_episodes(root)
    progress.start("episodes", data.num_episodes)
    with BagWriter(out) as writer:
        made = _Messages(writer)
        for index in range(data.num_episodes):
            episode = data.episode(index)
            made.text(markers.EPISODES, json.dumps({"event": "begin", "task": episode.task}), at_ns)
            made.log(f"episode {index} begins: {episode.task}", at_ns)
            pictures = {key: _pictures(data, key, index, rows[index]) for key in data.cameras}
            for i in range(episode.start, episode.start + episode.length):
                for key in (*data.observation_spec.vectors, ACTION):
                    names = (data.action_spec if key == ACTION else data.observation_spec[key]).names
                    made.vector(f"/{key.replace('.', '/')}", names, data.column(key)[i], at_ns)
                for key, found in pictures.items():
                    made.picture(f"/camera/{key.removeprefix(IMAGES)}", next(found), at_ns)
                at_ns += period_ns
            ends_ns = at_ns - period_ns // 2
            made.outcome(index, episode.success, episode.warnings, ends_ns)
            made.text(markers.EPISODES, json.dumps({"event": "end", "success": episode.success}), ends_ns)
            at_ns += math.ceil(GAP_S * 1e9 / period_ns) * period_ns
            done.episodes, done.frames = done.episodes + 1, done.frames + episode.length
            progress.advance()
    return done


def _pictures(data: Dataset, key: str, episode: int, row: Mapping[str, Any]) -> Iterator[tuple[str, list[bytes]]]:
    """(format, packets) of each frame: one packet, and before the first those that it builds on."""
    length = data.episode(episode).length
    if cameras(data.info)[key] != "video":
        for block in data.pictures(key, episode):
            yield from (("png", [encode_png(image)]) for image in block)
        return
    path, first = data.video_path(key, episode), round(row[f"videos/{key}/from_timestamp"] * data.fps)
    name = video_codec(path)
    if name not in FORMATS:
        raise DataError(f"{path} is encoded as {name}, which Foxglove does not show; known are {', '.join(FORMATS)}")
    waiting: list[bytes] = []
    for packet in packets(path, data.fps, first, length):
        waiting.append(packet.data)
        if packet.frame >= first:
            yield FORMATS[name], waiting
            waiting = []


class _Messages:
    """Values as messages of a bag."""

    def __init__(self, writer: BagWriter) -> None:
        self._writer = writer
        self._known: set[str] = set()

    def vector(self, topic: str, names: tuple[str, ...], values: np.ndarray, at_ns: int) -> None:
        """Numbers with names."""
        told = list(names) if len(names) == len(values) else [str(i) for i in range(len(values))]
        empty, positions = np.zeros(0), np.asarray(values, np.float64)
        self._say(topic, JOINTS, at_ns, header=_header(at_ns), name=told, position=positions, velocity=empty, effort=empty)

    def picture(self, topic: str, shown: tuple[str, list[bytes]], at_ns: int) -> None:
        """A picture."""
        kind, found = shown
        if kind == "png":
            data = np.frombuffer(found[0], np.uint8)
            self._say(f"{topic}/image", PICTURE, at_ns, header=_header(at_ns, topic[1:]), format="png", data=data)
            return
        self._add(Topic(name=f"{topic}/video", type=VIDEO, definition=VIDEO_DEFINITION))
        for number, data in enumerate(found, 1 - len(found)):
            self._writer.write(f"{topic}/video", at_ns + number * BEFORE_NS, _video(data, kind, topic[1:], at_ns + number * BEFORE_NS))

    def outcome(self, index: int, success: bool | None, warnings: tuple[str, ...], at_ns: int) -> None:
        """How an episode ended."""
        said = {True: "success", False: "failure", None: "outcome unknown"}[success]
        self.log(f"episode {index}: {said}", at_ns, INFORMATION if success is not False else WARNING)
        for line in warnings:
            self.log(f"episode {index}: {line}", at_ns, WARNING)
        if success is not None:
            self._say(SUCCESS, TRUTH, at_ns, data=success)

    def log(self, said: str, at_ns: int, level: int = INFORMATION) -> None:
        """A line."""
        self._say(LOGGED, LOG, at_ns, stamp=_stamp(at_ns), level=level, name="sinew", msg=said)

    def text(self, topic: str, said: str, at_ns: int) -> None:
        """A text."""
        self._say(topic, markers.TEXT, at_ns, data=said)

    def _say(self, topic: str, message: str, at_ns: int, **values: Any) -> None:
        if topic not in self._known:
            name = full_name(message)
            self._add(Topic(name=topic, type=name, definition=definition(name), type_hash=type_hash(name)))
        self._writer.write(topic, at_ns, bytes(codec.encode(blank(message, **values))))

    def _add(self, topic: Topic) -> None:
        if topic.name not in self._known:
            self._writer.add(topic)
            self._known.add(topic.name)


def _video(data: bytes, kind: str, frame: str, at_ns: int) -> bytes:
    writer = codec.Writer()
    writer.stamp(at_ns)
    writer.text(frame)
    writer.number("I", len(data))
    writer.data += data
    writer.text(kind)
    return bytes(writer.data)


def _stamp(at_ns: int) -> Any:
    return blank("builtin_interfaces/Time", sec=at_ns // 1_000_000_000, nanosec=at_ns % 1_000_000_000)


def _header(at_ns: int, frame: str = "") -> Any:
    return blank("std_msgs/Header", stamp=_stamp(at_ns), frame_id=frame)
