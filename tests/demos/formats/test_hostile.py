"""A corpus of files made to read elsewhere, to fill the memory or to run code: each is refused in one line, and nothing lies outside."""

import contextlib
import json
import os
import resource
import struct
import zipfile

import numpy as np
import pytest
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from demos.formats import Choice, cdr, lerobot_v2, open_source, transfer
from sinew.errors import DataError, InputError

SECRET = b"PRIVATE" * 100


def hdf5(path, change):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "secret.hdf5", "w") as f:
        f["x"] = np.full((3, 2), 7.0)
    (path / "secret.bin").write_bytes(SECRET)
    with h5py.File(path / "a.hdf5", "w") as f:
        demo = f.create_group("data/demo_0")
        demo["actions"], demo["obs/robot0"] = np.zeros((3, 2)), np.zeros((3, 2))
        change(h5py, f, demo, path)
    return path / "a.hdf5"


def external_link(h5py, f, demo, path):
    demo["obs/robot1"] = h5py.ExternalLink(str(path / "secret.hdf5"), "x")


def external_group(h5py, f, demo, path):
    del f["data/demo_0"]
    f["data/demo_0"] = h5py.ExternalLink(str(path / "secret.hdf5"), "/")


def external_bytes(h5py, f, demo, path):
    demo.create_dataset("obs/robot1", (3, 2), "f8", external=[(str(path / "secret.bin"), 0, 48)])


def virtual(h5py, f, demo, path):
    layout = h5py.VirtualLayout((3, 2), "f8")
    layout[:] = h5py.VirtualSource(str(path / "secret.hdf5"), "x", (3, 2))
    demo.create_virtual_dataset("obs/robot1", layout)


def soft_loop(h5py, f, demo, path):
    demo["obs/robot1"] = h5py.SoftLink("/data/demo_0/obs/robot1")


def giant(h5py, f, demo, path):
    demo.create_dataset("obs/robot1", (3, 2**40), "f8", chunks=(1, 2**27), compression="gzip")


def deep_words(h5py, f, demo, path):
    f["data"].attrs["env_args"] = "[" * 50_000
    del demo["actions"]
    demo["action_x"] = np.zeros((3, 2))


def zarr_folder(path, change):
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(path / "a.zarr"), mode="w", zarr_format=2)
    for name, shape in (("state", (4, 2)), ("action", (4, 2))):
        root.create_array(f"data/{name}", shape=shape, dtype="f8", chunks=shape)[:] = 1
    root.create_array("meta/episode_ends", shape=(1,), dtype="int64")[:] = 4
    (path / "secret").write_bytes(SECRET)
    return change(path / "a.zarr", path) or path / "a.zarr"


def changed(root, name, **fields):
    meta = root / name / ".zarray"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | fields))


def linked_out(root, path):
    (root / "data/state/0.0").unlink()
    (root / "data/state/0.0").symlink_to(path / "secret")


def linked_folder(root, path):
    (root / "data/more").symlink_to(path)


def unfolds(root, path):
    """A block whose zstd header claims a terabyte."""
    changed(root, "data/state", compressor={"id": "zstd", "level": 1})
    (root / "data/state/0.0").write_bytes(b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + b"\0" * 40)


def deep_json(root, path):
    (root / "data/state/.zarray").write_text("[" * 100_000)


def no_shape(root, path):
    changed(root, "data/state", shape="many")


