"""Exponential moving average of parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Ema:
    """average ← d * average + (1 - d) * parameter, with d = min(decay, (1 + k) / (10 + k)) at update k = 0, 1, ….

    The smaller decay at the start forgets the initial weights.

    Args:
        parameters: what is averaged; the average starts as a copy.
        decay: final decay d.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; a second call undoes it."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
