"""Imitation by optimal transport: an episode's frames are moved onto those of a demonstration, at the least cost.

A plan needs the whole episode, so that it is paid at its end. Moving each frame as it comes onto what is left of a demonstration
(greedily, arXiv:2006.04678) would pay at every step, and was tried: it told failures from successes with an AUC of 0.73 to 0.80 on
`lift`, where the plan of the whole reaches 0.99, since failures begin like successes.

Sources: Cuturi 2013, arXiv:1306.0895 (Sinkhorn); Haldar et al. 2022, arXiv:2206.15469 (rewards of an episode from its plan).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewards.files import KINDS, RewardUnavailable, Situation
from rewards.learned import LearnedSettings, check_seen, latents_of
from rewards.progress.nearest import Successes, load
from rewards.shaping import After
from sinew.errors import InputError
from sinew.protocols import Reward

MOST_DEMONSTRATIONS = 8
"""Demonstrations that an episode is compared with; the others would cost time and add little."""
TOLERANCE = 0.25
"""An episode whose move costs this share more than that of one demonstration onto another usually does is worth 1/e of the weight."""


def sinkhorn(cost: Tensor, regularisation: float = 0.05, iterations: int = 100) -> Tensor:
    """The plan (n, m) that moves n equal masses 1/n onto m equal masses 1/m at nearly the least cost.

    Args:
        cost: (n, m), finite.
        regularisation: entropy that the plan is paid for, as a share of the mean cost; towards 0 it becomes the cheapest plan.
        iterations: of scaling rows and columns.

    Raises:
        InputError: the costs are not finite.
    """
    if not bool(torch.isfinite(cost).all()):
        raise InputError("costs of transport are not finite")
    n, m = cost.shape
    kernel = -cost.double() / (regularisation * float(cost.double().mean().clamp(min=1e-12)))
    rows, columns = torch.zeros(n, 1, dtype=torch.float64), torch.zeros(1, m, dtype=torch.float64)
    log_n, log_m = -torch.log(torch.tensor(float(n))), -torch.log(torch.tensor(float(m)))
    for _ in range(iterations):
        rows = log_n - torch.logsumexp(kernel + columns, 1, keepdim=True)
        columns = log_m - torch.logsumexp(kernel + rows, 0, keepdim=True)
    return torch.exp(kernel + rows + columns)


def step_costs(latents: Tensor, demonstrations: Sequence[Tensor], scale: float) -> Tensor:
    """What each frame's move costs, (T,), onto the demonstration that is cheapest for the whole episode (T, L)."""
    best = None
    for demonstration in demonstrations:
        cost = torch.cdist(latents, demonstration) / scale
        moved = (sinkhorn(cost) * cost).sum(1) * len(latents)
        if best is None or moved.sum() < best.sum():
            best = moved
    if best is None:
        raise InputError("there is no demonstration to compare with")
    return best


class EpisodeTransport:
    """Success, and at the end of an episode what its move onto a demonstration is worth: at most `weight`.

    This is no potential: an episode that goes as demonstrations do is paid for it. Success pays more while `weight` is below 1.

    Args:
        see: observations {key: (N, ...)} → latents (N, L).
        demonstrations: latents (T_d, L) of each, at least two.
        scale: unit of distances.
        num_envs: worlds N.
        weight: most that an episode earns besides success.
    """

    def __init__(
        self, see: Callable[[Mapping[str, Tensor]], Tensor], demonstrations: Sequence[Tensor], scale: float, num_envs: int,
        weight: float = 0.5,
    ) -> None:  # fmt: skip
        self.see, self.demonstrations, self.scale, self.weight = see, list(demonstrations), scale, weight
        self.low, self.high = 0.0, 1.0 + weight
        others = [[d for j, d in enumerate(demonstrations) if j != i] for i in range(len(demonstrations))]
        self.usual = sum(self.cost(d, o) for d, o in zip(demonstrations, others, strict=True)) / len(demonstrations)
        self.frames: list[list[Tensor]] = [[] for _ in range(num_envs)]

    def cost(self, latents: Tensor, demonstrations: Sequence[Tensor]) -> float:
        """Mean cost of moving an episode (T, L) onto the cheapest demonstration, in scales."""
        return float(step_costs(latents, demonstrations, self.scale).mean())

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """New episodes in worlds `ids`."""
        latents = self._see(obs)
        for i in ids:
            self.frames[i] = [latents[i]]

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `sinew.protocols.Reward`; called once for every step, in order. "truncated" (N,) bool tells of time-outs."""
        paid = transition["success"].float()
        for frames, latent in zip(self.frames, self._see(After(transition)), strict=True):
            frames.append(latent)
        ended = transition["terminated"]
        if "truncated" in transition:
            ended = ended | transition["truncated"]
        for i in ended.nonzero()[:, 0].tolist():
            excess = max(0.0, self.cost(torch.stack(self.frames[i]), self.demonstrations) / self.usual - 1.0)
            paid[i] += self.weight * math.exp(-excess / TOLERANCE)
        return paid

    @torch.no_grad()
    def _see(self, obs: Mapping[str, Tensor]) -> Tensor:
        latents = self.see(obs)
        finite = torch.isfinite(latents).all(1)
        if not bool(finite.all()):
            raise RewardUnavailable(f"what is seen of world {int((~finite).nonzero()[0])} is not finite")
        return latents


@KINDS.add("transport")
@dataclass(frozen=True, kw_only=True)
class Transport(LearnedSettings):
    """How cheaply an episode can be moved onto a demonstration, paid at its end."""

    low, high = -1.0, 0.0
    weight: float = 0.5
    """The most that an episode earns besides success."""

    def build(self, situation: Situation) -> Reward:
        """See `rewards.files.Kind`."""
        encoder, successes = load(situation.folder / self.weights)
        check_seen(encoder.config, situation)
        shown = demonstrations(successes)
        return EpisodeTransport(partial(latents_of, encoder), shown, float(successes.scale), situation.num_envs, self.weight)


def demonstrations(successes: Successes) -> list[Tensor]:
    """The latents of at most `MOST_DEMONSTRATIONS` successes, spread over those that there are."""
    there = successes.episode.unique()
    kept = there[torch.linspace(0, len(there) - 1, min(len(there), MOST_DEMONSTRATIONS)).round().long()]
    return [successes.latents[successes.episode == i] for i in kept]
