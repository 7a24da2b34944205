"""Bags and datasets are made of each other and stay what they were; markers, gaps, and bags that do not fit the contract."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import demos
from demos.bags import Bag, BagWriter, Topic
from robot_bridge import contract as contracts
from robot_bridge.alignment import Aligner, frames
from robot_bridge.bag_export import plain_contract, to_bag
from robot_bridge.bag_recorder import BagRecorder
from robot_bridge.bags import bags_in, to_dataset
from robot_bridge.contract import Contract, Feature, Sink, Source
from robot_bridge.dds import codec
from robot_bridge.dds.messages import definition, full_name, make
from robot_bridge.dds.node import Node
from robot_bridge.robots import load_robot
from robot_bridge.transport import DEFAULT, LATCHED, SENSOR
from sinew.errors import DataError, InputError, SpecError
from sinew.rundir import read_json
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

MS = 1_000_000
START = 1_700_000_000_000 * MS
STATE, COMMAND, PICTURE = "/joint_states", "/forward_position_controller/commands", "/front/image_raw"


def joint(key: str, **changes: Any) -> Source:
    values = {"key": key, "topic": STATE, "message": "sensor_msgs/JointState", "field": "position", "names": ("a", "b")}
    return Source(**{**values, "alignment": "interpolate", **changes})


def contract(camera: bool = False, **changes: Any) -> Contract:
    """Two joints and a gripper in percent, commanded by an array; a pose from /tf, and a camera."""
    sources = [
        joint("joint_position"),
        joint("joint_velocity", field="velocity", required=False),
        joint("gripper", names=("f",), unit="percent", si_range=(0.0, 0.08)),
        Source(key="pose.cube", topic="/tf", message="tf2_msgs/TFMessage", field="transform", frame="world", child="cube"),
        Source(
            key="command.joint_position", topic=COMMAND, message="std_msgs/Float64MultiArray", field="data", names=("a", "b"),
            stamp="receipt", required=False,
        ),
        Source(
            key="command.gripper", topic=COMMAND, message="std_msgs/Float64MultiArray", field="data", names=("f",), start=2,
            stamp="receipt", required=False,
        ),
    ]  # fmt: skip
    features = [
        Feature(key="observation.state", values=("joint_position", "joint_velocity", "gripper")),
        Feature(key="observation.environment_state", values=("pose.cube",)),
    ]
    if camera:
        sources.append(Source(key="images.front", topic=PICTURE, message="sensor_msgs/CompressedImage", field="image", alignment="nearest"))
        features.append(Feature(key="observation.images.front", values=("images.front",), height=32, width=48))
    action = ActionSpec(
        kind="joint_position", low=(-2.0, -2.0, 0.0), high=(2.0, 2.0, 0.08), rate_hz=20.0, names=("a.position", "b.position", "gripper")
    )
    said = {
        "robot": "test", "rate_hz": 20.0, "sources": tuple(sources), "features": tuple(features), "action": action,
        "sinks": (Sink(value="joint_position", kind="position", topic=COMMAND, joints=("a", "b")),),
        "action_values": ("command.joint_position", "command.gripper"),
    }  # fmt: skip
    return Contract(**{**said, **changes})


def dataset(root: Path, told: Contract, lengths: tuple[int, ...] = (30, 20), seed: int = 0) -> Path:
    """Frames of random vectors and moving pictures."""
    rng = np.random.default_rng(seed)
    observation, action = told.observation_spec(), told.action
    assert action is not None
    with demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, robot_type="test") as writer:
        for episode, length in enumerate(lengths):
            for i in range(length):
                rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
                frame = {
                    "observation.state": rng.uniform(0.0, 0.08, 5).astype(np.float32),
                    "observation.environment_state": np.concatenate((rng.standard_normal(3), rotation.T[:2].ravel())).astype(np.float32),
                    "action": rng.uniform(0.0, 0.08, 3).astype(np.float32),
                }
                if observation.images:
                    image = np.zeros((32, 48, 3), np.uint8)
                    image[:, i : i + 8] = 200
                    frame["observation.images.front"] = image
                writer.add_frame(frame, task=f"task {episode}", stamp_ns=START + i * 50 * MS)
            writer.save_episode(success=(True, False, None)[episode % 3])
    contracts.store(told, root / "meta")
    return root


def alike(a: Path, b: Path, atol: float = 1e-6) -> demos.Dataset:
    first, second = demos.Dataset(a), demos.Dataset(b)
    assert all(finding.level != "error" for finding in demos.check(b).findings)
    assert second.num_episodes == first.num_episodes and len(second) == len(first)
    for i in range(first.num_episodes):
        x, y = first.episode(i), second.episode(i)
        assert (x.length, x.task, x.success) == (y.length, y.task, y.success)
    for key in (*first.observation_spec.vectors, "action"):
        np.testing.assert_allclose(second.column(key), first.column(key), atol=atol)
    assert second.observation_spec == first.observation_spec and second.action_spec == first.action_spec
    return second


# ------------------------------------------------------------ round trips


def test_a_dataset_goes_into_a_bag_and_back(tmp_path):
    told = contract(camera=True)
    root = dataset(tmp_path / "d", told, (30, 20, 10))
    done = to_bag(root, tmp_path / "bag")
    assert (done.episodes, done.frames) == (3, 60)
    bag = Bag(tmp_path / "bag")
    assert bag.counts[STATE] == bag.counts[COMMAND] == bag.counts[PICTURE] == 60 and bag.counts["/sinew/episode"] == 6
    state = codec.decode_joint_state(next(bag.messages([STATE])).data)
    assert state.names == ("a", "b", "f") and state.stamp_ns == START
    assert state.position[2] == pytest.approx(float(demos.Dataset(root).column("observation.state")[0, 4]) / 0.08 * 100)
    back = to_dataset(bags_in(tmp_path / "bag"), tmp_path / "back")
    assert (back.episodes, back.frames, back.dropped, back.damage) == (3, 60, 0, [])
    second = alike(root, tmp_path / "back")
    assert contracts.load(tmp_path / "back") == told
    for i in (0, 29, 59):
        a, b = demos.Dataset(root)[i]["observation.images.front"], second[i]["observation.images.front"]
        assert np.abs(a.astype(int) - b.astype(int)).mean() < 4


def test_a_dataset_of_an_unknown_robot_goes_into_a_bag_and_back(tmp_path):
    observation = ObservationSpec(
        {
            "observation.state": TensorSpec(shape=(3,), unit="rad,m,1", names=("same", "same", "x"), low=-1.0, high=1.0),
            "observation.images.left.wrist": TensorSpec(shape=(32, 48, 3), dtype="uint8"),
        }
    )
    action = ActionSpec(kind="ee_delta", low=(-1.0, -1.0), high=(1.0, 1.0), rate_hz=10.0, names=("x", "gripper"))
    rng = np.random.default_rng(0)
    with demos.Writer.create(tmp_path / "d", fps=10, observation_spec=observation, action_spec=action, task="push") as writer:
        for i in range(15):
            image = np.full((32, 48, 3), 10 * i, np.uint8)
            state = rng.standard_normal(3).astype(np.float32)
            writer.add_frame({"observation.state": state, "observation.images.left.wrist": image, "action": state[:2]})
        writer.save_episode(success=True)
    to_bag(tmp_path / "d", tmp_path / "a.mcap")
    assert set(Bag(tmp_path / "a.mcap").topics) == {
        "/observation/state", "/observation/images/left/wrist", "/action", "/sinew/contract", "/sinew/episode",
    }  # fmt: skip
    to_dataset([tmp_path / "a.mcap"], tmp_path / "back")
    alike(tmp_path / "d", tmp_path / "back", atol=0.0)
    assert plain_contract(demos.Dataset(tmp_path / "d")).robot == "unknown"


def test_a_contract_that_makes_other_keys_is_refused_or_passed_over(tmp_path):
    root = dataset(tmp_path / "d", contract())
    with pytest.raises(SpecError, match=r"observation\.images\.front"):
        to_bag(root, tmp_path / "bag", contract=contract(camera=True))
    contracts.store(contract(camera=True), root / "meta")
    to_bag(root, tmp_path / "bag")  # as a robot nobody knows
    assert "/observation/state" in Bag(tmp_path / "bag").topics
    measured = contract(action_values=("command.joint_position", "gripper"))
    with pytest.raises(SpecError, match="has no topic for"):
        to_bag(root, tmp_path / "other", contract=measured)


def test_a_gripper_that_is_commanded_by_an_action_is_told_by_its_measurements(tmp_path):
    told = load_robot("ur5e").contract
    assert told.action is not None
    made = told.observation_spec()
    data = tmp_path / "d"
    with demos.Writer.create(data, fps=20, observation_spec=made, action_spec=told.action, task="t") as writer:
        for i in range(5):
            vectors = {k: np.full(made[k].shape, 0.01 * i, np.float32) for k in made.vectors}
            pictures = {k: np.full(made[k].shape, i, np.uint8) for k in made.images}
            writer.add_frame({**vectors, **pictures, "action": np.full(told.action.dim, 0.01 * i, np.float32)})
        writer.save_episode()
    to_bag(data, tmp_path / "bag", contract=told)
    to_dataset([tmp_path / "bag"], tmp_path / "back")
    alike(data, tmp_path / "back")


# ------------------------------------------------------------ bags of robots


class Robot:
    """Writes the messages of a robot that counts: joint a is the time in seconds."""

    def __init__(self, path: Path, types: dict[str, str] | None = None) -> None:
        self.writer = BagWriter(path)
        kinds = {STATE: "sensor_msgs/JointState", COMMAND: "std_msgs/Float64MultiArray", "/tf": "tf2_msgs/TFMessage"}
        for name, kind in {**kinds, **(types or {})}.items():
            self.writer.add(Topic(name=name, type=full_name(kind), definition=definition(kind)))

    def at(self, ms: int, state: bool = True, command: bool = True) -> None:
        now_ns, t = START + ms * MS, ms / 1000
        if state:
            data = codec.JointStateEncoder(("f", "b", "a")).encode(now_ns, (50.0, 2 * t, t), (0.0, 2.0, 1.0))
            self.writer.write(STATE, now_ns + MS, bytes(data))
            self.writer.write(
                "/tf", now_ns + MS, codec.encode_transforms([codec.Transform(now_ns, "world", "cube", (t, 0, 0, 1, 0, 0, 0))])
            )
        if command:
            self.writer.write(COMMAND, now_ns + MS, codec.encode_doubles([t, 2 * t, 0.01]))

    def say(self, topic: str, kind: str, ms: int, **values: Any) -> None:
        self.writer.write(topic, START + ms * MS, bytes(codec.encode(make(kind, **values))))

    def close(self) -> None:
        self.writer.close()


def test_one_bag_for_each_episode(tmp_path):
    (tmp_path / "bags").mkdir()
    for name, length in (("b", 1000), ("a", 500)):
        robot = Robot(tmp_path / "bags" / name)
        for ms in range(0, length + 10, 10):
            robot.at(ms)
        robot.close()
    done = to_dataset(bags_in(tmp_path / "bags"), tmp_path / "d", contract=contract(), task="count")
    data = demos.Dataset(tmp_path / "d")
    assert done.episodes == 2 and [data.episode(i).length for i in range(2)] == [11, 21]  # a, then b
    assert data.episode(0).task == "count" and data.episode(0).success is None
    state, times = data.column("observation.state"), data.column("timestamp_ns")[:, 0]
    np.testing.assert_allclose(state[:, 0], (times - START) / 1e9, atol=1.1e-3)  # held at most for the millisecond on the wire
    np.testing.assert_allclose(state[:, 1], 2 * state[:, 0], atol=1e-6)
    np.testing.assert_allclose(state[:, 4], 0.04)
    assert np.diff(times[:11]).tolist() == [50 * MS] * 10
    note = read_json(tmp_path / "d/meta/sinew_collection.json")
    assert note["sources"] == ["a", "b"] and note["contract"] == contract().hash()


def test_markers_of_a_simulated_scene(tmp_path):
    kinds = {"/sinew/scene/episode": "std_msgs/Int64", "/sinew/scene/success": "std_msgs/Bool"}
    robot = Robot(tmp_path / "bag", kinds)
    for ms in range(0, 3000, 10):
        if ms in (500, 1500):
            robot.say("/sinew/scene/episode", "std_msgs/Int64", ms, data=ms)
        robot.at(ms)
        if ms % 100 == 0:
            robot.say("/sinew/scene/success", "std_msgs/Bool", ms + 2, data=1200 < ms < 1500)
    robot.close()
    to_dataset([tmp_path / "bag"], tmp_path / "d", contract=contract(), task="count")
    data = demos.Dataset(tmp_path / "d")
    assert [data.episode(i).success for i in range(2)] == [True, False] and [data.episode(i).length for i in range(2)] == [20, 30]
    assert data.column("timestamp_ns")[0, 0] >= START + 500 * MS and data.column("timestamp_ns")[20, 0] >= START + 1500 * MS


@pytest.mark.parametrize("kind", ["std_msgs/Bool", "std_msgs/String"])
def test_markers_of_others(tmp_path, kind):
    robot = Robot(tmp_path / "bag", {"/recording": kind})
    for ms in range(0, 2000, 10):
        if ms in (300, 800, 1200):
            begins = ms != 800
            robot.say("/recording", kind, ms, data=begins if kind.endswith("Bool") else f"do {ms}" * begins)
        robot.at(ms)
    robot.close()
    task = "count" if kind.endswith("Bool") else None
    to_dataset([tmp_path / "bag"], tmp_path / "d", contract=contract(), task=task, episodes="/recording")
    data = demos.Dataset(tmp_path / "d")
    assert [data.episode(i).length for i in range(2)] == [10, 16]
    assert [data.episode(i).task for i in range(2)] == (["count"] * 2 if task else ["do 300", "do 1200"])


def test_an_episode_ends_where_something_stays_away(tmp_path):
    robot = Robot(tmp_path / "bag")
    for ms in range(0, 4000, 10):
        robot.at(ms, state=not 1500 < ms < 2500)
    robot.close()
    done = to_dataset([tmp_path / "bag"], tmp_path / "d", contract=contract(), task="count")
    data = demos.Dataset(tmp_path / "d")
    assert done.episodes == 2 and "cut in two" in done.damage[0] and "stayed away" in data.episode(0).warnings[0]
    assert data.episode(0).length in (32, 33) and data.episode(1).length == 30  # held for the tolerance of 0.1 s
    state, times = data.column("observation.state"), data.column("timestamp_ns")[:, 0]
    np.testing.assert_allclose(state[data.episode(0).length :, 0], (times[data.episode(0).length :] - START) / 1e9, atol=1.1e-3)


# ------------------------------------------------------------ what does not fit


def refused(bag: Path, out: Path, match: str, error: type[Exception] = DataError, **options: Any) -> None:
    with pytest.raises(error, match=match) as e:
        to_dataset([bag], out, **{"contract": contract(), "task": "count", **options})
    assert "\n" not in str(e.value) and not (out / "meta/info.json").exists()


def test_bags_that_do_not_fit_are_refused_in_one_line(tmp_path):
    robot = Robot(tmp_path / "bag")
    for ms in range(0, 500, 10):
        robot.at(ms)
    robot.close()
    bag, out = tmp_path / "bag", tmp_path / "d"
    refused(bag, out, "has no topic /front/image_raw", contract=contract(camera=True))
    elsewhere = contract(sources=tuple(replace(s, topic="/arm" + s.topic) if s.topic == STATE else s for s in contract().sources))
    refused(bag, out, "has no topic /arm/joint_states", contract=elsewhere)
    refused(bag, out, "has no such topic", episodes="/recording")
    refused(bag, out, "std_msgs/Bool is needed", success=COMMAND)
    refused(bag, out, "give --contract", InputError, contract=None)
    refused(bag, out, "give --task", InputError, task=None)
    refused(bag, out, "tells no recorded action", InputError, contract=contract(action_values=()))
    unknown = contract(sources=tuple(replace(s, names=("a", "z")) if s.key.startswith("joint") else s for s in contract().sources))
    refused(bag, out, "gives no frame: joint_position, joint_velocity never came", contract=unknown)
    Robot(tmp_path / "wrong", {STATE: "std_msgs/String"}).close()
    refused(tmp_path / "wrong", out, "is std_msgs/String, the contract expects sensor_msgs/JointState")
    Robot(tmp_path / "empty").close()
    refused(tmp_path / "empty", out, "gives no frame")
    with pytest.raises(DataError, match=r"holds no \.mcap or \.db3"):
        (tmp_path / "nothing").mkdir()
        bags_in(tmp_path / "nothing")


def test_a_camera_that_is_not_required_may_be_missing(tmp_path):
    robot = Robot(tmp_path / "bag")
    for ms in range(0, 500, 10):
        robot.at(ms)
    robot.close()
    told = contract(camera=True)
    told = told.changed(sources=tuple(replace(s, required=False) if s.image else s for s in told.sources))
    done = to_dataset([tmp_path / "bag"], tmp_path / "d", contract=told, task="count")
    assert done.episodes == 1 and "observation.images.front is left out" in done.damage[0]
    assert contracts.load(tmp_path / "d") == told.changed(features=told.features[:2])


def test_payloads_of_another_type_are_dropped(tmp_path):
    robot = Robot(tmp_path / "bag")
    for ms in range(0, 1000, 10):
        robot.at(ms)
        if ms % 50 == 0:  # a liar on the topic, and one who claims four billion elements
            robot.writer.write(STATE, START + ms * MS + MS, bytes(codec.encode(make("std_msgs/String", data="x" * 40))))
            robot.writer.write(COMMAND, START + ms * MS + MS, b"\x00\x01\x00\x00" + b"\xff" * 20)
    robot.close()
    done = to_dataset([tmp_path / "bag"], tmp_path / "d", contract=contract(), task="count")
    assert done.episodes == 1 and done.dropped == 40
    assert np.isfinite(demos.Dataset(tmp_path / "d").column("observation.state")).all()


def test_of_a_bag_that_was_cut_off_the_beginning_is_converted(tmp_path):
    robot = Robot(tmp_path / "bag.mcap")
    for ms in range(0, 2000, 10):
        robot.at(ms)
        if ms % 200 == 0:
            robot.writer.flush()
    robot.close()
    data = (tmp_path / "bag.mcap").read_bytes()
    (tmp_path / "bag.mcap").write_bytes(data[: len(data) // 2])
    done = to_dataset([tmp_path / "bag.mcap"], tmp_path / "d", contract=contract(), task="count")
    assert done.episodes == 1 and 10 < done.frames < 30 and "cut off" in done.damage[0]


# ------------------------------------------------------------ live


def play(bag: Bag, node: Node, wanted: int) -> None:
    """Publish a bag's messages, far faster than they were recorded, once somebody listens."""
    profiles = {name: LATCHED if t.latched else SENSOR if not t.reliable else DEFAULT for name, t in bag.topics.items()}
    publishers = {name: node.publisher(name, t.type.replace("/msg/", "/"), profiles[name]) for name, t in bag.topics.items()}
    deadline = time.monotonic() + 30
    while sum(p.subscribers for p in publishers.values()) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    for i, message in enumerate(bag.messages()):
        publishers[message.topic].write(message.data)
        if i % 5 == 0:
            time.sleep(0.001)


