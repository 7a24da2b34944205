"""Recordings of others: MCAP with ROS 2's messages, JSON and protocol buffers, written by the libraries that others write them with."""

import base64
import json
from fractions import Fraction

import av
import numpy as np
import pytest
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

import demos
from demos.formats import Choice, cdr, kind_of, mcap, messages, open_source, transfer
from sinew.errors import DataError, InputError

START, PERIOD = 1_700_000_000_000_000_000, 50_000_000
FRAMES = 24


def picture(at, width=48, height=32):
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 4, columns * 3, np.full((height, width), 60)], -1)
    image[:, (at * 2) % 40 : (at * 2) % 40 + 6] = 230
    return image.astype(np.uint8)


def encoded(codec, images, **options):
    """Each image's packet, as a camera's encoder makes them: nothing is held back."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = images[0].shape[:2]
    context.time_base, context.framerate, context.gop_size = Fraction(1, 20), 20, 8
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    context.options = options
    found = []
    for i, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=context.pix_fmt)
        frame.pts = i
        found.append(b"".join(bytes(p) for p in context.encode(frame)))
    return found


H264 = {"preset": "ultrafast", "tune": "zerolatency", "crf": "10"}


def files_of_protobuf(package, **kinds):
    """A FileDescriptorSet, made with Google's library, of messages {name: [(field, label, type or message)]}."""
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    for name, fields in kinds.items():
        made = file.message_type.add(name=name)
        for number, (field, label, kind) in enumerate(fields, 1):
            plain = isinstance(kind, int)
            made.field.add(name=field, number=number, label=label, type=kind if plain else 11, type_name=None if plain else kind)
    whole = descriptor_pb2.FileDescriptorSet()
    from google.protobuf import timestamp_pb2

    timestamp_pb2.DESCRIPTOR.CopyToProto(whole.file.add())
    whole.file.append(file)
    return whole


def protobuf(package, name, whole):
    """(class, serialised set) of a message in it."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    for file in whole.file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")), whole.SerializeToString()


def write(path, topics, compression=CompressionType.ZSTD):
    """An MCAP of {topic: (schema name, schema encoding, schema, encoding, [(ns, bytes)])}, by the messages' times."""
    with path.open("wb") as stream:
        writer = McapWriter(stream, compression=compression, chunk_size=4096)
        writer.start("", "others")
        channels = {}
        for topic, (name, form, schema, encoding, _) in topics.items():
            number = writer.register_schema(name, form, schema) if name else 0
            channels[topic] = writer.register_channel(topic, encoding, number)
        every = sorted((ns, topic, data) for topic, (*_, found) in topics.items() for ns, data in found)
        for ns, topic, data in every:
            writer.add_message(channels[topic], ns, data, ns)
        writer.finish()
    return path


