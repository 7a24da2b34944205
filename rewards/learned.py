"""What kinds of rewards share whose weights lie beside their file: settings, the checks of them, and potentials of what is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rewards.files import RewardUnavailable, Situation
from rewards.latent import Encoder, EncoderConfig, Sight
from rewards.shaping import After, Shaped
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LearnedSettings:
    """Settings: success, and a potential whose weights were learned."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    """Range of the potential."""

    weights: str
    """File beside the reward file."""
    weight: float = 1.0
    """Factor on the potential."""

    def __post_init__(self) -> None:
        check_beside(self.weights)
        if not 0 < self.weight < math.inf:
            raise InputError(f"weight is {self.weight}; it must be above 0, and finite")

    def returns(self, gamma: float, max_episode_steps: int) -> tuple[float, float]:
        """Lowest and highest return: those of success, less the potential that an episode begins with."""
        return -self.weight * self.high, 1.0 - self.weight * self.low


class SeenPotential:
    """A potential of what an encoder sees.

    Args:
        encoder: observations → latents.
        value: latents (N, L) → (N,) in [low, high], of each world by itself.
        low: of the potential.
        high: of the potential.
    """

    def __init__(self, encoder: Encoder, value: Callable[[Tensor], Tensor], low: float, high: float) -> None:
        self.sight, self.value, self.low, self.high = Sight(encoder), value, low, high

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32 where the observations are."""
        return self.of(self.sight.gather(obs)).to(obs[self.sight.config.keys[0]].device)

    @torch.no_grad()
    def of(self, gathered: Sequence[Tensor]) -> Tensor:
        """The same of what `Sight.gather` gave, on the CPU."""
        return self.value(self.sight.latents(gathered))


class ShapedBySight(Shaped):
    """`Shaped` by a `SeenPotential` that looks once at a step: what comes after one is what comes before the next.

    Only worlds that look otherwise than the last step left them, as those that have begun anew do, are looked at before the step too,
    together with all worlds after it. The potential is a function of the observation alone, so that nothing changes but what it costs.
    """

    potential: SeenPotential

    def __init__(self, potential: SeenPotential, gamma: float, weight: float = 1.0) -> None:
        super().__init__(potential, gamma, weight)
        self._seen: tuple[Tensor, ...] = ()
        self._values = torch.zeros(0)

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `Shaped.reward`."""
        gather = self.potential.sight.gather
        before, after = gather(transition), gather(After(transition))
        rows = self._unlike(before)
        if len(rows):
            values = self.potential.of([torch.cat((new, old[rows])) for new, old in zip(after, before, strict=True)])
            values, fresh = values.split((len(values) - len(rows), len(rows)))
            known = self._values if len(rows) < len(values) else values
            known = known.index_copy(0, rows, fresh)
        else:
            known, values = self._values, self.potential.of(after)
        self._seen, self._values = after, values
        device = transition["success"].device
        return self._paid(known.to(device), values.to(device), transition)

    def _unlike(self, seen: Sequence[Tensor]) -> Tensor:
        """The worlds (K,) that look otherwise than the last step left them."""
        if [value.shape for value in seen] != [value.shape for value in self._seen]:
            return torch.arange(len(seen[0]))
        if all(map(torch.equal, seen, self._seen)):
            return torch.zeros(0, dtype=torch.int64)
        differs = [(value != last).flatten(1).any(1) for value, last in zip(seen, self._seen, strict=True)]
        return torch.stack(differs).any(0).nonzero()[:, 0]


def check_beside(name: str) -> None:
    """Refuse the name of anything that does not lie in the folder of the reward file.

    Raises:
        InputError: it is a path.
    """
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise InputError(f"{name!r}: give the name of a file beside the reward file, without a folder")


def check_seen(config: EncoderConfig, situation: Situation) -> None:
    """Compare what an encoder sees with what there is to see.

    Raises:
        RewardUnavailable: something is not there; what is there is told.
        InputError: a vector is of another length.
    """
    there = situation.observation
    missing = [key for key in config.keys if key not in there]
    if missing:
        raise RewardUnavailable(f"the reward looks at {missing[0]}, and there is only {', '.join(there)}")
    for key, length in config.vectors.items():
        shape = there[key].shape
        if shape != (length,):
            raise InputError(f"the reward was trained on {key} of length {length}, and here it is {shape}; train one on data of this robot")
