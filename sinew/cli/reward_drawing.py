"""Draws reward curves beside pictures, for films and for sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUCCESS, FAILURE, SOFT, INK, PAPER = (30, 130, 70), (190, 60, 40), (150, 155, 160), (30, 32, 36), (250, 250, 248)
PANEL = 240
"""Width of a curve beside a picture, pixels."""
MARGIN = 10


def panel(curve: np.ndarray, upto: int, low: float, high: float, success: bool, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: a curve (T,) up to a frame, with a dot there; the rest of it is faint.

    Args:
        curve: values.
        upto: frame.
        low: value at the lower edge.
        high: value at the upper edge.
        success: green, else red.
        width: pixels.
        height: pixels.
    """
    import cv2

    image = np.full((height, width, 3), PAPER, np.uint8)
    x = MARGIN + np.arange(len(curve)) / max(1, len(curve) - 1) * (width - 2 * MARGIN)
    y = height - MARGIN - 14 - (curve - low) / max(high - low, 1e-9) * (height - 2 * MARGIN - 28)
    points = np.stack([x, y], 1).round().astype(np.int32)
    if low <= 0.0 <= high:
        zero = round(height - MARGIN - 14 + low / max(high - low, 1e-9) * (height - 2 * MARGIN - 28))
        cv2.line(image, (MARGIN, zero), (width - MARGIN, zero), (225, 226, 224), 1)
    colour = SUCCESS if success else FAILURE
    cv2.polylines(image, [points.reshape(-1, 1, 2)], False, (215, 217, 215), 1, cv2.LINE_AA)
    cv2.polylines(image, [points[: upto + 1].reshape(-1, 1, 2)], False, colour, 2, cv2.LINE_AA)
    cv2.circle(image, tuple(int(v) for v in points[upto]), 4, colour, -1, cv2.LINE_AA)
    cv2.putText(image, figure(curve[upto]), (MARGIN, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return image


def beside(picture: np.ndarray, curve: np.ndarray, frame: int, low: float, high: float, success: bool) -> np.ndarray:
    """A picture with its curve on the right; height and width are even, as films want them."""
    import cv2

    height = max(240, picture.shape[0])
    width = round(picture.shape[1] * height / picture.shape[0])
    size = (width - width % 2, height - height % 2)
    left = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    return np.concatenate([left, panel(curve, frame, low, high, success, PANEL, size[1])], 1)


def sheet(rows: Sequence[tuple[str, bool, Sequence[tuple[int, np.ndarray]], np.ndarray]], low: float, high: float) -> np.ndarray:
    """Episodes below each other: pictures from left to right with their values, the curve at the end.

    Args:
        rows: name, success, (frame, picture) and the curve of each episode.
        low: of all curves.
        high: of all curves.
    """
    import cv2

    height, lines = 120, []
    for name, success, pictures, curve in rows:
        cells = []
        for frame, picture in pictures:
            cell = cv2.resize(picture, (round(picture.shape[1] * height / picture.shape[0]), height), interpolation=cv2.INTER_AREA)
            cv2.rectangle(cell, (0, height - 16), (44, height), PAPER, -1)
            cv2.putText(cell, figure(curve[frame]), (3, height - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
            cells.append(cell)
        plot = panel(curve, len(curve) - 1, low, high, success, 200, height)
        label = np.full((height, 90, 3), PAPER, np.uint8)
        words = (name, "success" if success else "failure")
        for i, text in enumerate(words):
            colour = INK if i == 0 else (SUCCESS if success else FAILURE)
            cv2.putText(label, text, (6, 50 + 20 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
        lines.append(np.concatenate([label, *cells, plot], 1))
    widest = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 4), (0, widest - line.shape[1]), (0, 0)), constant_values=250) for line in lines]
    return np.concatenate(padded, 0)


def plot(curves: Sequence[np.ndarray], outcome: Sequence[bool], meaning: str) -> np.ndarray:
    """(360, 560, 3) uint8: every curve over the share of its episode; successes green, failures red. `meaning` says what it shows."""
    import cv2

    height, width, left = 360, 560, 56
    image = np.full((height, width, 3), PAPER, np.uint8)
    low, high = extent(curves)
    middle = 0.0 if low + 0.1 * (high - low) < 0.0 < high - 0.1 * (high - low) else (low + high) / 2
    for value in (low, middle, high):
        y = round(height - 34 - (value - low) / (high - low) * (height - 60))
        cv2.line(image, (left, y), (width - 14, y), (226, 227, 224) if value else SOFT, 1)
        cv2.putText(image, figure(value), (6, y + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    cv2.putText(image, meaning, (left, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    for curve, ok in sorted(zip(curves, outcome, strict=True), key=lambda c: c[1]):
        x = left + np.arange(len(curve)) / max(1, len(curve) - 1) * (width - left - 14)
        y = height - 34 - (curve - low) / max(high - low, 1e-9) * (height - 60)
        points = np.stack([x, y], 1).round().astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(image, [points], False, SUCCESS if ok else FAILURE, 1, cv2.LINE_AA)
    for text, colour, x in (("success", SUCCESS, left), ("failure", FAILURE, left + 90), ("begin to end of an episode", SOFT, width - 220)):
        cv2.putText(image, text, (x, height - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return image


def figure(value: float) -> str:
    """Two decimals; nothing is minus nothing."""
    return f"{round(float(value), 2) + 0.0:.2f}"


def extent(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Lowest and highest value of all curves, a little apart where they are equal."""
    low, high = min(float(c.min()) for c in curves), max(float(c.max()) for c in curves)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
