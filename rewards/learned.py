"""What kinds of rewards share whose weights lie beside their file: settings, the checks of them, and potentials of what is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from rewards.files import RewardUnavailable, Situation
from rewards.latent import Encoder, EncoderConfig
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

    Worlds that look as they did when they were last asked about are not looked at again: what comes after one step is what comes
    before the next, so that half the work is saved, and what is paid adds up to the last digit.

    Args:
        encoder: observations → latents.
        value: latents (N, L) → (N,) in [low, high].
        low: of the potential.
        high: of the potential.
    """

    def __init__(self, encoder: Encoder, value: Callable[[Tensor], Tensor], low: float, high: float) -> None:
        self.encoder, self.value, self.low, self.high = encoder, value, low, high
        self._seen: dict[str, Tensor] = {}
        self._values = torch.zeros(0)

    @torch.no_grad()
    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32 where the observations are."""
        seen = {key: obs[key] for key in self.encoder.config.keys}
        rows = self._unlike(seen)
        if rows is None:
            self._values = self._look(seen)
        elif len(rows):
            self._values = self._values.index_copy(0, rows, self._look({key: value[rows] for key, value in seen.items()}))
        else:
            return self._values.clone()
        self._seen = {key: value.clone() for key, value in seen.items()}
        return self._values.clone()

    def _unlike(self, seen: Mapping[str, Tensor]) -> Tensor | None:
        """The worlds (K,) that look otherwise than when they were last asked about; None where the two cannot be compared."""
        for key, value in seen.items():
            last = self._seen.get(key)
            if last is None or (last.shape, last.dtype, last.device) != (value.shape, value.dtype, value.device):
                return None
        return torch.stack([(value != self._seen[key]).flatten(1).any(1) for key, value in seen.items()]).any(0).nonzero()[:, 0]

    def _look(self, seen: Mapping[str, Tensor]) -> Tensor:
        return self.value(latents_of(self.encoder, seen)).to(next(iter(seen.values())).device)


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