def zipped_bomb(root, path):
    with zipfile.ZipFile(path / "a.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in root.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(root))
        with archive.open("data/state/9.9", "w") as block:
            for _ in range(200):
                block.write(bytes(1 << 20))
    return path / "a.zarr.zip"


def cut_zip(root, path):
    (path / "a.zip").write_bytes(b"PK\3\4" + b"\0" * 100)
    return path / "a.zip"


def walks_out(root, path):
    """Metadata that names an array beside the folder."""
    other = path / "outside/data"
    other.mkdir(parents=True)
    meta = {str(f.relative_to(root)): json.loads(f.read_text()) for f in root.rglob(".z*") if f.is_file()}
    meta["data/../../outside/data/.zarray"] = meta["data/state/.zarray"]
    (root / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": meta}))
    changed(root, "data/action", shape=[2, 2])  # refused at the latest for this


def rlds(path, features, record=b""):
    (path / "d/1.0.0").mkdir(parents=True)
    (path / "d/1.0.0/features.json").write_text(features)
    (path / "d/1.0.0/a.tfrecord-00000-of-00001").write_bytes(record)
    return path / "d/1.0.0"


def tensor(*shape):
    inner = {"action": {"tensor": {"shape": {"dimensions": list(shape)}, "dtype": "float32"}}}
    steps = {"sequence": {"feature": {"featuresDict": {"features": inner}}}}
    return json.dumps({"featuresDict": {"features": {"steps": steps}}})


def rlds_link(path):
    root = rlds(path, tensor("2"))
    (path / "secret").write_bytes(SECRET)
    (root / "b.tfrecord").symlink_to(path / "secret")
    return root


def mcap(path, definition, data=b"\0\1\0\0" + b"\0" * 64, encoding="cdr", form="ros2msg", name="a/msg/State"):
    with (path / "a.mcap").open("wb") as stream:
        writer = McapWriter(stream, compression=CompressionType.NONE)
        writer.start("", "eve")
        schema = writer.register_schema(name, form, definition)
        channel = writer.register_channel("/state", encoding, schema)
        for at in range(5):
            writer.add_message(channel, at, data, at)
        writer.finish()
    return path / "a.mcap"


EXPONENTIAL = "\n".join(
    ["\n".join(f"B0 x{i}" for i in range(50))]
    + ["=" * 80 + f"\nMSG: a/B{k}\n" + "\n".join(f"B{k + 1} x{i}" for i in range(50)) for k in range(10)]
    + ["=" * 80 + "\nMSG: a/B10\nuint8 x"]
).encode()
EMPTY_ARRAYS = "\n".join(
    ["B0[50] x"] + ["=" * 80 + f"\nMSG: a/B{k}\nB{k + 1}[50] x" for k in range(10)] + ["=" * 80 + "\nMSG: a/B10\nuint8 C=1"]
).encode()
HUGE_PICTURE = json.dumps({"encoding": "rgb8", "width": 2**30, "height": 2**30, "data": ""}).encode()
CORPUS = {
    "hdf5: link to a file": (lambda p: hdf5(p, external_link), "leads out of the file"),
    "hdf5: group in another file": (lambda p: hdf5(p, external_group), "leads out of the file"),
    "hdf5: bytes of another file": (lambda p: hdf5(p, external_bytes), "leads out of the file"),
    "hdf5: virtual": (lambda p: hdf5(p, virtual), "leads out of the file"),
    "hdf5: link to itself": (lambda p: hdf5(p, soft_loop), "leads out of the file|damaged|lacks"),
    "hdf5: giant": (lambda p: hdf5(p, giant), "trap"),
    "hdf5: deep words": (lambda p: hdf5(p, deep_words), "no obs"),
    "zarr: link to a file": (lambda p: zarr_folder(p, linked_out), "leads out of it"),
    "zarr: link to a folder": (lambda p: zarr_folder(p, linked_folder), "leads out of it"),
    "zarr: block of a terabyte": (lambda p: zarr_folder(p, unfolds), "cannot be read"),
    "zarr: deep metadata": (lambda p: zarr_folder(p, deep_json), "cannot be opened as zarr"),
    "zarr: no shape": (lambda p: zarr_folder(p, no_shape), "cannot be opened as zarr"),
    "zarr: names that walk out": (lambda p: zarr_folder(p, walks_out), "lead out of it|frames|opened"),
    "zip: bomb": (lambda p: zarr_folder(p, zipped_bomb), "would unfold"),
    "zip: cut off": (lambda p: zarr_folder(p, cut_zip), "no format that is known|zarr"),
    "rlds: deep": (lambda p: rlds(p, "[" * 100_000), "features.json"),
    "rlds: deep features": (lambda p: rlds(p, '{"sequence":{"feature":' * 900 + "{}" + "}}" * 900), "features.json|no steps"),
    "rlds: giant": (lambda p: rlds(p, tensor("99999999999")), "trap"),
    "rlds: words for numbers": (lambda p: rlds(p, tensor("many")), "does not describe a dataset"),
    "rlds: record of exabytes": (lambda p: rlds(p, tensor("2"), struct.pack("<Q", 1 << 60)), "cut off or damaged"),
    "rlds: link": (rlds_link, "leads out of the dataset"),
    "mcap: fields without end": (lambda p: mcap(p, EXPONENTIAL), "more than 5000 fields"),
    "mcap: nothing, 50 to the 11th times": (lambda p: mcap(p, EMPTY_ARRAYS, b"\0\1\0\0" + b"\0" * 5000), "parts"),
    "mcap: itself": (lambda p: mcap(p, b"State x"), "holds itself"),
    "mcap: no definition": (lambda p: mcap(p, b"import os; os.system('id')"), "is missing|is no field"),
    "mcap: array of gigabytes": (lambda p: mcap(p, b"float64[2000000000] x"), "does not hold what its type says"),
    "mcap: text that is longer than the message": (lambda p: mcap(p, b"string x", b"\0\1\0\0\xff\xff\xff\xff"), "ends .* early"),
    "mcap: deep json": (lambda p: mcap(p, b"{}", b"[" * 100_000, "json", "jsonschema"), "is no JSON"),
    "mcap: nested json": (lambda p: mcap(p, b"{}", b'{"a":' * 400 + b"1" + b"}" * 400, "json", "jsonschema"), "nothing that can be read"),
    "mcap: huge picture": (lambda p: mcap(p, b"{}", HUGE_PICTURE, "json", "jsonschema"), "says that it has"),
    "mcap: protobuf that is none": (lambda p: mcap(p, b"\xff" * 50, b"", "protobuf", "protobuf"), "cannot be used"),
    "mcap: unknown encoding": (lambda p: mcap(p, b"x", b"", "pickle", "pickle"), "known are cdr, json and protobuf"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_refused_in_one_line_and_nothing_lies_outside(name, tmp_path):
    make, said = CORPUS[name]
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((DataError, InputError), match=said) as told:
        source = open_source(path, Choice(action="/state" if "mcap" in name else ""))
        try:
            transfer(source, tmp_path / "out", task="t")
        finally:
            source.close()
    assert "\n" not in str(told.value) and len(str(told.value)) < 600
    made = [p for p in tmp_path.rglob("*") if p not in before and not p.is_relative_to(tmp_path / "out")]
    assert not made and b"PRIVATE" not in str(told.value).encode()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000  # kB


def test_version_two_with_lines_that_are_traps(tmp_path):
    root = tmp_path / "v2"
    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": "v2.1", "fps": 10, "features": {"action": {"dtype": "float32", "shape": [2]}}}
    info |= {"data_path": "data/{episode_chunk}/{episode_index}.parquet", "total_episodes": 1, "total_frames": 1}
    for name, text, said in (
        ("meta/info.json", json.dumps(info | {"features": {"../../x": {"dtype": "video", "shape": [1]}}}), "name that no file can have"),
        ("meta/info.json", json.dumps(info | {"features": {"action": {"dtype": "float32", "shape": [2**40]}}}), "has the shape"),
        ("meta/episodes.jsonl", "[" * 100_000, "episodes.jsonl"),
        ("meta/episodes.jsonl", '{"episode_index": "../x", "length": 1}', "episodes.jsonl"),
        ("meta/episodes.jsonl", '{"episode_index": 0, "length": 1e300}', "episodes.jsonl"),
        ("meta/tasks.jsonl", '{"task_index": 99999999999, "task": "t"}', "tasks.jsonl"),
        ("meta/tasks.jsonl", '{"task_index": "x", "task": "t"}', "tasks.jsonl"),
    ):
        (root / "meta/info.json").write_text(json.dumps(info))
        (root / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 1, "tasks": ["t"]}\n')
        (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "t"}\n')
        (root / name).write_text(text)
        with pytest.raises(DataError, match=said) as told:
            lerobot_v2.upgrade(root, tmp_path / "out")
        assert "\n" not in str(told.value)
        assert not (tmp_path / "out/meta").exists()


def test_code_is_never_made_of_a_definition(tmp_path):
    ran = tmp_path / "ran"
    for text in (
        f"uint8 x=__import__('os').mkdir('{ran}')",
        f"uint8 __import__('os').mkdir('{ran}')",
        "uint8 x\n=====\nMSG: ../../etc/passwd\nuint8 y",
    ):
        with contextlib.suppress(DataError):
            cdr.decode(cdr.fields(text, "a/msg/B"), b"\0\1\0\0\1")
    assert not os.path.exists(ran)
