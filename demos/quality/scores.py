"""Scores of every episode, how doubtful they make it, and how often training should draw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from demos.dataset import Dataset
from demos.positions import places
from demos.quality import motion
from demos.quality.features import CHUNK, Points, points, standardised
from demos.quality.neighbours import information, nearest_elsewhere
from sinew.errors import DataError
from sinew.progress import SILENT, Progress
from sinew.specs import ACTION, STATE

NEAR = 10
"""Frames of other episodes that are the surroundings of a frame."""
MOST_FRAMES = 20_000
"""Neighbours are looked for among at most as many frames, drawn evenly."""
INFORMATION_AXES = 4
"""Principal axes of observation and action that mutual information is estimated on: it needs many neighbours per axis."""
FEWEST_EPISODES = 4
BAD_IS_HIGH = {
    "divergence": True,
    "policy_loss": True,
    "information": False,
    "smoothness": False,
    "efficiency": False,
    "idle": True,
    "diversity": None,
}
"""Scores: whether a high one is doubtful; None for one that only tells."""
CLIP = 5.0
"""Deviations that one score may add to an episode's doubt."""
FULL, NONE = 0.6, 1.2
"""Doubt up to which an episode counts in full, and from which on it is not drawn at all."""


@dataclass(frozen=True)
class Scores:
    """What was found of a dataset's episodes."""

    values: Mapping[str, np.ndarray]
    """{score: (episodes,)}, see `BAD_IS_HIGH`."""
    doubt: np.ndarray
    """(episodes,) 0 and up: robust standard deviations on the bad side of the usual episode, the mean over the scores."""
    weights: np.ndarray
    """(episodes,) 0 to 1: how often training should draw from it, relative to the best."""
    per_frame: np.ndarray
    """(frames,) action divergence of each frame, the mean over the dataset is 1."""


def score(dataset: Dataset, policy_loss: np.ndarray | None = None, seed: int = 0, progress: Progress = SILENT) -> Scores:
    """Score every episode.

    Args:
        dataset: demonstrations of one task, or of several that the observations tell apart.
        policy_loss: (frames,) loss under a policy that did not see the frame's episode; left out of the scores if None.
        seed: of what is drawn for speed.
        progress: told of pictures that are looked at.

    Raises:
        DataError: values are not finite, or there are too few episodes to compare.
    """
    check_enough(dataset)
    found = points(dataset, progress)
    per_frame, diversity = divergence(found, seed)
    told = information(found.observation[:, :INFORMATION_AXES], found.action[:, :INFORMATION_AXES], found.episode, seed)
    values = {"divergence": _mean(per_frame, found.episode)}
    if policy_loss is not None:
        values["policy_loss"] = _mean(policy_loss, found.episode)
    values |= {"information": _mean(np.clip(told, *np.percentile(told, (1, 99))), found.episode)}
    values |= {**motions(dataset), "diversity": _mean(diversity, found.episode)}
    doubt = doubts(values)
    return Scores(values, doubt, weights_of(doubt), per_frame)


def check_enough(dataset: Dataset) -> None:
    """Refuse a dataset in which nothing is usual yet.

    Raises:
        DataError: it has too few episodes.
    """
    if dataset.num_episodes < FEWEST_EPISODES:
        raise DataError(f"{dataset.root} has {dataset.num_episodes} episodes; what is usual shows from {FEWEST_EPISODES} on")


def divergence(found: Points, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How far each frame's action chunk is from what other episodes do near its observation, and how diverse transitions are there.

    Returns:
        (frames,) squared distance of the chunk from the mean of its neighbours' ones, divided by its mean over the dataset; (frames,)
        variance of the change of observation among the nearest frames of other episodes in observation and action, divided alike.

    Source: action divergence and transition diversity of Belkhale, Cui and Sadigh 2023, arXiv:2306.02437, estimated by neighbours in
    other episodes.
    """
    count = len(found.episode)
    among = np.sort(np.random.default_rng([seed, 1]).permutation(count)[:MOST_FRAMES])
    near, _ = nearest_elsewhere(found.observation, found.episode, NEAR, among)
    apart = np.square(found.action - found.action[near].mean(1)).sum(1).astype(np.float64)
    near, _ = nearest_elsewhere(np.concatenate([found.observation, found.action], 1), found.episode, NEAR, among)
    spread = found.change[near].var(1).sum(1).astype(np.float64)
    return apart / max(apart.mean(), 1e-12), spread / max(spread.mean(), 1e-12)


def motions(dataset: Dataset) -> dict[str, np.ndarray]:
    """Smoothness, efficiency and idle time of every episode, {score: (episodes,)}."""
    path, fingers = path_of(dataset)
    spans = [slice(e.start, e.start + e.length) for e in map(dataset.episode, range(dataset.num_episodes))]
    speeds = [motion.speed(path[s], dataset.fps) for s in spans]
    moving = [v + motion.speed(fingers[s], dataset.fps) for v, s in zip(speeds, spans, strict=True)]
    every = np.concatenate(moving)
    usual = float(np.median(every[every > 0])) if every.any() else 0.0
    return {
        "smoothness": np.array([motion.spectral_arc_length(v, dataset.fps) for v in speeds]),
        "efficiency": np.array([motion.efficiency(path[s]) for s in spans]),
        "idle": np.array([motion.idle(v, usual) for v in moving]),
    }


def path_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Where the robot is, (frames, D), and where its fingers are, (frames, F): the state's positions, standardised.

    Without a state it is what was asked for: the action.
    """
    key = STATE if STATE in dataset.observation_spec.tensors else ACTION
    values = dataset.column(key).reshape(len(dataset), -1)
    told = dataset.observation_spec[STATE] if key == STATE else None
    place, fingers = places(told.names if told else dataset.action_spec.names, told.unit if told else "", values.shape[1])
    if not place.any():
        place = ~fingers
    return standardised(values[:, place]), standardised(values[:, fingers])


def doubts(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """(episodes,) mean over the scores of how far an episode is on the doubtful side of the median, in robust standard deviations.

    What an episode does better than usual takes nothing away: it does not mend what is wrong with it.
    """
    return np.mean(np.clip(list(deviations(values).values()), 0.0, CLIP), axis=0)


def deviations(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{score: (episodes,) robust standard deviations to the doubtful side} of the scores that have one."""
    return {name: robust(values[name]) * (1 if high else -1) for name, high in BAD_IS_HIGH.items() if name in values and high is not None}


def robust(values: np.ndarray) -> np.ndarray:
    """Deviations from the median, in units of the median absolute deviation scaled to a standard deviation; 0 where nothing varies."""
    apart = values - np.median(values)
    scale = 1.4826 * np.median(np.abs(apart))
    scale = scale if scale > 1e-9 * max(1.0, np.abs(values).max()) else values.std()
    return apart / scale if scale > 0 else np.zeros_like(apart)


def weights_of(doubt: np.ndarray) -> np.ndarray:
    """(episodes,) from 1 up to the doubt `FULL` down to 0 from `NONE` on; the least doubtful quarter always counts in full."""
    weights = np.clip((NONE - doubt) / (NONE - FULL), 0.0, 1.0)
    weights[doubt <= np.quantile(doubt, 0.25)] = 1.0
    return weights


def _mean(per_frame: np.ndarray, episode: np.ndarray) -> np.ndarray:
    return np.bincount(episode, per_frame) / np.bincount(episode)


__all__ = ["BAD_IS_HIGH", "CHUNK", "Scores", "divergence", "doubts", "motions", "path_of", "robust", "score", "weights_of"]
