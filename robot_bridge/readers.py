"""From the bytes of a message to the values that a contract wants of it, in SI and in our order of joints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from typing import Any

import numpy as np

from robot_bridge.contract import Source
from robot_bridge.dds import codec
from sinew.errors import DataError
from sinew.se3 import xyzw_to_wxyz

Values = list[tuple[Source, Any]]
Read = Callable[[bytes], tuple[int, Values]]
"""Payload → stamp of the header in ns, 0 for none, and what was found of every source. A picture is a function that decodes it."""


def reader(message: str, sources: Sequence[Source]) -> Read:
    """How messages of one topic are read.

    Args:
        message: type of the topic.
        sources: what is wanted of it.
    """
    if message == "sensor_msgs/JointState":
        return JointStates(sources)
    if message in ("sensor_msgs/Image", "sensor_msgs/CompressedImage"):
        return _Pictures(sources, message)
    if message == "std_msgs/Float64MultiArray":
        return _Arrays(sources)
    if message == "trajectory_msgs/JointTrajectory":
        return _Trajectories(sources, message)
    if message in ("geometry_msgs/PoseStamped", "geometry_msgs/WrenchStamped"):
        return _Stamped(sources, message)
    return _Fields(sources, message)


class JointStates:
    """sensor_msgs/JointState: joints are found by name, wherever they stand, and may be spread over several messages."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._decoder = codec.JointStateDecoder()
        self._names: tuple[str, ...] | None = None
        self._order: list[tuple[Source, list[int]]] = []
        self.seen: dict[str, None] = {}
        """Every joint that has been named, in their order."""

    def __call__(self, data: bytes) -> tuple[int, Values]:
        state = self._decoder.decode(data)
        if state.names is not self._names and state.names != self._names:
            self._find(state.names)
        values: Values = []
        for source, order in self._order:
            numbers = getattr(state, source.field)
            if numbers:
                picked = [numbers[i] for i in order]
                if not all(map(isfinite, picked)) and not source.key.endswith(("effort", "velocity")):
                    raise DataError(f"{source.topic} holds {picked} for {source.key}, which is not finite")
                values.append((source, source.to_si(picked)))
        return state.stamp_ns, values

    def _find(self, names: tuple[str, ...]) -> None:
        self._names = names
        self.seen.update(dict.fromkeys(names))
        place = {name: i for i, name in enumerate(names)}
        self._order = [(s, [place[n] for n in s.names]) for s in self._sources if all(n in place for n in s.names)]


class _Pictures:
    def __init__(self, sources: Sequence[Source], message: str) -> None:
        self._sources = sources
        self._decode = codec.decode_image if message == "sensor_msgs/Image" else codec.decode_compressed_image

    def __call__(self, data: bytes) -> tuple[int, Values]:
        return codec.Reader(data).stamp_ns(), [(source, partial(self._picture, data)) for source in self._sources]

    def _picture(self, data: bytes) -> np.ndarray:
        return self._decode(data)[2]


class _Arrays:
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def __call__(self, data: bytes) -> tuple[int, Values]:
        numbers = codec.decode_doubles(data)
        return 0, [(s, s.to_si(_part(numbers, s))) for s in self._sources]


class _Trajectories:
    """The last point of a trajectory, by the names of its joints: where it was told to go."""

    def __init__(self, sources: Sequence[Source], message: str) -> None:
        self._sources, self._message = sources, message

    def __call__(self, data: bytes) -> tuple[int, Values]:
        trajectory = codec.decode(data, self._message)
        names, values = list(trajectory.joint_names), []
        if not trajectory.points:
            return 0, []
        point = trajectory.points[-1]
        for source in self._sources:
            numbers = point.positions if source.field == "position" else point.velocities
            if len(numbers) == len(names) and all(name in names for name in source.names):
                values.append((source, source.to_si([numbers[names.index(name)] for name in source.names])))
        return _header(trajectory), values


class _Stamped:
    """PoseStamped and WrenchStamped; the frame must be the one that the contract names."""

    def __init__(self, sources: Sequence[Source], message: str) -> None:
        self._sources, self._message = sources, message

    def __call__(self, data: bytes) -> tuple[int, Values]:
        message, values = codec.decode(data, self._message), []
        frame = message.header.frame_id.strip("/")
        for source in self._sources:
            if source.frame and frame != source.frame.strip("/"):
                raise DataError(f"{source.topic} is told in frame {frame!r}, the contract expects {source.frame!r}")
            if source.field == "pose":
                position, rotation = message.pose.position, message.pose.orientation
                xyzw = (rotation.x, rotation.y, rotation.z, rotation.w)
                value = np.concatenate(((position.x, position.y, position.z), xyzw_to_wxyz(xyzw)))
            else:
                force, torque = message.wrench.force, message.wrench.torque
                value = np.array((force.x, force.y, force.z, torque.x, torque.y, torque.z))
            values.append((source, value))
        return _header(message), values


class _Fields:
    """Any other message, by dotted paths to its numbers."""

    def __init__(self, sources: Sequence[Source], message: str) -> None:
        self._sources, self._message = sources, message

    def __call__(self, data: bytes) -> tuple[int, Values]:
        message, values = codec.decode(data, self._message), []
        for source in self._sources:
            found = message
            for name in source.field.split("."):
                if not hasattr(found, name):
                    raise DataError(f"{self._message} has no field {source.field!r}; {name!r} is unknown")
                found = getattr(found, name)
            numbers = np.atleast_1d(np.asarray(found, dtype=np.float64)).ravel().tolist()
            values.append((source, source.to_si(_part(numbers, source))))
        return _header(message), values


def _part(numbers: Sequence[float], source: Source) -> list[float]:
    """The elements of an array that a source wants."""
    part = list(numbers[source.start : source.start + len(source.names)])
    if len(part) != len(source.names) or not all(map(isfinite, part)):
        raise DataError(f"{source.topic} holds {len(numbers)} numbers, or some that are not finite; {source.key} needs {source.names}")
    return part


def _header(message: Any) -> int:
    header = getattr(message, "header", None)
    return 0 if header is None else header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
