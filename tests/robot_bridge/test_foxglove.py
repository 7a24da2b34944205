"""MCAP files to look at: read back by the mcap library, by rosbags and by our own reader; video is the very bytes of the dataset."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
from mcap.reader import make_reader

import demos
from demos.edit import Piece, assemble
from demos.formats import open_source, transfer
from demos.packets import packets
from robot_bridge.foxglove import VIDEO, to_foxglove
from sinew.errors import DataError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

HEIGHT, WIDTH, LENGTHS = 32, 48, (9, 6)


def picture(episode, at):
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = np.stack([rows * 4, columns * 3, np.full((HEIGHT, WIDTH), 60 * episode)], -1)
    image[:, (at * 4) % 40 : (at * 4) % 40 + 6] = 230
    return image.astype(np.uint8)


def record(root, video=True):
    observation = ObservationSpec({
        "observation.state": TensorSpec(shape=(2,), unit="rad", names=("a", "b")),
        "observation.images.front": TensorSpec(shape=(HEIGHT, WIDTH, 3), dtype="uint8"),
    })  # fmt: skip
    action = ActionSpec(kind="joint_position", low=(-1, -1), high=(1, 1), rate_hz=20.0, names=("a", "b"))
    with demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="push it", video=video) as writer:
        for episode, length in enumerate(LENGTHS):
            for at in range(length):
                values = {"observation.state": np.array([at, episode], np.float32), "action": np.array([at / 10, -0.5], np.float32)}
                writer.add_frame({**values, "observation.images.front": picture(episode, at)}, stamp_ns=10**18 + at)
            writer.save_episode(success=episode == 0)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("foxglove") / "data")


def messages(path, topic):
    with path.open("rb") as stream:
        return [(schema, message) for schema, _, message in make_reader(stream, validate_crcs=True).iter_messages(topics=[topic])]


def parsed_video(data):
    """A CompressedVideo by rosbags, from the definition in the file."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n", VIDEO))
    return store.deserialize_cdr(data, VIDEO)


def test_video_is_passed_through_and_each_message_decodes(data, tmp_path):
    to_foxglove(data, tmp_path / "a.mcap")
    found = messages(tmp_path / "a.mcap", "/camera/front/video")
    assert len(found) == sum(LENGTHS) and {schema.name for schema, _ in found} == {VIDEO}
    decoder, at = av.CodecContext.create("h264", "r"), 0
    decoder.options = {"flags": "low_delay"}
    for episode, length in enumerate(LENGTHS):
        file = demos.Dataset(data).video_path("observation.images.front", episode)
        kept = b"".join(bytes(p) for p in av.open(str(file)).demux(video=0))
        for i in range(length):
            video = parsed_video(found[at][1].data)
            payload = video.data.tobytes()
            assert video.format == "h264" and payload.startswith((b"\0\0\0\1", b"\0\0\1"))
            if i % 2 == 0:
                assert b"\0\0\1\x67" in payload  # every key frame has its parameter sets
            assert payload[-40:] in kept  # the very bytes of the dataset
            (frame,) = decoder.decode(av.Packet(payload))
            assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - picture(episode, i)).mean() < 10
            at += 1


def test_read_back_by_rosbags(data, tmp_path):
    from pathlib import Path

    from rosbags.highlevel import AnyReader

    to_foxglove(data, tmp_path / "bag")
    with AnyReader([Path(tmp_path / "bag")]) as reader:
        types = {c.topic: c.msgtype for c in reader.connections}
        assert types["/observation/state"] == types["/action"] == "sensor_msgs/msg/JointState"
        assert types["/camera/front/video"] == VIDEO and types["/log"] == "rcl_interfaces/msg/Log"
        read = [(c.topic, at, reader.deserialize(raw, c.msgtype)) for c, at, raw in reader.messages()]
    states = [m for topic, _, m in read if topic == "/observation/state"]
    assert [tuple(m.name) for m in states] == [("a", "b")] * sum(LENGTHS)
    assert np.allclose([m.position for m in states], demos.Dataset(data).column("observation.state"))
    assert [m.data for topic, _, m in read if topic == "/episode/success"] == [True, False]
    assert [m.msg for topic, _, m in read if topic == "/log"][:2] == ["episode 0 begins: push it", "episode 0: success"]
    told = [json.loads(m.data) for topic, _, m in read if topic == "/sinew/episode"]
    assert told[0] == {"event": "begin", "task": "push it"} and told[-1] == {"event": "end", "success": False}
    steps = np.diff([at for topic, at, _ in read if topic == "/action"][: LENGTHS[0]])
    assert (steps == 50_000_000).all()


