"""The episode being recorded, on disk from the first frame: fixed-size rows with a checksum, beside one blob of packets per camera.

A row is written last and in one unbuffered write, so a row that is there means that its frame is there. A process that is
killed leaves at most a torn row and packets without a row behind; both are cut off when the journal is read.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demos.native import SampleLog
from sinew.errors import DataError, InputError

HEADER, ROWS, TASKS, SEAL = "header.json", "rows.bin", "tasks.jsonl", "seal.json"


def row_dtype(columns: Mapping[str, tuple[str, tuple[int, ...]]], cameras: Mapping[str, str]) -> np.dtype:
    """Layout of a row: every recorded column, the number of the task, the packet size of every camera, the checksum."""
    fields: list[Any] = [(f"c:{k}", np.dtype(d), s) for k, (d, s) in columns.items()]
    fields += [("task", np.int32), *((f"p:{k}", np.uint32) for k in cameras), ("crc", np.uint32)]
    return np.dtype(fields)


@dataclass
class Recorded:
    """What a journal holds."""

    header: dict[str, Any]
    rows: np.ndarray
    """(n,) structured, as `row_dtype` lays them out."""
    tasks: list[str]
    seal: dict[str, Any] | None
    """What save_episode was asked to keep; None where it was not reached."""

    def __len__(self) -> int:
        return len(self.rows)


class Journal:
    """Appends frames to the folder of an episode in progress.

    Args:
        folder: made new; must not exist.
        header: anything that JSON holds; kept with the rows.
        columns: {key: (dtype, shape)} of what each row holds.
        cameras: {key: "video" or "image"}.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, header: Mapping[str, Any], columns: Mapping[str, tuple[str, tuple[int, ...]]], cameras: Mapping[str, str]
    ) -> None:
        self.folder, self.length = folder, 0
        self.beside = SampleLog(folder)
        """Samples at their own rates; its writes need not be on the thread of `append`."""
        self._dtype, self._cameras = row_dtype(columns, cameras), tuple(cameras)
        self._tasks: dict[str, int] = {}
        self._sizes = dict.fromkeys(cameras, 0)
        self._row: np.ndarray | None = None
        self._files: dict[str, int] = {}
        told = {**header, "columns": {k: [d, list(s)] for k, (d, s) in columns.items()}, "cameras": dict(cameras)}
        try:
            folder.mkdir(parents=True)
            for name in (ROWS, TASKS, *(blob_name(k) for k in cameras)):
                self._files[name] = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            # The header comes last: a folder without one holds no frames.
            (folder / ".header").write_text(json.dumps(told))
            os.replace(folder / ".header", folder / HEADER)
        except OSError as e:
            self.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(f"cannot record into {folder}: {e.strerror or e}; free space or choose another folder") from None

    def append(self, values: Mapping[str, np.ndarray], packets: Mapping[str, bytes], task: str) -> None:
        """Write one frame; when this returns the frame survives the end of this process.

        Raises:
            InputError: the disk is full; what was written before stays readable.
        """
        row = np.zeros((), self._dtype)
        for key, value in values.items():
            row[f"c:{key}"] = value
        try:
            if task not in self._tasks:
                _write(self._files[TASKS], (json.dumps(task) + "\n").encode())
                self._tasks[task] = len(self._tasks)
            row["task"] = self._tasks[task]
            for key in self._cameras:
                row[f"p:{key}"] = len(packets[key])
                _write(self._files[blob_name(key)], packets[key])
            _write(self._files[ROWS], _checked(row))
        except OSError as e:
            self._cut()
            raise InputError(f"cannot record into {self.folder}: {e.strerror or e}; {self.length} frames are kept, free space") from None
        self._row = row
        self.length += 1
        for key in self._cameras:
            self._sizes[key] += len(packets[key])

    def amend(self, values: Mapping[str, np.ndarray]) -> None:
        """Change some columns of the newest frame; a process that is killed meanwhile loses at most that frame.

        Raises:
            InputError: there is no frame, or the disk refuses.
        """
        if self._row is None:
            raise InputError("no frame was recorded that could be changed")
        for key, value in values.items():
            self._row[f"c:{key}"] = value
        try:
            os.pwrite(self._files[ROWS], _checked(self._row), (self.length - 1) * self._dtype.itemsize)
        except OSError as e:
            raise InputError(f"cannot record into {self.folder}: {e.strerror or e}; {self.length} frames are kept, free space") from None

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.length * self._dtype.itemsize + sum(self._sizes.values()) + self.beside.bytes

    def flush(self) -> None:
        """Ask the disk to hold what was written, against loss of power."""
        for fd in tuple(self._files.values()):
            os.fdatasync(fd)
        self.beside.flush()

    def seal(self, keep: Mapping[str, Any]) -> None:
        """Note that the episode is complete, and what to save with it.

        Raises:
            InputError: the disk is full.
        """
        try:
            (self.folder / ".seal").write_text(json.dumps(dict(keep)))
            os.replace(self.folder / ".seal", self.folder / SEAL)
        except OSError as e:
            raise InputError(f"cannot save the episode in {self.folder}: {e.strerror or e}; its frames are kept, free space") from None

    def close(self) -> None:
        """Close the files; the folder stays."""
        self.beside.close()
        while self._files:  # each is forgotten before it is closed: Ctrl-C in between must not close a number twice
            os.close(self._files.popitem()[1])

    def _cut(self) -> None:
        """Take back what a failed write left behind."""
        sizes = {ROWS: self.length * self._dtype.itemsize, **{blob_name(k): n for k, n in self._sizes.items()}}
        sizes[TASKS] = len("".join(json.dumps(t) + "\n" for t in self._tasks).encode())
        for name, size in sizes.items():
            os.ftruncate(self._files[name], size)
            os.lseek(self._files[name], size, os.SEEK_SET)


