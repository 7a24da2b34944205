"""Recorded episodes with what was said of them, cut into parts to learn from, to calibrate on and to measure on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rewards.progress.predictive import read
from sinew.errors import DataError, InputError
from sinew.protocols import EpisodeData

SHARES = (0.6, 0.2, 0.2)
"""Of the episodes: to learn from, to calibrate on, to measure on."""


@dataclass(frozen=True)
class Episodes:
    """Episodes, one after the other."""

    seen: Mapping[str, Tensor]
    """{key: (F, ...)}: vectors in physical units, pictures uint8 of 64 x 64."""
    spans: tuple[slice, ...]
    """Of each in them."""
    outcome: tuple[bool, ...]
    """Whether each succeeded."""

    def __len__(self) -> int:
        return len(self.spans)

    def at(self, rows: Any) -> dict[str, Tensor]:
        """Frames by number."""
        return {key: value[rows] for key, value in self.seen.items()}


def outcomes(data: EpisodeData, labels: Path | None = None) -> dict[int, tuple[bool, int]]:
    """What was said of each episode: (success, step at which it was reached or the last one).

    Args:
        data: tells what its recorder was told.
        labels: lines as `rl.labels` has them, {"episode": 12, "step": 31, "success": true} or {"episode": 12, "undo": true}, which
            are about the dataset's own episodes and hold over what the recorder was told; None for none.

    Returns:
        {episode: (success, step)} of those of which something was said.

    Raises:
        DataError: a line is no label, or about an episode that is not there.
    """
    given: Any = data
    infos = [given.episode(i) for i in range(data.num_episodes)]
    said: dict[int, list[tuple[bool, int]]] = {
        i: [(bool(info.success), info.length - 1)] for i, info in enumerate(infos) if info.success is not None
    }
    for number, line in enumerate(_lines(labels), 1):
        try:
            label = json.loads(line)
            episode, undo = label["episode"], bool(label.get("undo", False))
            success, step = None if undo else label["success"], label.get("step")
            if type(episode) is not int or not (undo or isinstance(success, bool)) or not (step is None or type(step) is int):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f'{labels}, line {number}: {line[:80]!r} is no label; write {{"episode": 12, "success": true}}') from None
        if not 0 <= episode < len(infos) or not (step is None or 0 <= step < infos[episode].length):
            raise DataError(
                f"{labels}, line {number}: episode {episode} step {step} is not in the dataset, which has {len(infos)} episodes"
            )
        before = said.pop(episode, [])
        made = before[:-1] if undo else [*before, (bool(success), infos[episode].length - 1 if step is None else step)]
        if made:
            said[episode] = made
    return {episode: of[-1] for episode, of in sorted(said.items())}


def _lines(labels: Path | None) -> list[str]:
    if labels is None:
        return []
    if not labels.is_file():
        raise InputError(f"{labels} is not there; a file of labels has one JSON object a line")
    return [line for line in labels.read_text(errors="replace").splitlines() if line.strip()]


def gather(data: EpisodeData, keys: Sequence[str], said: Mapping[int, tuple[bool, int]], which: Sequence[int]) -> Episodes:
    """Frames of the episodes `which`; of a success up to the step at which it was reached."""
    given: Any = data
    rows, spans, at = [], [], 0
    for number in which:
        info, (success, step) = given.episode(number), said[number]
        length = step + 1 if success else info.length
        rows.append(np.arange(info.start, info.start + length))
        spans.append(slice(at, at + length))
        at += length
    seen = read(data, keys, np.concatenate(rows) if rows else np.zeros(0, np.int64))
    return Episodes(seen, tuple(spans), tuple(said[number][0] for number in which))


def split(said: Mapping[int, tuple[bool, int]], seed: int) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the episodes to learn from, to calibrate on and to measure on, successes and failures alike in each.

    Raises:
        InputError: fewer than 5 successes or 5 failures.
    """
    good = [i for i, (success, _) in said.items() if success]
    bad = [i for i, (success, _) in said.items() if not success]
    if len(good) < 5 or len(bad) < 5:
        raise InputError(
            f"{len(good)} successes and {len(bad)} failures are known; at least 5 of each are needed: record more, or label episodes"
        )
    stream = np.random.default_rng(seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in (good, bad):
        order = stream.permutation(group)
        ends = [0, *(max(i + 1, round(len(order) * sum(SHARES[: i + 1]))) for i in range(2)), len(order)]
        for part, first, last in zip(parts, ends, ends[1:], strict=False):
            part += [int(i) for i in order[first:last]]
    return tuple(sorted(part) for part in parts)  # type: ignore[return-value]
