"""Where things are to each other, seen finely: features for learning that depends on millimetres.

An observation normalised by its spread over a whole dataset shows a peg three millimetres beside its hole and one in it as
nearly the same vector. Critics that learn from a hundred episodes do not find that difference by themselves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policies.base import PolicyModule, Wrapper, require
from policies.catalog import register
from sinew.errors import SpecError
from sinew.protocols import Obs
from sinew.specs import ObservationSpec, PolicySpec


def named_points(spec: ObservationSpec) -> list[tuple[str, str, int]]:
    """Positions in the vectors of an observation, told by their names `<point>.x`, `.y`, `.z`: (point, key, index of x).

    Differences, which are named `<a>-<b>.x`, are none.
    """
    found = []
    for key in spec:
        names = spec[key].names
        for i, name in enumerate(names):
            point = name.removesuffix(".x")
            if name.endswith(".x") and "-" not in point and tuple(names[i : i + 3]) == (f"{point}.x", f"{point}.y", f"{point}.z"):
                found.append((point, key, i))
    return found


@dataclass(frozen=True, kw_only=True)
class RelativeConfig:
    """Settings of the features."""

    reach_m: float = 0.02
    """Distance within which differences are told apart best, in metres."""

    def __post_init__(self) -> None:
        if not 0 < self.reach_m < math.inf:
            raise SpecError(f"reach_m {self.reach_m} must be a distance in metres above 0")


@register("relative")
class Relative(Wrapper):
    """A policy that acts as its base does, and whose `observe` also tells how every two named points lie to each other.

    A difference d of two positions, in metres, is seen as tanh(d / reach_m) in x, y and z.

    Args:
        base: policy with capability "observe".
        reach_m: see `RelativeConfig`.

    Raises:
        SpecError: the base cannot observe, or fewer than two positions are named in its observation.
    """

    Config = RelativeConfig

    def __init__(self, base: PolicyModule, reach_m: float = 0.02) -> None:
        require(base, "observe", "relative positions")
        config = RelativeConfig(reach_m=float(reach_m))
        self.points = named_points(base.spec.observation)
        if len(self.points) < 2:
            raise SpecError("relative positions need two points named <point>.x, <point>.y, <point>.z in the policy's observation")
        super().__init__(base.spec, config, base)
        first, second = zip(*itertools.combinations(range(len(self.points)), 2), strict=True)
        self.register_buffer("first", torch.tensor(first), persistent=False)
        self.register_buffer("second", torch.tensor(second), persistent=False)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Relative:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.reach_m)

    def observe(self, obs: Obs) -> Tensor:
        """The base's features and the differences, (N, observation_dim), without gradient."""
        features = super().observe(obs)
        points = torch.stack([obs[key][..., i : i + 3].to(features) for _, key, i in self.points], -2)
        apart = (points[:, self.first] - points[:, self.second]) / self.config.reach_m  # type: ignore[index]
        return torch.cat((features, apart.tanh().flatten(1)), -1)

    @property
    def observation_dim(self) -> int:
        """Length of what `observe` gives."""
        return super().observation_dim + 3 * len(self.first)  # type: ignore[arg-type]

    @property
    def correct(self) -> Callable[[Obs, Tensor], Tensor]:
        """The base's correction; there where the base corrects."""
        return self.base.correct  # type: ignore[return-value]
