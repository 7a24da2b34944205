"""Demonstrations: LeRobotDataset v3 folders, recorded so that a crash loses nothing, checked, repaired and read fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demos.concat import Concat
    from demos.dataset import Dataset
    from demos.decoded import Shelf
    from demos.doctor import Finding, Report, check, info
    from demos.layout import EpisodeInfo
    from demos.rescue import repair
    from demos.writer import Writer

__all__ = ["Concat", "Dataset", "EpisodeInfo", "Finding", "Report", "Shelf", "Writer", "check", "info", "repair"]

_HOME = {
    "Concat": "concat",
    "Dataset": "dataset",
    "EpisodeInfo": "layout",
    "Finding": "doctor",
    "Report": "doctor",
    "Shelf": "decoded",
    "Writer": "writer",
    "check": "doctor",
    "info": "doctor",
    "repair": "rescue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'demos' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"demos.{_HOME[name]}"), name)
    globals()[name] = value
    return value
