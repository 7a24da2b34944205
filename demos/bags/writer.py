"""Writes MCAP bags that survive a crash: blocks of a quarter of a second, each whole on disk before the next one begins.

A killed process leaves a file without an end, of which every block is readable (`demos.bags.mend` gives it an end). A failed
write is taken back, so that what is there stays whole.

Source: the MCAP specification, https://mcap.dev/spec, and the profile "ros2" in its registry; metadata.yaml is version 9 of
rosbag2's, written as JSON, which is YAML.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

from mcap.data_stream import RecordBuilder
from mcap.records import Channel, Chunk, ChunkIndex, DataEnd, Footer, Header, MessageIndex, Metadata, MetadataIndex, Schema, SummaryOffset
from mcap.records import Statistics as Totals

from demos.bags.bag import METADATA
from demos.bags.mcap_file import CHANNEL, FOOTER, MAGIC, MESSAGE, SCHEMA, STATISTICS
from demos.bags.topic import Topic
from sinew.errors import DataError, InputError
from sinew.rundir import atomic_write

BLOCK_BYTES = 1 << 20
BLOCK_S = 0.25
CHUNK_INDEX, METADATA_INDEX = 8, 13
METADATA_VERSION = 9


class BagWriter:
    """Writes a bag; a context manager.

    Args:
        path: a new .mcap file, or a new folder that gets one with a metadata.yaml, as `ros2 bag record` makes it.
        distribution: ROS 2 distribution that the message types are of.
        block_s: messages are on disk after at most this long, where `write` or `tick` is called so often.

    Raises:
        InputError: the path is taken or cannot be written.
    """

    def __init__(self, path: Path | str, *, distribution: str = "jazzy", block_s: float = BLOCK_S) -> None:
        self.path = Path(path)
        self.file = self.path if self.path.suffix == ".mcap" else self.path / f"{self.path.name}_0.mcap"
        self._distribution, self._block_s = distribution, block_s
        self._channels: dict[str, tuple[int, Topic]] = {}
        self._schemas: dict[str, int] = {}
        self._counts: dict[int, int] = {}
        self._first_ns, self._last_ns = (1 << 63) - 1, 0
        self._blocks = RecordBuilder()  # their index, which is kept as bytes: it grows as long as the bag does
        self._number_of_blocks = self._at = 0
        self._begin_block()
        if self.path.exists():
            raise InputError(f"{self.path} exists already; bags are not written over, choose another path")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise InputError(f"cannot write a bag at {self.path}: {e.strerror or e}; choose another path") from None
        header = RecordBuilder()
        Header("ros2", "sinew").write(header)
        self._append(MAGIC + header.end())

    @property
    def count(self) -> int:
        """Messages taken."""
        return sum(self._counts.values())

    def add(self, topic: Topic) -> None:
        """A topic that messages will come of; again, if it is the same.

        Raises:
            DataError: the topic is there with another type.
        """
        known = self._channels.get(topic.name)
        if known is not None:
            if known[1].type != topic.type:
                raise DataError(f"{self.path}: topic {topic.name} is {known[1].type} and also {topic.type}")
            return
        number = len(self._channels) + 1
        self._channels[topic.name] = (number, topic)
        self._counts[number] = 0
        if topic.type not in self._schemas:
            self._schemas[topic.type] = len(self._schemas) + 1
            self._schema(topic).write(self._block)
        self._channel(number, topic).write(self._block)

    def write(self, topic: str, log_ns: int, data: bytes | bytearray | memoryview, publish_ns: int | None = None) -> None:
        """Take a message of a topic that was added.

        Args:
            topic: its name.
            log_ns: when it was received, wall clock.
            data: CDR payload with its header; may be used again after the return.
            publish_ns: when it was sent; None where nobody knows.

        Raises:
            InputError: the disk is full; blocks written before are kept.
        """
        number, _ = self._channels[topic]
        self._index.setdefault(number, []).append((log_ns, self._block.count))
        sent_ns = log_ns if publish_ns is None else publish_ns
        self._block.write(struct.pack("<BQHIQQ", MESSAGE, 22 + len(data), number, self._counts[number] & 0xFFFFFFFF, log_ns, sent_ns))
        self._block.write(data)
        self._counts[number] += 1
        self._first_ns, self._last_ns = min(self._first_ns, log_ns), max(self._last_ns, log_ns)
        self._block_ns = min(self._block_ns[0], log_ns), max(self._block_ns[1], log_ns)
        self._begun_s = self._begun_s or time.monotonic()
        if self._block.count >= BLOCK_BYTES:
            self.flush()
        else:
            self.tick()

    def tick(self) -> None:
        """Write the block if it is old enough; to be called where messages may stay away.

        Raises:
            InputError: as `write`.
        """
        if self._begun_s and time.monotonic() - self._begun_s >= self._block_s:
            self.flush()

    def flush(self) -> None:
        """Write the block that is being filled.

        Raises:
            InputError: as `write`.
        """
        if not self._index:
            return
        start, (first_ns, last_ns), index, data = self._at, self._block_ns, self._index, self._block.end()
        self._begin_block()
        record = RecordBuilder()
        Chunk("", data, last_ns, first_ns, zlib.crc32(data), len(data)).write(record)
        length, offsets = record.count, {}
        for number, entries in index.items():
            offsets[number] = start + record.count
            MessageIndex(number, entries).write(record)
        whole = record.end()
        self._append(whole)
        ChunkIndex(length, start, "", len(data), last_ns, len(whole) - length, offsets, first_ns, len(data)).write(self._blocks)
        self._number_of_blocks += 1

    def close(self) -> None:
        """Write what waits, the index at the end and, for a folder, metadata.yaml.

        Raises:
            InputError: the disk is full; `demos.bags.mend` finishes the bag later.
        """
        if self._fd < 0:
            return
        try:
            self.flush()
            self._append(self._end())
            if self.path != self.file:
                atomic_write(self.path / METADATA, json.dumps({"rosbag2_bagfile_information": self._metadata()}, indent=2) + "\n")
        except OSError as e:
            why = f"cannot finish the bag {self.path}: {e.strerror or e}"
            raise InputError(f"{why}; free space, then: sinew data repair {self.path}") from None
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------ inside

    def _begin_block(self) -> None:
        self._block, self._begun_s = RecordBuilder(), 0.0
        self._index: dict[int, list[tuple[int, int]]] = {}
        self._block_ns = (1 << 63) - 1, 0

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as e:
            os.ftruncate(self._fd, self._at)
            os.lseek(self._fd, self._at, os.SEEK_SET)
            raise InputError(f"cannot write the bag {self.path}: {e.strerror or e}; what was written before is kept, free space") from None
        self._at += len(data)

    def _schema(self, topic: Topic) -> Schema:
        return Schema(self._schemas[topic.type], topic.definition.encode(), "ros2msg", topic.type)

    def _channel(self, number: int, topic: Topic) -> Channel:
        promises = {"offered_qos_profiles": topic.qos_text(), "topic_type_hash": topic.type_hash}
        return Channel(number, topic.name, "cdr", promises, self._schemas[topic.type])

    def _end(self) -> bytes:
        """Everything behind the last block."""
        end = RecordBuilder()
        told = Metadata("rosbag2", {"serialized_metadata": json.dumps(self._metadata())})
        told.write(end)
        told_at, told_length = self._at, end.count
        DataEnd(0).write(end)
        start = self._at + end.count
        summary, offsets = self._summary(start, MetadataIndex(told_at, told_length, told.name))
        offsets_start = start + len(summary)
        summary += offsets
        crc = zlib.crc32(struct.pack("<BQQQ", FOOTER, 20, start, offsets_start), zlib.crc32(summary))
        end.write(summary)
        Footer(start, offsets_start, crc).write(end)
        return end.end() + MAGIC

    def _summary(self, start: int, told: MetadataIndex) -> tuple[bytes, bytes]:
        """The groups of the summary and where each begins."""
        groups: dict[int, RecordBuilder] = {SCHEMA: RecordBuilder(), CHANNEL: RecordBuilder(), STATISTICS: RecordBuilder()}
        written: set[str] = set()
        for number, topic in self._channels.values():
            if topic.type not in written:
                self._schema(topic).write(groups[SCHEMA])
                written.add(topic.type)
            self._channel(number, topic).write(groups[CHANNEL])
        first_ns = self._first_ns if self.count else 0
        channels, schemas = len(self._channels), len(self._schemas)
        Totals(0, channels, self._counts, self._number_of_blocks, self.count, self._last_ns, first_ns, 1, schemas).write(groups[STATISTICS])
        groups[CHUNK_INDEX], groups[METADATA_INDEX] = self._blocks, RecordBuilder()
        told.write(groups[METADATA_INDEX])
        summary, offsets = b"", RecordBuilder()
        for opcode, group in groups.items():
            data = group.end()
            if data:
                SummaryOffset(opcode, start + len(summary), len(data)).write(offsets)
            summary += data
        return summary, offsets.end()

    def _metadata(self) -> dict[str, Any]:
        """What rosbag2 keeps in metadata.yaml."""
        start = {"nanoseconds_since_epoch": self._first_ns if self.count else 0}
        duration = {"nanoseconds": max(0, self._last_ns - self._first_ns)}
        file = {"path": self.file.name, "starting_time": start, "duration": duration, "message_count": self.count}
        topics = [
            {
                "topic_metadata": {
                    "name": topic.name,
                    "type": topic.type,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": topic.qos(),
                    "type_description_hash": topic.type_hash,
                },
                "message_count": self._counts[number],
            }
            for number, topic in self._channels.values()
        ]
        return {
            "version": METADATA_VERSION,
            "storage_identifier": "mcap",
            "relative_file_paths": [self.file.name],
            "duration": duration,
            "starting_time": start,
            "message_count": self.count,
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "files": [file],
            "custom_data": None,
            "ros_distro": self._distribution,
        }
