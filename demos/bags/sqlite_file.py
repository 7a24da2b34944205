"""Reads the messages of a rosbag2 SQLite file, also of one that was cut off."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from demos.bags.mcap_file import unpacked
from demos.bags.topic import MESSAGE_LIMIT, BagMessage, Topic, in_one_line, promises
from sinew.errors import DataError

MAGIC = b"SQLite format 3\x00"


class SqliteFile:
    """A .db3 file that is read.

    Args:
        path: file.
        damage: gets a line for each thing that could not be read.

    Raises:
        DataError: it is no SQLite file, or not one of rosbag2.
    """

    def __init__(self, path: Path, damage: list[str]) -> None:
        self.path, self._damage = path, damage
        try:
            with path.open("rb") as file:
                head = file.read(100)
        except OSError as e:
            raise DataError(f"{path} cannot be read: {e.strerror or e}") from None
        if len(head) < 100 or not head.startswith(MAGIC):
            raise DataError(f"{path} is no SQLite file: it begins with {head[:16]!r}")
        (size, pages) = struct.unpack_from(">H", head, 16)[0], struct.unpack_from(">I", head, 28)[0]
        self._cut = path.stat().st_size < (65536 if size == 1 else size) * pages
        if self._cut:
            damage.append(f"{path.name}: cut off at byte {path.stat().st_size}; what is before is kept")
        try:
            with closing(self._open()) as database:
                self.topics = self._read_topics(database)
        except sqlite3.Error as e:
            raise DataError(f"{path} cannot be read as a bag of rosbag2: {in_one_line(e)}") from None

    def summary(self) -> dict[str, tuple[Topic, int]] | None:
        """Topics and their numbers of messages; None where the file is damaged."""
        query = "SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id"
        try:
            with closing(self._open()) as database:
                counts = dict(database.execute(query).fetchall())
        except sqlite3.Error:
            return None
        found: dict[str, tuple[Topic, int]] = {}
        for number, topic in self.topics.items():
            found[topic.name] = (topic, counts.get(number, 0) + found.get(topic.name, (topic, 0))[1])
        return found

    def messages(self, topics: Collection[str] | None = None, span_ns: tuple[int, int] | None = None) -> Iterator[BagMessage]:
        """Messages of `topics` (None for all) within a span (None for all), by time; of a file that was cut off as they were written."""
        wanted = {n: t for n, t in self.topics.items() if topics is None or t.name in topics}
        order = "id" if self._cut else "timestamp, id"
        bounds = tuple(min(at_ns, (1 << 63) - 1) for at_ns in span_ns or ())
        where = "WHERE timestamp BETWEEN ? AND ? " if bounds else ""
        query = f"SELECT topic_id, timestamp, data FROM messages {where}ORDER BY {order}"
        with closing(self._open()) as database:
            try:
                for number, stamp_ns, data in database.execute(query, bounds):
                    if number in wanted and (message := self._message(wanted[number], stamp_ns, data)) is not None:
                        yield message
            except sqlite3.Error as e:
                self._damage.append(f"{self.path.name}: damaged, what was read before is kept ({in_one_line(e)})")

    # ------------------------------------------------------------ inside

    def _open(self) -> sqlite3.Connection:
        # without "immutable" SQLite would want to write beside the file; messages in a write-ahead log are to be read, though
        beside = "" if self.path.with_name(self.path.name + "-wal").exists() else "&immutable=1"
        database = sqlite3.connect(f"file:{quote(str(self.path.absolute()))}?mode=ro{beside}", uri=True)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MESSAGE_LIMIT)
        database.execute("PRAGMA trusted_schema = OFF")
        return database

    def _read_topics(self, database: sqlite3.Connection) -> dict[int, Topic]:
        kinds = dict(database.execute("SELECT name, type FROM sqlite_master WHERE name IN ('topics', 'messages')").fetchall())
        if kinds != {"topics": "table", "messages": "table"}:  # a view could compute without end
            raise DataError(f"{self.path} is no bag of rosbag2: it has no tables 'topics' and 'messages'")
        columns = [row[1] for row in database.execute("PRAGMA table_xinfo(topics)").fetchall()]
        rows = [dict(zip(columns, row, strict=False)) for row in database.execute("SELECT * FROM topics").fetchall()]
        definitions = {}
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_definitions' AND type = 'table'").fetchone():
            query = "SELECT topic_type, encoded_message_definition FROM message_definitions WHERE encoding = 'ros2msg'"
            definitions = dict(database.execute(query).fetchall())
        topics = {}
        for row in rows:
            if row.get("serialization_format") != "cdr" or not isinstance(row.get("name"), str) or not isinstance(row.get("type"), str):
                kind = row.get("serialization_format")
                self._damage.append(f"{self.path.name}: topic {row.get('name')!r} holds {kind!r} and not ROS 2's 'cdr'")
                continue
            topics[row["id"]] = Topic(
                name=row["name"],
                type=row["type"],
                definition=str(definitions.get(row["type"], "")),
                type_hash=str(row.get("type_description_hash") or ""),
                encoding="cdr",
                schema=b"",
                **promises(str(row.get("offered_qos_profiles") or "")),
            )
        return topics

    def _message(self, topic: Topic, stamp_ns: object, data: object) -> BagMessage | None:
        if isinstance(stamp_ns, int) and isinstance(data, bytes):
            try:
                return BagMessage(topic.name, stamp_ns, stamp_ns, unpacked(data))
            except ValueError as e:
                self._damage.append(f"{self.path.name}: a message of {topic.name} is damaged and left out ({e})")
        else:
            self._damage.append(f"{self.path.name}: a message of {topic.name} is no bytes with a time and left out")
        return None
