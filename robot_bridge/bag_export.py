"""A dataset becomes a bag: its frames as the messages that the robot's contract reads them from, with markers of episodes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demos.bags import BagWriter, Topic
from demos.dataset import Dataset
from robot_bridge import contract as contracts
from robot_bridge import markers
from robot_bridge.bags import CONTRACT, PLAIN_ACTION, Converted
from robot_bridge.contract import Contract, Feature, Sink, Source
from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, definition, full_name, type_hash
from robot_bridge.images import encode_png
from sinew import calibrations
from sinew.config import to_json
from sinew.errors import DataError, SpecError
from sinew.progress import SILENT, Progress
from sinew.se3 import matrix_to_quaternion, rotation6d_to_matrix
from sinew.specs import ACTION, IMAGES, ActionSpec, check_observation_join

GAP_S = 2.0
"""Between the end of an episode and the beginning of the next."""
FLOATS = "std_msgs/Float64MultiArray"


def to_bag(root: Path, out: Path, *, contract: Contract | None = None, progress: Progress = SILENT) -> Converted:
    """Write a dataset as a bag.

    Frames lie at exact multiples of the dataset's period, from the first one's stamp on. The contract is in the bag, so that
    `robot_bridge.bags.to_dataset` needs nothing else to make the same dataset of it.

    Args:
        root: dataset.
        out: a new .mcap file or folder.
        contract: of the robot; None for the dataset's own, where its keys are what that contract gives, else `plain_contract`.
        progress: told of every episode.

    Raises:
        DataError: no dataset, or one whose values cannot be sent back.
        SpecError: the contract that was given makes other keys.
        InputError: the bag cannot be written.
    """
    data = Dataset(root)
    given = contract
    contract = contract or contracts.load(root)
    try:
        if contract is not None:
            _check(data, contract)
    except SpecError:
        if given is not None:
            raise
        contract = None
    contract = (contract or plain_contract(data)).changed(rate_hz=float(data.fps))
    done = Converted()
    period_ns = round(1e9 / data.fps)
    stamps = data.column("timestamp_ns") if "timestamp_ns" in data.info["features"] else None
    at_ns = 0 if stamps is None or not len(data) else max(0, int(stamps[0, 0]))
    at_ns = at_ns or 1_000_000_000
    progress.start("convert", data.num_episodes)
    with BagWriter(out) as writer:
        messages = Messages(contract, writer)
        messages.say(CONTRACT, _specs(data, contract), at_ns)
        for index in range(data.num_episodes):
            episode = data.episode(index)
            messages.say(markers.EPISODES, {"event": "begin", "task": episode.task}, at_ns)
            for frame in _frames(data, index):
                messages.write(_values(contract, frame), at_ns)
                at_ns += period_ns
            messages.say(markers.EPISODES, {"event": "end", "success": episode.success}, at_ns - period_ns // 2)
            at_ns += math.ceil(GAP_S * 1e9 / period_ns) * period_ns
            done.episodes, done.frames = done.episodes + 1, done.frames + episode.length
            progress.advance(1)
    return done


def plain_contract(data: Dataset) -> Contract:
    """A contract for a dataset of which nobody knows the robot: each vector is an array on a topic of its own."""
    sources, features = [], []
    for key, spec in data.observation_spec.tensors.items():
        name = key.removeprefix("observation.")
        topic = f"/observation/{_topic(name)}"
        if key in data.observation_spec.images:
            value, (height, width, _) = f"images.{key.removeprefix(IMAGES)}", spec.shape
            sources.append(Source(key=value, topic=topic, message="sensor_msgs/CompressedImage", field="image", alignment="nearest"))
            features.append(Feature(key=key, values=(value,), height=height, width=width))
        else:
            sources.append(_array(f"extra.{name}", topic, _names(spec.names, spec.shape[0])))
            features.append(Feature(key=key, values=(f"extra.{name}",)))
    action = data.action_spec
    names = _names(action.names, action.dim)
    sources.append(_array(PLAIN_ACTION, "/action", names))
    robot = str(data.info.get("robot_type") or "unknown")
    sink = Sink(value="joint_position", kind="position", topic="/action", joints=names)
    return Contract(
        robot=robot, rate_hz=float(data.fps), sources=tuple(sources), features=tuple(features), sinks=(sink,), action=action,
        action_values=(PLAIN_ACTION,),
    )  # fmt: skip


class Messages:
    """Values as the messages that a contract reads them from.

    Args:
        contract: what is read from where.
        writer: gets the messages.
    """

    def __init__(self, contract: Contract, writer: BagWriter) -> None:
        self._writer = writer
        self._topics: dict[str, list[Source]] = {}
        for source in contract.sources:
            self._topics.setdefault(source.topic, []).append(source)

    def say(self, topic: str, told: Mapping[str, Any], at_ns: int) -> None:
        """A text of our own, as JSON."""
        self._add(topic, markers.TEXT, latched=True)
        self._writer.write(topic, at_ns, markers.text(json.dumps(told)))

    def write(self, values: Mapping[int, np.ndarray], at_ns: int) -> None:
        """The messages of a time.

        Args:
            values: {id of a source: its value}; topics of which nothing is known stay silent.
            at_ns: stamp of all of them.
        """
        for topic, sources in self._topics.items():
            known = [(source, values[id(source)]) for source in sources if id(source) in values]
            if known:
                self._add(topic, known[0][0].message)
                self._writer.write(topic, at_ns, message_of(known, at_ns))

    def _add(self, topic: str, message: str, latched: bool = False) -> None:
        name = full_name(message)
        self._writer.add(Topic(name=topic, type=name, definition=definition(name), type_hash=type_hash(name), latched=latched))


def message_of(known: Sequence[tuple[Source, np.ndarray]], stamp_ns: int) -> bytes:
    """One message that holds the values of all these sources, which read the same topic.

    Raises:
        DataError: the message has no place for a value.
    """
    source, value = known[0]
    message = source.message
    if message == "sensor_msgs/Image":
        return bytes(codec.encode_image(value, stamp_ns, source.frame))
    stamp = blank("builtin_interfaces/Time", sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)
    header = blank("std_msgs/Header", stamp=stamp, frame_id=source.frame)
    if message == "sensor_msgs/CompressedImage":
        return _encoded(message, header=header, format="rgb8; png compressed bgr8", data=np.frombuffer(encode_png(value), np.uint8))
    if message == "tf2_msgs/TFMessage":
        transforms = [codec.Transform(stamp_ns, s.frame, s.child, tuple(v.tolist())) for s, v in known]
        return bytes(codec.encode_transforms(transforms))
    wire = [(s, v if s.pose else np.atleast_1d(s.from_si(v))) for s, v in known]
    if message == "sensor_msgs/JointState":
        return _joint_state(wire, header)
    if message == FLOATS:
        numbers = np.zeros(max(s.start + len(s.names) for s, _ in wire))
        for s, v in wire:
            numbers[s.start : s.start + len(s.names)] = v
        return bytes(codec.encode_doubles(numbers.tolist()))
    if message == "trajectory_msgs/JointTrajectory":
        names = [name for s, _ in wire if s.field == "position" for name in s.names]
        positions = np.concatenate([v for s, v in wire if s.field == "position"] or [np.zeros(0)])
        point = blank("trajectory_msgs/JointTrajectoryPoint", positions=positions)
        return _encoded(message, header=header, joint_names=names, points=[point])
    if message == "geometry_msgs/PoseStamped":
        return _encoded(message, header=header, pose=_pose(value))
    if message == "geometry_msgs/WrenchStamped":
        force, torque = ({axis: float(v) for axis, v in zip("xyz", part, strict=True)} for part in (value[:3], value[3:]))
        vectors = {"force": blank("geometry_msgs/Vector3", **force), "torque": blank("geometry_msgs/Vector3", **torque)}
        return _encoded(message, header=header, wrench=blank("geometry_msgs/Wrench", **vectors))
    raise DataError(f"{source.key} cannot be written as {message}, field {source.field!r}; give a contract with another message for it")


def _joint_state(wire: Sequence[tuple[Source, np.ndarray]], header: Any) -> bytes:
    """Arrays are as long as the names; what is not known of a joint is zero, and an array of which nothing is known is empty."""
    names = list(dict.fromkeys(name for s, _ in wire for name in s.names))
    arrays = {}
    for name in ("position", "velocity", "effort"):
        said = [(s, v) for s, v in wire if s.field == name]
        arrays[name] = np.zeros(len(names) if said else 0)
        for s, v in said:
            arrays[name][[names.index(joint) for joint in s.names]] = v
    return _encoded("sensor_msgs/JointState", header=header, name=names, **arrays)


def _pose(value: np.ndarray) -> Any:
    x, y, z, qw, qx, qy, qz = (float(v) for v in value)
    point, rotation = blank("geometry_msgs/Point", x=x, y=y, z=z), blank("geometry_msgs/Quaternion", w=qw, x=qx, y=qy, z=qz)
    return blank("geometry_msgs/Pose", position=point, orientation=rotation)


def _encoded(message: str, **values: Any) -> bytes:
    return bytes(codec.encode(blank(message, **values)))


# ------------------------------------------------------------ from frames to values


def _check(data: Dataset, contract: Contract) -> None:
    """Whether a dataset's keys are what a contract makes."""
    made = contract.observation_spec()
    check_observation_join("the contract", made, str(data.root), data.observation_spec)
    check_observation_join(str(data.root), data.observation_spec, "the contract", made)
    action: ActionSpec = data.action_spec
    if contract.action is None or (contract.action.kind, contract.action.names) != (action.kind, action.names):
        wanted = "none" if contract.action is None else f"{contract.action.kind} {contract.action.names}"
        raise SpecError(f"{data.root} holds actions {action.kind} {action.names}, the contract has {wanted}")
    _check_measured(data, contract)
    if contract.action_values != (PLAIN_ACTION,) and action.kind not in ("joint_position", "joint_delta"):
        raise SpecError(f"{data.root} holds actions of kind {action.kind!r}, which are no commands of joints")


