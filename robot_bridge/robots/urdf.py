"""What a URDF says: joints, their frames and limits. Only plain files are read: no xacro, no entities."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from robot_bridge.robots.config import JointFrame, RobotConfig, Vector
from sinew.errors import DataError, InputError

MAX_BYTES = 20_000_000
MOVING = ("revolute", "continuous", "prismatic")


@dataclass(frozen=True, kw_only=True)
class UrdfJoint:
    """A joint of a URDF."""

    frame: JointFrame
    kind: str
    """revolute, continuous, prismatic, fixed, floating or planar."""
    low: float | None
    """Limits in rad or m, None where the file gives none."""
    high: float | None
    velocity: float | None
    effort: float | None
    mimics: str
    """Joint that this one follows; empty for none."""


@dataclass(frozen=True)
class Urdf:
    """A robot's tree."""

    name: str
    joints: tuple[UrdfJoint, ...]
    """Parents before children."""

    def joint(self, name: str) -> UrdfJoint:
        """A joint by its name.

        Raises:
            InputError: there is none; the moving ones are listed.
        """
        for joint in self.joints:
            if joint.frame.name == name:
                return joint
        raise InputError(f"the URDF of {self.name!r} has no joint {name!r}; it moves by {', '.join(j.frame.name for j in self.moving)}")

    @property
    def moving(self) -> tuple[UrdfJoint, ...]:
        """Joints that can be commanded: they move, and mimic no other."""
        return tuple(joint for joint in self.joints if joint.kind in MOVING and not joint.mimics)

    @property
    def root(self) -> str:
        """The link that no joint moves."""
        return self.joints[0].frame.parent

    def chain(self, link: str) -> tuple[UrdfJoint, ...]:
        """Joints from the root to a link.

        Raises:
            InputError: there is no such link.
        """
        by_child = {joint.frame.child: joint for joint in self.joints}
        if link not in by_child and link != self.root:
            raise InputError(f"the URDF of {self.name!r} has no link {link!r}; it has {', '.join((self.root, *by_child))}")
        chain = []
        while link in by_child:
            chain.append(by_child[link])
            link = by_child[link].frame.parent
        return tuple(reversed(chain))


def read_urdf(text: str, where: str) -> Urdf:
    """Parse a URDF.

    Args:
        text: XML.
        where: file or topic, for messages.

    Raises:
        DataError: it is damaged, too large, no plain URDF, or no tree.
    """
    if len(text) > MAX_BYTES:
        raise DataError(f"{where} has {len(text)} characters; a URDF has at most {MAX_BYTES}")
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise DataError(f"{where} declares entities or a document type, which a URDF does not need: remove them")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as e:
        raise DataError(f"{where} is not XML: {e}") from None
    if root.tag != "robot" or ("xacro" in text[:2000] and "xacro:" in text):
        raise DataError(f"{where} is no plain URDF but <{root.tag}>; for xacro run 'xacro FILE > robot.urdf' first")
    joints = {joint.frame.child: joint for joint in (_joint(element, where) for element in root.findall("joint"))}
    if not joints:
        raise DataError(f"{where} has no joints")
    return Urdf(root.get("name", "robot"), _ordered(joints, where))


def urdf_file(path: Path) -> Urdf:
    """Parse a URDF file.

    Raises:
        InputError: it cannot be read.
        DataError: as `read_urdf`.
    """
    try:
        return read_urdf(path.read_text(), str(path))
    except OSError as e:
        raise InputError(f"URDF {path} cannot be read: {e.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text") from None


def _ordered(joints: dict[str, UrdfJoint], where: str) -> tuple[UrdfJoint, ...]:
    """Joints with parents before children.

    Raises:
        DataError: there is more than one root, or a cycle.
    """
    roots = sorted({joint.frame.parent for joint in joints.values()} - set(joints))
    if len(roots) != 1:
        raise DataError(f"{where} is no tree: its roots are {', '.join(roots) or 'none'}")
    known, ordered, rest = {roots[0]}, [], list(joints.values())
    while rest:
        ready = [joint for joint in rest if joint.frame.parent in known]
        if not ready:
            raise DataError(f"{where} is no tree: joint {rest[0].frame.name!r} hangs in a cycle")
        ordered += ready
        known |= {joint.frame.child for joint in ready}
        rest = [joint for joint in rest if joint.frame.child not in known]
    return tuple(ordered)


