"""Bags against rosbags and mcap, two readers that are not ours; what a crash, a cut and hostile bytes leave."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from demos.bags import Bag, BagWriter, Topic, is_bag, mend
from sinew.errors import DataError, InputError

ROOT = Path(__file__).resolve().parents[2]
STORE = get_typestore(Stores.ROS2_JAZZY)
INT, TEXT = "std_msgs/msg/Int64", "std_msgs/msg/String"


def topic(name: str, kind: str = INT, **promises) -> Topic:
    definition = STORE.generate_msgdef(kind, ros_version=2)[0]
    return Topic(name=name, type=kind, definition=definition, type_hash=STORE.hash_rihs01(kind), **promises)


def number(value: int) -> bytes:
    return bytes(STORE.serialize_cdr(STORE.types[INT](data=value), INT))


def text(value: str) -> bytes:
    return bytes(STORE.serialize_cdr(STORE.types[TEXT](data=value), TEXT))


def write(path: Path, count: int = 100, block_s: float = 10.0, flush_every: int = 10) -> Path:
    with BagWriter(path, block_s=block_s) as writer:
        writer.add(topic("/count"))
        writer.add(topic("/names", TEXT, reliable=False, latched=True, depth=3))
        for i in range(count):
            writer.write("/count", 1_000 + i * 10, number(i), publish_ns=999 + i * 10)
            writer.write("/names", 1_005 + i * 10, text(f"n{i}"))
            if i % flush_every == 0:
                writer.flush()
    return path


def by_rosbags(path: Path, plugin: StoragePlugin, compression: CompressionMode = CompressionMode.NONE, count: int = 50) -> Path:
    qos = [
        Qos(
            QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, QosTime(0, 0), QosTime(0, 0),
            QosLiveliness.AUTOMATIC, QosTime(0, 0), False,
        )
    ]  # fmt: skip
    writer = Writer(path, version=9, storage_plugin=plugin)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        plain = writer.add_connection("/count", INT, typestore=STORE)
        latched = writer.add_connection("/names", TEXT, typestore=STORE, offered_qos_profiles=qos)
        for i in range(count):
            writer.write(plain, 1_000 + i * 10, number(i))
            writer.write(latched, 1_005 + i * 10, text(f"n{i}"))
    return path


@pytest.mark.parametrize("name", ["bag", "bag.mcap"])
def test_others_read_what_we_write(tmp_path, name):
    path = write(tmp_path / name)
    file = path if path.is_file() else path / "bag_0.mcap"
    with Reader(path) as reader:
        assert reader.message_count == 200 and reader.start_time == 1_000
        assert {c.topic: c.msgtype for c in reader.connections} == {"/count": INT, "/names": TEXT}
        if path.is_dir():  # rosbags takes hashes from metadata.yaml alone
            assert {c.topic: c.digest for c in reader.connections}["/count"] == STORE.hash_rihs01(INT)
        latched = next(c for c in reader.connections if c.topic == "/names").ext.offered_qos_profiles[0]
        assert latched.durability == QosDurability.TRANSIENT_LOCAL and latched.reliability == QosReliability.BEST_EFFORT
        read = [(c.topic, at, STORE.deserialize_cdr(data, c.msgtype).data) for c, at, data in reader.messages()]
        assert read == [m for i in range(100) for m in (("/count", 1_000 + i * 10, i), ("/names", 1_005 + i * 10, f"n{i}"))]
    with file.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        assert reader.get_header().profile == "ros2"
        summary = reader.get_summary()
        assert summary is not None and summary.statistics is not None and summary.statistics.message_count == 200
        assert len(summary.chunk_indexes) == summary.statistics.chunk_count == 11
        assert {s.name: s.encoding for s in summary.schemas.values()} == {INT: "ros2msg", TEXT: "ros2msg"}
        late = [m.publish_time for _, _, m in reader.iter_messages(topics=["/count"], start_time=1_900)]
        assert late == [999 + i * 10 for i in range(90, 100)]
        (told,) = list(reader.iter_metadata())
        assert json.loads(told.metadata["serialized_metadata"])["message_count"] == 200


@pytest.mark.parametrize(
    ("plugin", "compression"),
    [
        (StoragePlugin.MCAP, CompressionMode.NONE),
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
        (StoragePlugin.MCAP, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.NONE),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    ],
)
def test_we_read_what_others_write(tmp_path, plugin, compression):
    bag = Bag(by_rosbags(tmp_path / "bag", plugin, compression))
    assert bag.counts == {"/count": 50, "/names": 50} and is_bag(tmp_path / "bag")
    assert bag.topics["/names"].latched and bag.topics["/count"].type == INT and "int64 data" in bag.topics["/count"].definition
    if plugin == StoragePlugin.SQLITE3:  # rosbags writes no hashes into MCAP
        assert bag.topics["/count"].type_hash == STORE.hash_rihs01(INT)
    read = [(m.topic, m.log_ns, m.data) for m in bag.messages()]
    assert read == [m for i in range(50) for m in (("/count", 1_000 + i * 10, number(i)), ("/names", 1_005 + i * 10, text(f"n{i}")))]
    assert [m.log_ns for m in bag.messages(["/count"])] == [1_000 + i * 10 for i in range(50)] and not bag.damage


def test_a_bag_in_several_files_is_read_in_their_order(tmp_path):
    (tmp_path / "bag").mkdir()
    for i in (10, 9, 2):
        with BagWriter(tmp_path / "bag" / f"bag_{i}.mcap") as writer:
            writer.add(topic("/count"))
            writer.write("/count", i, number(i))
    assert [m.log_ns for m in Bag(tmp_path / "bag").messages()] == [2, 9, 10]
    assert Bag(tmp_path / "bag").counts == {"/count": 3}


def test_blocks_that_overlap_are_sorted_by_time(tmp_path):
    order = [5, 1, 3, 2, 4, 9, 6, 8, 7]
    with BagWriter(tmp_path / "a.mcap") as writer:
        writer.add(topic("/count"))
        for i, at in enumerate(order):
            writer.write("/count", at, number(at))
            if i in (1, 4):
                writer.flush()
    assert [m.log_ns for m in Bag(tmp_path / "a.mcap").messages()] != order
    with Reader(tmp_path / "a.mcap") as reader:
        assert [at for _, at, _ in reader.messages()] == sorted(order)


# ------------------------------------------------------------ crashes


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_cut_off_anywhere_the_beginning_is_read_and_mended(tmp_path, plugin):
    whole = write(tmp_path / "bag") if plugin == StoragePlugin.MCAP else by_rosbags(tmp_path / "bag", plugin, count=600)
    (file,) = [p for p in whole.iterdir() if p.suffix in (".mcap", ".db3")]
    data, rng = file.read_bytes(), np.random.default_rng(0)
    expected = [(m.topic, m.log_ns, m.data) for m in Bag(whole).messages()]
    longest = 0
    for cut in sorted(rng.integers(1, len(data) - 1, 25).tolist()):
        part = tmp_path / f"cut{cut}" / file.name
        part.parent.mkdir()
        part.write_bytes(data[:cut])
        try:
            bag = Bag(part.parent)
            read = [(m.topic, m.log_ns, m.data) for m in bag.messages()]
        except DataError as e:
            assert "\n" not in str(e)
            continue
        assert read == expected[: len(read)] and len(read) >= longest
        longest = len(read)
        if cut < len(data) - 4000:
            assert bag.damage
        if read:
            done = mend(part.parent)
            assert done.messages == len(read) and done.actions
            again = Bag(part.parent)
            assert [(m.topic, m.log_ns, m.data) for m in again.messages()] == read and again.whole and not again.damage
            assert (part.parent / "damaged" / file.name).read_bytes() == data[:cut]
            with Reader(part.parent) as reader:
                assert reader.message_count == len(read)
    assert longest > len(expected) / 4
    assert mend(whole).actions == ()


def test_a_damaged_block_is_left_out_and_the_rest_kept(tmp_path):
    path = write(tmp_path / "a.mcap")
    data = bytearray(path.read_bytes())
    at = data.index(text("n50"))
    data[at + 6] ^= 0xFF
    path.write_bytes(bytes(data))
    bag = Bag(path)
    read = [m.log_ns for m in bag.messages()]
    assert 150 < len(read) < 200 and len(bag.damage) == 1 and "checksum" in bag.damage[0]
    assert mend(path).messages == len(read) and (tmp_path / "damaged" / "a.mcap").exists()


WRITER = """
import sys, time
from demos.bags import BagWriter, Topic
writer = BagWriter(sys.argv[1], block_s=0.05)
writer.add(Topic(name="/count", type="std_msgs/msg/Int64"))
for i in range(10**9):
    writer.write("/count", time.time_ns(), b"\\x00\\x01\\x00\\x00" + i.to_bytes(8, "little"))
    print(i, flush=True)
    time.sleep(0.001)
