"""A bag to read: one .mcap or .db3 file, or a folder that rosbag2 made. Its metadata.yaml is not read: all it says is in the files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from demos.bags.mcap_file import McapFile
from demos.bags.sqlite_file import SqliteFile
from demos.bags.topic import BagMessage, Topic
from sinew.errors import DataError

KINDS = {".mcap": McapFile, ".db3": SqliteFile}
METADATA = "metadata.yaml"
DAMAGE_TOLD = 20
"""Lines of damage that are kept; more are counted."""


class Bag:
    """A bag that is read, in constant memory.

    Args:
        path: a file or a folder.

    Raises:
        DataError: no bag; says what was found instead.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.damage: list[str] = _Damage()
        """What could not be read so far; complete when `messages` has ended."""
        self._files = [KINDS[file.suffix](file, self.damage) for file in files_of(self.path)]
        self._topics: dict[str, tuple[Topic, int]] | None = None

    @property
    def topics(self) -> dict[str, Topic]:
        """Topics by name."""
        return {name: topic for name, (topic, _) in self._summaries().items()}

    @property
    def counts(self) -> dict[str, int]:
        """Number of messages of each topic."""
        return {name: count for name, (_, count) in self._summaries().items()}

    @property
    def whole(self) -> bool:
        """Whether every file has its end; one that was cut off has none."""
        return all(file.summary() is not None for file in self._files)

    def messages(self, topics: Collection[str] | None = None, span_ns: tuple[int, int] | None = None) -> Iterator[BagMessage]:
        """Messages of `topics` (None for all), by the time of their receipt within each file.

        Args:
            topics: their names.
            span_ns: what is before or behind these times may be passed over, which is faster; None for all.
        """
        for file in self._files:
            yield from file.messages(topics, span_ns)

    def _summaries(self) -> dict[str, tuple[Topic, int]]:
        """From the ends of the files; where one is missing that file is read through."""
        if self._topics is None:
            total: dict[str, tuple[Topic, int]] = {}
            for file in self._files:
                found = file.summary()
                if found is None:
                    found = _counted(KINDS[file.path.suffix](file.path, []))
                for name, (topic, count) in found.items():
                    if name in total and total[name][0].type != topic.type:
                        raise DataError(f"{self.path}: topic {name} is {total[name][0].type} and also {topic.type}")
                    total[name] = (topic, count + total.get(name, (topic, 0))[1])
            self._topics = total
        return self._topics


class _Damage(list[str]):
    """Lines, of which the first are kept and the rest is counted in the last."""

    more = 0

    def append(self, line: str) -> None:
        if len(self) < DAMAGE_TOLD:
            super().append(line)
            return
        self.more += 1
        self[DAMAGE_TOLD - 1] = f"and {self.more + 1} more"


def _counted(file: McapFile | SqliteFile) -> dict[str, tuple[Topic, int]]:
    counts: dict[str, int] = {}
    for message in file.messages():
        counts[message.topic] = counts.get(message.topic, 0) + 1
    return {topic.name: (topic, counts.get(topic.name, 0)) for topic in file.topics.values()}


def is_bag(path: Path | str) -> bool:
    """Whether a path looks like a bag: such a file, or a folder with one."""
    path = Path(path)
    if path.is_dir():
        return (path / METADATA).is_file() or any(p.suffix in KINDS for p in path.iterdir())
    return path.suffix in KINDS and path.is_file()


def files_of(path: Path) -> list[Path]:
    """The data files of a bag, in the order in which they were written.

    Raises:
        DataError: there are none.
    """
    if not path.exists():
        raise DataError(f"no bag at {path}: no such file or folder")
    if path.is_file():
        if path.suffix not in KINDS:
            raise DataError(f"{path} is no bag: give a .mcap or .db3 file, or the folder that 'ros2 bag record' made")
        return [path]
    found = sorted((p for p in path.iterdir() if p.suffix in KINDS and p.is_file()), key=_number)
    if not found:
        squeezed = sorted(p.name for p in path.iterdir() if p.name.endswith((".mcap.zstd", ".db3.zstd")))
        if squeezed:
            raise DataError(f"{path} holds {squeezed[0]}, compressed as a whole file; unpack it first: unzstd {path / squeezed[0]}")
        holds = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise DataError(f"{path} is no bag: it holds no .mcap or .db3 file, but {holds}")
    kinds = {p.suffix for p in found}
    if len(kinds) > 1:
        raise DataError(f"{path} holds both .mcap and .db3 files; give one of them")
    return found


def _number(path: Path) -> tuple[int, str]:
    """rosbag2 numbers the files of a split bag: name_0, name_1, …, name_10."""
    digits = re.search(r"_(\d+)$", path.stem)
    return (int(digits[1]) if digits and len(digits[1]) < 18 else -1), path.name