def test_every_topic_of_a_graph_is_recorded_and_gives_the_same_frames(tmp_path, domain):
    """The same bag converted offline, and played to a recorder over a real network and converted then: the same states."""
    robot = Robot(tmp_path / "bag", {"/unknown_to_the_contract": "std_msgs/String"})
    robot.writer.add(Topic(name="/robot_description", type=full_name("std_msgs/String"), latched=True, depth=1))
    robot.say("/robot_description", "std_msgs/String", 0, data="<robot/>")
    for ms in range(0, 1000, 10):
        robot.at(ms)
        robot.say("/unknown_to_the_contract", "std_msgs/String", ms, data=str(ms))
    robot.close()
    bag = Bag(tmp_path / "bag")
    publisher, listener = Node("player", domain=domain, reach="LOOPBACK"), Node("recorder", domain=domain, reach="LOOPBACK")
    recorder = BagRecorder(listener, tmp_path / "again.mcap")
    try:
        play(bag, publisher, len(bag.topics))
        deadline = time.monotonic() + 30
        while recorder.writer.count < sum(bag.counts.values()) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        recorder.close()
        publisher.close()
    again = Bag(tmp_path / "again.mcap")
    assert again.counts == bag.counts and again.whole and recorder.passed_over == {}
    assert again.topics["/robot_description"].latched and not again.topics["/unknown_to_the_contract"].latched
    for name in bag.counts:
        for a, b in zip(again.messages([name]), bag.messages([name]), strict=True):
            assert a.data.startswith(b.data) and len(a.data) == -(-len(b.data) // 4) * 4  # DDS sends multiples of four bytes
    # header stamps rule, so what the network did to the times of receipt does not matter
    told = contract(clock_tolerance_s=1e9)
    first, second = Aligner(told), Aligner(told)
    for aligner, source in ((first, bag), (second, again)):
        for m in source.messages([STATE, "/tf"]):
            aligner.feed(m.topic, m.data, m.log_ns, m.publish_ns)
    for ms in range(800, 990, 7):
        a, b = first.values(START + ms * MS), second.values(START + ms * MS)
        assert a.keys() >= {"joint_position", "gripper", "pose.cube"} and all(np.array_equal(a[k], b[k]) for k in a)


def test_topics_of_unknown_types_are_passed_over_and_told(tmp_path):
    class Graph:
        domain, reach, name, namespace = 0, "", "", "/"

        def endpoints(self):
            from robot_bridge.transport import Endpoint

            return [Endpoint(name="/a", message="my_msgs/Secret", publishes=True), Endpoint(name="/b", message="x", publishes=False)]

        def close(self):
            self.closed = True

    node: Any = Graph()
    with BagRecorder(node, tmp_path / "a.mcap") as recorder:
        assert recorder.topics == () and "my_msgs/Secret" in recorder.passed_over["/a"]
    assert node.closed and Bag(tmp_path / "a.mcap").topics == {}


def test_a_live_aligner_sees_what_the_conversion_makes(tmp_path):
    """A robot's own thread feeds an aligner as messages come; asked at the times of the dataset's frames it gives their values."""
    robot = Robot(tmp_path / "bag")
    for ms in range(0, 1000, 10):
        robot.at(ms)
    robot.close()
    told = contract()
    to_dataset([tmp_path / "bag"], tmp_path / "d", contract=told, task="count")
    data = demos.Dataset(tmp_path / "d")
    live, seen = Aligner(told), []
    due = iter(data.column("timestamp_ns")[:, 0].tolist())
    at_ns = next(due)
    for m in Bag(tmp_path / "bag").messages():
        while at_ns is not None and m.log_ns > at_ns:
            seen.append(told.observe(live.values(at_ns)) | {"action": told.recorded_action(live.values(at_ns))})
            at_ns = next(due, None)
        live.feed(m.topic, m.data, m.log_ns, m.publish_ns)
    assert len(seen) >= len(data) - 1
    for i, frame in enumerate(seen):
        for key, value in frame.items():
            np.testing.assert_array_equal(data.column(key)[i], value)
    offline = list(frames(told, ((m.topic, m.data, m.log_ns, m.publish_ns) for m in Bag(tmp_path / "bag").messages())))
    assert [f.at_ns for f in offline] == data.column("timestamp_ns")[:, 0].tolist()


def test_values_of_every_message_survive_the_way_into_it_and_out():
    from robot_bridge.bag_export import message_of
    from robot_bridge.readers import reader

    told = {
        "geometry_msgs/PoseStamped": ("pose.x", "pose", np.array([1.0, 2.0, 3.0, 0.5, 0.5, -0.5, 0.5])),
        "geometry_msgs/WrenchStamped": ("wrench", "wrench", np.arange(6.0)),
        "trajectory_msgs/JointTrajectory": ("command.joint_position", "position", np.array([0.5, -0.25])),
    }
    for message, (key, field, value) in told.items():
        names = ("a", "b") if field == "position" else ()
        source = Source(key=key, topic="/t", message=message, field=field, frame="base", names=names)
        stamp_ns, ((_, found),) = reader(message, [source])(message_of([(source, value)], START))
        assert stamp_ns == START and np.allclose(found, value)
    image = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    for message in ("sensor_msgs/Image", "sensor_msgs/CompressedImage"):
        source = Source(key="images.x", topic="/t", message=message, field="image")
        _, ((_, decode),) = reader(message, [source])(message_of([(source, image)], START))
        assert np.array_equal(decode(), image)
    odd = Source(key="extra.x", topic="/t", message="geometry_msgs/Twist", field="linear.x", names=("x",))
    with pytest.raises(DataError, match="cannot be written as geometry_msgs/Twist"):
        message_of([(odd, np.zeros(1))], 0)
