"""One row of a benchmark: our figure beside the peer's, measured in the same run, and the target it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured figure."""

    name: str
    unit: str
    ours: float | None
    """None: not measured here; `peer` then says why."""
    peer: str | None = None
    """What it is compared with, or why nothing was."""
    peer_value: float | None = None
    target: str = ""
    """The target in words, for example ">= 3x peer"."""
    holds: bool | None = None
    """Whether the target is met; None where there is none or nothing was measured."""
    higher_is_better: bool = True
    detail: Mapping[str, Any] | None = None
    """Further figures behind the row, kept in the JSON for a benchmark's own layout."""

    @property
    def ratio(self) -> float | None:
        """Quotient ours / peer_value, turned over where lower is better, so that above 1 is always better."""
        if not self.ours or not self.peer_value:
            return None
        return self.ours / self.peer_value if self.higher_is_better else self.peer_value / self.ours
