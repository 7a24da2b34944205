"""The contract file: what it says, what it refuses in one line, and that it comes back from JSON as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from robot_bridge.contract import Contract, Feature, Sink, Source, load, store
from robot_bridge.robots import ROBOTS, load_robot
from robot_bridge.units import Wire
from sinew.config import from_json, to_json
from sinew.errors import DataError, InputError
from sinew.specs import IMAGES, STATE, ActionSpec

JOINTS = ("a", "b")
STATES = {"topic": "/joint_states", "message": "sensor_msgs/JointState"}
POSITION = Source(key="joint_position", field="position", names=JOINTS, **STATES)
GRIPPER = Source(key="gripper", field="position", names=("f",), wire_range=(0.8, 0.0), si_range=(0.0, 0.085), **STATES)
CUBE = Source(key="pose.cube", topic="/tf", message="tf2_msgs/TFMessage", field="transform", frame="world", child="cube")
FRONT = Source(key="images.front", topic="/front", message="sensor_msgs/Image", field="image")
COMMAND = Source(key="command.joint_position", topic="/commands", message="std_msgs/Float64MultiArray", field="data", names=JOINTS)
SINK = Sink(value="joint_position", kind="position", topic="/commands", joints=JOINTS)
ACTION = ActionSpec(kind="joint_position", low=(-1, -1), high=(1, 1), rate_hz=10, names=JOINTS)


def contract(**changes) -> Contract:
    values = {
        "robot": "test",
        "rate_hz": 10,
        "sources": (POSITION, GRIPPER, CUBE, FRONT, COMMAND),
        "features": (
            Feature(key=STATE, values=("joint_position", "gripper", "pose.cube")),
            Feature(key=IMAGES + "front", values=("images.front",), height=4, width=6),
        ),
        "sinks": (SINK,),
        "action": ACTION,
        "action_values": ("command.joint_position",),
    }
    return Contract(**{**values, **changes})


def test_it_comes_back_from_its_file_with_the_same_hash(tmp_path):
    made = contract()
    assert from_json(Contract, json.loads(json.dumps(to_json(made)))) == made
    path = store(made, tmp_path / "meta")
    assert load(path) == load(tmp_path) == load(tmp_path / "meta") == made
    assert load(path).hash() == made.hash() and contract(rate_hz=10.0).hash() == made.hash()
    assert contract(delay_s=0.01).hash() != made.hash()
    assert load(tmp_path.parent) is None
    with pytest.raises(InputError, match="no such file or folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "expected an object"), ('{"robot": 1}', "expected str"), ('{"robots": "x"}', "unknown field 'robots'")],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path, text, message):
    (tmp_path / "contract.json").write_text(text)
    with pytest.raises(DataError, match=message) as told:
        load(tmp_path)
    assert "\n" not in str(told.value)


def test_ranges_of_another_length_are_refused(tmp_path):
    data = to_json(contract())
    data["sources"][1]["wire_range"] = [0.0]
    with pytest.raises(InputError, match="two different finite numbers"):
        from_json(Contract, data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(POSITION, key="joints"), "unknown value; known are joint_position"),
        (lambda: replace(POSITION, topic="joint_states"), "must be absolute, '/joint_states'"),
        (lambda: replace(POSITION, field="positions"), "has no field 'positions'; it has position, velocity, effort"),
        (lambda: replace(POSITION, names=()), "name the joints that are wanted"),
        (lambda: replace(POSITION, names=("a", "a")), "a name is given twice"),
        (lambda: replace(POSITION, unit="degree"), "unknown unit 'degree'; known are rad, deg"),
        (lambda: replace(POSITION, unit="percent"), "needs si_range as well"),
        (lambda: replace(CUBE, child=""), "needs 'frame' and 'child'"),
        (lambda: replace(FRONT, alignment="interpolate"), "cannot be interpolated"),
        (lambda: replace(SINK, kind="gripper_action"), "drives grippers only"),
        (lambda: replace(SINK, kind="twist"), "twists need the frame"),
        (lambda: replace(SINK, joints=("a", "a")), "must be named, each once"),
        (lambda: contract(features=(Feature(key=STATE, values=("wrench",)),)), "wants value 'wrench', which no source gives"),
        (lambda: contract(features=(Feature(key=STATE, values=("images.front",)),)), "must be one picture, or vectors"),
        (lambda: contract(action_values=("command.joint_position", "gripper")), "the action has 2 elements, its recorded values 3"),
        (lambda: contract(sinks=()), "no sink takes joint_position"),
        (lambda: contract(version=2), "has version 2, known is 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as told:
        make()
    assert "\n" not in str(told.value)


def test_features_are_what_their_spec_says():
    made, half = contract(), np.sqrt(0.5)
    spec = made.observation_spec()
    assert spec[STATE].names[:3] == ("a.position", "b.position", "gripper") and spec[STATE].shape == (12,)
    assert spec[STATE].unit.split(",")[:3] == ["rad", "rad", "m"] and spec[IMAGES + "front"].shape == (4, 6, 3)
    pose = np.array([1.0, 2.0, 3.0, half, 0.0, 0.0, half])  # a quarter turn about z
    image = np.full((8, 12, 3), 9, dtype=np.uint8)
    values = {"joint_position": np.array([0.1, 0.2]), "gripper": np.float64(0.04), "pose.cube": pose, "images.front": image}
    seen = made.observe(values)
    assert np.allclose(seen[STATE], [0.1, 0.2, 0.04, 1, 2, 3, 0, 1, 0, -1, 0, 0], atol=1e-7) and seen[STATE].dtype == np.float32
    assert seen[IMAGES + "front"].shape == (4, 6, 3) and made.cameras == ("front",)
    with pytest.raises(DataError, match=r"needs 'pose.cube'; there are joint_position"):
        made.observe({"joint_position": np.zeros(2), "gripper": np.zeros(1)})
    assert COMMAND not in made.live and COMMAND in made.sources


def test_actions_are_read_back_from_what_was_commanded():
    values = {"joint_position": np.array([0.1, 0.2]), "command.joint_position": np.array([0.3, 0.5])}
    assert np.allclose(contract().recorded_action(values), [0.3, 0.5])
    delta = contract(action=replace(ACTION, kind="joint_delta"))
    assert np.allclose(delta.recorded_action(values), [0.2, 0.3])
    with pytest.raises(DataError, match=r"holds no 'command.joint_position'; it holds joint_position"):
        contract().recorded_action({"joint_position": np.zeros(2)})
    with pytest.raises(DataError, match="cannot be told from recorded joint commands"):
        contract(action=replace(ACTION, kind="ee_delta")).recorded_action(values)


@pytest.mark.parametrize("unit", ["", "rad", "deg", "mm", "cm", "deg/s", "percent", "fraction", "signed_percent"])
def test_units_go_there_and_back(unit):
    ends = {"si_range": (-0.5, 1.5)} if unit in ("percent", "fraction", "signed_percent") else {}
    wire, values = Wire(unit=unit, **ends), np.array([-1.0, 0.0, 0.7])
    assert np.allclose(wire.to_si(wire.from_si(values)), values)
    step = 1e-3
    assert np.allclose(wire.rate_from_si(values), (wire.from_si(values * step) - wire.from_si(values * 0)) / step)


@pytest.mark.parametrize("name", list(ROBOTS))
def test_every_robots_contract_reads_back_what_it_sends(name):
    config = load_robot(name)
    made = config.contract
    spec, action = made.observation_spec(), made.action
    assert action is not None and action.names[: len(config.spec.joint_names)] == config.spec.joint_names
    assert spec[STATE].names[: len(config.spec.joint_names)] == tuple(f"{joint}.position" for joint in config.spec.joint_names)
    recorded = {s.topic for s in made.sources if s.key.startswith("command.")}
    assert recorded == {s.topic for s in made.sinks if not s.kind.endswith("action")}