def test_there_and_back(data, tmp_path):
    to_foxglove(data, tmp_path / "a.mcap")
    transfer(open_source(tmp_path / "a.mcap"), tmp_path / "back")
    old, new = demos.Dataset(data), demos.Dataset(tmp_path / "back")
    for key in ("observation.state", "action", "episode_index", "next.success"):
        assert np.array_equal(new.column(key), old.column(key)), key
    assert new.observation_spec["observation.state"].names == ("a", "b") and new.fps == 20
    for at in range(len(old)):
        assert np.abs(new[at]["observation.images.front"].astype(int) - old[at]["observation.images.front"]).mean() < 8


def test_an_episode_that_begins_between_key_frames(data, tmp_path):
    assemble(tmp_path / "cut", [Piece(root=data, episode=0, first=3, end=8)])
    to_foxglove(tmp_path / "cut", tmp_path / "a.mcap")
    found = messages(tmp_path / "a.mcap", "/camera/front/video")
    assert len(found) == 6 and found[1][1].log_time - found[0][1].log_time == 1000  # the key frame before, just ahead
    transfer(open_source(tmp_path / "a.mcap"), tmp_path / "back")
    new = demos.Dataset(tmp_path / "back")
    assert len(new) == 5
    for at in range(5):
        assert np.abs(new[at]["observation.images.front"].astype(int) - picture(0, at + 3)).mean() < 10


def test_pictures_that_are_no_video_become_png(tmp_path):
    to_foxglove(record(tmp_path / "data", video=False), tmp_path / "a.mcap")
    found = messages(tmp_path / "a.mcap", "/camera/front/image")
    assert len(found) == sum(LENGTHS) and found[0][0].name == "sensor_msgs/msg/CompressedImage"
    transfer(open_source(tmp_path / "a.mcap"), tmp_path / "back")
    first = demos.Dataset(tmp_path / "data")[0]["observation.images.front"]
    assert np.array_equal(first, picture(0, 0))


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1", "libvpx-vp9"])
def test_packets_of_other_codecs_decode_one_by_one(tmp_path, codec):
    from demos.packets import StreamDecoder, is_key, video_codec

    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec} here")
    path = tmp_path / "a.mp4"
    options = {"libx265": {"x265-params": "bframes=0:log-level=none"}, "libsvtav1": {"crf": "20", "svtav1-params": "pred-struct=1"}}
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=20, options=options.get(codec, {"lag-in-frames": "0", "auto-alt-ref": "0"}))
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 64, 96, "yuv420p", 5
        for i in range(12):
            image = np.repeat(np.repeat(picture(1, i), 2, 0), 2, 1)
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        sink.mux(stream.encode())
    found = list(packets(path, 20.0, 7, 4))
    assert found[-1].frame == 10 and found[0].key and found[0].frame <= 7
    assert [is_key(video_codec(path), p.data) for p in found] == [p.key for p in found]
    decoder, shown = StreamDecoder(video_codec(path)), {}
    for packet in found:
        shown.update(decoder.decode(packet.frame, packet.data))
    shown.update(decoder.decode(0, b""))
    for at in range(7, 11):
        assert np.abs(shown[at][::2, ::2].astype(int) - picture(1, at)).mean() < 12


def test_frames_in_another_order_are_refused(tmp_path):
    path = tmp_path / "b.mp4"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=20, options={"bf": "2", "b-adapt": "0"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for i in range(12):
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0, i), format="rgb24")))
        sink.mux(stream.encode())
    with pytest.raises(DataError, match="B-frames"):
        list(packets(path, 20.0, 0, 12))
