"""Figures that a reward is judged by: does it rank success over failure, does it grow with time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Z95 = 1.959963984540054


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks (T,) from 1, those of equal values averaged."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]


def rank_correlation(values: ArrayLike, against: ArrayLike | None = None) -> float:
    """Spearman's rank correlation of values (T,) with time, or with `against` (T,); 0 where either never changes.

    With time, of a model's answers about frames in shuffled order, this is the value-order correlation (VOC).

    Source: VOC of Ma et al. 2024, arXiv:2411.04549; not a number there where all answers are equal, which tells as little as 0.
    """
    a = ranks(values)
    if not len(a):
        return 0.0
    b = ranks(np.arange(len(a)) if against is None else against)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def auc(success: Sequence[float], failure: Sequence[float]) -> float:
    """Chance that a success scores above a failure, ties counted half; not a number where there is none of either."""
    if not len(success) or not len(failure):
        return math.nan
    joined = ranks([*success, *failure])
    n, m = len(success), len(failure)
    return float(joined[:n].sum() - n * (n + 1) / 2) / (n * m)


def auc_interval(value: float, successes: int, failures: int) -> tuple[float, float]:
    """95 % interval of an AUC; with few episodes it is wide even at 1, where resampling would give a point.

    Source: method 5 of Newcombe, Statistics in Medicine 2006, 25:559-573.
    """
    if not successes or not failures or math.isnan(value):
        return 0.0, 1.0
    extra = (successes + failures) / 2 - 1

    def beyond(theta: float) -> bool:
        """Whether a true value this far from what was found is ruled out."""
        variance = theta * (1 - theta) * (1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (successes * failures)
        return abs(value - theta) > Z95 * math.sqrt(variance)

    return _edge(beyond, 0.0, value), _edge(beyond, 1.0, value)


def _edge(beyond: Callable[[float], bool], outside: float, inside: float) -> float:
    """Where `beyond` turns from true at `outside` to false at `inside`."""
    if not beyond(outside):
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        if beyond(middle):
            outside = middle
        else:
            inside = middle
    return inside
