"""The weights of episodes as a file of their dataset: meta/sinew_weights.json, by which training draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demos.dataset import Dataset
from demos.quality.scores import Scores
from sinew.errors import DataError
from sinew.rundir import atomic_write
from sinew.specs import ACTION

FILE = "meta/sinew_weights.json"
FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """What was found of a dataset once, read again."""

    weights: np.ndarray
    """(episodes,) 0 to 1."""
    doubt: np.ndarray
    """(episodes,) see `Scores.doubt`."""


def store(dataset: Dataset, scores: Scores, settings: Mapping[str, Any]) -> Path:
    """Write the file; it holds for the data as they are now."""
    told = {
        "format_version": FORMAT,
        "fingerprint": fingerprint(dataset),
        "settings": dict(settings),
        "weights": _plain(scores.weights),
        "doubt": _plain(scores.doubt),
        "scores": {name: _plain(values) for name, values in scores.values.items()},
    }
    path = dataset.root / FILE
    atomic_write(path, json.dumps(told, indent=1) + "\n")
    return path


def load(dataset: Dataset) -> Kept | None:
    """Read the file; None where there is none.

    Raises:
        DataError: it is damaged, or the data were changed since.
    """
    path, count = dataset.root / FILE, dataset.num_episodes
    if not path.is_file():
        return None
    again = f"run sinew data quality {dataset.root} again, or delete the file"
    try:
        told = json.loads(path.read_text())
        version, of = told["format_version"], told["fingerprint"]
        found = Kept(np.array(told["weights"], np.float64), np.array(told["doubt"], np.float64))
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; {again}") from None
    if version != FORMAT:
        raise DataError(f"{path} has format version {str(version)[:20]}, this Sinew reads {FORMAT}; {again}")
    if of != fingerprint(dataset):
        raise DataError(f"{path} was made of other data: episodes came, went or were changed since; {again}")
    fits = found.weights.shape == found.doubt.shape == (count,) and np.isfinite(found.doubt).all()
    if not fits or not (np.isfinite(found.weights) & (found.weights >= 0)).all() or not found.weights.any():
        raise DataError(f"{path} does not hold {count} finite weights that are not all zero; {again}")
    return found


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 (hex) of what the scores depend on: states and actions, episode by episode. Words and outcomes are not part of it."""
    total = hashlib.sha256(" ".join(dataset.cameras).encode())
    for key in (*dataset.observation_spec.vectors, ACTION, "episode_index"):
        total.update(key.encode())
        total.update(np.ascontiguousarray(dataset.column(key)).data)
    return total.hexdigest()


def _plain(values: np.ndarray) -> list[float]:
    return [round(float(v), 6) for v in values]
