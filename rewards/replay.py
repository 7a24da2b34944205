"""Recorded episodes played through a reward, which is not told how they end: what it says of each step by what it sees alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinew.protocols import EpisodeData, Reward
from sinew.specs import ACTION


class Frames(Mapping[str, Tensor]):
    """Frames of a dataset by key, read when they are asked for: pictures that a reward does not look at are not decoded."""

    def __init__(self, data: EpisodeData, rows: np.ndarray) -> None:
        self.data, self.rows = data, rows
        self._read: dict[str, Tensor] = {}

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.data.observation_spec:
            raise KeyError(key)
        if key not in self._read:
            self._read[key] = torch.from_numpy(np.array(self.data.window(self.rows, 1, 1, (key,))[key][:, 0]))
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data.observation_spec)

    def __len__(self) -> int:
        return len(list(iter(self)))


class Step(Mapping[str, Tensor]):
    """A transition between two `Frames`, as `Reward.reward` takes it."""

    def __init__(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], told: Mapping[str, Tensor]) -> None:
        self.before, self.after, self.told = before, after, told

    def __getitem__(self, key: str) -> Tensor:
        if key in self.told:
            return self.told[key]
        return self.after[key.removeprefix("next.")] if key.startswith("next.") else self.before[key]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.told, *self.before, *(f"next.{k}" for k in self.after)])

    def __len__(self) -> int:
        return len(self.told) + len(self.before) + len(self.after)


def replay(
    data: EpisodeData,
    spans: Sequence[slice],
    reward: Reward,
    *,
    on_step: Callable[[int, np.ndarray], None] = lambda step, rows: None,
) -> list[np.ndarray]:
    """What a reward pays for each step of recorded episodes, played side by side: episode i is world i.

    Args:
        data: the dataset.
        spans: of each episode in it.
        reward: built for len(spans) worlds. No step is told as success or end; an episode that is over stays at its last frame.
        on_step: told the number of the step that is about to be rewarded and the frames (E,) that it leads to.

    Returns:
        (T_i - 1,) float64 for each episode.

    Raises:
        RewardUnavailable: the reward cannot be had for these episodes.
        InputError: it is not finite.
    """
    return play(data, [np.arange(s.start, s.stop) for s in spans], reward, on_step)


def play(
    data: EpisodeData,
    paths: Sequence[np.ndarray],
    reward: Reward,
    on_step: Callable[[int, np.ndarray], None] = lambda step, rows: None,
) -> list[np.ndarray]:
    """The same along any sequences of frames, each (T_i,) global indices."""
    rows = np.array([path[0] for path in paths])
    never = torch.zeros(len(paths), dtype=torch.bool)
    before = Frames(data, rows)
    on_step(0, rows)
    begin: Any = getattr(reward, "begin", None)
    if begin is not None:
        begin(before, range(len(paths)))
    paid: list[list[float]] = [[] for _ in paths]
    for step in range(1, max(map(len, paths))):
        action = torch.from_numpy(np.array(data.window(rows, 1, 1, ())[ACTION][:, 0]))
        rows = np.array([path[min(step, len(path) - 1)] for path in paths])
        after = Frames(data, rows)
        on_step(step, rows)
        values = reward.reward(Step(before, after, {ACTION: action, "success": never, "terminated": never}), {})
        for i, path in enumerate(paths):
            if step < len(path):
                paid[i].append(float(values[i]))
        before = after
    return [np.array(p, dtype=float) for p in paid]
