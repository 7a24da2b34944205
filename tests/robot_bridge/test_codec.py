"""Our codecs against rosbags', byte for byte, and against damaged bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from robot_bridge.dds import codec
from robot_bridge.dds.messages import full_name, make, store, type_hash, wire_name
from sinew.errors import DataError, InputError

STAMP_NS = 1_700_000_000_123_456_789


def header(frame: str = "base"):
    return make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=STAMP_NS // 10**9, nanosec=STAMP_NS % 10**9), frame_id=frame)


def rosbags(message) -> bytes:
    return bytes(codec.encode(message))


@pytest.mark.parametrize("names", [[], ["a"], ["joint1", "j2", "a_much_longer_name"], [f"joint{i}" for i in range(9)], ["ä", ""]])
@pytest.mark.parametrize("frame", ["", "base", "frame_of_eight"])
def test_joint_state_is_what_rosbags_writes(names, frame):
    rng = np.random.default_rng(0)
    position, velocity = rng.normal(size=len(names)), rng.normal(size=len(names))
    theirs = rosbags(
        make("sensor_msgs/JointState", header=header(frame), name=names, position=position, velocity=velocity, effort=np.zeros(0))
    )
    encoder = codec.JointStateEncoder(names, frame)
    for _ in range(2):  # the buffer is used again
        ours = bytes(encoder.encode(STAMP_NS, position.tolist(), velocity.tolist()))
        assert ours == theirs
    state = codec.decode_joint_state(theirs)
    assert state == (STAMP_NS, frame, tuple(names), tuple(position), tuple(velocity), ())


def test_decoder_of_one_sender_reads_what_the_plain_one_reads():
    """Whatever changes between messages: names, their number, arrays left out, byte order, damage."""
    rng, decoder = np.random.default_rng(6), codec.JointStateDecoder()
    for i in range(300):
        names = [["a"], ["a", "b"], ["joint1", "j2", "j3"], []][rng.integers(4) if i % 10 == 0 else 2]
        arrays = {f: rng.normal(size=len(names) * (rng.random() > 0.1)) for f in ("position", "velocity")}
        effort = rng.normal(size=len(names) * (rng.random() < 0.1))
        message = make("sensor_msgs/JointState", header=header(["", "base"][i % 50 == 0]), name=names, **arrays, effort=effort)
        data = bytes(store().serialize_cdr(message, full_name("sensor_msgs/JointState"), little_endian=bool(i % 20)))
        assert decoder.decode(data) == codec.decode_joint_state(data)
        if i % 30 == 0 and names:
            with pytest.raises(DataError):
                decoder.decode(data[: len(data) // 2])


def test_joint_state_in_the_other_byte_order():
    arrays = {"position": np.array([1.0, 2.0]), "velocity": np.zeros(0), "effort": np.array([3.0, 4.0])}
    message = make("sensor_msgs/JointState", header=header(), name=["a", "b"], **arrays)
    big = bytes(store().serialize_cdr(message, full_name("sensor_msgs/JointState"), little_endian=False))
    assert codec.decode_joint_state(big) == (STAMP_NS, "base", ("a", "b"), (1.0, 2.0), (), (3.0, 4.0))


@pytest.mark.parametrize("count", [0, 1, 8])
def test_doubles_are_what_rosbags_writes(count):
    data = np.random.default_rng(1).normal(size=count)
    layout = make("std_msgs/MultiArrayLayout", dim=[], data_offset=0)
    theirs = rosbags(make("std_msgs/Float64MultiArray", layout=layout, data=data))
    assert bytes(codec.encode_doubles(data.tolist())) == theirs and codec.decode_doubles(theirs) == tuple(data)
    dims = [make("std_msgs/MultiArrayDimension", label=label, size=3, stride=4) for label in ("x", "rows", "")]
    layout = make("std_msgs/MultiArrayLayout", dim=dims, data_offset=7)
    assert codec.decode_doubles(rosbags(make("std_msgs/Float64MultiArray", layout=layout, data=data))) == tuple(data)


def test_transforms_are_what_rosbags_writes():
    def transform(child: str, pose: np.ndarray):
        translation = make("geometry_msgs/Vector3", x=pose[0], y=pose[1], z=pose[2])
        rotation = make("geometry_msgs/Quaternion", w=pose[3], x=pose[4], y=pose[5], z=pose[6])
        inner = make("geometry_msgs/Transform", translation=translation, rotation=rotation)
        return make("geometry_msgs/TransformStamped", header=header("world"), child_frame_id=child, transform=inner)

    poses = np.random.default_rng(2).normal(size=(3, 7))
    names = ["cube", "a_drawer", "x"]
    theirs = rosbags(make("tf2_msgs/TFMessage", transforms=[transform(n, p) for n, p in zip(names, poses, strict=True)]))
    ours = [codec.Transform(STAMP_NS, "world", n, tuple(p)) for n, p in zip(names, poses, strict=True)]
    assert bytes(codec.encode_transforms(ours)) == theirs and codec.decode_transforms(theirs) == ours


def test_image_is_what_rosbags_writes():
    image = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    theirs = rosbags(
        make("sensor_msgs/Image", header=header("cam"), height=5, width=7, encoding="rgb8", is_bigendian=0, step=21, data=image.reshape(-1))
    )
    assert bytes(codec.encode_image(image, STAMP_NS, "cam")) == theirs
    assert bytes(codec.encode_image(image[:, ::-1], STAMP_NS, "cam"))[-3:] == image[4, 0].tobytes()  # not contiguous
    stamp, frame, decoded = codec.decode_image(theirs)
    assert stamp == STAMP_NS and frame == "cam" and np.array_equal(decoded, image)
    assert decoded.base is not None  # a view, no copy


@pytest.mark.parametrize("encoding", ["bgr8", "rgba8", "bgra8", "mono8"])
def test_image_encodings_and_padded_rows(encoding):
    channels, order = codec.ENCODINGS[encoding]
    raw = np.random.default_rng(4).integers(0, 256, (4, 6 * channels + 5), dtype=np.uint8)
    size = {"height": 4, "width": 6, "step": raw.shape[1]}
    message = make("sensor_msgs/Image", header=header(), **size, encoding=encoding, is_bigendian=0, data=raw.reshape(-1))
    expected = raw[:, : 6 * channels].reshape(4, 6, channels)[..., list(order)]
    assert np.array_equal(codec.decode_image(rosbags(message))[2], expected)


def test_image_that_cannot_be_read():
    def payload(**changes: object) -> bytes:
        fields = {"height": 2, "width": 2, "encoding": "rgb8", "is_bigendian": 0, "step": 6, "data": np.zeros(12, np.uint8), **changes}
        return rosbags(make("sensor_msgs/Image", header=header(), **fields))

    for changes, message in (({"encoding": "16UC1"}, "not known"), ({"height": 900}, "900 x 2"), ({"step": 5}, "rows of 5")):
        with pytest.raises(DataError, match=message):
            codec.decode_image(payload(**changes))


def test_compressed_image():
    from robot_bridge.images import encode_jpeg

    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[..., 0] = 200  # red: shows swapped channels
    data = np.frombuffer(encode_jpeg(image), dtype=np.uint8)
    payload = rosbags(make("sensor_msgs/CompressedImage", header=header(), format="jpeg", data=data))
    decoded = codec.decode_compressed_image(payload)[2]
    assert decoded.shape == (16, 16, 3) and np.abs(decoded.astype(int) - image).max() < 10
    with pytest.raises(DataError, match="could not be decoded"):
        codec.decode_compressed_image(rosbags(make("sensor_msgs/CompressedImage", header=header(), format="jpeg", data=data[5:40])))


@pytest.mark.parametrize("decode", [codec.decode_joint_state, codec.decode_doubles, codec.decode_transforms, codec.decode_image])
def test_damaged_bytes_are_refused_or_read_but_never_crash(decode):
    good = bytes(codec.JointStateEncoder(["a", "b"]).encode(STAMP_NS, [1.0, 2.0], [3.0, 4.0]))
    huge = bytes(codec.HEADER) + struct.pack("<IIIIIIII", *[0xFFFFFFFF] * 8)
    rng = np.random.default_rng(5)
    cases = [b"", b"\0", good[:4], huge, b"\0\7\0\0" + good[4:]]
    cases += [good[:n] for n in range(4, len(good))] + [rng.bytes(int(rng.integers(4, 200))) for _ in range(500)]
    cases += [codec.HEADER + rng.bytes(int(rng.integers(0, 200))) for _ in range(500)]
    refused = 0
    for data in cases:
        try:
            decode(data)
        except DataError:
            refused += 1
    assert refused > 500


def test_rosbags_errors_become_ours():
    with pytest.raises(DataError, match="cannot be read"):
        codec.decode(b"\0\1\0\0\1", "std_msgs/Int64")


def test_names_and_hashes():
    assert wire_name("sensor_msgs/JointState") == wire_name("sensor_msgs/msg/JointState") == "sensor_msgs::msg::dds_::JointState_"
    # the hash that `ros2 topic info -v` shows
    assert type_hash("sensor_msgs/JointState") == "RIHS01_a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e"
    with pytest.raises(InputError, match="JointState"):
        full_name("sensor_msgs/JointStat")
