"""Payloads that lie: whatever comes from the network is read or refused in one line, and never costs more than it is long."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, full_name, make, store
from robot_bridge.dds.services import unwrap, wrap
from robot_bridge.images import encode_jpeg
from sinew.errors import DataError

BUDGET = 30_000_000
"""Bytes that reading any of these small payloads may take; a mirrored count would take gigabytes."""


def payloads() -> dict[str, tuple[Callable[[bytes], Any], bytes]]:
    """A decoder and a good payload each."""
    names = ["joint1", "j2", "finger"]
    image = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    point = blank("trajectory_msgs/JointTrajectoryPoint", positions=np.ones(3), velocities=np.ones(3))
    trajectory = blank("trajectory_msgs/JointTrajectory", joint_names=names, points=[point, point])
    inner = blank("control_msgs/FollowJointTrajectory_Goal", trajectory=trajectory)
    goal = blank("control_msgs/FollowJointTrajectory_SendGoal_Request", goal=inner)
    compressed = blank("sensor_msgs/CompressedImage", format="jpeg", data=np.frombuffer(encode_jpeg(image), np.uint8))
    controllers = [blank("controller_manager_msgs/ControllerState", name=n, claimed_interfaces=names) for n in names]
    made: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
        "joint state": (codec.decode_joint_state, bytes(codec.JointStateEncoder(names, "base").encode(5, [1.0] * 3, [2.0] * 3))),
        "doubles": (codec.decode_doubles, bytes(codec.encode_doubles([1.0, 2.0]))),
        "transforms": (codec.decode_transforms, bytes(codec.encode_transforms([codec.Transform(1, "world", "cube", (0.0,) * 7)] * 3))),
        "image": (codec.decode_image, bytes(codec.encode_image(image, 5, "camera"))),
        "compressed": (codec.decode_compressed_image, bytes(codec.encode(compressed))),
    }
    for message in (
        trajectory,
        goal,
        blank("controller_manager_msgs/ListControllers_Response", controller=controllers),
        blank("rmw_dds_common/ParticipantEntitiesInfo", node_entities_info_seq=[blank("rmw_dds_common/NodeEntitiesInfo", node_name="n")]),
        blank("diagnostic_msgs/DiagnosticArray", status=[blank("diagnostic_msgs/DiagnosticStatus", message="m")]),
        blank("rcl_interfaces/GetParameters_Response", values=[blank("rcl_interfaces/ParameterValue", string_array_value=names)]),
        blank("std_srvs/Trigger_Request"),
    ):
        kind = message.__msgtype__
        made[kind] = (lambda data, kind=kind: codec.decode(data, kind), bytes(codec.encode(message)))
    return made


def damaged(good: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """Cut, extended, with bytes or counts replaced, and with every four bytes in turn claiming to be a huge count."""
    for at in range(4, min(len(good) - 3, 400), 4):
        for count in (0xFFFFFFFF, 0x7FFFFFFF, 0x10000000):
            yield good[:at] + struct.pack("<I", count) + good[at + 4 :]
    for _ in range(60):
        data = bytearray(good)
        for _ in range(int(rng.integers(1, 8))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        yield bytes(data)
        yield good[: int(rng.integers(len(good) + 1))]
        yield good + rng.bytes(int(rng.integers(1, 40)))
        yield good[:4] + rng.bytes(int(rng.integers(200)))


@pytest.mark.parametrize("name", payloads())
def test_damaged_payloads_are_refused_in_one_line_and_cost_nothing(name):
    decode, good = payloads()[name]
    decode(good)
    refused = 0
    tracemalloc.start()
    try:
        for data in damaged(good, np.random.default_rng(7)):
            try:
                decode(data)
            except DataError as e:
                refused += 1
                assert "\n" not in str(e) and len(str(e)) < 400
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused > 60 and peak < BUDGET


@pytest.mark.parametrize("name", ["joint state", "doubles", "transforms", "image"])
def test_the_other_byte_order_is_read_alike(name):
    decode, good = payloads()[name]
    kinds = {"joint state": "sensor_msgs/JointState", "doubles": "std_msgs/Float64MultiArray", "image": "sensor_msgs/Image"}
    kind = full_name(kinds.get(name, "tf2_msgs/TFMessage"))
    swapped = bytes(store().serialize_cdr(store().deserialize_cdr(good, kind), kind, little_endian=False))
    assert swapped[:2] == b"\0\0"
    assert str(decode(good)) == str(decode(swapped))


def test_service_messages_in_either_byte_order_and_too_short_ones():
    payload = bytes(codec.encode(make("std_srvs/SetBool_Request", data=True)))
    identity = (0x0102030405060708, 77)
    assert unwrap(wrap(identity, payload))[0] == identity
    assert codec.decode(unwrap(wrap(identity, payload))[1], "std_srvs/SetBool_Request").data is True
    big = b"\0\0\0\0" + struct.pack(">Qq", *identity) + payload[4:]
    assert unwrap(big)[0] == identity
    with pytest.raises(DataError, match="shorter than its header"):
        unwrap(payload)


@pytest.mark.parametrize("size", [(30000, 30000), (65535, 65535), (0, 40)])
def test_a_small_file_that_claims_to_be_a_huge_picture_is_refused(size):
    """A JPEG's header says how much memory it wants; this one is 1 kB and would take gigabytes."""
    raw = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = raw.index(b"\xff\xc0") + 5
    raw[at : at + 4] = struct.pack(">HH", *size)
    payload = bytes(codec.encode(blank("sensor_msgs/CompressedImage", format="jpeg", data=np.frombuffer(bytes(raw), np.uint8))))
    with pytest.raises(DataError):
        codec.decode_compressed_image(payload)


def test_empty_images_are_refused():
    def payload(height: int, width: int) -> bytes:
        return bytes(codec.encode(blank("sensor_msgs/Image", height=height, width=width, encoding="rgb8", step=3 * width)))

    for height, width in ((0, 0), (4_000_000_000, 0), (0, 7)):
        with pytest.raises(DataError, match="an image of"):
            codec.decode_image(payload(height, width))
