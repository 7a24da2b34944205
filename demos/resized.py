"""Pictures at another size: one definition for training data and for live cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sinew.errors import InputError
from sinew.specs import ActionSpec, ObservationSpec

if TYPE_CHECKING:
    from demos.concat import Concat
    from demos.dataset import Dataset


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 at another size, averaging over areas when it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    import cv2

    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


class Resized:
    """A dataset whose pictures are squares of another size; implements `sinew.protocols.EpisodeData` and `HasColumns`.

    Args:
        data: the dataset.
        size_px: height and width of the pictures.

    Raises:
        InputError: the size is not positive, or there are no pictures.
    """

    def __init__(self, data: Dataset | Concat, size_px: int) -> None:
        if size_px < 1:
            raise InputError(f"image size {size_px} must be at least 1 pixel")
        if not data.observation_spec.images:
            raise InputError(f"an image size was given and the data has no pictures: it has {', '.join(data.observation_spec)}")
        self.data, self.size_px = data, size_px
        tensors = {
            key: replace(tensor, shape=(size_px, size_px, 3)) if key in data.observation_spec.images else tensor
            for key, tensor in data.observation_spec.tensors.items()
        }
        self._observation = ObservationSpec(tensors)

    @property
    def observation_spec(self) -> ObservationSpec:
        """That of the data, with the pictures' new shape."""
        return self._observation

    @property
    def action_spec(self) -> ActionSpec:
        """That of the data."""
        return self.data.action_spec

    @property
    def num_episodes(self) -> int:
        """Episodes of the data."""
        return self.data.num_episodes

    @property
    def tasks(self) -> Sequence[str]:
        """Instructions of the data."""
        return self.data.tasks

    def __len__(self) -> int:
        return len(self.data)

    def stats(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """See `Dataset.stats`."""
        return self.data.stats()

    def column(self, key: str) -> np.ndarray:
        """See `Dataset.column`."""
        return self.data.column(key)

    def content_hash(self) -> str:
        """That of the data, which the size does not change."""
        return self.data.content_hash()

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """See `Dataset.window`; pictures are resized."""
        window = self.data.window(indices, n_obs_steps, horizon, keys)
        for key in self._observation.images:
            if key in window:
                rows = window[key]
                small = [fit(image, self.size_px, self.size_px) for image in rows.reshape(-1, *rows.shape[2:])]
                window[key] = np.stack(small).reshape(*rows.shape[:2], self.size_px, self.size_px, 3)
        return window
