"""Cameras that are not what they were: another size, or exchanged with each other, noticed while an episode is recorded.

Before an episode `robot_bridge.camera_check` compares cameras with their calibrations; this needs none, and goes by what each camera showed
a moment ago. Pictures that stay the same or show one colour are the dataset writer's to notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from robot_bridge.synchroniser import BLACK

GRID = (24, 32)
"""Points of a picture that are compared."""
PERSISTS = 5
"""Pictures in a row that must look exchanged."""
CLEARER = 3.0
"""Each of two cameras must look so many times more like the other's last pictures than like its own."""
LEVELS = 8.0
"""Of 255: pictures that differ less on average are alike."""
FORGETS = 0.2
"""Weight of the newest picture in what a camera usually shows."""


class CameraWatch:
    """Follows the pictures of one recording.

    Args:
        seen: {camera: (H, W, 3)} that the dataset showed last, so that an exchange between two recordings is noticed too.
    """

    def __init__(self, seen: Mapping[str, np.ndarray] | None = None) -> None:
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._usual = {name: _points(image) for name, image in (seen or {}).items()}
        self._suspect: tuple[str, str] | None = None
        self._times = 0

    def see(self, pictures: Mapping[str, np.ndarray]) -> str:
        """Look at the newest picture of each camera.

        Args:
            pictures: {camera: (H, W, 3) uint8} as they came, before they are fitted to any size.

        Returns:
            One line on what has changed; empty while all is as before.
        """
        for name, image in pictures.items():
            size = self._sizes.setdefault(name, image.shape)
            if image.shape != size:
                self._sizes[name] = image.shape
                return _resized(name, image.shape, size)
        points = {name: _points(image) for name, image in pictures.items()}
        pair = self._exchanged(points)
        self._times = self._times + 1 if pair is not None and pair == self._suspect else int(pair is not None)
        self._suspect = pair
        if pair is None:
            for name, seen in points.items():
                before = self._usual.get(name)
                self._usual[name] = seen if before is None else (1 - FORGETS) * before + FORGETS * seen
        if self._times < PERSISTS or pair is None:
            return ""
        self._times = 0
        for name in pair:
            self._usual[name] = points[name]
        return _told(pair)

    def before(self, pictures: Mapping[str, np.ndarray]) -> str:
        """Look at the cameras once, before an episode, as `see` does; black pictures are told of too."""
        for name, image in pictures.items():
            if not image.size or int(image.max()) < BLACK:
                return f"camera {name} shows black: is its cap on, or the light off?"
            size = self._sizes.get(name, image.shape)
            if image.shape != size:
                return _resized(name, image.shape, size)
        pair = self._exchanged({name: _points(image) for name, image in pictures.items()})
        return "" if pair is None else _told(pair)

    def _exchanged(self, points: Mapping[str, np.ndarray]) -> tuple[str, str] | None:
        """Two cameras that look like each other's past, and not like their own."""
        known = [name for name in points if name in self._usual]
        for a, b in combinations(known, 2):
            straight = min(_apart(points[a], self._usual[a]), _apart(points[b], self._usual[b]))
            crossed = max(_apart(points[a], self._usual[b]), _apart(points[b], self._usual[a]))
            if straight > LEVELS and straight > CLEARER * crossed:
                return a, b
        return None


def _resized(name: str, now: Sequence[int], before: Sequence[int]) -> str:
    return f"camera {name} sends pictures of {now[1]}x{now[0]} now, they were {before[1]}x{before[0]}: set its driver to one size"


def _told(pair: tuple[str, str]) -> str:
    return f"cameras {pair[0]} and {pair[1]} are exchanged: each shows what the other one showed; look at their cables and topics"


def _points(image: np.ndarray) -> np.ndarray:
    """Some points of a picture, whatever its size, float32."""
    rows = np.linspace(0, image.shape[0] - 1, GRID[0]).astype(int)
    columns = np.linspace(0, image.shape[1] - 1, GRID[1]).astype(int)
    return image[rows[:, None], columns].astype(np.float32)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in levels."""
    return float(np.abs(a - b).mean())
