"""A robot as data: limits, geometry, controllers and contract, frozen, in Python or in one JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from robot_bridge.contract import COMMANDED, Contract, Sink
from robot_bridge.robots.build import read_back
from sinew.config import read_config, to_json
from sinew.errors import InputError, unknown
from sinew.protocols import RobotSpec
from sinew.registry import Registry
from sinew.rundir import write_json

Vector = tuple[float, float, float]
ROBOTS: Registry[Any] = Registry("robot")
"""Name → function that makes its config."""


@dataclass(frozen=True, kw_only=True)
class JointFrame:
    """A joint as a URDF tells it: where the child link's frame is in the parent's, and how it moves."""

    name: str
    kind: Literal["revolute", "prismatic", "fixed"] = "revolute"
    parent: str
    """Link that it is on."""
    child: str
    """Link that it moves."""
    origin_m: Vector = (0.0, 0.0, 0.0)
    """Position of the child's frame in the parent's."""
    rpy_rad: Vector = (0.0, 0.0, 0.0)
    """Its rotation: roll, pitch, yaw about the parent's axes x, y, z, in this order."""
    axis: Vector = (0.0, 0.0, 1.0)
    """Unit axis in the child's frame."""


@dataclass(frozen=True, kw_only=True)
class Capsule:
    """A part of a link's body: all points within a radius of a line."""

    link: str
    start_m: Vector
    """One end of the line, in the link's frame."""
    end_m: Vector
    radius_m: float


@dataclass(frozen=True, kw_only=True)
class RobotConfig:
    """Everything the bridge knows about one kind of robot."""

    spec: RobotSpec
    contract: Contract
    jerk_max_rad_s3: tuple[float, ...]
    """Largest jerk of each joint."""
    effort_max_nm: tuple[float, ...]
    """Largest torque of each joint."""
    gripper_velocity_max_m_s: float | None = None
    """Largest speed of the opening; None where it is not known."""
    gripper_force_max_n: float | None = None
    """Largest force of the gripper; None where it is not known."""
    frames: tuple[JointFrame, ...] = ()
    """The kinematic tree, parents before children; the first one's parent is the world. Empty where it is not known."""
    tools: tuple[str, ...] = ()
    """Link between the fingers of each arm."""
    capsules: tuple[Capsule, ...] = ()
    """Simple bodies of the links."""
    alternatives: tuple[Sink, ...] = ()
    """Other controllers of this robot, to choose by their kind."""
    cited: Mapping[str, str] = field(default_factory=dict)
    """Where the values come from, field by field."""
    derived: tuple[str, ...] = ()
    """Fields whose values nobody publishes: chosen conservatively, to be checked against the robot."""

    def __post_init__(self) -> None:
        spec, count = self.spec, len(self.spec.joint_names)
        where = f"robot {spec.name!r}"
        limits = {
            "position_low_rad": spec.position_low_rad,
            "position_high_rad": spec.position_high_rad,
            "velocity_max_rad_s": spec.velocity_max_rad_s,
            "acceleration_max_rad_s2": spec.acceleration_max_rad_s2,
            "jerk_max_rad_s3": self.jerk_max_rad_s3,
            "effort_max_nm": self.effort_max_nm,
        }
        for name, values in limits.items():
            if len(values) != count:
                raise InputError(f"{where}: {name} has {len(values)} values for {count} joints; give one for each of {spec.joint_names}")
            if not all(map(isfinite, values)) or (not name.startswith("position") and min(values) <= 0):
                raise InputError(f"{where}: {name} {values} must be finite and above 0; take them from the datasheet")
        if spec.home_rad and len(spec.home_rad) != count:
            raise InputError(f"{where}: home_rad has {len(spec.home_rad)} values for {count} joints")
        named = sum(len(s.names) for s in self.contract.sources if s.key == "joint_position")
        if named != count:
            raise InputError(f"{where}: the contract's sources of joint_position name {named} joints, the robot has {count}")
        commanded = sum(len(s.joints) for s in self.contract.sinks if s.value == "joint_position" and s.kind != "twist")
        if self.contract.sinks and commanded not in (0, count):
            raise InputError(f"{where}: the contract's sinks of joint_position name {commanded} joints, the robot has {count}")
        self._check_tree(where)

    def _check_tree(self, where: str) -> None:
        links = {frame.child for frame in self.frames}
        if not self.frames:
            return
        known = {self.frames[0].parent}
        for frame in self.frames:
            if frame.parent not in known:
                raise InputError(f"{where}: joint {frame.name!r} is on link {frame.parent!r}, which no joint before it moves")
            known.add(frame.child)
        moving = [frame.name for frame in self.frames if frame.kind != "fixed"]
        missing = [name for name in self.spec.joint_names if name not in moving]
        if missing:
            raise InputError(f"{where}: joint {missing[0]!r} has no frame; frames are of {', '.join(moving)}")
        for link in (*self.tools, *(c.link for c in self.capsules)):
            if link not in links and link not in known:
                raise unknown(f"link of {where}", link, known)

    @property
    def arms(self) -> int:
        """Number of arms."""
        return max(1, len(self.tools))

    def with_controller(self, arm: str = "", gripper: str = "") -> RobotConfig:
        """The same robot driven through another of its controllers, chosen by kind: "trajectory", "gripper_action".

        What recordings hold of its commands is read from the topics of that controller.

        Raises:
            InputError: it has none of that kind.
        """
        sinks, every = list(self.contract.sinks), (*self.contract.sinks, *self.alternatives)
        contract = self.contract
        for value, kind in (("joint_position", arm), ("gripper", gripper)):
            if not kind:
                continue
            choice = [s for s in every if s.value == value and s.kind == kind]
            if not choice:
                raise unknown(f"controller of {value} of {self.spec.name}", kind, {s.kind for s in every if s.value == value})
            sinks = [s for s in sinks if s.value != value] + choice
        sinks.sort(key=lambda sink: sink.value != "joint_position")  # where they share a topic, joints go before grippers
        others = tuple(s for s in every if s not in sinks)
        if arm or gripper:
            contract = _driven_by(contract, sinks)
        return replace(self, contract=contract, alternatives=others)

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_json(path, to_json(self))


