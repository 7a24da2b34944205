"""A leader arm as data: its port, its servos, and which of them is which joint of the robot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, pi, tau
from pathlib import Path

from robot_bridge.teleop.leader.servos import MAKERS
from sinew.config import read_config
from sinew.errors import DataError, InputError, unknown

VERSION = 1
MAX_ID = 252


@dataclass(frozen=True, kw_only=True)
class LeaderJoint:
    """One servo that is a joint."""

    name: str
    """The robot's joint."""
    id: int
    """The servo's on the bus."""
    model: str
    """What it says that it is, as "sts3215"."""
    sign: int
    """1 where both turn alike, -1 where they turn against each other."""
    zero_rad: float
    """The servo's angle where the robot's joint would be at 0."""
    low_rad: float
    """Range that the arm was moved through when it was calibrated, as the robot counts; an angle is taken within a turn of it."""
    high_rad: float
    """See `low_rad`."""

    def __post_init__(self) -> None:
        if self.sign not in (1, -1):
            raise DataError(f"joint {self.name!r}: sign {self.sign} must be 1 or -1")
        if not all(map(isfinite, (self.zero_rad, self.low_rad, self.high_rad))) or self.low_rad >= self.high_rad:
            raise DataError(f"joint {self.name!r}: zero {self.zero_rad}, range {self.low_rad} to {self.high_rad} rad cannot be")

    def value(self, servo_rad: float) -> float:
        """The robot's joint, rad, for an angle of the servo."""
        return around(self.sign * (servo_rad - self.zero_rad), (self.low_rad + self.high_rad) / 2)


@dataclass(frozen=True, kw_only=True)
class LeaderGrip:
    """The servo that is the gripper's handle."""

    id: int
    model: str
    closed_rad: float
    """Its angle where the gripper shall be closed."""
    open_rad: float
    """Its angle where it shall be open."""

    def __post_init__(self) -> None:
        if not isfinite(self.closed_rad) or not isfinite(self.open_rad) or abs(self.open_rad - self.closed_rad) < 0.05:
            raise DataError(f"gripper: closed {self.closed_rad} and open {self.open_rad} rad are too near to each other, or no numbers")

    def share(self, servo_rad: float) -> float:
        """The opening, 0 to 1."""
        width = self.open_rad - self.closed_rad
        turned = around(servo_rad - self.closed_rad, width / 2)
        return min(1.0, max(0.0, turned / width))


@dataclass(frozen=True, kw_only=True)
class LeaderConfig:
    """A leader arm, as `sinew calibrate leader` writes it."""

    robot: str
    """The robot that it leads."""
    maker: str
    """Of its servos: dynamixel or feetech."""
    port: str
    baud: int = 1_000_000
    """Bits per second."""
    arm: int = 0
    """Which arm of the robot it leads."""
    joints: tuple[LeaderJoint, ...] = ()
    grip: LeaderGrip | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise DataError(f"version {self.version}: this Sinew reads version {VERSION}; calibrate the leader arm anew")
        if self.maker not in MAKERS:
            raise unknown("maker of servos", self.maker, MAKERS)
        if not self.joints or self.arm < 0:
            raise DataError(f"{len(self.joints)} joints of arm {self.arm}: at least one joint, and an arm from 0 on")
        ids, names = list(self.servos), [joint.name for joint in self.joints]
        if len(ids) != len(self.joints) + (self.grip is not None) or len(set(names)) != len(names):
            raise DataError(f"servos {ids} of joints {', '.join(names)}: each joint once, and each servo once")
        if not all(0 <= servo <= MAX_ID for servo in ids):
            raise DataError(f"servos {ids}: ids are 0 to {MAX_ID}")

    @property
    def servos(self) -> dict[int, str]:
        """{id: model} of all servos."""
        parts: list[LeaderJoint | LeaderGrip] = [*self.joints, *([self.grip] if self.grip else [])]
        return {part.id: part.model for part in parts}

    def order(self, joints: Sequence[str]) -> list[LeaderJoint]:
        """Its joints in the order of the robot's arm.

        Raises:
            InputError: they are others.
        """
        mine = {joint.name: joint for joint in self.joints}
        if set(mine) != set(joints):
            raise InputError(
                f"the leader arm on {self.port} leads joints {', '.join(mine)} of robot {self.robot}; arm {self.arm} of this robot has "
                f"{', '.join(joints)}: calibrate it for this one with 'sinew calibrate leader'"
            )
        return [mine[name] for name in joints]


def around(angle: float, centre: float) -> float:
    """An angle as one within half a turn of a centre, rad."""
    return centre + (angle - centre + pi) % tau - pi


def load_leader(path: Path) -> LeaderConfig:
    """A leader arm from its file.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged, or no such file at all.
    """
    return read_config(LeaderConfig, path, "leader arm", f"make the file with 'sinew calibrate leader --out {path}'")
