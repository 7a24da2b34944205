"""What messages of one topic ask of one arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from robot_bridge.dds import codec
from robot_bridge.takeover import Given, Request
from robot_bridge.teleop.topics.config import MOTIONS, TWISTS, TopicJoint, TopicSource
from sinew.errors import DataError
from sinew.se3 import xyzw_to_wxyz

DEAD_ZONE = 0.1
"""Deflections of a stick below this share are none."""


@dataclass(frozen=True)
class Said:
    """What a message says."""

    given: Given | None = None
    """What is asked; None where the person has let go."""
    opening: float | None = None
    """A gripper's, that is no part of `given`."""
    words: tuple[Request, ...] = ()


Read = Callable[[bytes], Said]


def reader_of(source: TopicSource, joints: Sequence[str], arms: int, speed: tuple[float, float]) -> Read:
    """How the messages of a topic are read.

    Args:
        source: the topic.
        joints: of its arm, in the robot's order.
        arms: that the robot has.
        speed: largest speeds of a tool, m/s and rad/s.

    The reader raises `DataError` for a message that is damaged or lacks a joint.
    """
    if source.message in TWISTS:
        return lambda data: _twist(source, speed, codec.decode(data, source.message))
    if source.message == "sensor_msgs/Joy":
        return _Joystick(source, arms)
    if source.message == "sensor_msgs/JointState":
        return _Joints(source, joints)
    if source.message == "geometry_msgs/PoseStamped":
        return lambda data: _pose(source, codec.decode(data, source.message))
    return lambda data: _gripper(source, codec.decode(data, source.message))


def _twist(source: TopicSource, speed: tuple[float, float], message: Any) -> Said:
    twist = message.twist if hasattr(message, "twist") else message
    linear, angular = ((v.x, v.y, v.z) for v in (twist.linear, twist.angular))
    most_m_s, most_rad_s = speed if source.unit == "si" else (1.0, 1.0)
    shares = [v / most_m_s for v in linear] + [v / most_rad_s for v in angular]
    longest = max(1.0, *(abs(share) for share in shares))  # too fast, it keeps its direction
    return Said(Given(tuple(share / longest for share in shares), source.frame, arm=source.arm))


def _pose(source: TopicSource, message: Any) -> Said:
    position, rotation = message.pose.position, message.pose.orientation
    wxyz = xyzw_to_wxyz((rotation.x, rotation.y, rotation.z, rotation.w))
    length = float(sum(v * v for v in wxyz)) ** 0.5
    if not 0.9 < length < 1.1:
        raise DataError(f"{source.topic}: orientation {wxyz.tolist()} is no rotation")
    values = (position.x, position.y, position.z, *(float(v) / length for v in wxyz))
    return Said(Given(values, source.frame, arm=source.arm, kind="pose"))


def _gripper(source: TopicSource, message: Any) -> Said:
    assert source.opening is not None  # the config says so
    return Said(opening=source.opening.share(float(message.data)))


class _Joints:
    def __init__(self, source: TopicSource, joints: Sequence[str]) -> None:
        self._source, self._decoder = source, codec.JointStateDecoder()
        self._joints = [source.joints.get(name) or TopicJoint(name=name) for name in joints]

    def __call__(self, data: bytes) -> Said:
        state = self._decoder.decode(data)
        angles = dict(zip(state.names, state.position, strict=False))
        opening = self._source.opening
        wanted = [joint.name for joint in self._joints] + ([opening.name] if opening else [])
        missing = [name for name in wanted if name not in angles]
        if missing:
            raise DataError(f"{self._source.topic} has no joint {missing[0]!r}; it has {', '.join(state.names)}: name it in 'joints'")
        values = tuple(joint.sign * (angles[joint.name] - joint.zero_rad) for joint in self._joints)
        share = None if opening is None else opening.share(angles[opening.name])
        return Said(Given(values, open=share, arm=self._source.arm, kind="joints"))


class _Joystick:
    def __init__(self, source: TopicSource, arms: int) -> None:
        self._source, self._arms, self._arm = source, arms, source.arm
        self._down: set[int] = set()

    def __call__(self, data: bytes) -> Said:
        message, sticks = codec.decode(data, "sensor_msgs/Joy"), self._source.sticks
        buttons, axes = message.buttons.tolist(), message.axes.tolist()

        def pressed(button: int | None) -> bool:
            return button is not None and button < len(buttons) and bool(buttons[button])

        fresh = {i for i, value in enumerate(buttons) if value} - self._down
        self._down = {i for i, value in enumerate(buttons) if value}
        if sticks.switch in fresh:
            self._arm = (self._arm + 1) % self._arms
        words: tuple[Request, ...] = tuple(cast(Request, word) for word, button in sticks.words.items() if button in fresh)
        if sticks.hold is not None and not pressed(sticks.hold):
            return Said(words=words)
        values = [0.0] * 6
        for name, axis in sticks.motion.items():
            if axis.index >= len(axes):
                raise DataError(f"{self._source.topic} has {len(axes)} axes, and {name} is to be number {axis.index}")
            values[MOTIONS.index(name)] = max(-1.0, min(1.0, axis.scale * axes[axis.index])) if abs(axes[axis.index]) > DEAD_ZONE else 0.0
        opening = 0.0 if pressed(sticks.close) else 1.0 if pressed(sticks.open) else None
        return Said(Given(tuple(values), self._source.frame, opening, self._arm), words=words)
