"""How long a disk lasts at the rate at which a dataset is recorded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demos import layout

RESERVE_BYTES = 16 << 20
"""Left free: lines of episodes, statistics, and whatever else writes to the disk."""
WHILE_SAVING = 2.1
"""An episode that is saved lies on the disk twice for a moment: as it was recorded, and as a part of the dataset."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The room on a disk, in terms of what is recorded."""

    root: Path
    free_bytes: int
    bytes_per_s: float | None
    """Of recorded time, as measured; None before anything was."""

    @property
    def minutes_left(self) -> float | None:
        """Minutes of recording that fit; None where the rate is not known."""
        return max(self.free_bytes - RESERVE_BYTES, 0) / self.bytes_per_s / 60 if self.bytes_per_s else None

    def refusal(self, seconds: float) -> str:
        """One line on why an episode of so many seconds would not fit; empty where it does, or nothing was measured yet."""
        if not self.bytes_per_s:
            return ""
        needed = WHILE_SAVING * self.bytes_per_s * seconds + RESERVE_BYTES
        if needed <= self.free_bytes:
            return ""
        return (
            f"an episode of up to {seconds:g} s would not fit on the disk of {self.root}: it takes {needed / 1e6:.0f} MB to save it, "
            f"{self.free_bytes / 1e6:.0f} MB are free; free space, choose another --out, or shorter episodes"
        )


def forecast(root: Path, bytes_per_s: float | None) -> Forecast:
    """The room where a dataset lies now."""
    return Forecast(root=root, free_bytes=shutil.disk_usage(root).free, bytes_per_s=bytes_per_s)


def rate_of(root: Path, info: dict[str, Any]) -> float | None:
    """Bytes per recorded second of the episodes that a dataset holds; None of an empty one."""
    if not info["total_frames"]:
        return None
    folders = ("data", "videos", layout.NATIVE.split("/")[0])
    size = sum(p.stat().st_size for name in folders for p in (root / name).rglob("*") if p.is_file())
    return size * info["fps"] / info["total_frames"]
