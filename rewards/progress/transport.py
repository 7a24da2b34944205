"""Imitation by optimal transport: an episode's frames are moved onto those of a demonstration, and each pays what its move costs.

`sinkhorn` sees a whole episode. While one is running, `Transport` moves each frame onto what is left of the closest demonstration,
greedily: an upper bound of the least cost, known at every step.

Sources: Cuturi 2013, arXiv:1306.0895 (Sinkhorn); Haldar et al. 2022, arXiv:2206.15469 (rewards of an episode from its plan);
Dadashi et al. 2020, arXiv:2006.04678 (the greedy coupling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.files import KINDS, RewardUnavailable, Situation
from rewards.latent import Encoder
from rewards.progress.nearest import Successes, check_name, check_seen, load
from rewards.shaping import After
from sinew.errors import InputError
from sinew.protocols import Reward

MOST_DEMONSTRATIONS = 8
"""Demonstrations that an episode is compared with; the others would cost time and add little."""
SHARPNESS = 0.5
"""How fast a step's pay falls with the cost of its move, in scales."""


def sinkhorn(cost: Tensor, regularisation: float = 0.01, iterations: int = 500) -> Tensor:
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


class GreedyTransport:
    """Success, plus what each step's move onto a demonstration is worth, until that is used up: at most `weight` in an episode.

    This is no potential: who goes along a demonstration to its end earns the most. Success still pays more while `weight` is below 1.

    Args:
        encoder: sees frames.
        demonstrations: latents (T_d, L) of each.
        scale: unit of distances.
        num_envs: worlds N.
        weight: largest sum over an episode.
    """

    def __init__(self, encoder: Encoder, demonstrations: Sequence[Tensor], scale: float, num_envs: int, weight: float = 0.5) -> None:
        lengths = [len(d) for d in demonstrations]
        longest, self.length = max(lengths), sorted(lengths)[len(lengths) // 2]
        self.encoder, self.scale, self.weight = encoder, scale, weight
        self.low, self.high = 0.0, 1.0 + weight / self.length
        self.atoms = torch.stack([torch.cat((d, d[-1:].expand(longest - len(d), -1))) for d in demonstrations])
        sizes = torch.tensor(lengths)[:, None]
        self.mass = (torch.arange(longest)[None] < sizes) / sizes.float()
        self.left = self.mass.expand(num_envs, -1, -1).clone()
        self.spent = torch.zeros(num_envs, len(demonstrations))

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """New episodes in worlds `ids`: nothing of the demonstrations is used up."""
        rows = list(ids)
        self.left[rows] = self.mass
        self.spent[rows] = 0.0

    @torch.no_grad()
    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `sinew.protocols.Reward`; called once for every step, in order."""
        latents = self.encoder(After(transition))
        if not bool((finite := torch.isfinite(latents).all(1)).all()):
            raise RewardUnavailable(f"what is seen of world {int((~finite).nonzero()[0])} is not finite")
        cost, share = self.take(latents)
        return transition["success"].float() + self.weight / self.length * share * torch.exp(-SHARPNESS * cost)

    def take(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Move a frame of every world, latents (N, L), as mass 1 / length onto what is left, the closest first.

        Returns:
            (N,) mean cost of the move in scales, onto the demonstration that has been cheapest so far; (N,) the share of the mass
            for which there was room, 1 until the demonstration is used up.
        """
        mass = 1.0 / self.length
        distance = torch.cdist(latents[None], self.atoms).transpose(0, 1) / self.scale  # (N, D, T)
        order = distance.argsort(2)
        available = self.left.gather(2, order)
        taken = torch.minimum(available, (mass - (available.cumsum(2) - available)).clamp(min=0.0))
        room = taken.sum(2)
        cost = (taken * distance.gather(2, order)).sum(2)
        self.left = (self.left - torch.zeros_like(self.left).scatter(2, order, taken)).clamp(min=0.0)
        self.spent = self.spent + cost
        best = self.spent.argmin(1, keepdim=True)
        cost, room = cost.gather(1, best)[:, 0], room.gather(1, best)[:, 0]
        return cost / room.clamp(min=1e-9), (room / mass).clamp(max=1.0)


@KINDS.add("transport")
@dataclass(frozen=True, kw_only=True)
class Transport:
    """Settings: success, and how cheaply an episode can be moved onto a demonstration."""

    weights: str
    """File beside the reward file, with encoder and successes."""
    weight: float = 0.5
    """The most that an episode earns besides success."""

    def __post_init__(self) -> None:
        check_name(self.weights)
        if not self.weight > 0:
            raise InputError(f"weight is {self.weight}; it must be above 0")

    def returns(self, gamma: float, max_episode_steps: int) -> tuple[float, float]:
        """Lowest and highest return."""
        return 0.0, 1.0 + self.weight

    def build(self, situation: Situation) -> Reward:
        """See `rewards.files.Kind`."""
        encoder, successes = load(situation.folder / self.weights)
        check_seen(encoder.config, situation)
        shown = demonstrations(successes)
        return GreedyTransport(encoder, shown, float(successes.scale), situation.num_envs, self.weight)


def demonstrations(successes: Successes) -> list[Tensor]:
    """The latents of at most `MOST_DEMONSTRATIONS` successes, spread over those that there are."""
    there = successes.episode.unique()
    kept = there[torch.linspace(0, len(there) - 1, min(len(there), MOST_DEMONSTRATIONS)).round().long()]
    return [successes.latents[successes.episode == i] for i in kept]
