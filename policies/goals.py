"""Conditioning on a goal: an observation to be reached, followed as much as wanted, or left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policies.base import EmbeddingContext
from policies.normalizer import Normalizer
from sinew.errors import SpecError
from sinew.specs import ObservationSpec

PREFIX = "goal."
"""obs["goal.<key>"] (B, ...) is the value of observation <key> that is to be reached."""


@dataclass(frozen=True, kw_only=True)
class GoalSettings:
    """Settings of the conditioning on a goal."""

    keys: tuple[str, ...] = ()
    """Vectors of the observation that make up a goal; in training, their values at the end of the same episode."""
    dropout: float = 0.1
    """Share of training samples that are taught without their goal, whole goals at a time."""
    scale: float = 1.0
    """How far a goal is followed: 0 as if there were none, 1 as taught, above 1 more than taught."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1 or not self.scale >= 0:
            raise SpecError(f"goal dropout {self.dropout} must be in [0, 1], and scale {self.scale} not negative")


@dataclass(frozen=True)
class GoalContext(EmbeddingContext):
    """A context with a goal, and without it where the two are to be compared at every step."""

    free: Tensor | None = None
    """(B, E) embedding of the same observation without goal."""

    def expand(self, n: int) -> GoalContext:
        """The same embeddings for n candidates each; the storage is shared."""
        return GoalContext(self.embedding, self.candidates * n, self.free)


class GoalEncoder(nn.Module):
    """Goals to vectors, with a flag that tells a goal at the mean from none.

    Args:
        spec: the observation.
        settings: which of its vectors are goals.

    Raises:
        SpecError: a key is not a vector of the observation.
    """

    def __init__(self, spec: ObservationSpec, settings: GoalSettings) -> None:
        super().__init__()
        unknown = [key for key in settings.keys if key not in spec.vectors]
        if unknown:
            raise SpecError(f"goal key {unknown[0]!r} is not a vector of the observation: there are {', '.join(spec.vectors) or 'none'}")
        self.settings = settings
        self.normalizer = Normalizer(ObservationSpec({key: spec[key] for key in settings.keys}))

    @property
    def dim(self) -> int:
        """Length of a goal's vector."""
        return self.normalizer.dim + 1

    def forward(self, obs: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Goals (B, dim) of an observation, all zero where it has none or where obs["goal_dropped"] (B,) says so.

        Raises:
            SpecError: some of the goal's parts are given and others not.
        """
        missing = [key for key in self.settings.keys if PREFIX + key not in obs]
        if len(missing) == len(self.settings.keys):
            return rows.new_zeros(len(rows), self.dim)
        if missing:
            raise SpecError(f"the goal lacks {PREFIX + missing[0]!r}: give all of its parts, or none for no goal")
        goal = self.normalizer({key: obs[PREFIX + key] for key in self.settings.keys}, 1)
        goal = torch.cat([goal, goal.new_ones(len(goal), 1)], dim=-1)
        return goal * (~obs["goal_dropped"]).to(goal).unsqueeze(-1) if "goal_dropped" in obs else goal

    def context(self, seen: Tensor, obs: Mapping[str, Tensor], embed: Callable[[Tensor], Tensor]) -> GoalContext:
        """The context of observation vectors `seen` (B, D) and their goals; with the goal-free one where guidance needs it."""
        goal = self(obs, seen)
        compared = self.settings.scale != 1 and PREFIX + self.settings.keys[0] in obs
        free = embed(torch.cat([seen, torch.zeros_like(goal)], dim=-1)) if compared else None
        return GoalContext(embed(torch.cat([seen, goal], dim=-1)), free=free)
