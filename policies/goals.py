"""Conditioning on a goal: an observation to be reached, followed as much as wanted, or left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from policies.base import EmbeddingContext, PolicyModule
from policies.normalizer import Normalizer
from sinew.errors import DataError, SpecError
from sinew.protocols import EpisodeData, HasColumns
from sinew.specs import ObservationSpec

GOAL = "goal"
"""Capability of policies that can be given a goal."""
PREFIX = "goal."
"""obs["goal.<key>"] (B, ...) is the value of observation <key> that is to be reached."""


@dataclass(frozen=True, kw_only=True)
class GoalSettings:
    """Settings of the conditioning on a goal."""

    keys: tuple[str, ...] = ()
    """Vectors of the observation that make up a goal."""
    when: str = "end"
    """Which moment of the same episode is the goal of a training sample: "end", its last, for demonstrations of tasks, or
    "future", any later one, for play (hindsight, arXiv:1707.01495)."""
    dropout: float = 0.1
    """Share of training samples that are taught without their goal, whole goals at a time."""
    scale: float = 1.0
    """How far a goal is followed: 0 as if there were none, 1 as taught, above 1 more than taught."""

    def __post_init__(self) -> None:
        if self.when not in ("end", "future"):
            raise SpecError(f"goal when {self.when!r} is unknown: known are end, future")
        if not 0 <= self.dropout <= 1 or not self.scale >= 0:
            raise SpecError(f"goal dropout {self.dropout} must be in [0, 1], and scale {self.scale} not negative")


def goal_settings(policy: PolicyModule) -> GoalSettings | None:
    """What a goal is to a policy, or to the first of the policies inside it that is taught one; None where none is."""
    own = getattr(policy.config, "goal", None)
    if isinstance(own, GoalSettings) and own.keys:
        return own
    return next((found for base in policy.bases() if (found := goal_settings(base)) is not None), None)


class Hindsight:
    """Goals of training samples: what was reached later in the same episode.

    Args:
        data: the dataset.
        settings: which vectors, and when.

    Raises:
        DataError: the dataset cannot tell whole columns, or lacks one.
    """

    def __init__(self, data: EpisodeData, settings: GoalSettings) -> None:
        if not isinstance(data, HasColumns):
            raise DataError(f"the policy learns from goals and {type(data).__name__} tells no columns, so none can be taken from it")
        self.when = settings.when
        self.columns = {key: torch.from_numpy(np.array(data.column(key), dtype=np.float32)) for key in settings.keys}
        frame = np.asarray(data.column("frame_index")).reshape(-1)
        ends = np.append(np.flatnonzero(frame == 0)[1:], len(frame)) - 1
        self.ends = ends[np.searchsorted(ends, np.arange(len(frame)))]

    def __call__(self, indices: np.ndarray, shares: np.ndarray) -> dict[str, Tensor]:
        """{"goal.<key>": (B, D)} of samples `indices` (B,); `shares` (B,) in [0, 1) choose among the later moments."""
        end = self.ends[indices]
        moment = end if self.when == "end" else np.minimum(indices + 1 + (shares * (end - indices)).astype(np.int64), end)
        rows = torch.from_numpy(moment)
        return {PREFIX + key: column[rows] for key, column in self.columns.items()}


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
        self.spec = ObservationSpec({key: spec[key] for key in settings.keys})
        self.normalizer = Normalizer(self.spec)

    @property
    def dim(self) -> int:
        """Length of a goal's vector."""
        return self.normalizer.dim + 1

    def forward(self, obs: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Goals (B, dim) of an observation, all zero where it has none or where obs["goal_dropped"] (B,) says so.

        Raises:
            SpecError: some of the goal's parts are given and others not, or one has another shape.
        """
        missing = [key for key in self.settings.keys if PREFIX + key not in obs]
        if len(missing) == len(self.settings.keys):
            return rows.new_zeros(len(rows), self.dim)
        if missing:
            raise SpecError(f"the goal lacks {PREFIX + missing[0]!r}: give all of its parts, or none for no goal")
        for key, want in self.spec.tensors.items():
            if tuple(obs[PREFIX + key].shape[1:]) != want.shape:
                wanted = ", ".join(map(str, ("batch", *want.shape)))
                raise SpecError(f"{PREFIX + key!r} has shape {tuple(obs[PREFIX + key].shape)}, expected ({wanted})")
        goal = self.normalizer({key: obs[PREFIX + key] for key in self.settings.keys}, 1)
        goal = torch.cat([goal, goal.new_ones(goal.shape[0], 1)], dim=-1)
        return goal * (~obs["goal_dropped"]).to(goal).unsqueeze(-1) if "goal_dropped" in obs else goal

    def context(self, seen: Tensor, obs: Mapping[str, Tensor], embed: Callable[[Tensor], Tensor]) -> GoalContext:
        """The context of observation vectors `seen` (B, D) and their goals; with the goal-free one where guidance needs it."""
        goal = self(obs, seen)
        compared = self.settings.scale != 1 and PREFIX + self.settings.keys[0] in obs
        free = embed(torch.cat([seen, torch.zeros_like(goal)], dim=-1)) if compared else None
        return GoalContext(embed(torch.cat([seen, goal], dim=-1)), free=free)
