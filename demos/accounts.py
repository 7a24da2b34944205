"""What the recorder counted, over a whole dataset: rates of the streams, alignment, and every frame, tick and message that is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from demos import layout, tables
from demos.native import Samples, losses
from sinew.errors import DataError


def samples(root: Path | str, episode: int) -> dict[str, Samples]:
    """Every sample that an episode has beside its frames, by stream; none of one that was recorded without.

    Raises:
        DataError: the file is damaged.
    """
    path = layout.native_path(Path(root), episode)
    return tables.read_native(path) if path.exists() else {}


def summary(root: Path, episodes: int) -> dict[str, Any]:
    """Of all episodes that have an account.

    Returns:
        "episodes" that have one; "streams": {name: {"rate_hz": median, "lost"}}; "losses": {words: how many}; "alignments": those that
        there are. Files that cannot be read are passed over.
    """
    told = []
    for episode in range(episodes):
        try:
            told.append(tables.native_account(layout.native_path(root, episode)))
        except DataError:
            continue
    told = [t for t in told if t]
    rates: dict[str, list[float]] = {}
    lost: Counter[str] = Counter()
    total: Counter[str] = Counter()
    alignments: list[Any] = []
    for account in told:
        total.update(losses(account))
        for name, stream in account.get("streams", {}).items():
            rates.setdefault(name, []).extend([stream["rate_hz"]] if stream.get("rate_hz") else [])
            lost[name] += stream.get("lost") or 0
        if account.get("alignment") and account["alignment"] not in alignments:
            alignments.append(account["alignment"])
    streams = {name: {"rate_hz": round(float(np.median(r)), 2) if r else None, "lost": lost[name]} for name, r in rates.items()}
    return {"episodes": len(told), "streams": streams, "losses": dict(total), "alignments": alignments}


def odd(root: Path, episodes: int) -> Iterator[tuple[str, str, str, int]]:
    """What is missing, and files that are damaged: (level, where, message, episode)."""
    for episode in range(episodes):
        path = layout.native_path(root, episode)
        where = str(path.relative_to(root))
        try:
            told = tables.native_account(path)
        except DataError:
            yield "warning", where, "cannot be read: what was kept beside the frames of this episode is lost, the frames are not", episode
            continue
        if missing := ", ".join(f"{n} {what}" for what, n in losses(told).items()):
            part = " (of the whole episode, before it was cut)" if "of_whole_episode" in told else ""
            yield "warning", where, f"while recording: {missing}{part}", episode
