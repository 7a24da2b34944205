"""Tensors in memory-mapped files: a replay larger than memory, which the system writes out and reads back page by page.

What was written survives the end of the process, however it ends; `flush` brings it to the disk, so that it also survives the
machine's. Room is taken when a file is made or grows: a full disk is told then, in one line, and not in the middle of a run.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinew.errors import DataError, InputError
from sinew.rundir import read_json, write_json

LAYOUT = "layout.json"


class MappedFolder:
    """A folder with one file per tensor.

    Args:
        folder: made if it is not there; what another owner left is replaced, unless `opened` says which is wanted.
        owner: what the tensors are of, for example {"task": "lift"}; kept beside them and told where it does not fit.
        opened: `identity` of the folder that a checkpoint belongs to; None for a new one.

    Raises:
        InputError: the folder cannot be written.
        DataError: it is not the folder that was opened; names what differs.
    """

    def __init__(self, folder: Path, owner: Mapping[str, Any], opened: str | None = None) -> None:
        self.folder, self.owner = folder, dict(owner)
        self._maps: dict[str, mmap.mmap] = {}
        if opened is not None:
            self._check(opened)
            self.identity = opened
            return
        self.identity = secrets.token_hex(8)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / LAYOUT, {"identity": self.identity, "owner": self.owner})

    def _check(self, opened: str) -> None:
        found = read_json(self.folder / LAYOUT)
        if not isinstance(found, dict) or not isinstance(found.get("owner"), dict):
            raise DataError(f"{self.folder / LAYOUT} does not describe a replay; restore the folder, or delete the run to start again")
        for key in sorted(set(self.owner) | set(found["owner"])):
            there, here = found["owner"].get(key), self.owner.get(key)
            if there != here:
                raise DataError(
                    f"the replay in {self.folder} is of another task or run: {key} is {there!r} there, {here!r} here; choose another --out"
                )
        if found.get("identity") != opened:
            raise DataError(f"the replay in {self.folder} is not the one that the checkpoint belongs to; restore it or delete the run")

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor of this name, zeros where nothing was written; a larger one goes on from the smaller.

        Raises:
            InputError: the disk is full.
        """
        path = self.folder / f"{name.replace('/', '_')}.bin"
        size = max(1, math.prod(shape)) * dtype.itemsize
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if os.fstat(descriptor).st_size < size:
                    os.posix_fallocate(descriptor, 0, size)
                mapped = mmap.mmap(descriptor, size, mmap.MAP_SHARED)
            finally:
                os.close(descriptor)
        except OSError as e:
            raise InputError(
                f"no room for the replay: {path} needs {size / 2**30:.2f} GiB ({e.strerror}); free space or remember less"
            ) from None
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)  # batches touch single rows: reading ahead would only push others out
        self._maps[name] = mapped
        return torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape)).view(shape)

    def flush(self) -> None:
        """Wait until all that was written is on the disk.

        Raises:
            InputError: it cannot be written.
        """
        try:
            for mapped in self._maps.values():
                mapped.flush()
        except OSError as e:
            raise InputError(f"cannot write the replay in {self.folder}: {e.strerror}; the last checkpoint is kept") from None
