"""Decoded pictures: each frame is decoded once while the budget lasts, afterwards the most recently used are kept."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from demos import tables
from demos.layout import cameras, image_shape
from demos.video import Videos, decode_picture
from sinew.errors import DataError

PARQUET_FILES_KEPT = 4
CHUNK_BYTES = 32 << 20
_ABANDONED: list[Any] = []
"""Decoders that a fork copied from its parent."""


class Frames:
    """Pictures of a dataset by camera and global frame index.

    If every picture fits the budget, an episode is decoded whole at its first use (in a row is several times cheaper than one
    by one) and stays; otherwise single frames are decoded as asked, and the last used stay.

    Args:
        root: dataset folder.
        info: its info.json.
        rows: the lines of its episodes.
        budget_bytes: memory for decoded pictures.
    """

    def __init__(self, root: Path, info: dict[str, Any], rows: Sequence[dict[str, Any]], budget_bytes: int) -> None:
        self._root, self._info, self._rows = root, info, rows
        self._kinds = cameras(info)
        self.shapes = {k: image_shape(info["features"][k]) for k in self._kinds}
        self._starts = np.array([r["dataset_to_index"] - r["length"] for r in rows], np.int64)
        self._count = int(rows[-1]["dataset_to_index"]) if rows else 0
        self._budget = budget_bytes
        total = sum(int(np.prod(s)) * self._count for s in self.shapes.values())
        self._whole = total <= budget_bytes
        self._reset()

    def get(self, key: str, indices: np.ndarray) -> np.ndarray:
        """Pictures of one camera.

        Args:
            key: camera.
            indices: global frame indices, any shape S.

        Returns:
            uint8 (*S, height, width, 3).

        Raises:
            DataError: a file is damaged or holds fewer frames than the dataset says.
        """
        return self.get_many([key], {key: indices})[key]

    def get_many(self, keys: Sequence[str], indices: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`get` for several cameras, decoded side by side."""
        if self._pid != os.getpid():
            self._reset()
        read = self._gather if self._whole else self._pick
        if len(keys) < 2 or (self._whole and all(self._have[k].all() for k in keys)):
            return {k: read(k, np.asarray(indices[k])) for k in keys}
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max(2, min(len(self._kinds), os.cpu_count() or 1)), "demos-decode")
        running = {k: self._pool.submit(read, k, np.asarray(indices[k])) for k in keys}
        return {k: f.result() for k, f in running.items()}

    def chunks(self, key: str, episode: int) -> Iterator[np.ndarray]:
        """The pictures of an episode in order, a few at a time, past every cache; ends early where the file does."""
        row, start = self._rows[episode], int(self._starts[episode])
        size = max(1, CHUNK_BYTES // int(np.prod(self.shapes[key])))
        for at in range(0, int(row["length"]), size):
            count = min(size, int(row["length"]) - at)
            if self._kinds[key] == "video":
                found = self._videos[key].get(self.video_path(key, row)).read_all(self._first_in_video(key, row) + at, count)
            else:
                found = np.stack([self._picture(key, start + at + i) for i in range(count)])
            yield found
            if len(found) < count:
                return

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_root", "_info", "_rows", "_kinds", "shapes", "_starts", "_count", "_budget", "_whole")
        return {k: self.__dict__[k] for k in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        """Empty caches; also after a fork, whose child must not share decoders and threads with its parent."""
        if getattr(self, "_pid", os.getpid()) != os.getpid():
            # Closing them would wait for threads that only the parent has.
            _ABANDONED.append(self._videos)
        self._pid = os.getpid()
        self._videos = {k: Videos(self._info["fps"]) for k in self._kinds}
        self._pool: ThreadPoolExecutor | None = None
        self._blocks: dict[str, np.ndarray] = {}
        self._have = {k: np.zeros(len(self._rows), bool) for k in self._kinds}
        self._kept: dict[str, OrderedDict[int, np.ndarray]] = {k: OrderedDict() for k in self._kinds}
        self._files: OrderedDict[tuple[str, Path], tuple[dict[int, int], Any]] = OrderedDict()

    def _gather(self, key: str, indices: np.ndarray) -> np.ndarray:
        if key not in self._blocks:
            # Memory is only taken page by page, as episodes are decoded into it.
            self._blocks[key] = np.empty((self._count, *self.shapes[key]), np.uint8)
        block = self._blocks[key]
        if not self._have[key].all():
            for episode in np.unique(self._episode_of(indices)):
                if not self._have[key][episode]:
                    self._fill(key, int(episode), block)
        return block[indices]

    def _fill(self, key: str, episode: int, block: np.ndarray) -> None:
        start, length = int(self._starts[episode]), int(self._rows[episode]["length"])
        at = start
        for found in self.chunks(key, episode):
            if found.shape[1:] != self.shapes[key]:
                raise DataError(f"{key} of episode {episode} shows {found.shape[1:]}, {self._root}/meta/info.json says {self.shapes[key]}")
            block[at : at + len(found)] = found
            at += len(found)
        if at < start + length:
            raise DataError(f"{key} of episode {episode} has {at - start} of {length} frames; run sinew data repair {self._root}")
        self._have[key][episode] = True

    def _pick(self, key: str, indices: np.ndarray) -> np.ndarray:
        kept, flat = self._kept[key], indices.ravel()
        frames: dict[int, np.ndarray] = {}
        missing: dict[int, list[int]] = {}
        for index in sorted(set(flat.tolist())):
            if index in kept:
                kept.move_to_end(index)
                frames[index] = kept[index]
            else:
                missing.setdefault(int(self._episode_of(np.array(index))), []).append(index)
        for episode, wanted in missing.items():
            found = self._decode(key, episode, wanted)
            frames |= found
            kept |= found
        room = self._budget // max(1, sum(int(np.prod(s)) for s in self.shapes.values()))
        while len(kept) > room:
            kept.popitem(last=False)
        result = np.empty((len(flat), *self.shapes[key]), np.uint8)
        for row, index in enumerate(flat.tolist()):
            result[row] = frames[index]
        return result.reshape(*indices.shape, *self.shapes[key])

    def _decode(self, key: str, episode: int, wanted: Sequence[int]) -> dict[int, np.ndarray]:
        if self._kinds[key] == "image":
            return {i: self._picture(key, i) for i in wanted}
        row, start = self._rows[episode], int(self._starts[episode])
        first = self._first_in_video(key, row)
        found = self._videos[key].get(self.video_path(key, row)).read([first + i - start for i in wanted])
        return {i: found[first + i - start] for i in wanted}

    def _picture(self, key: str, index: int) -> np.ndarray:
        """One picture of a camera that is kept in the Parquet files."""
        row = self._rows[int(self._episode_of(np.array(index)))]
        path = self._root / self._info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        if (key, path) not in self._files:
            table = tables.read_table(path, [key, "index"])
            where = {int(i): n for n, i in enumerate(table["index"].to_pylist())}
            self._files[key, path] = where, tables.picture_bytes(table, key)
            while len(self._files) > PARQUET_FILES_KEPT * len(self._kinds):
                self._files.popitem(last=False)
        where, pictures = self._files[key, path]
        data = pictures[where[index]].as_py() if index in where else None
        if not data:
            raise DataError(f"{path} has no picture of {key!r} for frame {index}; run sinew data repair {self._root}")
        return decode_picture(data)

    def _episode_of(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, indices, side="right") - 1

    def video_path(self, key: str, row: dict[str, Any]) -> Path:
        """File that holds the pictures of an episode, given its line."""
        chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
        return self._root / self._info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)

    def _first_in_video(self, key: str, row: dict[str, Any]) -> int:
        return round(row[f"videos/{key}/from_timestamp"] * self._info["fps"])
