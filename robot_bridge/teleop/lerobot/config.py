"""What a teleoperator of LeRobot is set to, and what its actions mean for a robot, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, radians
from pathlib import Path
from typing import Any, Literal

from robot_bridge.takeover import Frame
from robot_bridge.teleop.topics.config import Opening
from sinew.config import read_config
from sinew.errors import DataError, InputError

Unit = Literal["deg", "rad", "range"]
"""range: -100 to 100 over the range of the robot's joint."""
VERSION = 1
CLOSED_OPEN = Opening(closed=0.0, open=100.0)
"""How LeRobot tells of grippers."""


@dataclass(frozen=True, kw_only=True)
class LerobotJoint:
    """One of the robot's joints, in the teleoperator's actions."""

    key: str
    """Of its action, as "shoulder_pan.pos"."""
    unit: Unit | None = None
    """What it is told in; None for what the teleoperator's own motors say."""
    sign: int = 1
    """-1 where it turns against the robot's."""
    zero_rad: float = 0.0
    """What it says, in rad, where the robot's joint would be at 0; not for a range."""

    def __post_init__(self) -> None:
        if self.sign not in (1, -1) or not isfinite(self.zero_rad):
            raise DataError(f"{self.key!r}: sign {self.sign} must be 1 or -1, and zero {self.zero_rad} a number")

    def value(self, number: float, unit: Unit, limits: tuple[float, float]) -> float:
        """The robot's joint, rad."""
        if unit == "range":
            share = (self.sign * number + 100.0) / 200.0
            return limits[0] + share * (limits[1] - limits[0])
        return self.sign * ((radians(number) if unit == "deg" else number) - self.zero_rad)


@dataclass(frozen=True, kw_only=True)
class LerobotArm:
    """What of the actions is one arm."""

    arm: int = 0
    joints: dict[str, LerobotJoint] = field(default_factory=dict)
    """The robot's joint → what says it; left out, "NAME.pos" does, or "left_NAME.pos" and "right_NAME.pos" for two arms."""
    grip: str = ""
    """Key of the gripper; "gripper.pos" of the arm, if it is there, where left out."""
    opening: Opening = CLOSED_OPEN


@dataclass(frozen=True, kw_only=True)
class LerobotConfig:
    """A teleoperator of LeRobot."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of its own configuration, as LeRobot's command line takes them with --teleop."""
    arms: tuple[LerobotArm, ...] = ()
    """Left out, every arm by the names of its joints."""
    frame: Frame = "world"
    """Axes of what moves by steps or poses."""
    packages: tuple[str, ...] = ()
    """Modules that register it, beside those that LeRobot finds by the name of their distribution."""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise DataError(f"version {self.version}: this Sinew reads version {VERSION}")
        numbers = [arm.arm for arm in self.arms]
        if len(set(numbers)) != len(numbers) or any(number < 0 for number in numbers):
            raise DataError(f"arms {numbers}: each once, counted from 0")


def load_lerobot(path: Path) -> LerobotConfig:
    """A teleoperator's settings from a file.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged.
    """
    return read_config(LerobotConfig, path, "teleoperator", "docs/teleop.md shows such a file")


def mapped(config: LerobotConfig, name: str, keys: Sequence[str], robot: Sequence[Sequence[str]]) -> list[LerobotArm]:
    """Every arm with the keys of all of its joints.

    Args:
        config: what is given.
        name: of the teleoperator.
        keys: of its actions.
        robot: joints of each arm of the robot.

    Raises:
        InputError: an action or a joint that is not there, or arms that are not there.
    """
    prefixes = ("",) if len(robot) == 1 else ("left_", "right_")
    arms = config.arms or tuple(LerobotArm(arm=i) for i in range(min(len(robot), len(prefixes))))
    found = []
    for arm in arms:
        if arm.arm >= len(robot):
            raise InputError(f"{name} is to move arm {arm.arm}; the robot has {len(robot)}, counted from 0")
        prefix = prefixes[min(arm.arm, len(prefixes) - 1)]
        joints = {joint: arm.joints.get(joint) or LerobotJoint(key=f"{prefix}{joint}.pos") for joint in robot[arm.arm]}
        foreign = sorted(set(arm.joints) - set(robot[arm.arm]))
        if foreign:
            raise InputError(f"joint {foreign[0]!r} is none of arm {arm.arm}'s: {', '.join(robot[arm.arm])}")
        missing = [f"{joint} ({part.key})" for joint, part in joints.items() if part.key not in keys]
        grip = arm.grip or (f"{prefix}gripper.pos" if f"{prefix}gripper.pos" in keys else "")
        if missing or (grip and grip not in keys):
            lacks = missing[0] if missing else f"gripper ({grip})"
            raise InputError(f"{name} does not say {lacks}; it says {', '.join(keys)}: name what stands for it in --teleop-config")
        found.append(LerobotArm(arm=arm.arm, joints=joints, grip=grip, opening=arm.opening))
    return found


def values_of(
    arm: LerobotArm, action: Mapping[str, Any], units: Mapping[str, Unit], limits: Mapping[str, tuple[float, float]]
) -> list[float]:
    """The joints of an arm (J,), rad, in an action."""
    return [part.value(float(action[part.key]), part.unit or units[part.key], limits[joint]) for joint, part in arm.joints.items()]
