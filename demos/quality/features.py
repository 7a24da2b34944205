"""Observations and action chunks as points whose distances mean something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demos.dataset import Dataset
from demos.resized import fit
from sinew.errors import DataError
from sinew.progress import SILENT, Progress
from sinew.specs import ACTION

CHUNK = 4
"""Actions that are looked at together, from a frame on."""
MOST_AXES = 12
"""Principal axes that are kept: distances of neighbours mean little in more."""
KEPT_VARIANCE = 0.99
THUMBNAIL_PX = 12
"""Side of the picture that stands for a camera's."""


@dataclass(frozen=True)
class Points:
    """All frames of a dataset as points."""

    observation: np.ndarray
    """(frames, D) float32, principal axes of the standardised observation."""
    action: np.ndarray
    """(frames, E) float32, principal axes of the standardised action chunk."""
    change: np.ndarray
    """(frames, D) float32, how the observation changes to the next frame; zero at the end of an episode."""
    episode: np.ndarray
    """(frames,) number of the episode."""


def points(dataset: Dataset, progress: Progress = SILENT) -> Points:
    """Frames as points: every vector of the observation, and a small picture of every camera.

    Raises:
        DataError: a value is not finite, or there are no frames.
    """
    if not len(dataset):
        raise DataError(f"{dataset.root} has no frames yet; record an episode first")
    episode = dataset.column("episode_index")[:, 0].astype(np.int64)
    vectors = [dataset.column(k).reshape(len(dataset), -1) for k in dataset.observation_spec.vectors]
    action = dataset.column(ACTION).reshape(len(dataset), -1)
    for values in (*vectors, action):
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if bad.size:
            at = dataset.locate(int(bad[0]))
            raise DataError(f"{dataset.root}: episode {at[0]} frame {at[1]} is not finite; sinew data check {dataset.root} tells more")
    observation = principal([standardised(v) for v in (*vectors, *thumbnails(dataset, progress))])
    following = np.append(np.arange(1, len(dataset)), len(dataset) - 1)
    same = (episode[following] == episode)[:, None]
    chunk = dataset.window(np.arange(len(dataset)), 1, CHUNK, ())[ACTION].reshape(len(dataset), -1)
    return Points(observation, principal([standardised(chunk)]), (observation[following] - observation) * same, episode)


def standardised(values: np.ndarray) -> np.ndarray:
    """(N, D) with mean 0 and variance 1 in every column that varies; columns that do not are left out."""
    values = values.astype(np.float64)
    std = values.std(0)
    varies = std > 1e-6 * np.maximum(1.0, np.abs(values).max(0))
    return (values[:, varies] - values[:, varies].mean(0)) / std[varies]


def principal(groups: Sequence[np.ndarray]) -> np.ndarray:
    """(N, D') principal axes of groups (N, D_i) of columns, each group with the same total variance, float32.

    As many axes as hold `KEPT_VARIANCE`, `MOST_AXES` at most; their mean variance is 1.
    """
    groups = [g / np.sqrt(g.shape[1]) for g in groups if g.shape[1]]
    if not groups:
        raise DataError("nothing in the data varies: there is nothing to compare")
    values = np.concatenate(groups, 1)
    variance, axes = np.linalg.eigh(values.T @ values / len(values))
    variance, axes = np.maximum(variance[::-1], 0.0), axes[:, ::-1]
    count = min(MOST_AXES, 1 + int(np.searchsorted(np.cumsum(variance) / variance.sum(), KEPT_VARIANCE)), values.shape[1])
    return (values @ axes[:, :count] / np.sqrt(variance[:count].mean())).astype(np.float32)


def thumbnails(dataset: Dataset, progress: Progress = SILENT) -> list[np.ndarray]:
    """For each camera (frames, THUMBNAIL_PX² * 3) float32: its pictures, made small."""
    found = []
    if dataset.cameras:
        progress.start("look at pictures", dataset.num_episodes * len(dataset.cameras))
    for key in dataset.cameras:
        small = np.zeros((len(dataset), THUMBNAIL_PX * THUMBNAIL_PX * 3), np.float32)
        for number in range(dataset.num_episodes):
            at = dataset.episode(number).start
            for block in dataset.pictures(key, number):
                for image in block:
                    small[at] = fit(image, THUMBNAIL_PX, THUMBNAIL_PX).reshape(-1)
                    at += 1
            progress.advance()
        found.append(small)
    return found
