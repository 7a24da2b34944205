"""Per-episode statistics in LeRobot's terms, and their sum over episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = dict[str, np.ndarray]


def vector_stats(values: np.ndarray) -> Stats:
    """min, max, mean, std, count and quantiles of (n, D) values, each (D,) but count (1,)."""
    values = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    stats["count"] = np.array([len(values)])
    for name, row in zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True):
        stats[name] = row
    return stats


def image_stats(images: np.ndarray) -> Stats:
    """The same per colour of (n, height, width, 3) uint8 images, in [0, 1], each (3, 1, 1) but count (1,)."""
    histogram = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)])
    levels = np.arange(256) / 255.0
    total = histogram.sum(1, keepdims=True)
    mean = (histogram * levels).sum(1, keepdims=True) / total
    std = np.sqrt((histogram * (levels - mean) ** 2).sum(1, keepdims=True) / total)
    seen = histogram > 0
    stats = {"min": levels[seen.argmax(1)], "max": levels[255 - seen[:, ::-1].argmax(1)], "mean": mean, "std": std}
    cumulative = histogram.cumsum(1) / total
    for name, q in QUANTILES.items():
        stats[name] = levels[(cumulative >= q - 1e-12).argmax(1)]
    stats = {k: np.reshape(v, (3, 1, 1)) for k, v in stats.items()}
    stats["count"] = np.array([len(images)])
    return stats


def aggregate(episodes: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Statistics of all frames from those of every episode; quantiles are count-weighted means, as LeRobot keeps them."""
    result: dict[str, Stats] = {}
    for key in episodes[0] if episodes else ():
        parts = [e[key] for e in episodes if key in e]
        count = np.array([p["count"][0] for p in parts], np.float64)
        weight = (count / count.sum()).reshape(-1, *[1] * parts[0]["mean"].ndim)
        stacked = {name: np.stack([np.asarray(p[name], np.float64) for p in parts]) for name in parts[0] if name != "count"}
        mean = (stacked["mean"] * weight).sum(0)
        variance = ((stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2) * weight).sum(0)
        result[key] = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
        result[key]["count"] = np.array([int(count.sum())])
        for name in QUANTILES:
            if name in stacked:
                result[key][name] = (stacked[name] * weight).sum(0)
    return result
