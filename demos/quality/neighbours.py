"""Nearest neighbours and mutual information by them, by plain distances in blocks; NumPy only."""

from __future__ import annotations

import numpy as np

BLOCK = 512
"""Rows whose distances are held at once."""
EULER = 0.5772156649015329
NEIGHBOURS, HEAP, ROUNDS = (5, 6, 7), 1024, 4
"""Of the mutual information: numbers of neighbours that are averaged, points looked at together, and how often they are dealt."""


def nearest_elsewhere(points: np.ndarray, groups: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest points of other groups.

    Args:
        points: (N, D).
        groups: (N,) group of each point.
        k: neighbours.
        among: (M,) rows that may be neighbours; all if None.

    Returns:
        (N, k) row numbers and (N, k) Euclidean distances, the nearest first; the distance is infinite where there are fewer.
    """
    points = points.astype(np.float32)
    among = np.arange(len(points)) if among is None else among
    others, size = points[among], np.square(points[among]).sum(1)
    k = min(k, len(among))
    index, distance = np.empty((len(points), k), np.int64), np.empty((len(points), k), np.float32)
    for first in range(0, len(points), BLOCK):
        rows = slice(first, first + BLOCK)
        squared = size - 2 * points[rows] @ others.T + np.square(points[rows]).sum(1)[:, None]
        squared[groups[rows, None] == groups[among]] = np.inf
        near = np.argpartition(squared, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(squared, near, 1)
        order = np.argsort(found, axis=1)
        index[rows] = among[np.take_along_axis(near, order, 1)]
        distance[rows] = np.sqrt(np.maximum(np.take_along_axis(found, order, 1), 0))
    return index, distance


def information(x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """What each pair adds to the mutual information of two variables, in nats; the mean over the pairs estimates it.

    Neighbours are looked for in other groups only. Frames that follow each other are near each other in both variables, which tells
    nothing; without this, an episode that stands still far from all others would be the most informative of all.

    Args:
        x: (N, D).
        y: (N, E).
        groups: (N,) group of each pair.
        seed: of dealing the pairs into heaps of `HEAP`, which is done `ROUNDS` times.

    Returns:
        (N,) float64; 0 where a heap is too small to tell.

    Source: the first estimator of Kraskov, Stögbauer and Grassberger 2004, Phys. Rev. E 69, 066138, eq. 8, without its mean over
    points; heaps, several numbers of neighbours, and an episode's mean as its worth as Hejna et al. 2025, arXiv:2502.08623.
    Neighbours close in time are left out as in Theiler 1986, Phys. Rev. A 34, 2427.
    """
    count = len(x)
    heaps, total = max(1, round(count / HEAP)), np.zeros(count)
    rounds = ROUNDS if heaps > 1 else 1
    for turn in range(rounds):
        order = np.random.default_rng([seed, turn]).permutation(count)
        for rows in np.array_split(order, heaps):
            total[rows] += _pointwise(x[rows], y[rows], groups[rows]) / rounds
    return total


def _pointwise(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    same = groups[:, None] == groups
    others, told = (~same).sum(1), np.zeros(len(x))
    if others.min() < max(NEIGHBOURS):
        return told
    apart = [_largest(values) for values in (x, y)]
    for distances in apart:
        distances[same] = np.inf
    radii = np.partition(np.maximum(*apart), [k - 1 for k in NEIGHBOURS], axis=1)
    digamma = _digamma(len(x) + 1)
    for k in NEIGHBOURS:
        inside = [(distances < radii[:, k - 1 : k]).sum(1) for distances in apart]
        told += digamma[k] + digamma[others] - digamma[inside[0] + 1] - digamma[inside[1] + 1]
    return told / len(NEIGHBOURS)


def _largest(values: np.ndarray) -> np.ndarray:
    """(N, N) distances in the maximum norm."""
    apart = np.zeros((len(values), len(values)), np.float32)
    for column in values.T.astype(np.float32):
        np.maximum(apart, np.abs(column[:, None] - column), out=apart)
    return apart


def _digamma(most: int) -> np.ndarray:
    """psi(n) for n = 0 … most (that of 0 is not used): minus Euler's constant plus the harmonic number of n - 1."""
    return np.concatenate([[-np.inf, -EULER], -EULER + np.cumsum(1 / np.arange(1, most))])
