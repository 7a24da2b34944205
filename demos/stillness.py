"""Cameras that stand still or show one colour, noticed while they are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MOVED = 0.01
"""Radians or metres: what has changed by more since a picture did would have been seen."""


class Stillness:
    """Watches for cameras that do not change while something else does, and for pictures of one colour."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reset()

    def reset(self) -> None:
        self._last: dict[str, np.ndarray] = {}
        self._since: dict[str, int] = {}
        self._longest: dict[str, tuple[int, int]] = {}
        self._blank: dict[str, int] = {}
        self._then: dict[str, dict[str, np.ndarray]] = {}
        self._said: set[str] = set()

    def see(self, at: int, values: Mapping[str, np.ndarray], pictures: Mapping[str, Any]) -> None:
        """Frame `at` of the episode: all its values, and which of them are pictures."""
        vectors = {k: v for k, v in values.items() if k not in pictures and k.startswith("observation.")}
        for key in pictures:
            value = values[key]
            # A stride keeps the cost far below that of encoding.
            small = value[:: max(1, value.shape[0] // 48), :: max(1, value.shape[1] // 48)].copy()
            if small.min() == small.max():
                self._blank[key] = self._blank.get(key, 0) + 1
            if key not in self._last or not np.array_equal(small, self._last[key]):
                self._since[key], self._then[key] = at, {k: v.copy() for k, v in vectors.items()}
            elif any(_apart(v, self._then[key][k]) > MOVED for k, v in vectors.items()):
                still = at - self._since[key] + 1
                self._longest[key] = max(self._longest.get(key, (0, 0)), (still, self._since[key]))
            self._last[key] = small

    def news(self) -> list[str]:
        """One line for each camera that has just become odd, once in an episode."""
        found = [(k, f"{k} shows one colour: is its cap on?") for k, n in self._blank.items() if n >= self._limit]
        stuck = "the picture does not change although the robot moves: is it stuck?"
        found += [(k, f"{k}: {stuck}") for k, (n, _) in self._longest.items() if n >= self._limit]
        fresh = [(k, text) for k, text in found if k not in self._said]
        self._said |= {k for k, _ in fresh}
        return [text for _, text in fresh]

    def warnings(self, length: int) -> list[str]:
        """One line for each camera that was odd in an episode of `length` frames."""
        found = [f"{k}: one colour in {n} of {length} frames" for k, n in self._blank.items() if n >= min(self._limit, length)]
        for key, (count, first) in self._longest.items():
            if count >= min(self._limit, length) and count > 1:
                found.append(f"{key}: the picture did not change from frame {first} to {first + count - 1}")
        return found


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())
