"""What kinds of rewards share whose weights lie beside their file: settings, the checks of them, and potentials of what is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rewards.files import RewardUnavailable, Situation
from rewards.latent import Encoder, EncoderConfig
from rewards.shaping import Shaped
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
        self.encoder, self.value, self.low, self.high = encoder, value, low, high

    @torch.no_grad()
    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32 where the observations are."""
        return self.value(latents_of(self.encoder, obs)).to(next(obs[key] for key in self.encoder.config.keys).device)


class ShapedBySight(Shaped):
    """`Shaped` by a `SeenPotential` that looks once at a step: what comes after one is what comes before the next.

    Only worlds that look otherwise than the last step left them, as those that have begun anew do, are looked at before the step too,
    together with all worlds after it. The potential is a function of the observation alone, so that nothing changes but what it costs.
    """

    potential: SeenPotential

    def __init__(self, potential: SeenPotential, gamma: float, weight: float = 1.0) -> None:
        super().__init__(potential, gamma, weight)
        self._seen: dict[str, Tensor] = {}
        self._values = torch.zeros(0)

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `Shaped.reward`."""
        keys = self.potential.encoder.config.keys
        before, after = ({key: transition[start + key] for key in keys} for start in ("", "next."))
        rows = self._unlike(before)
        if len(rows):
            values = self.potential({key: torch.cat((after[key], before[key][rows])) for key in keys})
            values, fresh = values.split((len(values) - len(rows), len(rows)))
            known = self._values if len(rows) < len(values) else values
            known = known.index_copy(0, rows, fresh)
        else:
            known, values = self._values, self.potential(after)
        self._seen, self._values = {key: value.clone() for key, value in after.items()}, values
        return self._paid(known, values, transition)

    def _unlike(self, seen: Mapping[str, Tensor]) -> Tensor:
        """The worlds (K,) that look otherwise than the last step left them."""
        last = self._seen
        if all(key in last and last[key].device == value.device and torch.equal(last[key], value) for key, value in seen.items()):
            return torch.zeros(0, dtype=torch.int64)
        some = next(iter(seen.values()))
        for key, value in seen.items():
            if key not in last or (last[key].shape, last[key].dtype, last[key].device) != (value.shape, value.dtype, value.device):
                return torch.arange(len(some), device=some.device)
        return torch.stack([(value != last[key]).flatten(1).any(1) for key, value in seen.items()]).any(0).nonzero()[:, 0]


def latents_of(encoder: Encoder, obs: Mapping[str, Tensor]) -> Tensor:
    """Latents (N, L), on the CPU, of observations that may hold more than the encoder sees."""
    return encoder({key: obs[key].cpu() for key in encoder.config.keys})


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
