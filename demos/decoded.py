"""Decoded pictures of a whole dataset: in memory, or in a file that the next run finds again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinew.rundir import atomic_write

FORMAT = 1
MOST_PIXELS = 256 * 256
"""Larger pictures are not kept on disk: decoding one takes no longer than reading it."""
LIMIT_BYTES = 20 << 30
_PICTURES, _SUMS, _ABOUT = "pictures.u8", "sums.u64", "about.json"
_THERE = 1 << 32
"""Set beside an episode's sum, so that no sum is 0, which stands for: not there."""

log = logging.getLogger("demos")


def default_folder() -> Path:
    """Where decoded pictures of this user are kept: $SINEW_CACHE, $XDG_CACHE_HOME/sinew or ~/.cache/sinew."""
    own = os.environ.get("SINEW_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinew"


@dataclass(frozen=True)
class Shelf:
    """A folder that keeps decoded pictures between runs. It may be deleted at any time.

    What it keeps is found by what it was decoded from, so a dataset that was edited is decoded again and what is unused is
    deleted first. Any number of processes may use it; what one of them was killed in is decoded again.
    """

    folder: Path
    limit_bytes: int = LIMIT_BYTES
    """Most that is kept; a camera that does not fit is not kept."""

    def takes(self, shape: Sequence[int], total_bytes: int) -> bool:
        """Whether the pictures (height, width, 3) of a dataset are kept, given the bytes of all of them."""
        if shape[0] * shape[1] > MOST_PIXELS or total_bytes > self.limit_bytes:
            return False
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.is_dir())
        return total_bytes <= shutil.disk_usage(there).free // 2

    def open(self, name: str, spans: Sequence[tuple[int, int]], shape: Sequence[int], about: Mapping[str, Any]) -> DiskBlock:
        """The block of a camera; older ones are deleted where they would not fit beside it.

        Args:
            name: hash of everything the decoded pictures depend on.
            spans: (first frame, frames) of each episode.
            shape: (height, width, 3).
            about: written beside it, for people.

        Raises:
            OSError: the folder cannot be written.
        """
        place = self.folder / "pictures" / name
        if not (place / _ABOUT).exists():
            self._make_room(sum(n for _, n in spans) * int(np.prod(shape)))
            place.mkdir(parents=True, exist_ok=True)
            atomic_write(place / _ABOUT, json.dumps(about, indent=2) + "\n")
        os.utime(place / _ABOUT)
        return DiskBlock(place, spans, shape)

    def _make_room(self, needed: int) -> None:
        kept = [(p.stat().st_mtime, p.parent) for p in (self.folder / "pictures").glob(f"*/{_ABOUT}")]
        sizes = {place: sum(f.stat().st_blocks * 512 for f in place.iterdir()) for _, place in kept}
        for _, place in sorted(kept):
            if sum(sizes.values()) + needed <= self.limit_bytes:
                return
            shutil.rmtree(place, ignore_errors=True)
            del sizes[place]


class MemoryBlock:
    """Decoded pictures of a camera in memory, which is taken page by page as they come."""

    def __init__(self, spans: Sequence[tuple[int, int]], shape: Sequence[int]) -> None:
        self.pictures = np.empty((sum(n for _, n in spans), *shape), np.uint8)
        """(frames, height, width, 3)."""
        self._there = np.zeros(len(spans), bool)
        self.whole = not len(spans)
        """Whether every episode is there."""

    def has(self, episode: int) -> bool:
        """Whether the pictures of an episode are there."""
        return bool(self._there[episode])

    def put(self, at: int, pictures: np.ndarray) -> None:
        """Pictures from global frame `at` on."""
        self.pictures[at : at + len(pictures)] = pictures

    def finish(self, episode: int) -> None:
        """All pictures of an episode were put."""
        self._there[episode] = True
        self.whole = bool(self._there.all())

    def close(self) -> None:
        """Nothing is held."""


class DiskBlock:
    """Decoded pictures of a camera in a file, mapped into memory: the system keeps of it what fits and is used.

    Each episode has a check sum, written after its pictures and compared at its first use, so that nothing half written, by
    a power failure for example, is ever taken for pictures. Pictures are written, not stored through the map: on a full disk
    the one is an error that can be handled, the other the end of the process.
    """

    def __init__(self, place: Path, spans: Sequence[tuple[int, int]], shape: Sequence[int]) -> None:
        self._spans, self._frame = spans, int(np.prod(shape))
        count = sum(n for _, n in spans)
        self._pictures_fd = _sized(place / _PICTURES, count * self._frame)
        self._sums_fd = _sized(place / _SUMS, 8 * len(spans))
        self.close = weakref.finalize(self, _close, self._pictures_fd, self._sums_fd)
        """Close the files, as happens when nobody has the block any more; the map stays as long as somebody has it."""
        self.pictures = np.memmap(place / _PICTURES, np.uint8, "r", shape=(count, *shape))
        self._sums = np.frombuffer(os.pread(self._sums_fd, 8 * len(spans), 0), np.uint64).copy()
        self._there = np.zeros(len(spans), bool)
        self._lock = threading.Lock()
        self.whole = False

    def has(self, episode: int) -> bool:
        """Whether the pictures of an episode are there and are what was written."""
        if self._there[episode]:
            return True
        if self._sums[episode] == 0 or int(self._sums[episode]) != self._sum(episode):
            return False
        self._mark(episode)
        return True

    def put(self, at: int, pictures: np.ndarray) -> None:
        """Pictures from global frame `at` on.

        Raises:
            OSError: the disk is full.
        """
        rest, offset = np.ascontiguousarray(pictures).reshape(-1).data, at * self._frame
        while rest:
            written = os.pwrite(self._pictures_fd, rest, offset)
            rest, offset = rest[written:], offset + written

    def finish(self, episode: int) -> None:
        """All pictures of an episode were put.

        Raises:
            OSError: the disk is full.
        """
        os.pwrite(self._sums_fd, self._sum(episode).to_bytes(8, "little"), 8 * episode)
        self._mark(episode)

    def _mark(self, episode: int) -> None:
        with self._lock:
            self._there[episode] = True
            self.whole = bool(self._there.all())

    def _sum(self, episode: int) -> int:
        first, length = self._spans[episode]
        return _THERE | zlib.crc32(self.pictures[first : first + length].data)


def _sized(path: Path, size: int) -> int:
    """Descriptor of a file that is at least so long; what nobody wrote reads as zeros and takes no room."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)
    return descriptor


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
