"""Decoded pictures: each frame is decoded once where all fit, in memory or on disk; otherwise the most recently used are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demos import decoded
from demos.decoded import DiskBlock, MemoryBlock, Shelf
from demos.embedded import Embedded
from demos.layout import cameras, image_shape
from demos.resized import fit
from demos.video import Videos, decoder_version
from sinew.errors import DataError, InputError

CHUNK_BYTES = 32 << 20
PIECE = 32
"""Frames that one thread decodes at a time."""
_ABANDONED: list[Any] = []
"""Decoders that a fork copied from its parent."""

log = logging.getLogger("demos")


@dataclass(frozen=True)
class Kept:
    """What becomes of decoded pictures."""

    memory_bytes: int
    """Memory for them. If all fit, each is decoded once; otherwise the last used stay."""
    size_px: int | None = None
    """Height and width to which they are resized; None for as they are."""
    shelf: Shelf | None = None
    """Folder that keeps those of small cameras between runs; None for memory alone."""


class Frames:
    """Pictures of a dataset by camera and global frame index; for any number of threads, and across a fork.

    If every picture fits, an episode is decoded whole at its first use (in a row is several times cheaper than one by one) and
    stays; otherwise single frames are decoded as asked, and the last used stay. Threads share the work: decoders do not hold
    Python's lock.

    Args:
        root: dataset folder.
        info: its info.json.
        rows: the lines of its episodes.
        kept: what becomes of decoded pictures.
        digest: SHA-256 (hex) of a file; asked where pictures are kept on disk.
    """

    def __init__(self, root: Path, info: dict[str, Any], rows: Sequence[dict[str, Any]], kept: Kept, digest: Callable[[Path], str]) -> None:
        self._root, self._info, self._rows, self._how, self._digest = root, info, rows, kept, digest
        self._kinds = cameras(info)
        self._recorded = {k: image_shape(info["features"][k]) for k in self._kinds}
        self.shapes = {k: s if kept.size_px is None else (kept.size_px, kept.size_px, 3) for k, s in self._recorded.items()}
        """(height, width, 3) of each camera's pictures."""
        self._spans = [(int(r["dataset_to_index"] - r["length"]), int(r["length"])) for r in rows]
        self._starts = np.array([start for start, _ in self._spans], np.int64)
        self._reset()

    def get(self, indices: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures of several cameras.

        Args:
            indices: {camera: global frame indices of any shape S}.

        Returns:
            {camera: uint8 (*S, height, width, 3)}.

        Raises:
            DataError: a file is damaged or holds fewer frames than the dataset says.
        """
        if self._pid != os.getpid():
            self._reset()
        self._fill_missing(indices)
        blocks = self._all_blocks()
        rest = {k: np.asarray(i) for k, i in indices.items() if k not in blocks}
        return {k: blocks[k].pictures[i] for k, i in indices.items() if k in blocks} | (self._pick(rest) if rest else {})

    def chunks(self, key: str, episode: int) -> Iterator[np.ndarray]:
        """The pictures of an episode in order, a few at a time, past every cache; ends early where the file does."""
        row, (start, length) = self._rows[episode], self._spans[episode]
        size = max(1, CHUNK_BYTES // int(np.prod(self._recorded[key])))
        for at in range(0, length, size):
            count = min(size, length - at)
            if self._kinds[key] == "video":
                with self._videos.reader(self.video_path(key, row)) as reader:
                    found = self._fitted(key, episode, reader.read_all(self._first_in_video(key, row) + at, count))
            else:
                pictures = self._embedded.read(self._data_path(row), key, range(start + at, start + at + count))
                found = np.concatenate([self._fitted(key, episode, picture[None]) for picture in pictures.values()])
            yield found
            if len(found) < count:
                return

    def video_path(self, key: str, row: dict[str, Any]) -> Path:
        """File that holds the pictures of an episode, given its line."""
        chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
        return self._root / self._info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)

    def close(self) -> None:
        """Close files and end threads; the next picture opens them anew."""
        if self._pid == os.getpid():
            if self._pool is not None:
                self._pool.shutdown()
            self._videos.close()
            for block in (self._blocks or {}).values():
                block.close()
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_root", "_info", "_rows", "_how", "_digest", "_kinds", "_recorded", "shapes", "_spans", "_starts")
        return {k: self.__dict__[k] for k in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        """Empty caches; also after a fork, whose child must not share decoders and threads with its parent."""
        if getattr(self, "_pid", os.getpid()) != os.getpid():
            # Closing them would wait for threads that only the parent has.
            _ABANDONED.append((self._videos, self._pool))
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._videos, self._embedded = Videos(self._info["fps"]), Embedded()
        self._pool: ThreadPoolExecutor | None = None
        self._blocks: dict[str, DiskBlock | MemoryBlock] | None = None
        self._last: dict[str, OrderedDict[int, np.ndarray]] = {k: OrderedDict() for k in self._kinds}

    # ------------------------------------------------------------ everything fits

    def _all_blocks(self) -> dict[str, DiskBlock | MemoryBlock]:
        """The cameras all of whose pictures are kept, and where."""
        with self._lock:
            if self._blocks is None:
                self._blocks = self._make_blocks()
            return self._blocks

    def _make_blocks(self) -> dict[str, DiskBlock | MemoryBlock]:
        frames = sum(length for _, length in self._spans)
        sizes = {k: frames * int(np.prod(shape)) for k, shape in self.shapes.items()}
        blocks: dict[str, DiskBlock | MemoryBlock] = {}
        shelf = self._how.shelf
        for key, shape in self.shapes.items():
            if shelf is not None and frames and shelf.takes(shape, sizes[key]):
                about = {"dataset": str(self._root.absolute()), "camera": key, "frames": frames, "shape": shape}
                try:
                    blocks[key] = shelf.open(self._name(key), self._spans, shape, about)
                except (OSError, InputError) as e:
                    log.warning("decoded pictures are not kept in %s: %s", shelf.folder, e)
                    break
        rest = [k for k in self.shapes if k not in blocks]
        if sum(sizes[k] for k in rest) <= self._how.memory_bytes:
            blocks |= {k: MemoryBlock(self._spans, self.shapes[k]) for k in rest}
        return blocks

    def _name(self, key: str) -> str:
        """Hash of what the decoded pictures of a camera depend on."""
        video = self._kinds[key] == "video"
        parts: list[Any] = [decoded.FORMAT, decoder_version(), self._kinds[key], self._recorded[key], self.shapes[key], self._info["fps"]]
        for row, (start, length) in zip(self._rows, self._spans, strict=True):
            path = self.video_path(key, row) if video else self._data_path(row)
            parts.append([self._digest(path), self._first_in_video(key, row) if video else [key, start], length])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _fill_missing(self, indices: Mapping[str, np.ndarray]) -> None:
        """Decode the episodes of the frames that are not there, of cameras all of whose pictures are kept."""
        blocks = self._all_blocks()
        missing = [
            (key, int(episode), blocks[key])
            for key, wanted in indices.items() if key in blocks and not blocks[key].whole
            for episode in np.unique(self._episode_of(wanted)) if not blocks[key].has(int(episode))
        ]  # fmt: skip
        try:
            self._share(self._fill, missing)
        except OSError as e:
            log.warning("decoded pictures are no longer kept: %s", e)
            with self._lock:
                self._blocks = {}

    def _fill(self, key: str, episode: int, block: DiskBlock | MemoryBlock) -> None:
        start, length = self._spans[episode]
        at = start
        for found in self.chunks(key, episode):
            block.put(at, found)
            at += len(found)
        if at < start + length:
            raise DataError(f"{key} of episode {episode} has {at - start} of {length} frames; run sinew data repair {self._root}")
        block.finish(episode)

    # ------------------------------------------------------------ too many pictures

    def _pick(self, indices: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures one by one, past the last used."""
        found: dict[str, dict[int, np.ndarray]] = {}
        pieces: list[tuple[str, int, list[int]]] = []
        with self._lock:
            for key, wanted in indices.items():
                found[key] = {i: self._last[key][i] for i in set(wanted.ravel().tolist()) if i in self._last[key]}
        for key, wanted in indices.items():
            missing = np.array(sorted(set(wanted.ravel().tolist()) - found[key].keys()), np.int64)
            episodes = self._episode_of(missing)
            for episode in np.unique(episodes):
                inside = missing[episodes == episode].tolist()
                pieces += [(key, int(episode), inside[at : at + PIECE]) for at in range(0, len(inside), PIECE)]
        for (key, _, _), pictures in zip(pieces, self._share(self._decode, pieces), strict=True):
            found[key] |= pictures
        self._remember(found)
        return {key: self._stacked(key, wanted, found[key]) for key, wanted in indices.items()}

    def _stacked(self, key: str, indices: np.ndarray, found: Mapping[int, np.ndarray]) -> np.ndarray:
        result = np.empty((indices.size, *self.shapes[key]), np.uint8)
        for row, index in enumerate(indices.ravel().tolist()):
            result[row] = found[index]
        return result.reshape(*indices.shape, *self.shapes[key])

    def _remember(self, found: Mapping[str, Mapping[int, np.ndarray]]) -> None:
        room = self._how.memory_bytes // max(1, sum(int(np.prod(s)) for s in self.shapes.values()))
        with self._lock:
            for key, pictures in found.items():
                last = self._last[key]
                for index, picture in pictures.items():
                    last[index] = picture
                    last.move_to_end(index)
                while len(last) > room:
                    last.popitem(last=False)

    def _decode(self, key: str, episode: int, wanted: Sequence[int]) -> dict[int, np.ndarray]:
        row, (start, _) = self._rows[episode], self._spans[episode]
        if self._kinds[key] == "image":
            found = self._embedded.read(self._data_path(row), key, wanted)
            return {i: self._fitted(key, episode, picture[None])[0] for i, picture in found.items()}
        shift = self._first_in_video(key, row) - start
        with self._videos.reader(self.video_path(key, row)) as reader:
            found = reader.read([i + shift for i in wanted])
        return {i: self._fitted(key, episode, found[i + shift][None])[0] for i in wanted}

    # ------------------------------------------------------------ parts

    def _share(self, work: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`work` of every piece, by several threads where there are several pieces."""
        if len(pieces) < 2:
            return [work(*piece) for piece in pieces]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), "demos-decode")
            running = [self._pool.submit(work, *piece) for piece in pieces]
        try:
            return [future.result() for future in running]
        finally:
            for future in running:
                future.cancel()

    def _fitted(self, key: str, episode: int, pictures: np.ndarray) -> np.ndarray:
        """Pictures (n, height, width, 3) in the size that is wanted."""
        if pictures.shape[1:] != self._recorded[key]:
            shown, told = pictures.shape[1:], self._recorded[key]
            raise DataError(f"{key} of episode {episode} shows {shown}, {self._root}/meta/info.json says {told}; run sinew data check")
        size = self._how.size_px
        return pictures if size is None or not len(pictures) else np.stack([fit(picture, size, size) for picture in pictures])

    def _episode_of(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, indices, side="right") - 1

    def _data_path(self, row: dict[str, Any]) -> Path:
        return self._root / self._info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])

    def _first_in_video(self, key: str, row: dict[str, Any]) -> int:
        return round(row[f"videos/{key}/from_timestamp"] * self._info["fps"])
