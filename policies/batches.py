"""Training batches: windows of a dataset in a fixed random order, ready for the loss."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from policies.parallel import Group
from policies.randomness import BatchOrder
from sinew.errors import DataError
from sinew.protocols import EpisodeData
from sinew.specs import ACTION, PolicySpec

PRELOAD_BYTES = 1 << 30
"""Windows of datasets without cameras are kept in memory up to this size."""


class Windows:
    """The windows of a dataset as tensors, actions in [-1, 1].

    Datasets without cameras are gathered once and kept; with cameras, the next batch is read by a thread while the
    current one is trained on.

    Args:
        data: the dataset.
        spec: which observations, how many steps of them, and the horizon.
        batch_size: samples in a batch over all processes.
        seed: fixes the order of samples.
        group: this process and its peers; each reads only its share.

    Raises:
        DataError: the dataset is empty.
    """

    def __init__(self, data: EpisodeData, spec: PolicySpec, batch_size: int, seed: int, group: Group) -> None:
        if len(data) == 0:
            raise DataError("the dataset holds no frames: record or collect episodes first")
        self.data, self.spec = data, spec
        self.keys = list(spec.observation)
        self.order = BatchOrder(len(data), batch_size, seed)
        self.share = group.share(batch_size)
        floats = sum(int(np.prod(spec.observation[key].shape)) for key in self.keys) * spec.n_obs_steps
        size = 4 * len(data) * (floats + spec.horizon * spec.action_dim)
        self._all = self._gather(np.arange(len(data))) if not spec.observation.images and size <= PRELOAD_BYTES else None

    def __call__(self, first: int, last: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Batches number first..last-1: sample indices of this process and {key: (B, ...)}."""
        if self._all is not None:
            for step in range(first, last):
                indices = self.order[step][self.share]
                rows = torch.from_numpy(indices)
                yield indices, {key: value.index_select(0, rows) for key, value in self._all.items()}
            return
        with ThreadPoolExecutor(1) as reader:
            ahead: Future | None = None
            for step in range(first, last):
                indices, batch = (ahead or reader.submit(self._read, step)).result()
                ahead = reader.submit(self._read, step + 1) if step + 1 < last else None
                yield indices, batch

    def _read(self, step: int) -> tuple[np.ndarray, dict[str, Tensor]]:
        indices = self.order[step][self.share]
        return indices, self._gather(indices)

    def _gather(self, indices: np.ndarray) -> dict[str, Tensor]:
        window = self.data.window(indices, self.spec.n_obs_steps, self.spec.horizon, self.keys)
        batch = {key: torch.from_numpy(np.ascontiguousarray(window[key])) for key in self.keys}
        batch = {key: value if value.dtype == torch.uint8 else value.float() for key, value in batch.items()}
        batch[ACTION] = self.spec.action.normalize(torch.from_numpy(np.ascontiguousarray(window[ACTION])).float())
        batch["action_is_pad"] = torch.from_numpy(np.ascontiguousarray(window["action_is_pad"]))
        return batch
