"""The pictures of a dataset's card: first and last frames for each camera, histograms of every element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from demos.dataset import Dataset
from demos.resized import fit
from demos.video import FrameEncoder
from sinew.specs import IMAGES

EPISODES, HEIGHT, GAP, HEAD = 4, 132, 6, 24
"""Episodes on the contact sheet; pixels of a picture's height, between pictures, and of a line of words."""
CELL, COLUMNS, BINS, MOST_CELLS = (152, 92), 6, 24, 60
"""Width and height of a histogram, how many stand side by side, bars of each, and how many are drawn of one key."""
PAPER, INK, SOFT, BARS = (255, 255, 255), (30, 33, 38), (120, 126, 134), (64, 118, 190)
"""Colours: paper, words, faint words and lines, bars."""


def contact_sheet(data: Dataset) -> bytes:
    """PNG: a row for each camera, the first and the last frame of episodes from the whole dataset side by side."""
    chosen = np.unique(np.linspace(0, data.num_episodes - 1, min(EPISODES, data.num_episodes)).astype(int))
    frames = []
    for index in chosen:
        episode = data.episode(int(index))
        frames += [episode.start, episode.start + episode.length - 1]
    rows, widths = [], []
    for key in data.cameras:
        pictures = data.at(np.array(frames), {key: [0.0]})[key][:, 0]
        width = max(24, round(HEIGHT * pictures.shape[2] / pictures.shape[1]))
        rows.append([fit(picture, HEIGHT, width) for picture in pictures])
        widths.append(width)
    across = len(frames) * (max(widths) + GAP) + GAP
    sheet = np.full((HEAD + len(rows) * (HEAD + HEIGHT + GAP), across, 3), PAPER, np.uint8)
    for number, (key, row, width) in enumerate(zip(data.cameras, rows, widths, strict=True)):
        top = HEAD + number * (HEAD + HEIGHT + GAP)
        _words(sheet, f"{key.removeprefix(IMAGES)}", GAP, top + 17, 0.5)
        for column, picture in enumerate(row):
            left = GAP + column * (max(widths) + GAP)
            sheet[top + HEAD : top + HEAD + HEIGHT, left : left + width] = picture
    for column, index in enumerate(np.repeat(chosen, 2)):
        side = "last" if column % 2 else "first"
        _words(sheet, f"{index} {side}" if max(widths) < 110 else f"episode {index}, {side}", GAP + column * (max(widths) + GAP), 16, 0.42)
    return _png(sheet)


def histograms(vectors: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> bytes:
    """PNG: how often which value occurs, for every element.

    Args:
        vectors: {key: (names of the elements, (frames, D))}.
    """
    width, height = CELL
    blocks = []
    for key, (names, values) in vectors.items():
        shown = min(values.shape[1], MOST_CELLS)
        block = np.full((HEAD + -(-shown // COLUMNS) * (height + GAP), COLUMNS * (width + GAP) + GAP, 3), PAPER, np.uint8)
        more = f" (the first {shown} of {values.shape[1]} elements)" if shown < values.shape[1] else ""
        _words(block, f"{key}{more}", GAP, 17, 0.5)
        for i in range(shown):
            top, left = HEAD + i // COLUMNS * (height + GAP), GAP + i % COLUMNS * (width + GAP)
            block[top : top + height, left : left + width] = _histogram(names[i], values[:, i].astype(np.float64))
        blocks.append(block)
    return _png(np.concatenate(blocks))


def _histogram(name: str, values: np.ndarray) -> np.ndarray:
    width, height = CELL
    cell = np.full((height, width, 3), PAPER, np.uint8)
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, BINS, (low, high) if high > low else (low - 0.5, low + 0.5))
    floor, room, bar = height - 18, height - 36, (width - 8) // BINS
    for i, count in enumerate(counts):
        tall = int(np.ceil(room * count / counts.max()))
        cell[floor - tall : floor, 4 + i * bar : 4 + (i + 1) * bar - 1] = BARS
    cell[floor, 4 : width - 4] = SOFT
    _words(cell, name[-22:], 4, 13, 0.38)
    _words(cell, f"{low:.3g}", 4, height - 5, 0.34, SOFT)
    right = f"{high:.3g}"
    _words(cell, right, width - 6 - 6 * len(right), height - 5, 0.34, SOFT)
    return cell


def _words(picture: np.ndarray, words: str, left: int, base: int, size: float, colour: tuple[int, int, int] = INK) -> None:
    import cv2

    plain = words.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, (left, base), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _png(picture: np.ndarray) -> bytes:
    return FrameEncoder("image", picture.shape, 1).encode(picture)
