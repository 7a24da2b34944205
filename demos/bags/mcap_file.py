"""Reads an MCAP file from its beginning to wherever it is whole; nothing that it claims about sizes is believed.

Source: the MCAP specification, https://mcap.dev/spec. Its index is used for what the file holds at most, never to find messages:
a file that was cut off has none.
"""

from __future__ import annotations

import heapq
import os
import struct
import zlib
from collections.abc import Collection, Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from demos.bags.topic import MESSAGE_LIMIT, BagMessage, Topic, in_one_line, promises
from sinew.errors import DataError, MissingDependency

MAGIC = b"\x89MCAP0\r\n"
ZSTD = b"\x28\xb5\x2f\xfd"
SCHEMA, CHANNEL, MESSAGE, CHUNK, STATISTICS, DATA_END, FOOTER = 3, 4, 5, 6, 11, 15, 2
HIGHEST = 0x7F
"""Opcodes above are private; 0 and unknown ones that are absurdly long are damage."""
WAITING_BYTES = 512 << 20
"""Messages that may wait for earlier ones of a later chunk."""
TAIL = len(MAGIC) + 9 + 20
"""Bytes of the footer record and the magic behind it."""
BROKEN = (struct.error, ValueError, KeyError, EOFError, MemoryError, OverflowError)


class McapFile:
    """An MCAP file that is read.

    Args:
        path: file.
        damage: gets a line for each thing that could not be read.

    Raises:
        DataError: it is no MCAP file, or cannot be opened.
    """

    def __init__(self, path: Path, damage: list[str]) -> None:
        self.path, self._damage = path, damage
        self._schemas: dict[int, Any] = {}
        self._span_ns: tuple[int, int] | None = None
        self.topics: dict[int, Topic] = {}
        """Topics met so far by the number of their channel."""
        try:
            with path.open("rb") as file:
                start = file.read(len(MAGIC))
        except OSError as e:
            raise DataError(f"{path} cannot be read: {e.strerror or e}") from None
        if start != MAGIC:
            raise DataError(f"{path} is no MCAP file: it begins with {start!r}")

    def summary(self) -> dict[str, tuple[Topic, int]] | None:
        """Topics and their numbers of messages as the end of the file tells them; None where the end is missing or broken."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(MAGIC) + TAIL:
                return None
            file.seek(size - TAIL)
            tail = file.read(TAIL)
            opcode, _, start, _, _ = struct.unpack("<BQQQI", tail[:29])
            if opcode != FOOTER or not tail.endswith(MAGIC) or not 0 < start < size - TAIL or size - TAIL - start > MESSAGE_LIMIT:
                return None
            file.seek(start)
            return self._summary(file.read(size - TAIL - start))

    def messages(self, topics: Collection[str] | None = None, span_ns: tuple[int, int] | None = None) -> Iterator[BagMessage]:
        """Messages of `topics` (None for all) in the order of their log times, as long as chunks do not overlap without end.

        Args:
            topics: their names.
            span_ns: chunks that say that they are wholly before or behind these times are passed over, where the end of the file
                tells the topics; None for all.
        """
        self._span_ns = span_ns if span_ns is not None and self.summary() is not None else None
        waiting: list[tuple[int, int, BagMessage]] = []
        held = count = 0
        for start_ns, found in self._blocks(topics):
            while waiting and (waiting[0][0] < start_ns or held > WAITING_BYTES):
                message = heapq.heappop(waiting)[2]
                held -= len(message.data)
                yield message
            for message in found:
                heapq.heappush(waiting, (message.log_ns, count, message))
                held += len(message.data)
                count += 1
        while waiting:
            yield heapq.heappop(waiting)[2]

    # ------------------------------------------------------------ inside

    def _blocks(self, topics: Collection[str] | None) -> Iterator[tuple[int, list[BagMessage]]]:
        """Messages that stand together in the file, each block with a time that none of it is before."""
        with self.path.open("rb") as file:
            for at, opcode, body in self._records(file):
                try:
                    inner = _decompressed(body) if opcode == CHUNK else None
                    records = [(opcode, body)] if inner is None else list(_split(inner))
                    messages = [m for code, data in records if (m := self._take(code, data, topics)) is not None]
                except BROKEN as e:
                    self._damage.append(f"{self.path.name}: the block at byte {at} is damaged and left out ({in_one_line(e)})")
                    continue
                if messages:
                    yield min(m.log_ns for m in messages), messages

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
        """(place, opcode, content) of the records that say something about messages, up to the end or the first break."""
        size = os.fstat(file.fileno()).st_size
        at = file.seek(len(MAGIC))
        while True:
            head = file.read(9)
            if len(head) < 9:
                self._damage.append(f"{self.path.name}: cut off at byte {at}; what is before is kept")
                return
            opcode, length = struct.unpack("<BQ", head)
            if opcode in (DATA_END, FOOTER):
                return
            if opcode == 0 or length > size - at - 9:
                self._damage.append(f"{self.path.name}: cut off or damaged at byte {at}, what is before is kept")
                return
            if opcode not in (SCHEMA, CHANNEL, MESSAGE, CHUNK):
                file.seek(length, os.SEEK_CUR)
            elif length > MESSAGE_LIMIT:
                self._damage.append(f"{self.path.name}: {length} bytes in one piece at byte {at} are left out, the most is {MESSAGE_LIMIT}")
                file.seek(length, os.SEEK_CUR)
            elif opcode == CHUNK and self._span_ns is not None and length > 16 and self._is_elsewhere(times := file.read(16)):
                file.seek(length - len(times), os.SEEK_CUR)
            else:
                file.seek(at + 9)
                yield at, opcode, file.read(length)
            at += 9 + length

    def _is_elsewhere(self, times: bytes) -> bool:
        """Whether a chunk that begins so is outside of the times that are wanted."""
        first_ns, last_ns = struct.unpack("<QQ", times)
        return self._span_ns is not None and (last_ns < self._span_ns[0] or first_ns > self._span_ns[1])

    def _take(self, opcode: int, body: bytes, topics: Collection[str] | None) -> BagMessage | None:
        """Take over a schema or channel; gives the message where it is one that is wanted."""
        if opcode == SCHEMA:
            schema = _parsed("Schema", body)
            self._schemas[schema.id] = schema
        elif opcode == CHANNEL:
            self._add(_parsed("Channel", body))
        elif opcode == MESSAGE:
            number, _, log_ns, publish_ns = struct.unpack_from("<HIQQ", body)
            topic = self.topics.get(number)
            if topic is None:
                raise ValueError(f"a message of channel {number}, which is nowhere described")
            if topics is None or topic.name in topics:
                return BagMessage(topic.name, log_ns, publish_ns, unpacked(body[22:]))
        return None

    def _add(self, channel: Any) -> None:
        schema = self._schemas.get(channel.schema_id)
        self.topics[channel.id] = Topic(
            name=channel.topic,
            type=schema.name if schema is not None else "",
            definition=schema.data.decode(errors="replace") if schema is not None and schema.encoding == "ros2msg" else "",
            type_hash=channel.metadata.get("topic_type_hash", ""),
            encoding=channel.message_encoding,
            schema=schema.data if schema is not None and schema.encoding != "ros2msg" else b"",
            **promises(channel.metadata.get("offered_qos_profiles", "")),
        )

    def _summary(self, data: bytes) -> dict[str, tuple[Topic, int]] | None:
        counts: dict[int, int] | None = None
        try:
            for opcode, body in _split(data):
                if opcode == STATISTICS:
                    counts = _parsed("Statistics", body).channel_message_counts
                elif opcode in (SCHEMA, CHANNEL):
                    self._take(opcode, body, None)
        except BROKEN:
            return None
        if counts is None:
            return None
        found: dict[str, tuple[Topic, int]] = {}
        for number, topic in self.topics.items():
            found[topic.name] = (topic, counts.get(number, 0) + found.get(topic.name, (topic, 0))[1])
        return found


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The records of a chunk."""
    at = 0
    while at < len(data):
        opcode, length = struct.unpack_from("<BQ", data, at)
        if length > len(data) - at - 9:
            raise ValueError(f"a record claims {length} bytes where {len(data) - at - 9} are left")
        yield opcode, data[at + 9 : at + 9 + length]
        at += 9 + length


