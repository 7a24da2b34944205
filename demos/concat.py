"""Several datasets as one, each with its own instructions and, where wished, its own share of what is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, get_args

import numpy as np

from demos.dataset import Dataset
from sinew.errors import InputError, SpecError
from sinew.specs import ACTION, ActionSpec, ObservationSpec, check_action_join, check_observation_join

Statistics = Literal["all", "first", "own"]
SMALLEST_STD = 0.01
"""In the element's unit: what varies less in one dataset is not stretched to what it varies by in another."""


class Concat:
    """The frames of several datasets, one after the other; implements `sinew.protocols.EpisodeData` and `HasColumns`.

    Args:
        parts: at least one.
        keys: observation keys that are wanted; None for all of the first one's. Others may differ between the parts.
        shares: how much of what is drawn comes from each part, relative to the others; None for all frames alike.
        statistics: what observation vectors are normalised by. "all": the frames of all parts, each part counting with its
            share. "first": those of the first part, for example of the robot that is to be driven. "own": each part by its
            own; its vectors are expressed so that the first part's statistics, which a policy keeps, are right for all.

    Raises:
        InputError: no parts, one share for each is not given, or one is not positive and finite.
        SpecError: the parts disagree on the action or on an observation that is wanted; names the difference.
    """

    def __init__(
        self, parts: Sequence[Dataset], keys: Sequence[str] | None = None, shares: Sequence[float] | None = None,
        statistics: Statistics = "all",
    ) -> None:  # fmt: skip
        if not parts:
            raise InputError("no datasets were given: at least one is needed")
        if statistics not in get_args(Statistics):
            raise InputError(f"statistics {statistics!r} are not known: choose {', '.join(get_args(Statistics))}")
        self.parts = tuple(parts)
        self.statistics: Statistics = statistics
        first = self.parts[0]
        names = [key for key in first.observation_spec if keys is None or key in keys]
        self._observation = ObservationSpec({key: first.observation_spec[key] for key in names})
        like = next((part for part in self.parts if part.bounds_are_told), first)
        for part in self.parts:
            check_observation_join(str(part.root), part.observation_spec, str(first.root), self._observation)
            bounds = like.action_spec if not part.bounds_are_told and part.action_spec.dim == like.action_spec.dim else part.action_spec
            check_action_join(str(part.root), replace(part.action_spec, low=bounds.low, high=bounds.high), str(like.root), like.action_spec)
        self._action = _joined_bounds(like, self.parts)
        self.shares = _checked_shares(self.parts, shares)
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.tasks = tuple(dict.fromkeys(task for part in self.parts for task in part.tasks))
        """Every instruction once."""

    @property
    def draw(self) -> np.ndarray | None:
        """(frames,) float64: how often each frame is to be drawn, relative to the others; None for all alike."""
        if self.shares is None:
            return None
        return np.concatenate([np.full(len(part), share / max(1, len(part))) for part, share in zip(self.parts, self.shares, strict=True)])

    @property
    def observation_spec(self) -> ObservationSpec:
        """That of the first part, as far as it is wanted."""
        return self._observation

    @property
    def action_spec(self) -> ActionSpec:
        """That of every part. Where no part tells the limits of its actions, bounds hold what occurs in any of them."""
        return self._action

    @property
    def num_episodes(self) -> int:
        """Episodes of all parts."""
        return sum(part.num_episodes for part in self.parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def stats(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """As `Dataset.stats`; of which frames, `statistics` says."""
        counts = [len(part) for part in self.parts] if self.shares is None else self.shares
        stats = [(count, part.stats()) for count, part in zip(counts, self.parts, strict=True) if len(part)]
        stats = stats[:1] if self.statistics != "all" else stats
        stats = stats or [(1, self.parts[0].stats())]
        keys = [key for key in stats[0][1] if key in self._observation.tensors or key == ACTION]
        return {key: _pooled([(count, each[key]) for count, each in stats]) for key in keys}

    def column(self, key: str) -> np.ndarray:
        """As `Dataset.column`; "task_index" counts in the `tasks` of the whole."""
        if key == "task_index":
            places = [np.array([self.tasks.index(task) for task in part.tasks], np.int64) for part in self.parts]
            return np.concatenate([place[part.column(key)] for place, part in zip(places, self.parts, strict=True) if len(part)])
        return np.concatenate([self._expressed(part, key, part.column(key)) for part in self.parts])

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """As `Dataset.window`, at indices over all parts."""
        wanted = tuple(self._observation) if keys is None else tuple(keys)

        def read(part: Dataset, at: np.ndarray) -> dict[str, np.ndarray]:
            return {k: self._expressed(part, k, v) for k, v in part.window(at, n_obs_steps, horizon, wanted).items()}

        return self._gather(np.asarray(indices), read)

    def resized(self, size_px: int) -> Self:
        """As `Dataset.resized`, of every part."""
        return type(self)([part.resized(size_px) for part in self.parts], tuple(self._observation), self.shares, self.statistics)

    def close(self) -> None:
        """As `Dataset.close`, of every part."""
        for part in self.parts:
            part.close()

    def content_hash(self) -> str:
        """SHA-256 (hex) over the parts' hashes, in their order."""
        return hashlib.sha256(" ".join(part.content_hash() for part in self.parts).encode()).hexdigest()

    def _expressed(self, part: Dataset, key: str, values: np.ndarray) -> np.ndarray:
        """Values (..., D) of an observation vector, with `statistics` "own" as the first part would have them."""
        first = self.parts[0]
        if self.statistics != "own" or part is first or key not in self._observation.tensors or values.dtype.kind != "f":
            return values
        told, wanted = part.stats()[key], first.stats()[key]
        scale = np.maximum(wanted["std"], SMALLEST_STD) / np.maximum(told["std"], SMALLEST_STD)
        flat = values.reshape(-1, scale.size)
        return ((flat - told["mean"]) * scale + wanted["mean"]).astype(values.dtype).reshape(values.shape)

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


def _checked_shares(parts: Sequence[Dataset], shares: Sequence[float] | None) -> tuple[float, ...] | None:
    if shares is None:
        return None
    if len(shares) != len(parts):
        raise InputError(f"{len(shares)} shares were given for {len(parts)} datasets: give each one, or none")
    for part, share in zip(parts, shares, strict=True):
        if not 0 < share < float("inf"):
            raise InputError(f"the share {share:g} of {part.root} must be above 0 and finite; leave the dataset out instead")
        if not len(part):
            raise InputError(f"{part.root} holds no frames, so nothing of it can be drawn: record an episode, or leave it out")
    total = float(sum(shares))
    return tuple(share / total for share in shares)


def _joined_bounds(like: Dataset, parts: Sequence[Dataset]) -> ActionSpec:
    """The action of `like`; bounds that nobody told become wide enough for all parts.

    Raises:
        SpecError: its bounds are told and do not hold what occurs in a part that tells none.
    """
    spec, foreign = like.action_spec, [part for part in parts if not part.bounds_are_told]
    if not like.bounds_are_told:
        low, high = (np.stack([getattr(part.action_spec, name) for part in foreign]) for name in ("low", "high"))
        return replace(spec, low=tuple(low.min(0).tolist()), high=tuple(high.max(0).tolist()))
    for part in (part for part in foreign if len(part)):
        least, most = part.stats()[ACTION]["min"], part.stats()[ACTION]["max"]
        for name, low, high, below, above in zip(spec.names, spec.low, spec.high, least, most, strict=True):
            if below < low - 1e-6 or above > high + 1e-6:
                raise SpecError(
                    f"actions of {part.root} do not fit {like.root}: {name} runs from {below:.4g} to {above:.4g}, "
                    f"and {like.root} limits it to {low:.4g} to {high:.4g}"
                )
    return spec


def _pooled(stats: Sequence[tuple[float, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Statistics of a whole from (count, statistics) of its parts."""
    counts = np.array([count for count, _ in stats], np.float64)
    share = (counts / counts.sum())[:, None]
    each = {name: np.stack([part[name] for _, part in stats]) for name in ("mean", "std", "min", "max")}
    mean = (share * each["mean"]).sum(0)
    variance = (share * (each["std"] ** 2 + (each["mean"] - mean) ** 2)).sum(0)
    return {"mean": mean, "std": np.sqrt(variance), "min": each["min"].min(0), "max": each["max"].max(0)}
