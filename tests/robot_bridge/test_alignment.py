"""Values at a time: closed forms of every alignment, clocks that disagree, transforms through a tree, pictures decoded when asked for."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.alignment import Aligner, frames
from robot_bridge.contract import Contract, Source
from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.timeline import Clocks, pose_between
from sinew.se3 import quaternion_multiply

MS = 1_000_000
START = 1_700_000_000_000 * MS
JOINTS = ("a", "b")


def joint(alignment="newest", **changes):
    values = {"key": "joint_position", "topic": "/joint_states", "message": "sensor_msgs/JointState", "field": "position"}
    return Source(**{**values, "names": JOINTS, "alignment": alignment, **changes})


def state(at_ms: float, position, names=JOINTS, velocity=None) -> bytes:
    return bytes(codec.JointStateEncoder(names).encode(START + round(at_ms * MS), position, velocity or [0.0] * len(names)))


def aligned(*sources, **options):
    return Aligner(Contract(robot="test", rate_hz=10.0, sources=sources, **options))


def fed(aligner, at_ms, position, late_ms=1.0, names=JOINTS):
    return aligner.feed("/joint_states", state(at_ms, position, names), START + round((at_ms + late_ms) * MS))


def at(aligner, at_ms):
    return aligner.values(START + round(at_ms * MS))


@pytest.mark.parametrize(("alignment", "expected"), [("newest", [1.0, 10.0]), ("nearest", [2.0, 20.0]), ("interpolate", [1.75, 17.5])])
def test_each_alignment_gives_its_closed_form(alignment, expected):
    aligner = aligned(joint(alignment))
    for i in range(4):
        fed(aligner, 20 * i, [float(i), 10.0 * i])
    assert np.allclose(at(aligner, 35)["joint_position"], expected)
    stamp_ms = (aligner.stamps_ns["joint_position"] - START) / MS
    assert stamp_ms == {"newest": 20, "nearest": 40, "interpolate": 35}[alignment]


def test_beyond_the_last_sample_it_is_held_within_the_tolerance_and_then_missing():
    aligner = aligned(joint("interpolate", tolerance_s=0.05), joint("newest", key="command.joint_position", age_max_s=0.2))
    fed(aligner, 0, [1.0, 1.0])
    assert at(aligner, 50)["joint_position"].tolist() == [1.0, 1.0]
    assert "joint_position" not in at(aligner, 51) and "command.joint_position" in at(aligner, 199)
    assert "command.joint_position" not in at(aligner, 201)
    assert aligner.frame(START + 201 * MS).missing == ("joint_position", "command.joint_position")


def test_joints_are_found_by_name_in_any_order_and_over_several_messages():
    aligner = aligned(joint(names=("b", "a")), joint(key="gripper", names=("f",), wire_range=(0.8, 0.0), si_range=(0.0, 0.085)))
    assert fed(aligner, 0, [1.0, 9.0, 2.0], names=("a", "x", "b"))
    assert fed(aligner, 0, [0.4], names=("f",))  # another node, the same stamp
    values = at(aligner, 5)
    assert values["joint_position"].tolist() == [2.0, 1.0] and values["gripper"] == pytest.approx(0.0425)
    assert aligner.seen("/joint_states") == ("a", "x", "b", "f")
    assert not fed(aligner, 5, [1.0], names=("z",)) and aligner.dropped == 1


def test_two_arms_are_joined_in_their_order():
    left = joint(topic="/left/joint_states", label="left_")
    right = joint(topic="/right/joint_states", label="right_")
    aligner = aligned(left, right)
    aligner.feed("/left/joint_states", state(0, [1.0, 2.0]), START)
    assert at(aligner, 1) == {}
    aligner.feed("/right/joint_states", state(0, [3.0, 4.0]), START)
    assert at(aligner, 1)["joint_position"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_units_are_converted_at_the_boundary():
    degrees = joint(unit="deg")
    percent = joint(key="extra.jaw", unit="percent", si_range=(-0.5, 0.5))
    aligner = aligned(degrees, percent)
    fed(aligner, 0, [180.0, 50.0])
    values = at(aligner, 0)
    assert np.allclose(values["joint_position"], np.deg2rad([180.0, 50.0])) and np.allclose(values["extra.jaw"], [1.3, 0.0])
    assert np.allclose(degrees.from_si(degrees.to_si([12.0])), [12.0]) and np.allclose(percent.from_si([0.0]), [50.0])


def test_older_stamps_are_dropped():
    aligner = aligned(joint())
    assert fed(aligner, 20, [1.0, 1.0]) and not fed(aligner, 10, [2.0, 2.0], late_ms=15) and not fed(aligner, 20, [3.0, 3.0])
    assert aligner.dropped == 2 and at(aligner, 30)["joint_position"].tolist() == [1.0, 1.0]


def test_what_is_damaged_or_not_finite_is_dropped_and_told():
    aligner = aligned(joint())
    assert not fed(aligner, 0, [1.0, float("nan")]) and "not finite" in aligner.problem
    assert not aligner.feed("/joint_states", b"\x00\x01\x00\x00ab", START) and "shorter" in aligner.problem


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_set_anew_is_followed_after_three_messages(jump_s):
    aligner = aligned(joint())
    for i in range(10):
        fed(aligner, 10 * i, [float(i), 0.0])
    used = []
    for i in range(10, 16):
        receipt_ns = START + round((10 * i + 1) * MS)
        used.append(aligner.feed("/joint_states", state(10 * i + 1e3 * jump_s, [float(i), 0.0]), receipt_ns))
        assert at(aligner, 10 * i + 1)["joint_position"][0] >= 9.0  # nothing jumps
    assert used == [False, False, True, True, True, True]
    assert aligner.ahead_s()["/joint_states"] == pytest.approx(jump_s, abs=0.01)
    assert abs(aligner.stamps_ns["joint_position"] - (START + 151 * MS)) <= 1 * MS


def test_a_burst_of_old_messages_is_not_taken_for_a_clock_set_anew():
    aligner = aligned(joint())
    fed(aligner, 0, [0.0, 0.0])
    for i in range(20):  # five seconds late, all within a millisecond
        assert not aligner.feed("/joint_states", state(10 + 10 * i, [1.0, 1.0]), START + 5000 * MS + i * 50_000)
    assert fed(aligner, 5010, [2.0, 2.0]) and at(aligner, 5012)["joint_position"].tolist() == [2.0, 2.0]


def test_receipt_is_the_stamp_where_the_contract_says_so_and_where_there_is_none():
    aligner = aligned(joint(stamp="receipt"))
    aligner.feed("/joint_states", state(0, [1.0, 1.0]), START + 40 * MS)
    at(aligner, 100)
    assert aligner.stamps_ns["joint_position"] == START + 40 * MS
    clocks = Clocks(0, 10**9)
    assert clocks.stamp(0, 77) == 77


def test_monotonic_time_and_wall_time_meet_by_the_offset():
    offset_ns = 5 - START
    aligner = Aligner(Contract(robot="test", rate_hz=10.0, sources=(joint(),)), offset_ns=offset_ns)
    aligner.feed("/joint_states", state(0, [1.0, 1.0]), 5 + MS)
    aligner.values(10 * MS)
    assert aligner.stamps_ns == {"joint_position": 5}


# ---------------------------------------------------------------- transforms and pictures

TURN = (np.cos(np.pi / 4), 0.0, 0.0, np.sin(np.pi / 4))


def tf(at_ms, *edges):
    return bytes(codec.encode_transforms([codec.Transform(START + round(at_ms * MS), p, c, (*xyz, *q)) for p, c, xyz, q in edges]))


def test_a_pose_is_composed_through_the_tree_and_interpolated():
    cube = Source(
        key="pose.cube", topic="/tf", message="tf2_msgs/TFMessage", field="transform", frame="world", child="cube", alignment="interpolate"
    )
    aligner = aligned(cube)
    assert [t.name for t in aligner.topics] == ["/tf", "/tf_static"]
    unit = (1.0, 0.0, 0.0, 0.0)
    aligner.feed("/tf_static", tf(0, ("world", "table", (1.0, 0.0, 0.0), TURN), ("camera", "lens", (0.0, 0.0, 1.0), unit)), START)
    aligner.feed("/tf", tf(0, ("table", "/cube", (1.0, 0.0, 0.0), unit)), START)
    aligner.feed("/tf", tf(100, ("table", "cube", (2.0, 0.0, 0.0), TURN), ("table", "hand", (9.0, 0.0, 0.0), unit)), START + 100 * MS)
    pose = at(aligner, 50)["pose.cube"]
    assert np.allclose(pose[:3], [1.0, 1.5, 0.0])  # the table's x axis is the world's y axis
    half = (np.cos(np.pi / 8), 0.0, 0.0, np.sin(np.pi / 8))
    assert np.allclose(pose[3:], quaternion_multiply(np.array(TURN), np.array(half)))
    assert aligner.stamps_ns["pose.cube"] == START + 50 * MS
    # down another branch: the inverse
    back = aligned(Source(**{**cube.__dict__, "frame": "cube", "child": "table"}))
    back.feed("/tf", tf(0, ("table", "cube", (1.0, 2.0, 3.0), unit)), START)
    assert np.allclose(at(back, 0)["pose.cube"][:3], [-1.0, -2.0, -3.0])


def test_halfway_between_rotations_takes_the_shorter_way():
    a, b = np.array([0, 0, 0, 1.0, 0, 0, 0]), np.array([0, 0, 0, *(-np.array(TURN))])
    assert np.allclose(np.abs(pose_between(a, b, 0.5)[3:]), [np.cos(np.pi / 8), 0, 0, np.sin(np.pi / 8)])
    assert np.allclose(pose_between(a, a, 0.3), a)


def test_pictures_are_decoded_when_asked_for_and_a_damaged_one_is_missing():
    aligner = aligned(Source(key="images.front", topic="/front", message="sensor_msgs/Image", field="image", alignment="nearest"))
    for i in range(3):
        image = np.full((2, 3, 3), 10 * i, dtype=np.uint8)
        aligner.feed("/front", bytes(codec.encode_image(image, START + 30 * i * MS, "")), START + 30 * i * MS)
    assert at(aligner, 40)["images.front"][0, 0, 0] == 10
    data = bytearray(codec.encode_image(np.zeros((2, 3, 3), dtype=np.uint8), START + 90 * MS, ""))
    aligner.feed("/front", bytes(data[:-8]), START + 90 * MS)
    assert "images.front" not in at(aligner, 90) and aligner.problem


@pytest.mark.parametrize("frame_id", ["base", "tool"])
def test_a_wrench_must_be_told_in_the_frame_of_the_contract(frame_id):
    aligner = aligned(Source(key="wrench", topic="/ft", message="geometry_msgs/WrenchStamped", field="wrench", frame="tool"))
    header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=START // 10**9, nanosec=0), frame_id=frame_id)
    force, torque = (make("geometry_msgs/Vector3", x=x, y=2.0, z=3.0) for x in (1.0, 4.0))
    message = make("geometry_msgs/WrenchStamped", header=header, wrench=make("geometry_msgs/Wrench", force=force, torque=torque))
    assert aligner.feed("/ft", bytes(codec.encode(message)), START) == (frame_id == "tool")
    if frame_id == "tool":
        assert at(aligner, 1)["wrench"].tolist() == [1.0, 2.0, 3.0, 4.0, 2.0, 3.0]
    else:
        assert "told in frame 'base', the contract expects 'tool'" in aligner.problem


# ---------------------------------------------------------------- frames of a recording


def recording(delay_ms=0.0):
    return [("/joint_states", state(10 * i, [float(i), 0.0]), START + round((10 * i + delay_ms) * MS), 0) for i in range(31)]


def test_frames_are_made_at_the_contracts_rate_of_what_had_come_by_then():
    contract = Contract(robot="test", rate_hz=10.0, sources=(joint("interpolate"),))
    made = list(frames(contract, recording()))
    assert [(f.at_ns - START) / MS for f in made] == [0.0, 100.0, 200.0, 300.0]
    assert [f.values["joint_position"][0] for f in made] == [0.0, 10.0, 20.0, 30.0]
    late = list(frames(contract, recording(delay_ms=25.0)))
    assert [f.values["joint_position"][0] for f in late] == [0.0, 10.0, 20.0, 30.0]
    assert [(f.at_ns - f.stamps_ns["joint_position"]) / MS for f in late] == [25.0] * 4
    waited = list(frames(contract.changed(delay_s=0.03), recording(delay_ms=25.0)))
    assert [f.values["joint_position"][0] for f in waited] == [2.5, 12.5, 22.5]


def test_no_frame_before_everything_required_is_there():
    contract = Contract(
        robot="test",
        rate_hz=10.0,
        sources=(joint(), joint(key="gripper", names=("f",)), joint(key="wrench", message="x/Y", field="w", topic="/w", required=False)),
    )
    assert list(frames(contract, recording())) == []
    assert len(list(frames(contract, recording(), required=("joint_position",)))) == 4
