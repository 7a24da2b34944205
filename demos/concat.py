"""Several datasets as one, each with its own instructions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from demos.dataset import Dataset
from sinew.errors import InputError
from sinew.specs import ACTION, ActionSpec, ObservationSpec, check_action_join, check_observation_join


class Concat:
    """The frames of several datasets, one after the other; implements `sinew.protocols.EpisodeData` and `HasColumns`.

    Args:
        parts: at least one.
        keys: observation keys that are wanted; None for all of the first one's. Others may differ between the parts.

    Raises:
        InputError: no parts.
        SpecError: the parts disagree on the action or on an observation that is wanted; names the difference.
    """

    def __init__(self, parts: Sequence[Dataset], keys: Sequence[str] | None = None) -> None:
        if not parts:
            raise InputError("no datasets were given: at least one is needed")
        self.parts = tuple(parts)
        first = self.parts[0]
        names = [key for key in first.observation_spec if keys is None or key in keys]
        self._observation = ObservationSpec({key: first.observation_spec[key] for key in names})
        for part in self.parts[1:]:
            check_observation_join(str(part.root), part.observation_spec, str(first.root), self._observation)
            check_action_join(str(part.root), part.action_spec, str(first.root), first.action_spec)
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.tasks = tuple(dict.fromkeys(task for part in self.parts for task in part.tasks))
        """Every instruction once."""

    @property
    def observation_spec(self) -> ObservationSpec:
        """That of the first part, as far as it is wanted."""
        return self._observation

    @property
    def action_spec(self) -> ActionSpec:
        """That of every part."""
        return self.parts[0].action_spec

    @property
    def num_episodes(self) -> int:
        """Episodes of all parts."""
        return sum(part.num_episodes for part in self.parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def stats(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """As `Dataset.stats`, over the frames of all parts."""
        stats = [(len(part), part.stats()) for part in self.parts if len(part)] or [(1, self.parts[0].stats())]
        keys = [key for key in stats[0][1] if key in self._observation.tensors or key == ACTION]
        return {key: _pooled([(count, each[key]) for count, each in stats]) for key in keys}

    def column(self, key: str) -> np.ndarray:
        """As `Dataset.column`; "task_index" counts in the `tasks` of the whole."""
        if key == "task_index":
            places = [np.array([self.tasks.index(task) for task in part.tasks], np.int64) for part in self.parts]
            return np.concatenate([place[part.column(key)] for place, part in zip(places, self.parts, strict=True) if len(part)])
        return np.concatenate([part.column(key) for part in self.parts])

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """As `Dataset.window`, at indices over all parts."""
        wanted = tuple(self._observation) if keys is None else tuple(keys)
        return self._gather(np.asarray(indices), lambda part, at: part.window(at, n_obs_steps, horizon, wanted))

    def content_hash(self) -> str:
        """SHA-256 (hex) over the parts' hashes, in their order."""
        return hashlib.sha256(" ".join(part.content_hash() for part in self.parts).encode()).hexdigest()

    def _gather(self, indices: np.ndarray, read: Callable[[Dataset, np.ndarray], dict[str, Any]]) -> dict[str, np.ndarray]:
        """What `read` gives for the rows of each part, back in the order of `indices` (B,)."""
        owner = np.clip(np.searchsorted(self._starts, indices, side="right") - 1, 0, len(self.parts) - 1)
        whole: dict[str, np.ndarray] = {}
        for number in np.unique(owner):
            rows = np.flatnonzero(owner == number)
            for key, value in read(self.parts[number], indices[rows] - self._starts[number]).items():
                if key not in whole:
                    whole[key] = np.empty((len(indices), *value.shape[1:]), value.dtype)
                whole[key][rows] = value
        return whole


def _pooled(stats: Sequence[tuple[int, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Statistics of a whole from (count, statistics) of its parts."""
    counts = np.array([count for count, _ in stats], np.float64)
    share = (counts / counts.sum())[:, None]
    each = {name: np.stack([part[name] for _, part in stats]) for name in ("mean", "std", "min", "max")}
    mean = (share * each["mean"]).sum(0)
    variance = (share * (each["std"] ** 2 + (each["mean"] - mean) ** 2)).sum(0)
    return {"mean": mean, "std": np.sqrt(variance), "min": each["min"].min(0), "max": each["max"].max(0)}