def _joint(element: ElementTree.Element, where: str) -> UrdfJoint:
    name, kind = element.get("name", ""), element.get("type", "")
    parent, child = (_link(element.find(tag), name, tag, where) for tag in ("parent", "child"))
    origin, limit, mimic = element.find("origin"), element.find("limit"), element.find("mimic")
    frame = JointFrame(
        name=name,
        kind="prismatic" if kind == "prismatic" else "revolute" if kind in MOVING else "fixed",
        parent=parent,
        child=child,
        origin_m=_vector(None if origin is None else origin.get("xyz"), (0.0, 0.0, 0.0), name, where),
        rpy_rad=_vector(None if origin is None else origin.get("rpy"), (0.0, 0.0, 0.0), name, where),
        axis=_unit(element.find("axis"), name, where) if kind in MOVING else (0.0, 0.0, 1.0),
    )
    numbers = {key: None if limit is None else _number(limit.get(key), name, where) for key in ("lower", "upper", "velocity", "effort")}
    return UrdfJoint(
        frame=frame,
        kind=kind,
        low=numbers["lower"],
        high=numbers["upper"],
        velocity=numbers["velocity"] or None,
        effort=numbers["effort"] or None,
        mimics="" if mimic is None else mimic.get("joint", ""),
    )


def _link(element: ElementTree.Element | None, joint: str, tag: str, where: str) -> str:
    name = "" if element is None else element.get("link", "")
    if not name:
        raise DataError(f"{where}: joint {joint!r} names no {tag} link")
    return name


def _number(text: str | None, joint: str, where: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise DataError(f"{where}: joint {joint!r} has a limit of {text!r}, which is no number")
    return value


def _vector(text: str | None, default: Vector, joint: str, where: str) -> Vector:
    if text is None:
        return default
    numbers = [_number(part, joint, where) for part in text.split()]
    if len(numbers) != 3:
        raise DataError(f"{where}: joint {joint!r} has {text!r} where three numbers are expected")
    x, y, z = (float(n or 0.0) for n in numbers)
    return x, y, z


def _unit(element: ElementTree.Element | None, joint: str, where: str) -> Vector:
    x, y, z = _vector(None if element is None else element.get("xyz"), (1.0, 0.0, 0.0), joint, where)
    length = (x * x + y * y + z * z) ** 0.5
    if length < 1e-9:
        raise DataError(f"{where}: the axis of joint {joint!r} is zero")
    return x / length, y / length, z / length


def to_urdf(config: RobotConfig) -> str:
    """The frames and limits of a robot as URDF text, without its gripper's joints."""
    spec = config.spec
    joints = []
    for frame in config.frames:
        kind, limit = frame.kind, ""
        if frame.name in spec.joint_names:
            j = spec.joint_names.index(frame.name)
            limit = (
                f'<limit lower="{spec.position_low_rad[j]!r}" upper="{spec.position_high_rad[j]!r}" '
                f'velocity="{spec.velocity_max_rad_s[j]!r}" effort="{config.effort_max_nm[j]!r}"/>'
            )
        origin = f'<origin xyz="{_words(frame.origin_m)}" rpy="{_words(frame.rpy_rad)}"/><axis xyz="{_words(frame.axis)}"/>'
        parts = f'<parent link="{frame.parent}"/><child link="{frame.child}"/>{origin}{limit}'
        joints.append(f'<joint name="{frame.name}" type="{kind}">{parts}</joint>')
    links = dict.fromkeys([config.frames[0].parent, *(frame.child for frame in config.frames)]) if config.frames else {}
    named = "".join(f'<link name="{link}"/>' for link in links)
    return f'<?xml version="1.0"?>\n<robot name="{spec.name}">{named}{"".join(joints)}</robot>\n'


def _words(values: Vector) -> str:
    return " ".join(repr(float(value)) for value in values)
