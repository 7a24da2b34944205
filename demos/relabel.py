"""Other words and outcomes for episodes of a dataset, in place. Pictures are not touched, numbers only where they tell of these.

Every file is replaced whole, and each state in between can be read: tasks first, then the frames, then the episodes' lines, then the
sums. What was cut off is finished by the same call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demos import layout, tables
from demos.dataset import Dataset
from demos.layout import columns
from demos.lock import hold, release
from demos.statistics import aggregate, vector_stats
from sinew.errors import DataError
from sinew.rundir import atomic_write

OUTCOME = (layout.REWARD, layout.DONE, layout.SUCCESS)


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is to be said of an episode from now on."""

    task: str | None = None
    """What is being done, in words; None keeps what is said."""
    success: bool | None = None
    """Whether it was done; None keeps what is said."""


def relabel(root: Path | str, labels: Mapping[int, Label]) -> None:
    """Say something else of episodes.

    Args:
        root: dataset folder.
        labels: {episode: what to say}.

    Raises:
        DataError: no dataset, no such episode, an empty task, no column for outcomes, or another process is writing there.
        InputError: the folder cannot be written.
    """
    root = Path(root)
    layout.check_root(root)
    lock = hold(root)
    try:
        data = Dataset(root, cache_bytes=0)
        _check(data, labels)
        _Relabelling(data, labels).run()
    finally:
        release(root, lock)


def _check(data: Dataset, labels: Mapping[int, Label]) -> None:
    told = columns(data.info)
    lines = tables.read_episodes(data.root)
    for number, label in labels.items():
        data.episode(number)
        if label.task is not None and not label.task.strip():
            raise DataError(f"{data.root}: the task of episode {number} is empty; say in words what is done")
        if label.success is not None and ("success" not in lines[number] or not set(OUTCOME) <= set(told)):
            raise DataError(f"{data.root} has no columns for outcomes; give --out for a copy that has")


class _Relabelling:
    def __init__(self, data: Dataset, labels: Mapping[int, Label]) -> None:
        self.data, self.root, self.labels = data, data.root, labels
        new = (label.task for label in labels.values() if label.task is not None)
        self.tasks = list(dict.fromkeys((*data.tasks, *new)))

    def run(self) -> None:
        """Write everything that changes."""
        if len(self.tasks) != len(self.data.tasks):
            self._replace(self.root / layout.TASKS, lambda path: tables.write_tasks(path, self.tasks))
            self._write_info()
        lines = {int(row["episode_index"]): row for row in tables.read_episodes(self.root)}
        files = {self._data_file(lines[number]) for number in self.labels}
        for path in sorted(files):
            self._frames(path)
        for path in tables.episode_files(self.root):
            self._lines(path)
        stats = aggregate([tables.row_stats(row) for row in tables.read_episodes(self.root, stats=True)])
        atomic_write(self.root / layout.STATS, json.dumps({k: {n: v.tolist() for n, v in s.items()} for k, s in stats.items()}))

    def _write_info(self) -> None:
        atomic_write(self.root / layout.INFO, json.dumps({**self.data.info, "total_tasks": len(self.tasks)}, indent=4))

    def _data_file(self, row: Mapping[str, Any]) -> Path:
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        return self.root / self.data.info["data_path"].format(**place)

    def _values(self, number: int) -> dict[str, np.ndarray]:
        """The columns of an episode that are other ones from now on, (length,) each."""
        label, length, told = self.labels[number], self.data.episode(number).length, columns(self.data.info)
        values: dict[str, np.ndarray] = {}
        if label.task is not None:
            values["task_index"] = np.full(length, self.tasks.index(label.task))
        if label.success is not None:
            last = np.arange(length) == length - 1
            values[layout.REWARD] = (last & label.success).astype(told[layout.REWARD][0])
            values[layout.DONE], values[layout.SUCCESS] = last, last & label.success
        return values

    def _frames(self, path: Path) -> None:
        """A data file, in which there may be other episodes too."""
        names = [n for n in ("task_index", *OUTCOME) if n in columns(self.data.info)]
        table = tables.read_table(path, ["episode_index", "frame_index", *names])
        number, frame = (np.asarray(table[n].to_numpy()).reshape(-1) for n in ("episode_index", "frame_index"))
        changed = {n: np.array(table[n].to_numpy()) for n in names}
        for episode in set(self.labels) & set(number.tolist()):
            rows = number == episode
            for name, values in self._values(episode).items():
                changed[name][rows] = values[frame[rows]]
        self._replace(path, lambda target: tables.replace_columns(path, target, changed))

    def _lines(self, path: Path) -> None:
        """A file with lines of episodes, statistics among them."""
        rows = tables.read_episodes(self.root, stats=True, files=[path])
        mine = [row for row in rows if row["episode_index"] in self.labels]
        if not mine:
            return
        for row in mine:
            label = self.labels[row["episode_index"]]
            row["tasks"] = row["tasks"] if label.task is None else [label.task]
            if label.success is not None:
                row["success"] = label.success
            for name, values in self._values(row["episode_index"]).items():
                for part, value in vector_stats(values[:, None]).items():
                    if f"stats/{name}/{part}" in row:
                        row[f"stats/{name}/{part}"] = value.tolist()
        order = [int(n) for n in tables.read_table(path, ["episode_index"])["episode_index"].to_pylist()]
        by_number = {row["episode_index"]: row for row in rows}
        touched = [n for n in rows[0] if n in ("tasks", "success") or n.startswith(tuple(f"stats/{k}/" for k in ("task_index", *OUTCOME)))]
        values = {name: [by_number[number][name] for number in order] for name in touched}
        self._replace(path, lambda target: tables.replace_columns(path, target, values))

    def _replace(self, path: Path, write: Any) -> None:
        staged = path.with_name(f".{path.name}.new")
        write(staged)
        descriptor = os.open(staged, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.replace(staged, path)
