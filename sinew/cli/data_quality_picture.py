"""Draws the scores of a dataset's episodes: what is doubtful, why, and where in the episode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sinew.cli.reward_drawing import INK, PAPER

if TYPE_CHECKING:
    from demos import Dataset
    from demos.quality.scores import Scores

CELL, STRIP, WEIGHT, LEFT, TOP, FOOT = 74, 420, 70, 76, 62, 30
"""Widths of a score's column, of the time strip, of the weight's bar and of the names, heights of head and foot; pixels."""
MOST_HEIGHT = 1400
HOT, BAR = np.array((190, 45, 35)), (70, 120, 180)
DEEPEST = 4.0
"""Robust deviations, or times the mean divergence, that are drawn in full colour."""


def draw(data: Dataset, scores: Scores) -> np.ndarray:
    """(height, width, 3) uint8: a row for each episode, the most doubtful above.

    From the left: the scores, redder the further on the bad side; the action divergence of every frame along the episode; the weight.
    """
    import cv2

    from demos.quality.scores import deviations

    apart, order = deviations(scores.values), np.argsort(-scores.doubt, kind="stable")
    row = int(np.clip((MOST_HEIGHT - TOP - FOOT) // len(order), 2, 22))
    times = LEFT + (len(apart) + 1) * CELL + 14
    image = np.full((TOP + FOOT + row * len(order), times + STRIP + 14 + WEIGHT + 20, 3), PAPER, np.uint8)
    longest = max(data.episode(i).length for i in range(data.num_episodes))

    def text(words: str, x: int, y: int, size: float = 0.4) -> None:
        cv2.putText(image, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)

    text(f"{data.root.name}: {len(order)} episodes, the most doubtful first", 10, 20, 0.5)
    for column, name in enumerate(("doubt", *apart)):
        text(name.replace("_", " "), LEFT + column * CELL, TOP - 8, 0.38)
    text("action divergence along the episode", times, TOP - 8, 0.38)
    text("weight", times + STRIP + 14, TOP - 8, 0.38)
    for place, i in enumerate(order.tolist()):
        y, e = TOP + place * row, data.episode(i)
        bottom = y + max(1, row - (2 if row > 6 else 0))
        if row >= 11:
            text(f"{i} {'' if e.success is None else 'ok' if e.success else 'failed'}", 10, y + row - 6, 0.38)
        for column, value in enumerate((2 * scores.doubt[i], *(a[i] for a in apart.values()))):
            image[y:bottom, LEFT + column * CELL : LEFT + (column + 1) * CELL - 2] = _heat(value)
            if row >= 14:
                told = scores.doubt[i] if column == 0 else list(scores.values[k] for k in apart)[column - 1][i]
                text(f"{told:.2f}", LEFT + column * CELL + 6, y + row - 6, 0.36)
        width = max(2, round(STRIP * e.length / longest))
        frames = e.start + np.minimum(np.arange(width) * e.length // width, e.length - 1)
        image[y:bottom, times : times + width] = _heat(scores.per_frame[frames] - 1.0)
        image[y:bottom, times + STRIP + 14 : times + STRIP + 14 + round(WEIGHT * float(scores.weights[i]))] = BAR
    text(f"0 s to {longest / data.fps:.1f} s", times, image.shape[0] - 10, 0.38)
    red = f"red: doubt {DEEPEST / 2:g}; {DEEPEST:g} robust deviations to the bad side; {DEEPEST + 1:g} times the mean divergence"
    text(red, 10, image.shape[0] - 10, 0.38)
    return image


def _heat(value: float | np.ndarray) -> np.ndarray:
    """Colour (…, 3) from pale for 0 and less to red for `DEEPEST` and more."""
    share = np.clip(np.asarray(value, np.float64) / DEEPEST, 0.0, 1.0)[..., None]
    return ((1 - share) * np.array((233, 234, 230)) + share * HOT).astype(np.uint8)


def write(path: Path, data: Dataset, scores: Scores) -> None:
    """Draw into a PNG file.

    Raises:
        InputError: it cannot be written.
    """
    import cv2

    from sinew.errors import InputError
    from sinew.rundir import atomic_write

    encoded = cv2.imencode(".png", np.ascontiguousarray(draw(data, scores)[:, :, ::-1]))[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, encoded.tobytes())
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror or e}") from None
