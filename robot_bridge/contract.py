"""The contract between a robot and everything that looks at it: which message feeds which value, which action goes where.

One file per robot says it all, and deployment, recording and the conversion of bags read the same one. It has three lists.

- `sources`: a value of `Observation.values` from a field of a message on a topic. Several sources with one key are joined in
  their order: two arms, two grippers.
- `features`: a tensor that policies see, under its LeRobot key, from one or more values.
- `sinks`: where the values of a `Command` go. Several sinks with one value share it in their order.

A source whose key starts with "command." is what was commanded; it is read from recordings only, never from a living robot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robot_bridge.units import UNITS, Wire
from sinew.config import from_json, read_config, to_json
from sinew.errors import DataError, InputError
from sinew.rundir import write_json
from sinew.specs import ACTION, IMAGES, ActionSpec, ObservationSpec, TensorSpec

VERSION = 1
FILE = "contract.json"
"""Name of the file in a run, and in a dataset's folder "meta"."""
COMMANDED = "command."

Alignment = Literal["newest", "nearest", "interpolate"]
Stamp = Literal["header", "receipt"]
Quality = Literal["default", "sensor", "newest", "tf", "latched"]
ControllerKind = Literal[
    "position",
    "trajectory",
    "trajectory_action",
    "velocity",
    "twist",
    "gripper_action",
    "parallel_gripper_action",
    "gripper_position",
    "gripper_trajectory",
]

_VECTORS = {"joint_position": "rad", "joint_velocity": "rad/s", "joint_effort": "Nm", "gripper": "m", "wrench": "N,N,N,Nm,Nm,Nm"}
_FAMILIES = ("pose.", "images.", "extra.")
_FIELDS = {
    "sensor_msgs/JointState": ("position", "velocity", "effort"),
    "sensor_msgs/Image": ("image",),
    "sensor_msgs/CompressedImage": ("image",),
    "tf2_msgs/TFMessage": ("transform",),
    "geometry_msgs/PoseStamped": ("pose",),
    "geometry_msgs/WrenchStamped": ("wrench",),
    "std_msgs/Float64MultiArray": ("data",),
    "trajectory_msgs/JointTrajectory": ("position", "velocity"),
}
"""Fields of the messages that are known by hand; of any other message a dotted path is taken: "state.position"."""
WRENCH = ("force.x", "force.y", "force.z", "torque.x", "torque.y", "torque.z")
POSE = ("x", "y", "z", "r11", "r21", "r31", "r12", "r22", "r32")
"""Elements of a pose as networks see it: position and the first two columns of the rotation."""