def blob_name(camera: str) -> str:
    """File that holds the packets of a camera."""
    return f"{camera}.packets"


def read_journal(folder: Path) -> Recorded:
    """Every whole frame of a journal, cutting nothing off the files.

    Raises:
        DataError: the header is damaged.
    """
    try:
        header = json.loads((folder / HEADER).read_text())
        columns = {k: (d, tuple(s)) for k, (d, s) in header["columns"].items()}
        dtype = row_dtype(columns, header["cameras"])
    except FileNotFoundError:
        return Recorded({}, np.zeros(0, np.dtype([("task", np.int32)])), [], None)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{folder / HEADER} is damaged ({e}); move {folder} away to go on without it") from None
    data = (folder / ROWS).read_bytes() if (folder / ROWS).exists() else b""
    count = len(data) // dtype.itemsize
    rows = np.frombuffer(data[: count * dtype.itemsize], dtype)
    tasks = _whole_lines(folder / TASKS)
    good = count
    for i in range(count):
        raw = data[i * dtype.itemsize : (i + 1) * dtype.itemsize]
        if zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little") or rows["task"][i] >= len(tasks):
            good = i
            break
    for key in header["cameras"]:
        ends = np.cumsum(rows[f"p:{key}"][:good], dtype=np.int64)
        path = folder / blob_name(key)
        good = int(np.searchsorted(ends, path.stat().st_size if path.exists() else 0, side="right"))
    seal = folder / SEAL
    return Recorded(header, rows[:good], tasks, json.loads(seal.read_text()) if seal.exists() else None)


def remove_journal(folder: Path) -> None:
    """Delete a journal; killed on the way, it is no journal any more, never half of one."""
    gone = folder.with_name(f"gone-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def packet_ends(recorded: Recorded, camera: str) -> np.ndarray:
    """(n,) int64 byte offset behind each frame's packet in a camera's blob."""
    return np.cumsum(recorded.rows[f"p:{camera}"], dtype=np.int64)


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _checked(row: np.ndarray) -> bytes:
    """A row as it lies on disk, with its checksum."""
    data = row.tobytes()[:-4]
    return data + zlib.crc32(data).to_bytes(4, "little")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
