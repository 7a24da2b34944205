"""A LeRobotDataset v3 as training reads it: vectors in memory, pictures decoded when asked, windows gathered in one go."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from demos import layout, tables
from demos.decoded import Shelf
from demos.frames import Frames, Kept
from demos.layout import EpisodeInfo, cameras, columns
from demos.ledger import episode_info
from demos.resized import resized_spec
from sinew.errors import DataError
from sinew.specs import ACTION, ActionSpec, ObservationSpec

CACHE_BYTES = 2 << 30
DELTA_TOLERANCE_S = 1e-4

log = logging.getLogger("demos")


class Dataset:
    """Reads a LeRobotDataset v3 written by Sinew or by LeRobot; implements `sinew.protocols.EpisodeData`.

    Args:
        root: dataset folder.
        cache_bytes: memory for decoded pictures. If all pictures fit, each is decoded once; otherwise the last used are kept.
        shelf: folder that keeps the decoded pictures of small cameras, so that the next run need not decode them; None for none.

    Raises:
        DataError: no dataset, not v3, truncated or damaged; names the file and what to do.
    """

    def __init__(self, root: Path | str, *, cache_bytes: int = CACHE_BYTES, shelf: Shelf | None = None) -> None:
        self.root, self._kept = Path(root), Kept(cache_bytes, None, shelf)
        self._info = layout.load_info(self.root)
        self._rows = self._load_rows()
        self.tasks = tuple(tables.read_tasks(self.root)) if self._rows else ()
        """Task texts by task_index."""
        self._columns = self._load_columns()
        self._starts = np.array([r["dataset_to_index"] - r["length"] for r in self._rows], np.int64)
        self._lengths = np.array([r["length"] for r in self._rows], np.int64)
        self._first = np.repeat(self._starts, self._lengths)
        self._last = np.repeat(self._starts + self._lengths - 1, self._lengths)
        self._digests: dict[Path, str] = {}
        self._frames = Frames(self.root, self._info, self._rows, self._kept, self._digest)
        self._stats: dict[str, dict[str, np.ndarray]] | None = None
        self._hash: str | None = None
        self._observation, self._action = layout.load_specs(self.root, self._info, self._bounds())
        self._specs = layout.save_specs(self._observation, self._action)
        self._check_files()
        waiting = [p for p in (self.root / layout.RECORDING).glob("episode-*") if p.is_dir()]
        if waiting:
            log.warning("%s holds an unsaved episode (%s); bring it in with sinew data repair", self.root, waiting[0].name)

    @property
    def observation_spec(self) -> ObservationSpec:
        """As recorded (units, bounds, names); for foreign data as far as info.json tells."""
        return self._observation

    @property
    def action_spec(self) -> ActionSpec:
        """As recorded; for foreign data joint_position with the bounds that occur."""
        return self._action

    @property
    def bounds_are_told(self) -> bool:
        """Whether the bounds of actions are limits that the recorder wrote down, not merely what occurs."""
        return (self.root / layout.SPECS).exists()

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self._rows)

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._info["fps"]

    @property
    def info(self) -> Mapping[str, Any]:
        """Content of info.json."""
        return self._info

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of the cameras."""
        return tuple(cameras(self._info))

    def __len__(self) -> int:
        return len(self._first)

    def episode(self, index: int) -> EpisodeInfo:
        """Length, task and outcome of an episode.

        Raises:
            DataError: there is no such episode.
        """
        if not 0 <= index < len(self._rows):
            raise DataError(f"{self.root} has no episode {index}: it has {len(self._rows)}")
        return episode_info(self._rows[index])

    def locate(self, index: int) -> tuple[int, int]:
        """(episode, frame in it) of a global frame index."""
        episode = int(np.searchsorted(self._starts, index, side="right")) - 1
        return episode, index - int(self._starts[episode])

    def video_path(self, key: str, episode: int) -> Path:
        """The file that holds the pictures of a camera that is kept as video, perhaps among those of other episodes."""
        return self._frames.video_path(key, self._rows[episode])

    def pictures(self, key: str, episode: int) -> Iterator[np.ndarray]:
        """The pictures of an episode in order, blocks of uint8 (n, height, width, 3); ends early where the file does.

        Raises:
            DataError: the file is damaged.
        """
        return self._frames.chunks(key, episode)

    def column(self, key: str) -> np.ndarray:
        """Every value of a column, (frames, *shape), read-only: observations, "action", "timestamp_ns", "next.success", …

        Raises:
            DataError: there is no such column.
        """
        if key not in self._columns:
            raise DataError(f"{self.root} has no column {key!r}: it has {', '.join(self._columns)}")
        return self._columns[key]

    def resized(self, size_px: int) -> Self:
        """The same data with pictures that are squares of `size_px` pixels; decoded pictures are kept in that size.

        Raises:
            InputError: the size is not positive, or there are no pictures.
        """
        other = copy.copy(self)
        other._observation = resized_spec(self._observation, size_px)
        other._kept = replace(self._kept, size_px=size_px)
        other._frames = Frames(self.root, self._info, self._rows, other._kept, other._digest)
        return other

    def close(self) -> None:
        """Close files and end threads; reading again opens them anew."""
        self._frames.close()

    def stats(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """{key: {"mean", "std", "min", "max": (D,) float64}} of every observation vector and the action.

        Raises:
            DataError: the dataset is empty.
        """
        if not len(self):
            raise DataError(f"{self.root} has no frames yet; record an episode first")
        if self._stats is None:
            self._stats = {}
            for key in (*(k for k in self._observation.tensors if k in self._columns), ACTION):
                values = self._columns[key].reshape(len(self), -1).astype(np.float64)
                self._stats[key] = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
        return self._stats

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Training windows at global frame indices (B,).

        Args:
            indices: (B,) integers in 0 … len - 1.
            n_obs_steps: observations To that end at the index.
            horizon: actions H from the index on.
            keys: observation keys; None for all.

        Returns:
            {observation key: (B, To, ...)}, the episode's first frame repeated before its start; images uint8, vectors as
            recorded (float32). "action": (B, H, A) in physical units, the last one repeated after the end;
            "action_is_pad": (B, H) bool, True past the end.

        Raises:
            DataError: an index or key does not exist, or a video is damaged.
        """
        keys = tuple(self._observation.tensors) if keys is None else tuple(keys)
        past, future = np.arange(1 - n_obs_steps, 1), np.arange(horizon)
        found = self._gather(np.asarray(indices), {**dict.fromkeys(keys, past), ACTION: future})
        return {k: v for k, v in found.items() if not k.endswith("_is_pad") or k == "action_is_pad"}

    def at(self, indices: np.ndarray, delta_timestamps: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
        """Values at time offsets, as LeRobot's delta_timestamps gives them.

        Args:
            indices: (B,) global frame indices.
            delta_timestamps: {key: offsets in seconds}, whole multiples of 1 / fps; negative looks back.

        Returns:
            {key: (B, T, ...)} with the episode's ends repeated, and {key + "_is_pad": (B, T) bool}.

        Raises:
            DataError: an offset falls between frames, or an index or key does not exist.
        """
        steps = {}
        for key, offsets in delta_timestamps.items():
            exact = np.asarray(offsets, np.float64) * self.fps
            steps[key] = np.round(exact).astype(np.int64)
            if (np.abs(exact - steps[key]) > DELTA_TOLERANCE_S * self.fps).any():
                raise DataError(f"offsets {list(offsets)} of {key!r} fall between frames: give multiples of 1/{self.fps:g} s")
        return self._gather(np.asarray(indices), steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Every feature of one frame: vectors (D,), images uint8 (height, width, 3), "task" text.

        Raises:
            IndexError: there is no such frame.
        """
        at = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= at < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        item: dict[str, Any] = {k: v[at] for k, v in self._columns.items()}
        item.update({k: v[0] for k, v in self._frames.get({k: np.array([at]) for k in self.cameras}).items()})
        item["task"] = self.tasks[int(self._columns["task_index"][at, 0])]
        return item

    def content_hash(self) -> str:
        """SHA-256 (hex) over the data, the pictures and the specs: two datasets with the same hash train alike."""
        if self._hash is None:
            total = hashlib.sha256(self._specs.encode())
            for path in sorted(self._files_in_use()):
                total.update(f"{path.relative_to(self.root)} {self._digest(path)}\n".encode())
            self._hash = total.hexdigest()
        return self._hash

    def _digest(self, path: Path) -> str:
        """SHA-256 (hex) of a file."""
        if path not in self._digests:
            with open(path, "rb") as f:
                self._digests[path] = hashlib.file_digest(f, "sha256").hexdigest()
        return self._digests[path]

    def _gather(self, indices: np.ndarray, steps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise DataError(f"frame indices are {indices.dtype} {indices.shape}; give integers (B,)")
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise DataError(f"frame indices run from {indices.min()} to {indices.max()}; the dataset has {len(self)} frames")
        first, last = self._first[indices, None], self._last[indices, None]
        result: dict[str, np.ndarray] = {}
        wanted: dict[str, np.ndarray] = {}
        for key, offsets in steps.items():
            raw = indices[:, None] + offsets
            at = np.clip(raw, first, last)
            if key in self._columns:
                result[key] = self._columns[key][at]
            elif key in self._frames.shapes:
                wanted[key] = at
            else:
                raise DataError(f"{self.root} has no {key!r}: it has {', '.join((*self._columns, *self._frames.shapes))}")
            result[f"{key}_is_pad"] = raw != at
        if wanted:
            result.update(self._frames.get(wanted))
        return result

    def _load_rows(self) -> list[dict[str, Any]]:
        total = self._info["total_episodes"]
        rows = tables.read_episodes(self.root)[:total]
        if len(rows) != total or [r["episode_index"] for r in rows] != list(range(total)):
            raise DataError(
                f"{self.root / layout.INFO} counts {total} episodes, meta/episodes holds {len(rows)}; run sinew data repair {self.root}"
            )
        start = 0
        for row in rows:
            row["dataset_to_index"] = start = start + int(row["length"])
        told = self._info["total_frames"]
        if start != told:
            raise DataError(f"{self.root / layout.INFO} counts {told} frames, its episodes {start}; run sinew data repair {self.root}")
        return rows

    def _data_files(self) -> list[Path]:
        used = {(r["data/chunk_index"], r["data/file_index"]): None for r in self._rows}
        return [self.root / self._info["data_path"].format(chunk_index=c, file_index=f) for c, f in used]

    def _video_files(self) -> set[Path]:
        keys = [k for k, kind in cameras(self._info).items() if kind == "video"]
        return {self._frames.video_path(k, r) for k in keys for r in self._rows}

    def _files_in_use(self) -> list[Path]:
        return [*self._data_files(), *self._video_files(), *([self.root / layout.TASKS] if self._rows else [])]

    def _load_columns(self) -> dict[str, np.ndarray]:
        told = columns(self._info)
        parts: dict[str, list[np.ndarray]] = {k: [] for k in told}
        for path in self._data_files():
            table = tables.read_table(path, list(told))
            missing = [k for k in told if k not in table.column_names]
            if missing:
                raise DataError(f"{path} has no column {missing[0]!r}, which {layout.INFO} names; run sinew data check {self.root}")
            try:
                for key, (dtype, shape) in told.items():
                    parts[key].append(tables.column_array(table, key, "float32" if dtype.startswith("float") else dtype, shape))
            except DataError as e:
                raise DataError(f"{path}: {e}; run sinew data check {self.root}") from None
        total = self._info["total_frames"]
        result = {k: np.concatenate(v) if v else np.zeros((0, *told[k][1]), told[k][0]) for k, v in parts.items()}
        order = np.argsort(result["index"].reshape(-1), kind="stable")[:total]
        if not np.array_equal(result["index"].reshape(-1)[order], np.arange(total)):
            raise DataError(f"data/ under {self.root} does not hold each of the {total} frames once; run sinew data repair {self.root}")
        if not np.array_equal(order, np.arange(total)) or any(len(v) != total for v in result.values()):
            result = {k: v[order] for k, v in result.items()}
        for value in result.values():
            value.flags.writeable = False
        return result

    def _bounds(self) -> dict[str, dict[str, np.ndarray]]:
        if ACTION not in self._columns or not len(self._first):
            dim = int(np.prod(self._info["features"].get(ACTION, {"shape": [1]})["shape"]))
            return {ACTION: {"min": np.zeros(dim), "max": np.ones(dim)}}
        values = self._columns[ACTION].reshape(len(self._first), -1)
        return {ACTION: {"min": values.min(0), "max": values.max(0)}}

    def _check_files(self) -> None:
        for path in self._video_files():
            if not path.is_file():
                raise DataError(f"{path} is missing; run sinew data repair {self.root}")
