"""Recorded episodes played through a reward: what it says of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinew.errors import InputError
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
        return len(self.data.observation_spec.tensors)


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


def play(
    data: EpisodeData,
    paths: Sequence[np.ndarray],
    reward: Reward,
    *,
    won: Sequence[bool] | None = None,
    on_step: Callable[[int, np.ndarray, Mapping[str, Tensor]], None] = lambda step, rows, obs: None,
) -> list[np.ndarray]:
    """What a reward pays along sequences of frames, played side by side: path i is world i, and stays at its end when it is over.

    Args:
        data: the dataset.
        paths: (T_i,) global frame indices each, at least two; usually an episode's.
        reward: built for len(paths) worlds.
        won: paths whose last step is told as a success; none if left out, so that the reward has to see it. Others end by a time-out.
        on_step: told the step, the frames (N,) that it has led to and their observations, once these have been rewarded; first step 0,
            with the frames that paths begin with.

    Returns:
        (T_i - 1,) float64 for each path.

    Raises:
        RewardUnavailable: the reward cannot be had for these episodes.
        InputError: it is not finite; or a path has fewer than two frames.
    """
    if not paths or min(map(len, paths)) < 2:
        raise InputError("there is nothing to play: a path needs two frames")
    rows = np.array([path[0] for path in paths])
    before = Frames(data, rows)
    begin: Any = getattr(reward, "begin", None)
    if begin is not None:
        begin(before, range(len(paths)))
    on_step(0, rows, before)
    paid: list[list[float]] = [[] for _ in paths]
    for step in range(1, max(map(len, paths))):
        action = torch.from_numpy(np.array(data.window(rows, 1, 1, ())[ACTION][:, 0]))
        rows = np.array([path[min(step, len(path) - 1)] for path in paths])
        after = Frames(data, rows)
        ended = torch.tensor([step == len(path) - 1 for path in paths])
        success = ended & torch.tensor([won is not None and won[i] for i in range(len(paths))])
        told = {ACTION: action, "success": success, "terminated": success, "truncated": ended & ~success}
        values = reward.reward(Step(before, after, told), {})
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"the reward of frame {int(rows[int((~torch.isfinite(values)).nonzero()[0])])} is not finite")
        on_step(step, rows, after)
        for i, path in enumerate(paths):
            if step < len(path):
                paid[i].append(float(values[i]))
        before = after
    return [np.array(p, dtype=float) for p in paid]
