"""Reading: random and sequential access, with nothing kept and with decoded pictures kept, beside lerobot on the same folders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.data import BATCH, CAMERAS, FPS, SIZES, STORAGES, Peer, against, record, shown, taking_turns, timed

DELTAS = {"action": [i / FPS for i in range(16)], **{k: [-1 / FPS, 0.0] for k in ("observation.state", *CAMERAS)}}
TARGETS = {"random": 2.0, "sequential": 5.0}


def rows(quick: bool, folder: Path, peer: Peer) -> list[Row]:
    """Measure.

    Args:
        quick: fewer items.
        folder: for datasets.
        peer: lerobot.
    """
    found = []
    for height, width in SIZES:
        small = height < 200
        frames, episodes = ((40, 2) if quick else (150, 4)) if small else ((20, 2) if quick else (50, 2))
        items = (32 if quick else 160) if small else (8 if quick else 48)
        roots = _datasets(folder, height, width, frames, episodes, peer)
        for storage, root in roots.items():
            found += _rows(f"{height}x{width}, {STORAGES[storage]}", root, items, peer, small and storage == "ours")
    return found


def _datasets(folder: Path, height: int, width: int, frames: int, episodes: int, peer: Peer) -> dict[str, Path]:
    """The same frames, recorded by each."""
    roots = {name: folder / f"read-{name}-{height}" for name in STORAGES}
    record(roots["ours"], shown(frames, height, width), episodes)
    made = peer.ask(do="record", root=str(roots["peer"]), height=height, width=width, frames=frames, episodes=episodes, streaming=True)
    return roots if made else {"ours": roots["ours"]}


def _rows(label: str, root: Path, items: int, peer: Peer, also_kept: bool) -> list[Row]:
    import demos

    data, found = demos.Dataset(root, cache_bytes=0), []
    told = peer.ask(do="open", root=str(root))
    who = f"lerobot 0.4.4 with {told['decoder']}" if told else ""
    for order, least in TARGETS.items():
        indices = np.random.default_rng(0).permutation(len(data))[:items] if order == "random" else np.arange(items)
        cases = {
            "ours": partial(_read, data, indices),
            "as float32": partial(_read, data, indices, convert=True),
            "peer": partial(peer.ask, do="read", indices=indices.tolist()),
        }
        if also_kept:
            cases |= {"kept": partial(_kept, root, indices), "shelf": partial(_warm, root, root.with_name("shelf"), indices)}
        taken = taking_turns(cases)
        theirs = taken["peer"]
        for case, what, target in (
            ("ours", "nothing kept", least), ("as float32", "nothing kept, as lerobot's float32", None),
            ("kept", "every picture decoded once, first epoch", None), ("shelf", "second run, from the disk", None),
        ):  # fmt: skip
            if case not in cases:
                continue
            for key, per in (("per_s", "items/s"), ("per_cpu_s", "items per CPU second")):
                row = against(f"read {label}, {order}, {what}", per, taken[case][key], peer, theirs.get(key), who,
                              target if key == "per_s" else None)  # fmt: skip
                found.append(row)
    return found


def _read(data: Any, indices: np.ndarray, convert: bool = False) -> Mapping[str, float]:
    def work() -> int:
        for at in range(0, len(indices), BATCH):
            batch = data.at(indices[at : at + BATCH], DELTAS)
            if convert:
                for item in (item for camera in CAMERAS for item in batch[camera]):
                    np.multiply(np.ascontiguousarray(np.moveaxis(item, -1, -3)), np.float32(1 / 255), dtype=np.float32)
        return len(indices)

    return timed(work)


def _kept(root: Path, indices: np.ndarray) -> Mapping[str, float]:
    import demos

    return _read(demos.Dataset(root), indices)


def _warm(root: Path, folder: Path, indices: np.ndarray) -> Mapping[str, float]:
    """A dataset that is opened anew, whose pictures an earlier run has kept; opening and comparing sums count."""
    import demos

    shelf = demos.Shelf(folder)
    if not folder.exists():
        demos.Dataset(root, shelf=shelf).at(np.arange(len(demos.Dataset(root))), DELTAS)

    def work() -> int:
        _read(demos.Dataset(root, shelf=shelf), indices)
        return len(indices)

    return timed(work)
