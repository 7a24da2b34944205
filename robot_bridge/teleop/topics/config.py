"""Which topics a person controls a robot with, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal, get_args

from robot_bridge.takeover import Frame, Request
from sinew.config import read_config
from sinew.errors import DataError, unknown

EVENTS = "/sinew/teleop/event"
"""std_msgs/String: a word of `robot_bridge.takeover.Request`."""
ENABLE = "/sinew/teleop/enable"
"""std_msgs/Bool: a person is in control while it is said again and again."""
TWIST = "/sinew/teleop/twist"
"""geometry_msgs/Twist of the first arm, in shares of the largest step, where no file says otherwise."""
TWISTS = ("geometry_msgs/Twist", "geometry_msgs/TwistStamped")
MESSAGES = (*TWISTS, "sensor_msgs/Joy", "sensor_msgs/JointState", "geometry_msgs/PoseStamped", "std_msgs/Float64")
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a joystick."""

    index: int
    """In the message."""
    scale: float = 1.0
    """What a full deflection means; below 0 turns it round."""


@dataclass(frozen=True, kw_only=True)
class Sticks:
    """What the axes and buttons of a sensor_msgs/Joy do; the preset is a gamepad as Linux' and ROS' joy_node number it."""

    motion: dict[str, Axis] = field(
        default_factory=lambda: {"x": Axis(index=1), "y": Axis(index=0), "z": Axis(index=4), "yaw": Axis(index=3)}
    )
    """x, y, z, roll, pitch, yaw → axis."""
    hold: int | None = 4
    """Button that is held while the person is in control; None where another says so."""
    close: int | None = 7
    """Button that closes the gripper."""
    open: int | None = 6
    """Button that opens it."""
    switch: int | None = 5
    """Button that goes on to the other arm."""
    words: dict[str, int] = field(default_factory=lambda: {"success": 0, "failure": 1, "discard": 2, "pause": 9})
    """Word → button."""

    def __post_init__(self) -> None:
        for name in self.motion:
            if name not in MOTIONS:
                raise unknown("motion", name, MOTIONS)
        for word in self.words:
            if word not in get_args(Request):
                raise unknown("word", word, get_args(Request))


MOTIONS = ("x", "y", "z", "roll", "pitch", "yaw")


@dataclass(frozen=True, kw_only=True)
class TopicJoint:
    """A joint of a sensor_msgs/JointState."""

    name: str
    """In the message."""
    sign: int = 1
    """-1 where it turns against the robot's."""
    zero_rad: float = 0.0
    """What it says where the robot's joint would be at 0."""

    def __post_init__(self) -> None:
        if self.sign not in (1, -1) or not isfinite(self.zero_rad):
            raise DataError(f"joint {self.name!r}: sign {self.sign} must be 1 or -1, and zero {self.zero_rad} a number")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a number means a gripper's opening."""

    closed: float
    """The number where it is closed."""
    open: float
    """The number where it is open."""
    name: str = ""
    """The joint that says it, in a JointState."""

    def __post_init__(self) -> None:
        if self.closed == self.open or not isfinite(self.closed) or not isfinite(self.open):
            raise DataError(f"opening from {self.closed} to {self.open}: two different numbers are needed")

    def share(self, number: float) -> float:
        """0 closed to 1 open."""
        return min(1.0, max(0.0, (number - self.closed) / (self.open - self.closed)))


@dataclass(frozen=True, kw_only=True)
class TopicSource:
    """One topic, and what it says of which arm."""

    topic: str
    message: str
    """geometry_msgs/Twist, TwistStamped or PoseStamped, sensor_msgs/Joy or JointState, std_msgs/Float64 of a gripper."""
    arm: int = 0
    frame: Frame = "world"
    """Axes of a twist, of the sticks and of a pose."""
    unit: Literal["share", "si"] = "share"
    """Of a twist: shares of the largest speed, -1 to 1, or m/s and rad/s."""
    sticks: Sticks = field(default_factory=Sticks)
    joints: dict[str, TopicJoint] = field(default_factory=dict)
    """The robot's joint → that of the message, for a JointState; left out where they have the same names."""
    opening: Opening | None = None
    """Gripper, of a JointState or a Float64."""

    def __post_init__(self) -> None:
        if self.message not in MESSAGES:
            raise unknown("message of a device", self.message, MESSAGES)
        if not self.topic.startswith("/") or self.arm < 0:
            raise DataError(f"topic {self.topic!r} of arm {self.arm}: a topic begins with /, arms count from 0")
        if self.message == "std_msgs/Float64" and self.opening is None:
            raise DataError(f"{self.topic}: std_msgs/Float64 is a gripper's: give 'opening' with its 'closed' and 'open'")


@dataclass(frozen=True, kw_only=True)
class TopicConfig:
    """The topics of a device."""

    sources: tuple[TopicSource, ...] = (TopicSource(topic=TWIST, message="geometry_msgs/Twist"),)
    enable: str = ""
    """std_msgs/Bool that says again and again that the person is in control; empty where something else tells."""
    max_age_s: float = 0.25
    """A message that arrived longer ago does not count, and the robot holds."""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise DataError(f"version {self.version}: this Sinew reads version {VERSION}")
        if not self.sources or not 0.02 <= self.max_age_s <= 2.0:
            raise DataError(f"{len(self.sources)} topics, max_age_s {self.max_age_s}: at least one topic, and 0.02 to 2 s")
        moving = [s.arm for s in self.sources if s.message not in ("std_msgs/Float64", "sensor_msgs/Joy")]
        if len(set(moving)) != len(moving):
            raise DataError("two topics move the same arm: give each another 'arm'")

    @property
    def tells_hold(self) -> bool:
        """Whether these topics say when the person is in control: by `enable`, by a button, or by falling silent, as twists do."""
        return bool(self.enable) or all(
            s.message in (*TWISTS, "std_msgs/Float64") or (s.message == "sensor_msgs/Joy" and s.sticks.hold is not None)
            for s in self.sources
        )


def load_topics(path: Path) -> TopicConfig:
    """The topics of a device from a file.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged.
    """
    return read_config(TopicConfig, path, "topics", "docs/teleop.md shows such a file")
