"""One when the task is solved, nothing before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rewards import registry


@registry.add("sparse")
class Sparse:
    """1 on the step that succeeds, else 0; no shaping."""

    low, high = 0.0, 1.0

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """`transition["success"]` (N,) bool → (N,) float32."""
        return transition["success"].float()
