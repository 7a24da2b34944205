"""Numbered marks and a lettered grid on a picture, as a model and a person are shown them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from rewards.keypoint.candidates import Candidate

COLUMNS, ROWS = "abcde", "12345"
"""Letters from left to right, numbers from bottom to top."""
TILES = tuple(f"{c}{r}" for c in COLUMNS for r in ROWS)
_SMALLEST = 480
"""Shorter edge in pixels from which marks can be read; smaller pictures are enlarged."""
_COLOURS = ((230, 60, 60), (60, 110, 240), (40, 160, 70), (220, 140, 20), (150, 70, 200), (20, 160, 170), (200, 60, 140), (110, 110, 110))


def tile_pixel(tile: str, across: float, up: float, width: int, height: int) -> np.ndarray:
    """Pixel (u, v) of a place in a tile, from its lower left corner in tile sizes, in a picture of width x height."""
    column, row = COLUMNS.index(tile[0]), ROWS.index(tile[1])
    return np.array([(column + across) / len(COLUMNS) * width, height - (row + up) / len(ROWS) * height]) - 0.5


def tile_of(pixel: np.ndarray, width: int, height: int) -> tuple[str, float, float]:
    """The tile of a pixel, and how far across and up in it; the nearest tile of one outside the picture."""
    x = float(np.clip((pixel[0] + 0.5) / width, 0.0, 1.0 - 1e-9)) * len(COLUMNS)
    y = float(np.clip((height - pixel[1] - 0.5) / height, 0.0, 1.0 - 1e-9)) * len(ROWS)
    return f"{COLUMNS[int(x)]}{ROWS[int(y)]}", x - int(x), y - int(y)


def marked(image: np.ndarray, points: Sequence[Candidate]) -> np.ndarray:
    """A picture with the grid and the marks drawn on it, (H', W', 3) uint8 RGB, enlarged where it is small.

    Args:
        image: (H, W, 3) uint8 RGB.
        points: marks.
    """
    scale = max(1.0, _SMALLEST / min(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    drawn = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    _grid(drawn)
    objects = list(dict.fromkeys(p.object for p in points))
    taken = [tile_pixel(tile, 0.1, 0.1, drawn.shape[1], drawn.shape[0]) for tile in TILES]
    for point in points:
        colour = _COLOURS[objects.index(point.object) % len(_COLOURS)]
        at = (np.array(point.pixel) + 0.5) * scale - 0.5
        _mark(drawn, str(point.number), at, colour, taken)
    return drawn


def _grid(image: np.ndarray) -> None:
    height, width = image.shape[:2]
    shade = image.copy()
    for i in range(1, len(COLUMNS)):
        cv2.line(shade, (round(i * width / 5), 0), (round(i * width / 5), height), (255, 255, 255), 1, cv2.LINE_AA)
        cv2.line(shade, (0, round(i * height / 5)), (width, round(i * height / 5)), (255, 255, 255), 1, cv2.LINE_AA)
    cv2.addWeighted(shade, 0.6, image, 0.4, 0, image)
    for tile in TILES:
        u, v = tile_pixel(tile, 0.03, 0.06, width, height)
        _text(image, tile, (round(u), round(v)), 0.45, (255, 255, 255), (70, 70, 70))


def _mark(image: np.ndarray, label: str, at: np.ndarray, colour: tuple[int, int, int], taken: list[np.ndarray]) -> None:
    """A dot at its place, and the number beside it where no other number is."""
    centre = (round(float(at[0])), round(float(at[1])))
    spots = [at + r * np.array([np.cos(a), np.sin(a)]) for r in (16, 26, 36) for a in np.linspace(0, 2 * np.pi, 8, endpoint=False)]
    edge = np.array([image.shape[1] - 12, image.shape[0] - 12])
    free = [s for s in spots if all(np.linalg.norm(s - t) > 20 for t in taken) and (s > 12).all() and (s < edge).all()]
    spot = free[0] if free else at
    taken += [spot, at]
    cv2.line(image, centre, (round(float(spot[0])), round(float(spot[1]))), colour, 1, cv2.LINE_AA)
    cv2.circle(image, centre, 4, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(image, centre, 3, colour, -1, cv2.LINE_AA)
    (w, h), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    _text(image, label, (round(float(spot[0])) - w // 2, round(float(spot[1])) + h // 2), 0.45, (255, 255, 255), colour)


def _text(
    image: np.ndarray, text: str, corner: tuple[int, int], size: float, colour: tuple[int, int, int], behind: tuple[int, int, int]
) -> None:
    """Text from its lower left corner on, on a box."""
    (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    u, v = corner
    cv2.rectangle(image, (u - 2, v - h - 2), (u + w + 2, v + below - 1), behind, -1)
    cv2.putText(image, text, (u, v), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
