import json
import struct
import zlib

import av
import numpy as np
import pytest

import demos
from demos.formats import Choice, kind_of, open_source, rlds, robomimic, transfer
from sinew.errors import DataError, InputError

LENGTHS = (5, 3)
STATE, ENVIRONMENT, CAMERA = "observation.state", "observation.environment_state", "observation.images.agentview"


def content(index, length):
    """Arrays of an episode that tell which frame is which."""
    at = np.arange(length)
    image = np.zeros((length, 16, 24, 3), np.uint8)
    image[:, :, :, index % 3] = 60
    for i in at:
        image[i, :, i * 4 : i * 4 + 4] = 220
    return {
        "position": np.stack([at, at * 0.5, index + 0.0 * at], 1), "grip": at * 0.1, "object": np.full((length, 2), index + 0.25),
        "action": np.stack([np.sin(at), np.cos(at)], 1) * 0.5, "image": image,
    }  # fmt: skip


def hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as f:
        data = f.create_group("data")
        kwargs = {"control_freq": 20, "robots": ["Panda"], "controller_configs": {"type": "OSC_POSE", "control_delta": True}}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": kwargs})
        for index in reversed(range(2)):  # order in the file is not that of the numbers
            arrays, demo = content(index, LENGTHS[index]), data.create_group(f"demo_{index}")
            demo["actions"], demo["rewards"] = arrays["action"], np.eye(LENGTHS[index])[-1] * index
            demo["obs/robot0_eef_pos"], demo["obs/robot0_gripper"] = arrays["position"], arrays["grip"]
            demo["obs/object"], demo["obs/agentview_image"] = arrays["object"], arrays["image"]
    return path


def zarr_folder(path):
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    whole = [content(i, n) for i, n in enumerate(LENGTHS)]
    for name, key in (("state", "position"), ("grip", "grip"), ("object", "object"), ("action", "action"), ("agentview_image", "image")):
        values = np.concatenate([each[key] for each in whole])
        array = root.create_array(f"data/{name}", shape=values.shape, dtype=values.dtype, chunks=(3, *values.shape[1:]))
        array[:] = values
    ends = root.create_array("meta/episode_ends", shape=(2,), dtype="int64")
    ends[:] = np.cumsum(LENGTHS)
    return path


