"""Stamps that go back, leave gaps or keep another pace than the dataset says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from demos.checks.finding import Finding
from demos.dataset import Dataset
from demos.layout import STAMP, columns

GAP_PERIODS = 1.5
PACE_SHARE = 0.05
"""Frames that are on average this much farther apart than told were recorded at another rate."""
TOLERANCE_S = 1e-4
"""LeRobot's own tolerance between "timestamp" and frame_index / fps."""


def check_times(dataset: Dataset) -> Iterator[Finding]:
    """Everything that this file looks for."""
    stamps = dataset.column(STAMP)[:, 0] if STAMP in columns(dataset.info) else None
    told, frame = dataset.column("timestamp")[:, 0], dataset.column("frame_index")[:, 0]
    # float32 seconds are coarser than the tolerance late in a long episode.
    wrong = np.abs(told - frame / dataset.fps) > TOLERANCE_S + 1e-6 * np.abs(told)
    for number in range(dataset.num_episodes):
        e = dataset.episode(number)
        rows = slice(e.start, e.start + e.length)
        off = np.flatnonzero(wrong[rows])
        if off.size:
            first, last = int(off[0]), int(off[-1])
            away = abs(float(told[rows][first]) - float(frame[rows][first]) / dataset.fps)
            message = f"is {away:.4f} s away from frame_index / fps; {off.size} frames are"
            yield Finding("warning", "data", message, "timestamp", number, first, last, "stamp")
        if stamps is not None and e.length > 1:
            yield from _paces(np.diff(stamps[rows]), 1e9 / dataset.fps, number)


def _paces(step: np.ndarray, period_ns: float, number: int) -> Iterator[Finding]:
    """What is odd about the times (length - 1,) between the frames of an episode."""
    back, gaps = np.flatnonzero(step <= 0), np.flatnonzero(step > GAP_PERIODS * period_ns)
    if back.size:
        message = f"does not rise ({step[back[0]] / 1e6:.1f} ms)"
        yield Finding("warning", "data", message, STAMP, number, int(back[0]) + 1, int(back[-1]) + 1, "stamp")
    pace = float(np.median(step))
    slow = pace > (1 + PACE_SHARE) * period_ns
    if gaps.size and not (slow and gaps.size > step.size // 2):
        worst = gaps[step[gaps].argmax()]
        message = f"gap of {step[worst] / 1e6:.1f} ms where {period_ns / 1e6:.1f} ms is usual; {gaps.size} gaps in this episode"
        yield Finding("warning", "data", message, STAMP, number, int(worst) + 1, None, "stamp")
    if slow or 0 < pace < (1 - PACE_SHARE) * period_ns:
        message = f"frames are {pace / 1e6:.1f} ms apart, {1e9 / pace:.1f} per second, not {1e9 / period_ns:g} as the dataset says"
        level = "warning" if slow else "note"  # what was written without waiting for a clock is faster, and does no harm
        advice = "time in it is stretched: record again at a rate that is kept" if slow else ""
        yield Finding(level, "data", message, STAMP, number, None, None, "stamp", advice)
