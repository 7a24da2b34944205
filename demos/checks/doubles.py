"""Episodes that are there twice, and runs of frames that were copied from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from demos.checks.finding import Finding
from demos.dataset import Dataset
from sinew.specs import ACTION

RUN_S, FEWEST = 0.5, 10
"""A run of frames that occurs twice is so long at least, in seconds and in frames."""
DISTINCT_SHARE = 0.5
"""Of the frames of a run: fewer different ones are a robot that stands still."""


def check_doubles(dataset: Dataset) -> Iterator[Finding]:
    """Everything that this file looks for; values are compared to the last bit, so motions that merely look alike are none."""
    keys = (*dataset.observation_spec.vectors, ACTION)
    rows = np.concatenate([np.ascontiguousarray(dataset.column(k).reshape(len(dataset), -1)).view(np.uint8) for k in keys], 1)
    _, number = np.unique(rows, axis=0, return_inverse=True)
    number = number.reshape(-1)
    spans = [(e.start, e.start + e.length) for e in map(dataset.episode, range(dataset.num_episodes))]
    first: dict[bytes, int] = {}
    copies = set()
    for i, (begin, end) in enumerate(spans):
        digest = hashlib.sha256(number[begin:end].tobytes()).digest()
        if digest in first and len(np.unique(number[begin:end])) >= min(FEWEST, end - begin) > 1:
            copies.add(i)
            message = f"is episode {first[digest]} once more: states and actions are the same to the last bit"
            yield Finding("warning", "data", message, None, i, 0, end - begin - 1, "double")
        first.setdefault(digest, i)
    yield from _runs(number, [s for i, s in enumerate(spans) if i not in copies], dataset)


def _runs(number: np.ndarray, spans: list[tuple[int, int]], dataset: Dataset) -> Iterator[Finding]:
    """Runs within or between episodes; the longest one of each episode is told."""
    length = max(FEWEST, round(RUN_S * dataset.fps))
    seen: dict[bytes, int] = {}
    for begin, end in spans:
        longest, at = (0, 0, 0), begin
        while at + length <= end:
            window = number[at : at + length]
            source = seen.get(window.tobytes())
            if source is None or source + length > at:
                if source is None and len(np.unique(window)) >= DISTINCT_SHARE * length:
                    seen[window.tobytes()] = at
                at += 1
                continue
            size = length
            while at + size < end and source + size < at and number[at + size] == number[source + size]:
                size += 1
            longest = max(longest, (size, at, source))
            at += size
        size, at, source = longest
        if size:
            episode, frame = dataset.locate(at)
            other, there = dataset.locate(source)
            message = f"{size} frames are those from frame {there} of episode {other} on, to the last bit"
            yield Finding("warning", "data", message, None, episode, frame, frame + size - 1, "double")
