"""Training batches: windows of a dataset in a fixed random order, ready for the loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.base import WEIGHT
from policies.goals import GOAL, GoalSettings, Hindsight
from policies.language import LANGUAGE
from policies.orders import ShardOrder, Shards
from policies.parallel import Group
from policies.randomness import BatchOrder, generator
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import EpisodeData, HasColumns
from sinew.specs import ACTION, TASK, PolicySpec

PRELOAD_BYTES = 1 << 30
"""The windows of a dataset are kept in memory up to this size, over all processes together."""
EARLY_FRAMES = 2.0
"""How fast the chance of a frame falls with its number, where beginnings are drawn."""
AHEAD = 2
"""Batches, or pools of them, that are read while one is trained on: reading may be slow now and then without holding training up."""
_READ_TOGETHER = 256
"""Frames read at once when many are: in order, so that a video is decoded once."""


class Windows:
    """The windows of a dataset as tensors, actions in [-1, 1]; for a language policy also "task", the text of each sample.

    A dataset that is small enough is read once and kept; of a larger one, the next batches are read by a thread while the
    current one is trained on. Both give the same batches. With `pool_bytes` the frames of a large dataset are read in a row,
    pool by pool, which is cheaper where single frames are slow to reach; pictures stay uint8 on the whole way.

    Args:
        data: the dataset.
        spec: which observations, how many steps of them, the horizon, and whether the policy takes language.
        batch_size: samples in a batch over all processes.
        seed: fixes the order of samples.
        group: this process and its peers; each reads only its share.
        progress: told the frames that are read.
        limit_bytes: largest size that is kept.
        weights: (frames,) weight of each sample, which becomes "weight"; None for none.
        goal: what a goal is, for a policy with capability "goal"; each sample then has one from its own episode.
        early_share: share of each batch that `Beginnings` draws.
        draw: (frames,) how often each frame is drawn, relative to the others; None for all alike.
        pool_bytes: memory for pools of shards that are read in a row, over all processes; None to draw every frame from everywhere.
        shard_frames: frames that are read in a row.

    Raises:
        DataError: the dataset is empty, or tells no instructions to a language policy or no columns to one with goals or beginnings.
        InputError: a weight is negative or not finite, or their number is not that of the frames.
    """

    def __init__(
        self,
        data: EpisodeData,
        spec: PolicySpec,
        batch_size: int,
        seed: int,
        group: Group,
        progress: Progress = SILENT,
        limit_bytes: int = PRELOAD_BYTES,
        weights: np.ndarray | None = None,
        goal: GoalSettings | None = None,
        early_share: float = 0.0,
        draw: np.ndarray | None = None,
        pool_bytes: int | None = None,
        shard_frames: int = 32,
    ) -> None:
        if len(data) == 0:
            raise DataError("the dataset holds no frames: record or collect episodes first")
        self.data, self.spec = data, spec
        self.keys = list(spec.observation)
        draw = None if draw is None else check_weights(draw, len(data))
        size = window_bytes(spec)
        if pool_bytes is None:
            order = BatchOrder(len(data), batch_size, seed, draw)
        else:
            order = ShardOrder(len(data), batch_size, seed, draw, Shards(shard_frames, max(1, pool_bytes // size // (1 + AHEAD))))
        self.order = Beginnings(data, order, early_share, draw) if early_share else order
        self.share = group.share(batch_size)
        self.weights = None if weights is None else torch.from_numpy(check_weights(weights, len(data)))
        self.tasks, self.task_index = instructed(data) if LANGUAGE in spec.capabilities else ((), None)
        self.seed, self.batch_size = seed, batch_size
        self.hindsight = Hindsight(data, goal) if goal is not None and GOAL in spec.capabilities else None
        self._all = self._load(progress) if size * len(data) * group.size <= limit_bytes else None

    def __call__(self, first: int, last: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Batches number first..last-1: sample indices of this process and {key: (B, ...)}, "task" a list of B texts."""
        for step, (indices, batch) in enumerate(self._batches(first, last), first):
            yield indices, {**batch, **self._beside(step, indices)}

    def _beside(self, step: int, indices: np.ndarray) -> dict[str, Any]:
        """What belongs to samples but is no window of the dataset: their weights, instructions and goals."""
        beside: dict[str, Any] = {}
        if self.weights is not None:
            beside[WEIGHT] = self.weights[indices]
        if self.task_index is not None:
            beside[TASK] = [self.tasks[i] for i in self.task_index[indices]]
        if self.hindsight is not None:
            shares = torch.rand(self.batch_size, generator=generator(self.seed, step, 3)).numpy()[self.share]
            beside |= self.hindsight(indices, shares)
        return beside

    def _batches(self, first: int, last: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        if self._all is not None:
            for step in range(first, last):
                indices = self.order[step][self.share]
                rows = torch.from_numpy(indices)
                yield indices, {key: value.index_select(0, rows) for key, value in self._all.items()}
            return
        runs = self._runs(first, last)
        reader = ThreadPoolExecutor(1, "batches-read")
        try:
            ahead = deque(reader.submit(self._read, *run) for run in islice(runs, AHEAD))
            while ahead:
                batches = ahead.popleft().result()
                ahead.extend(reader.submit(self._read, *run) for run in islice(runs, 1))
                yield from batches
        finally:
            reader.shutdown(cancel_futures=True)

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Batches first..last-1 in runs that are read together."""
        while first < last:
            end = min(last, self.order.until(first))
            yield first, end
            first = end

    def _load(self, progress: Progress) -> dict[str, Tensor]:
        """Every window, {key: (frames, ...)}."""
        progress.start("load", len(self.data))
        return self._gather(np.arange(len(self.data)), progress)

    def _read(self, first: int, last: int) -> Iterable[tuple[np.ndarray, dict[str, Tensor]]]:
        """Batches first..last-1, all of their frames read now."""
        batches = [self.order[step][self.share] for step in range(first, last)]
        if len(batches) == 1:
            return [(batches[0], self._gather(batches[0]))]
        rows = np.unique(np.concatenate(batches))
        return _dealt(rows, self._gather(rows), batches)

    def _gather(self, indices: np.ndarray, progress: Progress = SILENT) -> dict[str, Tensor]:
        """Windows {key: (B, ...)} at sample indices (B,), some at a time."""
        whole: dict[str, Tensor] = {}
        for first in range(0, len(indices), _READ_TOGETHER):
            rows = indices[first : first + _READ_TOGETHER]
            for key, value in self._window(rows).items():
                if key not in whole:
                    whole[key] = value if len(rows) == len(indices) else value.new_empty((len(indices), *value.shape[1:]))
                if whole[key] is not value:
                    whole[key][first : first + len(rows)] = value
            progress.advance(len(rows))
        return whole

    def _window(self, indices: np.ndarray) -> dict[str, Tensor]:
        window = self.data.window(indices, self.spec.n_obs_steps, self.spec.horizon, self.keys)
        batch = {key: torch.from_numpy(np.ascontiguousarray(window[key])) for key in self.keys}
        batch = {key: value if value.dtype == torch.uint8 else value.float() for key, value in batch.items()}
        batch[ACTION] = self.spec.action.normalize(torch.from_numpy(np.ascontiguousarray(window[ACTION])).float())
        batch["action_is_pad"] = torch.from_numpy(np.ascontiguousarray(window["action_is_pad"]))
        return batch


def _dealt(
    rows: np.ndarray, windows: dict[str, Tensor], batches: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Batches of sample indices (B,), each with its windows, out of those (R, ...) of rising indices `rows` (R,)."""
    for indices in batches:
        at = torch.from_numpy(np.searchsorted(rows, indices))
        yield indices, {key: value.index_select(0, at) for key, value in windows.items()}


class Beginnings:
    """Batches of which a share is drawn from the beginnings of episodes, the rest in the usual order.

    Once a motion has begun, the arm's own state tells where it goes, and a policy that learns mostly from such frames has
    no need to look: it copies its motion and ignores picture and instruction. Where an episode begins, only these tell.

    Args:
        data: the dataset, with column "frame_index".
        order: the usual order.
        share: of a batch; of these, frame k of an episode is drawn in proportion to exp(-k / `EARLY_FRAMES`).
        draw: (frames,) by which this is multiplied; None for all alike.

    Source: frames that the past does not foretell are to count more, Wen et al. 2021, arXiv:2106.06452.
    """

    def __init__(self, data: EpisodeData, order: BatchOrder, share: float, draw: np.ndarray | None = None) -> None:
        if not isinstance(data, HasColumns):
            raise DataError("the data have no columns, so nothing tells where their episodes begin")
        self.order, self.early = order, round(share * order.batch_size)
        chance = np.exp(-np.asarray(data.column("frame_index"), np.float64).reshape(-1) / EARLY_FRAMES)
        chance = chance if draw is None else chance * draw
        self.below = np.cumsum(chance) / chance.sum()

    def until(self, step: int) -> int:
        """As that of the usual order."""
        return self.order.until(step)

    def __getitem__(self, step: int) -> np.ndarray:
        """Sample indices (batch_size,) int64 of batch `step`."""
        indices = self.order[step]
        drawn = torch.rand(self.early, generator=generator(self.order.seed, step, 4), dtype=torch.float64).numpy()
        indices[: self.early] = np.minimum(np.searchsorted(self.below, drawn, side="right"), self.order.length - 1)
        return indices


def window_bytes(spec: PolicySpec) -> int:
    """Bytes of one sample as it is kept: pictures as uint8, the rest as float32."""
    observed = sum(math.prod(t.shape) * (1 if key in spec.observation.images else 4) for key, t in spec.observation.tensors.items())
    return 4 * spec.horizon * spec.action_dim + spec.n_obs_steps * observed


def check_horizon(data: EpisodeData, horizon: int) -> None:
    """Refuse chunks that no episode is long enough for: their ends would never be taught.

    Raises:
        InputError: the horizon is longer than the longest episode.
    """
    if isinstance(data, HasColumns) and len(data):
        longest = int(data.column("frame_index").max()) + 1
        if horizon > longest:
            raise InputError(f"the horizon of {horizon} actions is longer than the longest episode, {longest} frames: "
                             f"choose --horizon up to {longest}")


def instructed(data: EpisodeData) -> tuple[Sequence[str], np.ndarray]:
    """Instructions of a dataset, and the number (frames,) of the one that each frame follows.

    Raises:
        DataError: the dataset has none.
    """
    if not isinstance(data, HasColumns) or not data.tasks:
        raise DataError(f"the policy learns from language and {type(data).__name__} tells no instructions: tasks and column 'task_index'")
    return data.tasks, data.column("task_index").reshape(-1)


def check_weights(weights: np.ndarray, frames: int) -> np.ndarray:
    """Sample weights (frames,) as float32.

    Raises:
        InputError: one is negative or not finite, all are zero, or their number is not that of the frames.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (frames,):
        raise InputError(f"sample weights have shape {weights.shape}; one number for each of the {frames} frames is needed")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise InputError(f"the sample weight of frame {bad[0]} is {weights[bad[0]]:g}: weights are finite and not negative")
    if not weights.any():
        raise InputError("all sample weights are zero: nothing could be learned")
    return weights.astype(np.float32)
