"""One writer at a time: a lock that the system releases when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from demos.layout import RECORDING
from sinew.errors import DataError, InputError


def hold(root: Path) -> int:
    """Hold a dataset for this process.

    Returns:
        File descriptor; closing it lets go.

    Raises:
        DataError: another process holds it.
        InputError: the folder cannot be written.
    """
    path = root / RECORDING / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise InputError(f"cannot record into {root}: {e.strerror or e}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise DataError(f"{root} is being recorded by another process (pid {holder}); stop it or choose another folder") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def release(root: Path, descriptor: int) -> None:
    """Let go of a dataset that `hold` holds, and leave no folder behind where no episode is being recorded."""
    folder = root / RECORDING
    if folder.is_dir() and not any(folder.glob("episode-*")):
        shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)
