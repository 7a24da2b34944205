"""Recording: a frame, and the end of an episode, beside lerobot as it comes and with its streaming encoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.data import SIZES, Peer, against, record, shown, taking_turns

WAYS = {"peer": "lerobot 0.4.4 as it comes: PNG files, then av1", "streaming": "lerobot 0.4.4, streaming av1"}


def rows(quick: bool, folder: Path, peer: Peer) -> list[Row]:
    """Measure.

    Args:
        quick: shorter episodes.
        folder: for datasets.
        peer: lerobot.
    """
    found: list[Row] = []
    for (height, width), frames in zip(SIZES, (30, 8) if quick else (60, 15), strict=True):
        places = (folder / f"write-{height}-{number}" for number in itertools.count())
        asked = {"do": "record", "height": height, "width": width, "frames": frames, "episodes": 1}
        cases: dict[str, Callable[[], Mapping[str, float]]] = {"ours": partial(_ours, places, shown(frames, height, width))}
        cases |= {way: partial(_theirs, places, peer, {**asked, "streaming": way == "streaming"}) for way in WAYS}
        found += _rows(taking_turns(cases), frames, f"{height}x{width}", peer)
    return found


def _ours(places: Iterator[Path], pictures: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, float]:
    return record(next(places), pictures)


def _theirs(places: Iterator[Path], peer: Peer, asked: Mapping[str, Any]) -> Mapping[str, float]:
    return peer.ask(**asked, root=str(next(places)))


def _rows(taken: Mapping[str, Mapping[str, float]], frames: int, label: str, peer: Peer) -> list[Row]:
    found, ours = [], taken["ours"]
    for way, who in WAYS.items():
        theirs, targets = taken[way], way == "peer"
        for part, what, least in (("add", "add_frame", 4.0), ("save", f"save an episode of {frames} frames", 5.0)):
            for clock, unit in (("s", "ms"), ("cpu_s", "CPU ms")):
                key, count = f"{part}_{clock}", frames if part == "add" else 1
                value = theirs[key] * 1e3 / count if theirs else None
                found.append(
                    against(f"{what} 2x{label}", unit, ours[key] * 1e3 / count, peer, value, who,
                            least if targets and clock == "s" else None, higher_is_better=False)
                )  # fmt: skip
    return found
