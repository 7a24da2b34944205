"""Paths that may only be walked forward, for many worlds at once."""

from __future__ import annotations

import numpy as np

from sinew.errors import SpecError

SHORTEST_M = 1e-4
"""A shorter segment counts as this long, so that nothing is divided by zero."""


class Paths:
    """R paths of M places each. Only the segment that the progress lies on and the one after it count, so that a path which comes back
    to a place that it passed gives nothing away.

    These two segments of every path are kept side by side, so that a step costs the same however many places a path has.

    Args:
        count: R.
        places: M, two or more; a shorter path repeats its last place.

    Raises:
        SpecError: a path of one place.

    Source: the potential along a path of docs/rewards.md.
    """

    def __init__(self, count: int, places: int) -> None:
        if places < 2:
            raise SpecError(f"a path of {places} place was asked for; it has two or more")
        self.places = np.zeros((count, places, 3), np.float32)
        """(R, M, 3) metres."""
        self.arc = np.zeros((count, places), np.float32)
        """(R, M) metres from the first place to each."""
        self.progress = np.zeros(count, np.float32)
        """(R,) metres walked."""
        self._present = np.zeros(count, np.int64)
        self._start, self._along = np.zeros((2, 3, count), np.float32), np.zeros((2, 3, count), np.float32)
        self._from, self._length = np.zeros((2, count), np.float32), np.full((2, count), SHORTEST_M, np.float32)
        self._square = np.square(self._length)
        self._until = np.full(count, np.inf, np.float32)

    def lay(self, rows: np.ndarray, places: np.ndarray) -> None:
        """Begin anew on paths `rows` (n,) of places (n, up to M, 3)."""
        missing = self.places.shape[1] - places.shape[1]
        whole = np.concatenate((places, np.repeat(places[:, -1:], missing, axis=1)), axis=1) if missing else places
        self.places[rows] = whole
        self.arc[rows, 1:] = np.sqrt(np.square(np.diff(self.places[rows], axis=1)).sum(2)).cumsum(1)
        self.progress[rows] = 0.0
        self._present[rows] = 0
        self._open(rows)

    def walk(self, p: np.ndarray, sure: np.ndarray | None = None) -> np.ndarray:
        """Go on to points (3, R); progress never falls.

        Args:
            p: metres.
            sure: (R,) bool; where it is False the progress stays as it was.

        Returns:
            (R,) distance to the place of the path that was reached, in metres.
        """
        away = p - self._start
        share = np.add.reduce(away * self._along, axis=1)
        share /= self._square
        reached = self.progress - self._from
        reached /= self._length
        np.maximum(reached, 0.0, out=reached)
        np.maximum(share, reached, out=share)
        np.minimum(share, 1.0, out=share)
        away -= share[:, None] * self._along
        squared = np.add.reduce(away * away, axis=1)
        share *= self._length
        share += self._from
        walked = np.maximum(np.where(squared[1] < squared[0], share[1], share[0]), self.progress)
        self.progress = walked if sure is None else np.where(sure, walked, self.progress)
        self._advance()
        return np.sqrt(np.minimum(squared[0], squared[1]))

    def _advance(self) -> None:
        """Open the next segment where the present one is walked."""
        done = self.progress >= self._until
        while done.any():
            rows = np.flatnonzero(done)
            self._present[rows] += 1
            self._open(rows)
            done[rows] = self.progress[rows] >= self._until[rows]

    def _open(self, rows: np.ndarray) -> None:
        """Lay the present segment of paths `rows` and the next one side by side; the last one stands for itself twice."""
        present, last = self._present[rows], self.places.shape[1] - 2
        for i, segment in enumerate((present, np.minimum(present + 1, last))):
            start, end = self.places[rows, segment], self.places[rows, segment + 1]
            self._start[i][:, rows], self._along[i][:, rows] = start.T, (end - start).T
            self._from[i, rows] = self.arc[rows, segment]
            self._length[i, rows] = np.maximum(self.arc[rows, segment + 1] - self.arc[rows, segment], SHORTEST_M)
            self._square[i, rows] = np.square(self._length[i, rows])
        self._until[rows] = np.where(present < last, self._from[0, rows] + self._length[0, rows], np.inf)
