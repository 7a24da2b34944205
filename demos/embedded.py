"""Pictures that a dataset keeps in its Parquet files, as PNG or JPEG, by frame index."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demos import tables
from demos.video import decode_picture
from sinew.errors import DataError

KEPT_BYTES = 256 << 20
"""Encoded pictures that stay in memory: files of a hundred megabytes are not to be read again for every picture."""


class Embedded:
    """Reads such pictures a row group at a time; the last used groups stay, still encoded. For any number of threads.

    Args:
        budget_bytes: memory for encoded pictures; one group stays in any case.
    """

    def __init__(self, budget_bytes: int = KEPT_BYTES) -> None:
        self._budget, self._used = budget_bytes, 0
        self._rows: dict[Path, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._groups: OrderedDict[tuple[Path, str, int], tuple[int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, key: str, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Pictures uint8 (height, width, 3) by global frame index.

        Args:
            path: the data file that holds them.
            key: the camera.
            indices: which ones.

        Raises:
            DataError: the file is damaged, or has no such picture.
        """
        return {index: decode_picture(self._encoded(path, key, index)) for index in indices}

    def _encoded(self, path: Path, key: str, index: int) -> bytes:
        with self._lock:
            if path not in self._rows:
                self._rows[path] = _places(path)
            values, order, ends = self._rows[path]
            at = int(np.searchsorted(values, index))
            if at == len(values) or values[at] != index:
                raise DataError(f"{path} has no frame {index}; run sinew data repair")
            row = int(order[at])
            group = int(np.searchsorted(ends, row, side="right"))
            data = self._group(path, key, group)[row - (int(ends[group - 1]) if group else 0)].as_py()
        if not data:
            raise DataError(f"{path} has no picture of {key!r} for frame {index}; run sinew data repair")
        return data

    def _group(self, path: Path, key: str, group: int) -> Any:
        """The encoded pictures of one row group."""
        if (path, key, group) in self._groups:
            self._groups.move_to_end((path, key, group))
            return self._groups[path, key, group][1]
        pictures = tables.picture_bytes(tables.read_group(path, group, [key]), key)
        self._groups[path, key, group] = pictures.nbytes, pictures
        self._used += pictures.nbytes
        while self._used > self._budget and len(self._groups) > 1:
            self._used -= self._groups.popitem(last=False)[1][0]
        return pictures


def _places(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame indices of a file in rising order, the row of each, and the row after each row group."""
    index = tables.column_array(tables.read_table(path, ["index"]), "index", "int64", ()).reshape(-1)
    order = np.argsort(index, kind="stable")
    return index[order], order, np.cumsum(tables.group_lengths(path))