def _parsed(kind: str, body: bytes) -> Any:
    """A record by mcap's own classes; it can read no more than `body` has."""
    from mcap import records
    from mcap.data_stream import ReadDataStream
    from mcap.exceptions import EndOfFile

    try:
        return getattr(records, kind).read(ReadDataStream(BytesIO(body)))
    except EndOfFile:
        raise ValueError(f"a {kind.lower()} record is shorter than it claims") from None


def _decompressed(body: bytes) -> bytes:
    """Records of a chunk, checked against its checksum."""
    chunk = _parsed("Chunk", body)
    if chunk.uncompressed_size > MESSAGE_LIMIT:
        raise ValueError(f"it claims {chunk.uncompressed_size} bytes, more than {MESSAGE_LIMIT >> 20} MiB")
    if chunk.compression == "lz4":
        data = _lz4(chunk.data, chunk.uncompressed_size)
    elif chunk.compression == "zstd":
        data = unzstd(chunk.data, chunk.uncompressed_size)
    elif chunk.compression:
        raise ValueError(f"compression {chunk.compression!r} is not known; known are lz4 and zstd")
    else:
        data = chunk.data
    if chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
        raise ValueError("its checksum differs")
    return data


def _lz4(data: bytes, most: int) -> bytes:
    try:
        from lz4.frame import LZ4FrameDecompressor
    except ImportError:
        raise MissingDependency("this bag is compressed with lz4: pip install lz4") from None
    try:
        return LZ4FrameDecompressor().decompress(data, max_length=max(most, 1))
    except RuntimeError as e:
        raise ValueError(in_one_line(e)) from None


def unpacked(data: bytes) -> bytes:
    """A message, which rosbag2 may have compressed by itself: CDR does not begin as zstd does.

    Raises:
        ValueError: it is damaged.
    """
    return unzstd(data) if data.startswith(ZSTD) else data


def unzstd(data: bytes, most: int = MESSAGE_LIMIT) -> bytes:
    """What zstd compressed, at most `most` bytes.

    Raises:
        ValueError: it is damaged.
        MissingDependency: zstd is not here.
    """
    zstd = next((module for name in ("compression.zstd", "backports.zstd") if (module := _imported(name))), None)
    if zstd is None:
        raise MissingDependency("this bag is compressed with zstd: pip install backports.zstd")
    try:
        return zstd.ZstdDecompressor().decompress(data, max_length=max(most, 1))
    except (zstd.ZstdError, EOFError) as e:
        raise ValueError(in_one_line(e)) from None


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None