def json_recording(path, frames=FRAMES):
    """Joints at 100 Hz with JSON, a camera of JPEGs at 20 Hz in base64, as foxglove's schemas say."""

    def said(told):
        return json.dumps(told).encode()

    def joints(k):
        rows = [{"name": n, "position": v, "velocity": 0.5} for n, v in (("shoulder", k / 10), ("elbow", -k / 10))]
        return said({"timestamp": {"sec": 1, "nsec": 2}, "joints": rows})

    jpegs = encoded("mjpeg", [picture(i) for i in range(frames)], qmin="1", qmax="2")
    fast = [START + k * PERIOD // 5 for k in range(frames * 5)]
    slow = [START + i * PERIOD for i in range(frames)]
    shown = [said({"frame_id": "cam", "format": "jpeg", "data": base64.b64encode(j).decode()}) for j in jpegs]
    return write(path, {
        "/joint_states": ("foxglove.JointStates", "jsonschema", b"{}", "json", [(ns, joints(k)) for k, ns in enumerate(fast)]),
        "/front/image": ("foxglove.CompressedImage", "jsonschema", b"{}", "json", list(zip(slow, shown, strict=True))),
        "/teleop/command": ("", "", b"", "json", [(ns, said({"data": [i / 100, 1.0]})) for i, ns in enumerate(slow)]),
        "/log": ("", "", b"", "json", [(START, said({"text": "hello"}))]),
    })  # fmt: skip


def protobuf_recording(path, frames=FRAMES, codec="libx264"):
    """Joints and H.264 as protocol buffers with foxglove's names."""
    stamp = ("timestamp", 1, ".google.protobuf.Timestamp")
    video = [stamp, ("frame_id", 1, 9), ("data", 1, 12), ("format", 1, 9)]
    state = [stamp, ("name", 3, 9), ("position", 3, 1), ("mode", 1, 5)]
    whole = files_of_protobuf("foxglove", CompressedVideo=video, State=state)
    (video_class, schema), (state_class, _) = (protobuf("foxglove", name, whole) for name in ("CompressedVideo", "State"))
    packets = encoded(codec, [picture(i) for i in range(frames)], **H264)
    shown = [video_class(data=p, format="h264", frame_id="cam").SerializeToString() for p in packets]

    def joints(k, order=1):
        return state_class(name=["a", "b"][::order], position=[k / 10, -k / 10][::order], mode=3).SerializeToString()

    slow = [START + i * PERIOD for i in range(frames)]
    states = [(ns, joints(i, -1 if i % 2 else 1)) for i, ns in enumerate(slow)]
    return write(path, {
        "/robot/state": ("foxglove.State", "protobuf", schema, "protobuf", states),
        "/wrist/video": ("foxglove.CompressedVideo", "protobuf", schema, "protobuf", list(zip(slow, shown, strict=True))),
        "/robot/action": ("foxglove.State", "protobuf", schema, "protobuf", [(ns, joints(i + 1)) for i, ns in enumerate(slow)]),
    })  # fmt: skip


def ros_recording(path, frames=FRAMES):
    """ROS 2's messages without a bag's metadata, serialised by rosbags: raw images, joints, a pose."""
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    kind = store.types

    def message(what, **values):
        return bytes(store.serialize_cdr(kind[what](**values), what))

    def header(ns):
        return kind["std_msgs/msg/Header"](kind["builtin_interfaces/msg/Time"](ns // 10**9, ns % 10**9), "base")

    def joints(ns, k):
        empty = np.zeros(0)
        values = {"name": ["a", "b"], "position": np.array([k / 10, -k / 10]), "velocity": np.array([1.0, 2.0]), "effort": empty}
        return message("sensor_msgs/msg/JointState", header=header(ns), **values)

    def image(ns, i):
        shape = {"height": 32, "width": 48, "step": 48 * 3, "encoding": "bgr8", "is_bigendian": 0}
        return message("sensor_msgs/msg/Image", header=header(ns), data=picture(i)[..., ::-1].ravel(), **shape)

    def pose(ns, i):
        point = kind["geometry_msgs/msg/Point"](i / 10, 0.0, 1.0)
        turned = kind["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
        return message("geometry_msgs/msg/PoseStamped", header=header(ns), pose=kind["geometry_msgs/msg/Pose"](point, turned))

    slow = [START + i * PERIOD for i in range(frames)]
    fast = [START + k * PERIOD // 5 for k in range(frames * 5)]

    def topic(name, found):
        return (name, "ros2msg", store.generate_msgdef(name, ros_version=2)[0].encode(), "cdr", found)

    return write(path, {
        "/joint_states": topic("sensor_msgs/msg/JointState", [(ns, joints(ns, k)) for k, ns in enumerate(fast)]),
        "/camera/front/image_raw": topic("sensor_msgs/msg/Image", [(ns, image(ns, i)) for i, ns in enumerate(slow)]),
        "/target_pose": topic("geometry_msgs/msg/PoseStamped", [(ns, pose(ns, i)) for i, ns in enumerate(slow)]),
    })  # fmt: skip


RECORDINGS = {"json": json_recording, "protobuf": protobuf_recording, "ros": ros_recording}
CAMERAS = {"json": "front", "protobuf": "wrist", "ros": "front"}


@pytest.mark.parametrize("kind", RECORDINGS)
def test_what_others_recorded_becomes_a_dataset(kind, tmp_path):
    path = RECORDINGS[kind](tmp_path / "a.mcap")
    assert kind_of(path) == "mcap"
    choice = Choice(action="/target_pose.pose", action_kind="ee_pose") if kind == "ros" else Choice()
    source = open_source(path, choice)
    assert transfer(source, tmp_path / "out", task="do it") == {"episodes": 1, "frames": FRAMES}
    assert not source.damage
    new, at = demos.Dataset(tmp_path / "out"), np.arange(FRAMES)
    assert new.fps == 20 and new.cameras == (f"observation.images.{CAMERAS[kind]}",)
    every = 5 if kind in ("json", "ros") else 1  # joints at 100 Hz: frame k is made of what had come by then
    assert np.allclose(new.column("observation.state"), np.stack([at * every / 10, -at * every / 10], 1))
    names = ("shoulder", "elbow") if kind == "json" else ("a", "b")
    assert new.observation_spec["observation.state"].names == names
    if kind == "ros":
        assert np.allclose(new.column("action"), [[i / 10, 0, 1, 0, 0, 0, 1] for i in at])
        assert new.action_spec.names[:3] == ("position.x", "position.y", "position.z")
    else:
        wanted = [[i / 100, 1.0] for i in at] if kind == "json" else [[(i + 1) / 10, -(i + 1) / 10] for i in at]
        assert np.allclose(new.column("action"), wanted)
    for i in at:
        assert np.abs(new[int(i)][new.cameras[0]].astype(int) - picture(i)).mean() < 8, i
    assert new.column("timestamp_ns")[3, 0] == START + 3 * PERIOD
    assert not demos.check(tmp_path / "out").findings


def test_definitions_and_payloads_are_read_as_rosbags_reads_them():
    """Two implementations against each other, over every message of the distribution that rosbags can fill."""
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    rng = np.random.default_rng(0)
    numbers = {"float32": np.float32, "float64": np.float64}

    def made(name, depth=0):
        values = {}
        for field, (node, told) in store.fielddefs[name][1]:
            values[field] = one(int(node), told, depth)
        return store.types[name](**values)

    def one(node, told, depth):
        if node == 1:
            kind = told[0]
            if kind in ("string", "wstring"):
                return "añb"
            value = numbers.get(kind, int)(rng.integers(0, 100))
            return bool(value % 2) if kind == "bool" else float(value) if kind in numbers else value
        if node == 2:
            return made(told, depth + 1)
        (inner, of), count = told[0], told[1] if node == 3 else 3
        if int(inner) == 1 and of[0] not in ("string", "wstring"):
            kind = {"byte": "uint8", "char": "uint8", "octet": "uint8"}.get(of[0], of[0])
            return rng.integers(0, 2, count).astype(kind)
        return [one(int(inner), of, depth) for _ in range(count)]

    def same(ours, theirs, where):
        if isinstance(ours, dict):
            for key, value in ours.items():
                same(value, getattr(theirs, key), f"{where}.{key}")
        elif isinstance(ours, list):
            assert len(ours) == len(theirs), where
            for a, b in zip(ours, theirs, strict=True):
                same(a, b, where)
        elif isinstance(ours, (bytes, np.ndarray)):
            assert list(ours) == np.asarray(theirs).tolist(), where
        else:
            assert ours == theirs, where

    compared = 0
    for name in sorted(store.fielddefs):
        if name.split("/")[0] not in (
            "std_msgs",
            "sensor_msgs",
            "geometry_msgs",
            "trajectory_msgs",
            "nav_msgs",
            "tf2_msgs",
            "diagnostic_msgs",
        ):
            continue
        message = made(name)
        data = bytes(store.serialize_cdr(message, name))
        fields = cdr.fields(store.generate_msgdef(name, ros_version=2)[0], name)
        same(cdr.decode(fields, data), store.deserialize_cdr(data, name), name)
        compared += 1
    assert compared > 90


def test_an_interrupted_conversion_goes_on(tmp_path, interrupted):
    for name in "ab":
        json_recording(tmp_path / f"{name}.mcap", 10)
    source = open_source(tmp_path)
    assert source.described.episodes == 2
    interrupted(source, tmp_path / "out", task="t")
    assert transfer(source, tmp_path / "out", task="t") == {"episodes": 2, "frames": 20}


def test_what_stays_away_is_told_and_what_ends_first_ends_the_episode(tmp_path):
    def said(value):
        return json.dumps({"data": [value, 0]}).encode()

    state = [(START + i * PERIOD, said(i)) for i in range(100) if not 30 <= i < 60]
    action = [(START + i * PERIOD, said(-i)) for i in range(80)]
    path = write(tmp_path / "a.mcap", {"/state": ("", "", b"", "json", state), "/action": ("", "", b"", "json", action)})
    transfer(open_source(path, Choice(fps=20)), tmp_path / "out", task="t")
    new = demos.Dataset(tmp_path / "out")
    assert len(new) == 80 and new.column("observation.state")[45, 0] == 29
    assert new.episode(0).warnings == ("/state stayed away for 1.6 s",)


def test_a_clock_that_is_set_by_decades_ends_the_episode_and_does_not_fill_the_gap(tmp_path):
    """As on a machine without a battery for its clock, which hears of the time while it records."""
    times = [10**9 + i * PERIOD for i in range(40)] + [START + i * PERIOD for i in range(40)]
    said = [(ns, json.dumps({"data": [i, 0]}).encode()) for i, ns in enumerate(times)]
    path = write(tmp_path / "a.mcap", {topic: ("", "", b"", "json", said) for topic in ("/state", "/action")})
    transfer(open_source(path, Choice(fps=20)), tmp_path / "out", task="t")
    new = demos.Dataset(tmp_path / "out")
    assert len(new) == 40 and new.column("observation.state")[-1, 0] == 39
    assert "what came afterwards is left out" in " ".join(new.episode(0).warnings)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(state=("/nothing",)), "unknown vector .*'/nothing'"),
        (Choice(cameras=("left",)), "unknown camera 'left'"),
        (Choice(action="/joint_states.joints.effort"), "unknown action"),
    ],
)
def test_what_was_chosen_and_is_not_there_is_named(tmp_path, choice, said):
    with pytest.raises(InputError, match=said):
        open_source(json_recording(tmp_path / "a.mcap", 4), choice)


def test_an_action_that_nobody_names_is_asked_for(tmp_path):
    path = write(tmp_path / "a.mcap", {"/joint_states": ("", "", b"", "json", [(START, b'{"position": [1, 2]}')])})
    with pytest.raises(InputError, match=r"/joint_states\.position none says that it is the action: choose with --action"):
        open_source(path)
    source = open_source(path, Choice(action="/joint_states", fps=10))
    assert source.described.state == ("/joint_states.position",) == (source.described.action,)


def test_videos_are_decoded_from_the_key_frame_before_an_episode(tmp_path):
    images = [picture(i) for i in range(40)]
    packets = encoded("libx264", images, **H264)  # a key frame every 8th
    shown = [json.dumps({"format": "h264", "data": base64.b64encode(p).decode()}).encode() for p in packets]
    numbers = [(START + i * PERIOD, b'{"data": [%d, 1]}' % i) for i in range(40)]
    told = [(13, {"event": "begin", "task": "one"}), (20, {"event": "end", "success": True}),
            (27, {"event": "begin", "task": "two"}), (33, {"event": "end", "success": False})]  # fmt: skip
    marks = [(START + at * PERIOD, event) for at, event in told]
    path = write(tmp_path / "a.mcap", {
        "/cam": ("", "", b"", "json", [(ns, s) for (ns, _), s in zip(numbers, shown, strict=True)]),
        "/state": ("", "", b"", "json", numbers), "/action": ("", "", b"", "json", numbers),
        mcap.MARKERS: ("", "", b"", "json", [(ns, json.dumps({"data": json.dumps(told)}).encode()) for ns, told in marks]),
    })  # fmt: skip
    assert transfer(open_source(path), tmp_path / "out")["episodes"] == 2
    new = demos.Dataset(tmp_path / "out")
    assert [(new.episode(i).task, new.episode(i).success, new.episode(i).length) for i in range(2)] == [("one", True, 7), ("two", False, 6)]
    for at, number in enumerate([*range(13, 20), *range(27, 33)]):
        assert np.abs(new[at]["observation.images.cam"].astype(int) - images[number]).mean() < 8, number


def test_numbers_in_messages_by_their_paths():
    message = {"header": {"stamp": {"sec": 1}}, "name": ["a", "b"], "position": [1, 2], "force": {"x": 1.0, "y": 2, "z": 3}, "text": "no",
               "huge": 10**400, "mixed": [1, "a"], "deep": {"pose": {"position": {"x": 1}}, "text": "t"}, "flag": True}  # fmt: skip
    found = {path: (values.tolist(), names) for path, values, names in messages.vectors(message)}
    assert found["position"] == ([1, 2], ("a", "b")) and found["force"] == ([1, 2, 3], ("x", "y", "z"))
    assert found["deep.pose"] == ([1], ("position.x",)) and found["flag"] == ([1], ())
    assert not found.keys() & {"header", "text", "huge", "mixed", "deep"}


def test_a_definition_that_holds_itself_is_refused():
    with pytest.raises(DataError, match="holds itself"):
        cdr.fields("a/B x", "a/msg/B")
    with pytest.raises(DataError, match="is missing"):
        cdr.fields("a/C x", "a/msg/B")
