"""Which files of somebody else's dataset are taken: those that a dataset is made of, by name and size; never code, never a way out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sinew.errors import DataError

FOLDERS = ("meta", "data", "videos", "images", "native", "sound", "card")
"""Top folders of a dataset, LeRobot's and ours."""
SUFFIXES = (".json", ".jsonl", ".parquet", ".mp4", ".png", ".wav", ".flac", ".opus")
BESIDE = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
"""Files outside of these folders that are taken."""
MOST_FILES, MOST_BYTES, DEEPEST = 200_000, 64 << 30, 6
"""Of a dataset; of one file; folders in each other."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=\-]{0,150}")


def is_wanted(name: str) -> bool:
    """Whether a file of this name, relative and with slashes, belongs to a dataset."""
    if name in BESIDE:
        return True
    parts = name.split("/")
    harmless = 1 < len(parts) <= DEEPEST and all(_PART.fullmatch(part) and ".." not in part for part in parts)
    return harmless and parts[0] in FOLDERS and name.endswith(SUFFIXES)


def check_sizes(files: Mapping[str, int], where: str) -> None:
    """Refuse what no dataset is as large as.

    Args:
        files: {name: bytes}.
        where: whose they are.

    Raises:
        DataError: names the file.
    """
    if len(files) > MOST_FILES:
        raise DataError(f"{where} has {len(files)} files, at most {MOST_FILES} are taken")
    for name, size in files.items():
        if not 0 <= size <= MOST_BYTES:
            raise DataError(f"{where}: {name} says that it has {size} bytes, at most {MOST_BYTES >> 30} GiB are taken")


def files_of(root: Path) -> list[str]:
    """The files of a dataset in a folder that belong to it.

    Raises:
        DataError: one is a link that leads elsewhere.
    """
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if is_wanted(name) and path.is_file():
            if not path.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{path} is a link that leads out of the dataset to {path.resolve()}; copy it in")
            found.append(name)
    return found