def _driven_by(contract: Contract, sinks: Sequence[Sink]) -> Contract:
    """A contract with other sinks, and with sources that read back what they are sent."""
    labels = {v: [s.label for s in contract.sources if s.key == v] for v in ("joint_position", "gripper")}
    of_sinks = []
    for sink in sinks:
        own = [s for s in sinks if s.value == sink.value]
        named = labels[sink.value] if len(labels[sink.value]) == len(own) else [""] * len(own)
        of_sinks.append(named[own.index(sink)])
    commands, values = read_back(sinks, of_sinks)
    told = {COMMANDED + sink.value for sink in sinks}
    kept = [s for s in contract.sources if s.key not in told]
    at = next((i for i, s in enumerate(kept) if s.image), len(kept))
    return replace(
        contract,
        sources=(*kept[:at], *commands, *kept[at:]),
        sinks=tuple(sinks),
        action_values=tuple(values) if contract.action_values else (),
    )


def load_robot(name_or_file: str | Path) -> RobotConfig:
    """A registered robot by its name, or one from a JSON file that `sinew robot add` wrote.

    Raises:
        InputError: no such robot; the nearest names are offered.
        DataError: the file is damaged.
    """
    given = str(name_or_file)
    path = Path(given)
    if given in ROBOTS:
        return ROBOTS.get(given)()
    if path.suffix != ".json" and not path.is_file():
        try:
            return ROBOTS.get(given)()
        except InputError as e:
            raise InputError(f"{e}; or the path of a JSON file made by 'sinew robot add'") from None
    return read_config(RobotConfig, path, "robot file", f"known robots are {', '.join(ROBOTS)}")