"""


def test_a_killed_writer_loses_moments(tmp_path):
    path = tmp_path / "killed.mcap"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    for _ in process.stdout:
        if path.exists() and path.stat().st_size > 3000:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = [int.from_bytes(m.data[4:], "little") for m in Bag(path).messages()]
    assert kept == list(range(len(kept))) and len(kept) > 10
    assert mend(path).messages == len(kept) and Bag(path).whole


def test_a_failed_write_is_taken_back(tmp_path, monkeypatch):
    import errno

    writer = BagWriter(tmp_path / "a.mcap")
    writer.add(topic("/count"))
    writer.write("/count", 1, number(1))
    writer.flush()
    whole, left = os.write, [100]

    def full(fd, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = whole(fd, bytes(data)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr("demos.bags.writer.os.write", full)
    writer.write("/count", 2, number(2))
    with pytest.raises(InputError, match="No space left on device"):
        writer.flush()
    with pytest.raises(InputError, match="No space left"):
        writer.close()
    monkeypatch.undo()
    assert [m.log_ns for m in Bag(tmp_path / "a.mcap").messages()] == [1]


def test_what_is_in_the_way_is_refused(tmp_path):
    write(tmp_path / "a.mcap", 1)
    for path in (tmp_path / "a.mcap", tmp_path):
        with pytest.raises(InputError, match="exists already"):
            BagWriter(path)
    with pytest.raises(InputError, match="cannot write a bag"):
        BagWriter(tmp_path / "a.mcap" / "b.mcap")
    with BagWriter(tmp_path / "b.mcap") as writer:
        writer.add(topic("/count"))
        writer.add(topic("/count"))
        with pytest.raises(DataError, match="and also"):
            writer.add(topic("/count", TEXT))


# ------------------------------------------------------------ hostile bags


def seconds(call) -> float:
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


def record(opcode: int, body: bytes, claims: int | None = None) -> bytes:
    return struct.pack("<BQ", opcode, len(body) if claims is None else claims) + body


def chunk(data: bytes, compression: str = "", size: int | None = None) -> bytes:
    head = struct.pack("<QQQI", 0, 0, len(data) if size is None else size, 0) + struct.pack("<I", len(compression)) + compression.encode()
    return record(6, head + struct.pack("<Q", len(data)) + data)


def bomb() -> bytes:
    from backports import zstd

    return zstd.compress(bytes(1 << 30), level=1)


MAGIC = b"\x89MCAP0\r\n"
HOSTILE = {
    "a record longer than the file": (MAGIC + record(5, b"", 1 << 62), "byte 8"),
    "opcode 0": (MAGIC + record(0, b"abc"), "byte 8"),
    "a chunk that claims exabytes": (MAGIC + chunk(b"", "zstd", 1 << 60), "claims"),
    "unknown compression": (MAGIC + chunk(b"x", "snappy"), "snappy"),
    "no zstd": (MAGIC + chunk(b"garbage", "zstd", 100), "damaged"),
    "no lz4": (MAGIC + chunk(b"garbage", "lz4", 100), "damaged"),
    "a message of nowhere": (MAGIC + record(5, bytes(30)), "nowhere described"),
    "a message without its head": (MAGIC + record(5, bytes(3)), "damaged"),
    "a schema whose text is longer than it": (MAGIC + record(3, b"\1\0" + struct.pack("<I", 1 << 31)), "damaged"),
    "a record in a chunk that claims more": (MAGIC + chunk(record(5, b"", 1 << 40)), "claims"),
    "a footer that points nowhere": (MAGIC + record(2, struct.pack("<QQI", 1 << 50, 1 << 51, 0)) + MAGIC, ""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bytes(tmp_path, kind):
    data, said = HOSTILE[kind]
    (tmp_path / "a.mcap").write_bytes(data)
    bag = Bag(tmp_path / "a.mcap")
    assert list(bag.messages()) == [] and bag.topics == {}
    assert said in " ".join(bag.damage) and all("\n" not in line for line in bag.damage)
    with pytest.raises(DataError, match="nothing was changed") as e:
        mend(tmp_path / "a.mcap")
    assert "\n" not in str(e.value) and (tmp_path / "a.mcap").read_bytes() == data


def test_a_bomb_takes_no_memory(tmp_path):
    import resource

    (tmp_path / "a.mcap").write_bytes(MAGIC + chunk(bomb(), "zstd", 4096))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bag = Bag(tmp_path / "a.mcap")
    assert list(bag.messages()) == [] and bag.damage
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; unpacked it would be a million


def test_random_bytes_never_break_the_reader(tmp_path):
    path, rng = write(tmp_path / "a.mcap", 30), np.random.default_rng(1)
    data = path.read_bytes()
    for i in range(150):
        spoiled = bytearray(data)
        for at in rng.integers(8, len(data), 1 + i % 5):
            spoiled[at] = rng.integers(256)
        path.write_bytes(bytes(spoiled))
        try:
            bag = Bag(path)
            assert all(isinstance(m.data, bytes) for m in bag.messages()) and len(bag.damage) <= 20
            assert set(bag.counts) <= set(bag.topics)
        except DataError as e:
            assert "\n" not in str(e)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.write_text("hello"), "no MCAP file"),
        (lambda p: p.write_bytes(b""), "no MCAP file"),
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "holds no .mcap or .db3"),
    ],
)
def test_what_is_no_bag_is_said_in_one_line(tmp_path, make, said):
    make(tmp_path / "a.mcap")
    with pytest.raises(DataError, match=said) as e:
        Bag(tmp_path / "a.mcap")
    assert "\n" not in str(e.value)


def test_metadata_leads_nowhere(tmp_path):
    """A metadata.yaml that names files elsewhere is not followed, and one that is a bomb is not opened."""
    write(tmp_path / "secret.mcap", 5)
    bag = tmp_path / "bag"
    bag.mkdir()
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: {relative_file_paths: [../secret.mcap], storage_identifier: mcap}")
    assert is_bag(bag)
    with pytest.raises(DataError, match=r"holds no \.mcap or \.db3 file"):
        Bag(bag)
    write(bag / "mine_0.mcap", 3)
    (bag / "metadata.yaml").write_text("a: &a [x,x]\nb: &b [*a,*a]\n" * 1000)
    assert len(list(Bag(bag).messages())) == 6


def test_hostile_databases(tmp_path):
    path = tmp_path / "a.db3"

    def make(*statements: str) -> None:
        path.unlink(missing_ok=True)
        database = sqlite3.connect(path)
        for statement in statements:
            database.execute(statement)
        database.commit()
        database.close()

    topics = "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT, offered_qos_profiles TEXT)"
    messages = "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)"
    make("CREATE TABLE notes(a TEXT)")
    with pytest.raises(DataError, match="no bag of rosbag2"):
        Bag(path)
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x id, 1 topic_id, x timestamp, x data FROM c"
    make(topics, f"CREATE VIEW messages AS {endless}")
    with pytest.raises(DataError, match="no bag of rosbag2"):
        Bag(path)
    insert = "INSERT INTO topics VALUES(1, '/count', 'std_msgs/msg/Int64', 'cdr', '')"
    rows = ("1, 1, 'noon', x'00'", "2, 1, 5, 'words'", "3, 1, 6, x'00010000'")
    foreign = "INSERT INTO topics VALUES(2, '/a', 'b', 'json', '')"
    make(topics, messages, insert, foreign, *(f"INSERT INTO messages VALUES({row})" for row in rows))
    bag = Bag(path)
    assert [m.log_ns for m in bag.messages()] == [6] and len(bag.damage) == 3
    make(topics, messages.replace("data BLOB", "data BLOB AS (zeroblob(900000000))"), insert, "INSERT INTO messages VALUES(1, 1, 5)")
    bag = Bag(path)
    assert list(bag.messages()) == [] and bag.damage
