"""Observation vectors to zero mean and unit scale, with numbers frozen in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sinew.errors import DataError, SpecError
from sinew.specs import ObservationSpec

STD_FLOOR = 0.01
"""Smallest scale, in the element's unit: what varies less than a centimetre or a hundredth of a radian in the
demonstrations is not blown up to unit variance, where sensor noise would look like motion."""
CLIP = 10.0
"""Normalised values are limited to this many scales, so that one broken reading cannot dominate."""


class Normalizer(nn.Module):
    """(x - mean) / max(std, floor) of the concatenated vectors of an observation.

    Args:
        spec: which vectors there are, in this order.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: ObservationSpec) -> None:
        super().__init__()
        self.keys = spec.vectors
        self.sizes = tuple(math.prod(spec[key].shape) for key in self.keys)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))

    @property
    def dim(self) -> int:
        """Length D of the concatenated vectors."""
        return sum(self.sizes)

    def fit(self, stats: Mapping[str, Mapping[str, np.ndarray]], floor: float = STD_FLOOR) -> None:
        """Take mean and scale from {key: {"mean", "std": (D,)}}.

        Raises:
            SpecError: a key is missing or has another length.
            DataError: a statistic is not finite.
        """
        means, scales = [], []
        for key, size in zip(self.keys, self.sizes, strict=True):
            if key not in stats:
                raise SpecError(f"no statistics for {key!r}: there are {', '.join(stats)}")
            mean, std = (np.asarray(stats[key][name], dtype=np.float64).reshape(-1) for name in ("mean", "std"))
            if mean.size != size or std.size != size:
                raise SpecError(f"statistics of {key!r} have length {mean.size}, the observation spec says {size}")
            if not (np.isfinite(mean).all() and np.isfinite(std).all()):
                raise DataError(f"statistics of {key!r} are not finite: check the dataset with sinew data check")
            means.append(mean)
            scales.append(np.maximum(std, floor))
        if means:
            self.mean.copy_(torch.from_numpy(np.concatenate(means)))
            self.scale.copy_(torch.from_numpy(np.concatenate(scales)))

    def forward(self, obs: Mapping[str, Tensor], leading: int) -> Tensor:
        """Vectors {key: (*lead, *shape)} with `leading` leading axes → (*lead, D) float32, normalised."""
        parts = [obs[key].to(self.mean.dtype).reshape(*obs[key].shape[:leading], -1) for key in self.keys]
        x = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        return ((x - self.mean) / self.scale).clamp(-CLIP, CLIP)