@dataclass(frozen=True, kw_only=True)
class Source(Wire):
    """One value from one field of one message."""

    key: str
    """joint_position, joint_velocity, joint_effort, gripper, wrench, pose.<object>, images.<camera>, extra.<name>, or one of
    these after "command."."""
    topic: str
    """Absolute name of the topic."""
    message: str
    """Its type, "sensor_msgs/JointState"."""
    field: str
    """Field of the message: position, velocity or effort of joints, image, transform, pose, wrench, data; else a dotted path."""
    names: tuple[str, ...] = ()
    """Joints in the order wanted, by the names the message uses; for arrays without names, what their elements are called."""
    label: str = ""
    """Goes before the names where they would be the same for two arms: "left_"."""
    start: int = 0
    """First element that is taken of an array without names."""
    frame: str = ""
    """Frame that a pose is wanted in, or that a pose or wrench must be in."""
    child: str = ""
    """Frame whose pose is wanted, for transforms."""
    qos: Quality = "sensor"
    stamp: Stamp = "header"
    """Which clock tells how old it is: the sender's in the header, or ours when it arrived."""
    alignment: Alignment = "newest"
    """newest: the last one up to the time asked for; nearest: the one closest to it; interpolate: between its neighbours."""
    tolerance_s: float = 0.1
    """nearest and interpolate: farther from the time asked for there is no value."""
    age_max_s: float = 0.5
    """Older than this at the time asked for, the value counts as missing."""
    required: bool = True
    """Whether a robot that does not send it is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"source {self.key!r} from {self.topic}"
        family = self.key.removeprefix(COMMANDED)
        if family not in _VECTORS and not any(family.startswith(f) and len(family) > len(f) for f in _FAMILIES):
            raise InputError(f"{where}: unknown value; known are {', '.join(_VECTORS)}, pose.<object>, images.<camera>, extra.<name>")
        if not self.topic.startswith("/"):
            raise InputError(f"{where}: the topic must be absolute, '/{self.topic}'")
        if self.field not in _FIELDS.get(self.message, (self.field,)):
            raise InputError(f"{where}: {self.message} has no field {self.field!r}; it has {', '.join(_FIELDS[self.message])}")
        if self.needs_names and not self.names:
            raise InputError(f"{where}: name the joints that are wanted, in their order")
        if len(set(self.names)) != len(self.names):
            raise InputError(f"{where}: a name is given twice in {', '.join(self.names)}")
        if self.field == "transform" and not (self.frame and self.child):
            raise InputError(f"{where}: a transform needs 'frame' and 'child', as 'world' and 'cube'")
        if self.image and self.alignment == "interpolate":
            raise InputError(f"{where}: pictures cannot be interpolated; use newest or nearest")
        if not (self.tolerance_s > 0 and self.age_max_s > 0 and self.start >= 0):
            raise InputError(f"{where}: tolerance_s and age_max_s must be above 0 and start not below 0")

    @property
    def image(self) -> bool:
        """Whether it is a picture."""
        return self.key.removeprefix(COMMANDED).startswith("images.")

    @property
    def pose(self) -> bool:
        """Whether it is a pose: position and quaternion."""
        return self.key.removeprefix(COMMANDED).startswith("pose.")

    @property
    def needs_names(self) -> bool:
        """Whether the message is read by names, or its array has no other length."""
        return not (self.image or self.pose or self.field == "wrench")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the elements as policies see them."""
        if self.image:
            return ()
        own = self.key.removeprefix(COMMANDED)
        if self.pose:
            return tuple(f"{self.label}{own.removeprefix('pose.')}.{axis}" for axis in POSE)
        if own == "wrench":
            return tuple(f"{self.label}{axis}" for axis in WRENCH)
        if own == "gripper":
            return (f"{self.label}gripper",) if len(self.names) == 1 else tuple(f"{self.label}{n}" for n in self.names)
        suffix = {"joint_position": ".position", "joint_velocity": ".velocity", "joint_effort": ".effort"}.get(own, "")
        return tuple(f"{self.label}{name}{suffix}" for name in self.names)

    @property
    def unit_inside(self) -> str:
        """Unit of the value, comma-separated where elements differ."""
        own = self.key.removeprefix(COMMANDED)
        if self.pose:
            return "m,m,m,1,1,1,1,1,1"
        if own in _VECTORS:
            return _VECTORS[own]
        return UNITS[self.unit][0] if self.unit in UNITS else ""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A tensor that policies see."""

    key: str
    """LeRobot key: observation.state, observation.environment_state or observation.images.<camera>."""
    values: tuple[str, ...]
    """Values that it is made of, in order."""
    height: int = 0
    """Pictures are fitted to this many pixels; 0 leaves them as they come and cannot be checked beforehand."""
    width: int = 0


@dataclass(frozen=True, kw_only=True)
class Sink(Wire):
    """Where a value of a command goes."""

    value: str
    """joint_position or gripper."""
    kind: ControllerKind
    """How it is sent; `robot_bridge.controllers` tells each kind."""
    topic: str
    """Topic, or name of the action."""
    joints: tuple[str, ...]
    """Names that the controller uses, in the order in which numbers are sent."""
    controller: str = ""
    """Name in the controller manager, to ask whether it is active; empty where there is none."""
    manager: str = "/controller_manager"
    """The controller manager."""
    frame: str = ""
    """Frame of twists."""
    effort_n: float = 0.0
    """Largest force of a gripper, newtons; 0 leaves it to the driver."""
    points: int = 1
    """Most points of a path in one trajectory message; 1 streams single points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"sink of {self.value!r} on {self.topic}"
        if self.value not in ("joint_position", "gripper"):
            raise InputError(f"{where}: known values of a command are joint_position and gripper")
        if not self.topic.startswith("/"):
            raise InputError(f"{where}: the topic must be absolute, '/{self.topic}'")
        if not self.joints or len(set(self.joints)) != len(self.joints):
            raise InputError(f"{where}: joints {self.joints} must be named, each once")
        gripping = "gripper" in self.kind
        if gripping and self.value != "gripper":
            raise InputError(f"{where}: controller kind {self.kind!r} drives grippers only")
        if self.value == "gripper" and self.kind in ("velocity", "twist"):
            raise InputError(f"{where}: controller kind {self.kind!r} cannot drive a gripper")
        if self.kind == "twist" and not self.frame:
            raise InputError(f"{where}: twists need the frame they are told in, as 'base_link'")
        if self.effort_n < 0 or self.points < 1:
            raise InputError(f"{where}: effort_n must not be negative and points at least 1")


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a robot sends and takes."""

    robot: str
    """Name of the robot."""
    rate_hz: float
    """Frames per second that recordings are made with."""
    sources: tuple[Source, ...]
    features: tuple[Feature, ...] = ()
    sinks: tuple[Sink, ...] = ()
    action: ActionSpec | None = None
    """What policies command; None for a robot that is only watched."""
    action_values: tuple[str, ...] = ()
    """Values that hold the action in recordings, in the order of its elements: command.joint_position, command.gripper."""
    delay_s: float = 0.0
    """A frame is made this long after the time that it is for, so that slower sources are there too."""
    clock_tolerance_s: float = 0.5
    """The sender's clock may differ from ours by this much."""
    version: int = VERSION

    def __post_init__(self) -> None:
        where = f"contract of {self.robot!r}"
        if self.version != VERSION:
            raise DataError(f"{where} has version {self.version}, known is {VERSION}; write it anew with 'sinew robot add'")
        if not self.rate_hz > 0 or self.delay_s < 0 or not self.clock_tolerance_s > 0:
            raise InputError(f"{where}: rate_hz and clock_tolerance_s must be above 0, delay_s not below 0")
        known = {source.key for source in self.sources}
        for user, values in [*((f.key, f.values) for f in self.features), (ACTION, self.action_values)]:
            for value in values:
                if value not in known:
                    raise InputError(f"{where}: {user!r} wants value {value!r}, which no source gives: {', '.join(sorted(known))}")
        for feature in self.features:
            pictures = {value for value in feature.values if self._of(value)[0].image}
            if not feature.values or (pictures and len(feature.values) > 1) or bool(pictures) != feature.key.startswith(IMAGES):
                raise InputError(f"{where}: {feature.key!r} must be one picture, or vectors; it is made of {feature.values}")
        if len({f.key for f in self.features}) != len(self.features):
            raise InputError(f"{where}: a feature is given twice")
        if self.action is not None and self.action_values:
            given = sum(len(source.labels) for value in self.action_values for source in self._of(value))
            if given != self.action.dim:
                raise InputError(f"{where}: the action has {self.action.dim} elements, its recorded values {given}")
        if self.action is not None and not any(sink.value == "joint_position" for sink in self.sinks):
            raise InputError(f"{where}: there is an action, but no sink takes joint_position")

    # ------------------------------------------------------------ what it says

    @property
    def keys(self) -> tuple[str, ...]:
        """Values in the order of the sources, each once."""
        return tuple(dict.fromkeys(source.key for source in self.sources))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(key.removeprefix("images.") for key in self.keys if key.startswith("images."))

    @property
    def live(self) -> tuple[Source, ...]:
        """Sources that a living robot is read through: all but those of commands."""
        return tuple(source for source in self.sources if not source.key.startswith(COMMANDED))

    @property
    def topics(self) -> dict[str, str]:
        """Topic → message of every source and of every sink that is a topic's: what a recording must hold."""
        return {source.topic: source.message for source in self.sources}

    def observation_spec(self) -> ObservationSpec:
        """Tensors of the features.

        Raises:
            InputError: the size of a picture is not given.
        """
        tensors = {}
        for feature in self.features:
            sources = [source for value in feature.values for source in self._of(value)]
            if sources[0].image:
                if not (feature.height and feature.width):
                    raise InputError(f"feature {feature.key!r} of {self.robot!r} has no height and width; give them in its contract")
                tensors[feature.key] = TensorSpec(shape=(feature.height, feature.width, 3), dtype="uint8", low=0, high=255)
                continue
            names = tuple(label for source in sources for label in source.labels)
            units = [u for source in sources for u in _units(source)]
            tensors[feature.key] = TensorSpec(shape=(len(names),), unit=",".join(units), names=names)
        return ObservationSpec(tensors)

    def observe(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Features from values: vectors (D,) float32, pictures (H, W, 3) uint8.

        Raises:
            DataError: a value is missing.
        """
        from demos.resized import fit

        made = {}
        for feature in self.features:
            missing = [value for value in feature.values if value not in values]
            if missing:
                raise DataError(f"feature {feature.key!r} needs {missing[0]!r}; there are {', '.join(values) or 'no values'}")
            if self._of(feature.values[0])[0].image:
                picture = values[feature.values[0]]
                made[feature.key] = fit(picture, feature.height, feature.width) if feature.height and feature.width else picture
            else:
                parts = [_for_network(self._of(value)[0], values[value]) for value in feature.values]
                made[feature.key] = np.concatenate(parts).astype(np.float32)
        return made

    def recorded_action(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action (A,) float32 that recorded values hold.

        Raises:
            DataError: a value is missing, or actions of this kind cannot be told from commands.
        """
        missing = [value for value in self.action_values if value not in values]
        if self.action is None or not self.action_values:
            raise DataError(f"the contract of {self.robot!r} does not say which values hold the action; give action and action_values")
        if missing:
            raise DataError(f"the recording of {self.robot!r} holds no {missing[0]!r}; it holds {', '.join(values) or 'nothing'}")
        commanded = np.concatenate([np.atleast_1d(values[value]) for value in self.action_values]).astype(np.float64)
        if self.action.kind == "joint_delta":
            measured = values["joint_position"]
            commanded[: len(measured)] -= measured
        elif self.action.kind != "joint_position":
            raise DataError(f"actions of kind {self.action.kind!r} cannot be told from recorded joint commands; use joint_position")
        return commanded.astype(np.float32)

    def _of(self, key: str) -> list[Source]:
        return [source for source in self.sources if source.key == key]

    # ------------------------------------------------------------ keeping it

    def hash(self) -> str:
        """SHA-256 of what it says: two contracts with one hash give the same frames."""
        said = from_json(Contract, to_json(self))  # 10 and 10.0 are one number, as they are in the file
        return hashlib.sha256(json.dumps(to_json(said), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def changed(self, **changes: Any) -> Contract:
        """The same with some fields changed."""
        return replace(self, **changes)


def _units(source: Source) -> Iterator[str]:
    units = source.unit_inside.split(",")
    yield from units if len(units) == len(source.labels) else units * len(source.labels)


def _for_network(source: Source, value: np.ndarray) -> np.ndarray:
    """A value as networks see it: the rotation of a pose as two columns of its matrix."""
    flat = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if not source.pose:
        return flat
    w, x, y, z = flat[3:]
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    second = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    return np.concatenate((flat[:3], first, second))


def store(contract: Contract, folder: str | Path) -> Path:
    """Write a contract into the folder of a run, or into a dataset's "meta"; returns the file."""
    path = Path(folder) / FILE
    write_json(path, to_json(contract))
    return path


def load(place: str | Path) -> Contract | None:
    """The contract in a file, a run or a dataset; None where a folder has none.

    Raises:
        InputError: there is no such place.
        DataError: the file is damaged.
    """
    place = Path(place)
    if not place.exists():
        raise InputError(f"no contract at {place}: no such file or folder")
    path = next((p for p in (place / FILE, place / "meta" / FILE) if p.is_file()), None) if place.is_dir() else place
    if path is None:
        return None
    return read_config(Contract, path, "contract")