def record(data):
    """A TFRecord, its checksums worked out bit by bit."""

    def masked(bits):
        crc = 0xFFFFFFFF
        for byte in bits:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ 0x82F63B78 if crc & 1 else crc >> 1
        crc ^= 0xFFFFFFFF
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def example(features):
    """A tf.train.Example made with Google's own protocol buffer library, from the published definition."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for number, (field, label, kind) in enumerate(fields, 1):
            plain = isinstance(kind, int)
            made.field.add(name=field, number=number, label=label, type=kind if plain else 11, type_name=None if plain else kind)
        return made

    message("BytesList", ("value", 3, 12))
    message("FloatList", ("value", 3, 2))
    message("Int64List", ("value", 3, 3))
    message("Feature", ("bytes_list", 1, ".t.BytesList"), ("float_list", 1, ".t.FloatList"), ("int64_list", 1, ".t.Int64List"))
    holder = message("Features", ("feature", 3, ".t.Features.FeatureEntry"))
    entry = holder.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".t.Feature")
    message("Example", ("features", 1, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()
    for name, values in features.items():
        kind = "bytes_list" if isinstance(values, list) else "float_list" if values.dtype.kind == "f" else "int64_list"
        getattr(made.features.feature[name], kind).value.extend(values if kind == "bytes_list" else values.ravel().tolist())
    return made.SerializeToString()


def png(image):
    context = av.CodecContext.create("png", "w")
    context.height, context.width, context.pix_fmt = *image.shape[:2], "rgb24"
    context.time_base = 1
    return b"".join(bytes(p) for p in (*context.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *context.encode(None)))


def rlds_folder(path):
    path.mkdir(parents=True)

    def tensor(*shape):
        return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]} if shape else {}, "dtype": "float32", "encoding": "none"}}

    observed = {"state": tensor(3), "grip": tensor(), "object": tensor(2)}
    observed["agentview_image"] = {"image": {"shape": {"dimensions": ["16", "24", "3"]}, "dtype": "uint8", "encodingFormat": "png"}}
    observed["depth"] = {"image": {"shape": {"dimensions": ["16", "24", "1"]}, "dtype": "uint8"}}
    steps = {"observation": {"featuresDict": {"features": observed}}, "action": tensor(2), "language_instruction": {"text": {}}}
    steps["reward"] = tensor()
    whole = {"steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}, "length": "-1"}}}
    (path / "features.json").write_text(json.dumps({"featuresDict": {"features": whole}}))
    for index, length in enumerate(LENGTHS):
        arrays = content(index, length)
        features = {
            "steps/observation/state": arrays["position"].astype(np.float32), "steps/observation/grip": arrays["grip"].astype(np.float32),
            "steps/observation/object": arrays["object"].astype(np.float32), "steps/action": arrays["action"].astype(np.float32),
            "steps/observation/agentview_image": [png(image) for image in arrays["image"]],
            "steps/language_instruction": [b"lift it"] * length, "steps/reward": (np.eye(length)[-1] * index).astype(np.float32),
        }  # fmt: skip
        (path / f"lift-train.tfrecord-0000{index}-of-00002").write_bytes(record(example(features)))
    return path


CASES = {
    "robomimic": (hdf5, "lift.hdf5", Choice(), (STATE, 4), "ee_delta"),
    "zarr": (zarr_folder, "lift.zarr", Choice(state=("state", "grip"), environment=("object",)), (STATE, 4), "ee_pose"),
    "rlds": (rlds_folder, "lift/1.0.0", Choice(state=("state", "grip"), environment=("object",)), (STATE, 4), "ee_delta"),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_dataset_comes_over_frame_for_frame(kind, tmp_path):
    make, name, choice, (key, width), commands = CASES[kind]
    path = make(tmp_path / name)
    assert kind_of(path) == kind
    source = open_source(path, choice)
    assert transfer(source, tmp_path / "out", task="lift it") == {"episodes": 2, "frames": sum(LENGTHS)}
    source.close()
    new, start = demos.Dataset(tmp_path / "out"), 0
    assert new.observation_spec[key].shape == (width,) and new.action_spec.kind == commands
    for index, length in enumerate(LENGTHS):
        arrays, rows = content(index, length), slice(start, start + length)
        assert np.allclose(new.column(STATE)[rows, :3], arrays["position"]) and np.allclose(new.column(STATE)[rows, 3], arrays["grip"])
        assert np.allclose(new.column(ENVIRONMENT)[rows], arrays["object"])
        assert np.allclose(new.column("action")[rows], arrays["action"], atol=1e-6)
        for at in range(length):
            apart = new[start + at][CAMERA].astype(int) - arrays["image"][at]
            assert np.abs(apart).mean() < 12, (index, at)
            assert new[start + at]["task"] == "lift it"
        start += length
    successes = [None, None] if kind == "zarr" else [False, True]
    assert [new.episode(i).success for i in range(2)] == successes
    assert not demos.check(tmp_path / "out").findings


@pytest.mark.parametrize("kind", CASES)
def test_an_interrupted_conversion_goes_on(kind, tmp_path, interrupted):
    make, name, choice, *_ = CASES[kind]
    source = open_source(make(tmp_path / name), choice)
    interrupted(source, tmp_path / "out", task="lift it")
    assert demos.Dataset(tmp_path / "out").num_episodes == 1
    with pytest.raises(InputError, match="another conversion"):
        transfer(source, tmp_path / "out", task="lift it", told={"another": 1})
    assert transfer(source, tmp_path / "out", task="lift it")["episodes"] == 2


@pytest.mark.parametrize("kind", CASES)
def test_what_was_chosen_and_is_not_there_is_named(kind, tmp_path):
    make, name, *_ = CASES[kind]
    path = make(tmp_path / name)
    for choice in (Choice(state=("nothing",)), Choice(cameras=("nothing",)), Choice(action="nothing")):
        with pytest.raises(InputError, match="'nothing'"):
            open_source(path, choice)
    if kind != "rlds":  # there the data tell it
        with pytest.raises(InputError, match="--task"):
            transfer(open_source(path), tmp_path / "out")


def test_what_is_written_for_robomimic_comes_back(helpers, tmp_path):
    pytest.importorskip("h5py")
    old = demos.Dataset(helpers.record(tmp_path / "data", [5, 4], cameras=1))
    assert robomimic.write(old, tmp_path / "out.hdf5") == {"episodes": 2, "frames": 9}
    source = open_source(tmp_path / "out.hdf5", Choice(state=("state",), environment=("environment_state",)))
    transfer(source, tmp_path / "back", task="push the block")
    new = demos.Dataset(tmp_path / "back")
    assert np.allclose(new.column(STATE), old.column(STATE)) and np.allclose(new.column(ENVIRONMENT), old.column(ENVIRONMENT))
    assert np.allclose(new.column("action"), old.action_spec.normalize(old.column("action")), atol=1e-6)
    assert [new.episode(i).success for i in range(2)] == [True, False]
    with pytest.raises(InputError, match="exists already"):
        robomimic.write(old, tmp_path / "out.hdf5")


# ---------------------------------------------------------------- damaged and hostile ones


def test_a_checksum_that_differs_is_noticed(tmp_path):
    path = rlds_folder(tmp_path / "d/1.0.0")
    file = next(path.glob("*.tfrecord-00001*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="checksum"):
        transfer(open_source(path), tmp_path / "out")
    file.write_bytes(data[:-9])
    with pytest.raises(DataError, match="cut off"):
        open_source(path)


def test_checksums_are_those_of_the_standard():
    assert rlds._crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert rlds._crc32c(b"") == 0
    google = pytest.importorskip("google_crc32c")
    data = bytes(range(256)) * 5
    assert rlds._crc32c(data) == google.value(data)


def test_a_pickled_array_is_not_read(tmp_path):
    path = zarr_folder(tmp_path / "d.zarr")
    for name in ("state", "action"):
        meta = path / "data" / name / ".zarray"
        told = json.loads(meta.read_text())
        meta.write_text(json.dumps(told | {"filters": [{"id": "pickle", "protocol": 4}]}))
        with pytest.raises(DataError, match="pickle"):
            open_source(path)
        meta.write_text(json.dumps(told))


def test_giants_are_refused(tmp_path):
    path = zarr_folder(tmp_path / "d.zarr")
    meta = path / "data/state/.zarray"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"shape": [1 << 40, 3], "chunks": [1 << 40, 3]}))
    with pytest.raises(DataError, match="trap"):
        open_source(path)


def test_files_of_no_format_and_half_files_are_refused(tmp_path):
    (tmp_path / "a.hdf5").write_bytes(robomimic.MAGIC + zlib.compress(b"nothing"))
    (tmp_path / "b.bin").write_bytes(b"nothing")
    with pytest.raises(DataError, match="HDF5"):
        open_source(tmp_path / "a.hdf5")
    with pytest.raises(InputError, match="no format that is known"):
        open_source(tmp_path / "b.bin")
    with pytest.raises(InputError, match="not there"):
        open_source(tmp_path / "c.bin")
    with pytest.raises(InputError, match="unknown format"):
        open_source(tmp_path / "b.bin", kind="hdf")