def _check_measured(data: Dataset, contract: Contract) -> None:
    """Actions that a contract tells from measurements, as those of a gripper behind an action server, must be what was measured."""
    at = 0
    for value in contract.action_values:
        width = _width(contract, value)
        if not value.startswith(contracts.COMMANDED):
            feature = next((f for f in contract.features if value in f.values), None)
            start = 0 if feature is None else sum(_width(contract, v) for v in feature.values[: feature.values.index(value)])
            asked = data.column(ACTION)[:, at : at + width]
            if feature is None or not np.allclose(asked, data.column(feature.key)[:, start : start + width], atol=1e-6):
                raise SpecError(
                    f"{data.root} commands a {value} that the contract of {contract.robot!r} has no topic for, only measurements"
                )
        at += width


def _width(contract: Contract, value: str) -> int:
    return sum(len(source.labels) for source in contract.sources if source.key == value)


def _frames(data: Dataset, episode: int) -> Iterator[dict[str, np.ndarray]]:
    """Observations and action of an episode's frames, pictures a few at a time."""
    info = data.episode(episode)
    pictures = {key: (image for block in data.pictures(key, episode) for image in block) for key in data.cameras}
    vectors = {key: data.column(key) for key in (*data.observation_spec.vectors, ACTION)}
    for i in range(info.start, info.start + info.length):
        yield {**{key: column[i] for key, column in vectors.items()}, **{key: next(images) for key, images in pictures.items()}}


def _values(contract: Contract, frame: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Values of sources, told by the features and the action that were made of them."""
    values: dict[int, np.ndarray] = {}
    for feature in contract.features:
        _take(contract, feature.values, frame[feature.key], values)
    action = np.asarray(frame[ACTION], dtype=np.float64)
    if contract.action is not None and contract.action.kind == "joint_delta" and contract.action_values != (PLAIN_ACTION,):
        measured = np.concatenate([values[id(s)] for s in contract.sources if s.key == "joint_position"])
        action = action + np.concatenate((measured, np.zeros(len(action) - len(measured))))
    _take(contract, contract.action_values, action, values)
    return values


def _take(contract: Contract, keys: Sequence[str], vector: np.ndarray, values: dict[int, np.ndarray]) -> None:
    at = 0
    for key in keys:
        for source in (s for s in contract.sources if s.key == key):
            if source.image:
                values[id(source)] = np.asarray(vector)
                continue
            part = np.asarray(vector[at : at + len(source.labels)], dtype=np.float64)
            at += len(source.labels)
            values[id(source)] = _quaternion(part) if source.pose else part


def _quaternion(part: np.ndarray) -> np.ndarray:
    """Position and two columns of a rotation as position and quaternion wxyz."""
    return np.concatenate((part[:3], matrix_to_quaternion(rotation6d_to_matrix(part[3:]))))


def _specs(data: Dataset, contract: Contract) -> dict[str, Any]:
    told: dict[str, Any] = {"contract": to_json(contract), "specs": {"observation": to_json(data.observation_spec.tensors)}}
    kept = calibrations.load(data.root)
    return told | {"calibrations": calibrations.as_json(kept)} if kept else told


def _array(key: str, topic: str, names: tuple[str, ...]) -> Source:
    return Source(key=key, topic=topic, message=FLOATS, field="data", names=names, stamp="receipt", alignment="newest")


def _names(names: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(names) if len(set(names)) == count else tuple(str(i) for i in range(count))


def _topic(name: str) -> str:
    """A name as a topic: ROS 2 allows letters, digits, underscores and slashes."""
    return "/".join("".join(c if c.isalnum() and c.isascii() else "_" for c in part) or "_" for part in name.split("."))
