"""Imitation by optimal transport: an episode's frames are moved onto those of a demonstration, at the least cost.

A plan needs the whole episode, so that it is paid at its end. Moving each frame as it comes onto what is left of a demonstration
(greedily, arXiv:2006.04678) would pay at every step, and was tried: it told failures from successes with an AUC of 0.73 to 0.80 on
`lift`, where the plan of the whole reaches 0.99, since failures begin like successes.

Three things are not as published, each for what it does where pictures are seen (docs/rewards.md has the figures): an episode is held
against the demonstrations that look most alike, of all that there are, since a frame tells more of the scene than of the task; late
frames weigh more than early ones, in which failures are like successes; and moving in time costs too, so that the order counts.

Sources: Cuturi 2013, arXiv:1306.0895 (Sinkhorn); Haldar et al. 2022, arXiv:2206.15469 (rewards of an episode from its plan).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.files import KINDS, RewardUnavailable, Situation
from rewards.latent import Sight
from rewards.learned import LearnedSettings, check_seen
from rewards.progress.nearest import Successes, load
from rewards.shaping import After
from sinew.errors import InputError
from sinew.protocols import Reward

MOMENTS = 16
"""Moments of an episode that are compared, from its first frame to its last at equal distances."""
LATE = 2.0
"""The last moment weighs e to this times as much as the first."""
ORDER = 1.0
"""Moving a frame from an episode's beginning to the other one's end costs so many usual distances between frames of a demonstration."""
ALIKE = 4
"""Demonstrations onto which a plan is made: those that are closest moment by moment."""
MOST_DEMONSTRATIONS = 256
"""Demonstrations that are kept."""
TOLERANCE = 0.5
"""An episode whose move costs this share more than that of one demonstration onto another usually does is worth 1/e of the weight."""


def sinkhorn(cost: Tensor, rows: Tensor, columns: Tensor, regularisation: float = 0.05, iterations: int = 20) -> Tensor:
    """Plans (..., n, m) that move masses `rows` (n,) onto masses `columns` (m,) at nearly the least cost; both add up to 1.

    Args:
        cost: (..., n, m), finite.
        rows: what is at each row, above 0.
        columns: what goes to each column, above 0.
        regularisation: entropy that a plan is paid for, as a share of its mean cost; towards 0 it becomes the cheapest plan, in more
            iterations.
        iterations: of scaling rows and columns.

    Raises:
        InputError: the costs are not finite.
    """
    if not bool(torch.isfinite(cost).all()):
        raise InputError("an optimal transport was asked for at costs that are not finite")
    # What a whole row or column costs does not change the plan. Without it each has an entry of 1, and none is lost to rounding.
    reduced = cost - cost.amin(-1, keepdim=True)
    reduced = reduced - reduced.amin(-2, keepdim=True)
    tiny = torch.finfo(cost.dtype).tiny ** 0.75
    kernel = torch.exp(-reduced / (regularisation * cost.mean((-1, -2), keepdim=True).clamp(min=1e-12))).clamp(min=tiny)
    right = torch.ones_like(cost[..., :1, :]).mT
    for _ in range(iterations):
        left = rows[:, None] / (kernel @ right)
        right = columns[:, None] / (kernel.mT @ left)
    return left * kernel * right.mT  # pyright: ignore[reportPossiblyUnboundVariable]


def moments(latents: Tensor) -> Tensor:
    """Latents (T, L) of an episode → (`MOMENTS`, L), from the first to the last."""
    return latents[torch.linspace(0, len(latents) - 1, MOMENTS).round().long()]


class Demonstrations:
    """Demonstrations onto which episodes are moved.

    Args:
        shown: (D, `MOMENTS`, L) latents, at least two demonstrations.
        scale: unit of distances.
    """

    def __init__(self, shown: Tensor, scale: float) -> None:
        self.shown, self.scale = shown, scale
        time = torch.linspace(0, 1, MOMENTS)
        self.mass = torch.softmax(LATE * time, 0)
        self.order = ORDER * torch.cdist(shown, shown).mean() * (time[:, None] - time).abs()
        others = ~torch.eye(len(shown), dtype=torch.bool)
        self.usual = float(self.costs(shown, others).mean())

    @classmethod
    def of(cls, successes: Successes) -> Demonstrations:
        """Recorded successes, at most `MOST_DEMONSTRATIONS`, spread over those that there are."""
        there = successes.episode.unique()
        kept = there[torch.linspace(0, len(there) - 1, min(len(there), MOST_DEMONSTRATIONS)).round().long()]
        return cls(torch.stack([moments(successes.latents[successes.episode == i]) for i in kept]), float(successes.scale))

    def costs(self, episodes: Tensor, among: Tensor | None = None) -> Tensor:
        """What it costs to move episodes (K, `MOMENTS`, L) onto the cheapest demonstration (K,), in scales.

        Args:
            episodes: latents at their moments.
            among: (K, D) bool, the demonstrations that count for each; all if left out.
        """
        weighted = self.mass.sqrt()[:, None]
        apart = torch.cdist((episodes * weighted).flatten(1), (self.shown * weighted).flatten(1))
        if among is not None:
            apart = apart.masked_fill(~among, torch.inf)
        most = min(ALIKE, len(self.shown) if among is None else int(among.sum(1).min()))
        alike = self.shown[apart.topk(most, largest=False).indices]
        cost = (torch.cdist(episodes[:, None].expand_as(alike), alike) + self.order) / self.scale
        return (sinkhorn(cost, self.mass, self.mass) * cost).sum((-1, -2)).amin(1)


class EpisodeTransport:
    """Success, and at the end of an episode what its move onto a demonstration is worth: at most `weight`.

    This is no potential: an episode that goes as demonstrations do is paid for it. Success pays more while `weight` is below 1.

    Args:
        see: observations {key: (K, ...)} → latents (K, L), of each world by itself.
        keys: observations that it sees.
        demonstrations: onto which episodes are moved.
        num_envs: worlds N.
        weight: most that an episode earns besides success.
    """

    def __init__(
        self, see: Callable[[Mapping[str, Tensor]], Tensor], keys: Sequence[str], demonstrations: Demonstrations, num_envs: int,
        weight: float = 0.5,
    ) -> None:  # fmt: skip
        self.see, self.keys, self.demonstrations, self.weight = see, tuple(keys), demonstrations, weight
        self.low, self.high = 0.0, 1.0 + weight
        self.frames = torch.zeros(64, num_envs, demonstrations.shown.shape[2])
        self.last = torch.zeros(num_envs, dtype=torch.int64)

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """New episodes in worlds `ids`."""
        worlds = torch.tensor(list(ids), dtype=torch.int64)
        self.last[worlds] = 0
        self.frames[0, worlds] = self._see(obs, worlds)

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `sinew.protocols.Reward`; called once for every step, in order. "truncated" (N,) bool tells of time-outs."""
        paid = transition["success"].float()
        worlds = torch.arange(len(self.last))
        self.last += 1
        if int(self.last.max()) >= len(self.frames):
            self.frames = torch.cat((self.frames, torch.zeros_like(self.frames)))
        self.frames[self.last, worlds] = self._see(After(transition), worlds)
        ended = transition["terminated"]
        if "truncated" in transition:
            ended = ended | transition["truncated"]
        if bool(ended.any()):
            paid[ended] += self.weight * self._worth(ended.cpu().nonzero()[:, 0]).to(paid)
        return paid

    def _worth(self, worlds: Tensor) -> Tensor:
        """What the episodes of `worlds` (K,) are worth, in [0, 1]."""
        rows = (torch.linspace(0, 1, MOMENTS) * self.last[worlds, None]).round().long()
        costs = self.demonstrations.costs(self.frames[rows, worlds[:, None]])
        return torch.exp(-(costs / self.demonstrations.usual - 1.0).clamp(min=0.0) / TOLERANCE)

    @torch.no_grad()
    def _see(self, obs: Mapping[str, Tensor], worlds: Tensor) -> Tensor:
        """Latents (K, L) of `worlds` (K,)."""
        every = len(worlds) == len(self.last)
        latents = self.see({key: obs[key] if every else obs[key][worlds.to(obs[key].device)] for key in self.keys})
        finite = torch.isfinite(latents).all(1)
        if not bool(finite.all()):
            raise RewardUnavailable(f"what is seen of world {int(worlds[~finite][0])} is not finite")
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
        return EpisodeTransport(Sight(encoder), encoder.config.keys, Demonstrations.of(successes), situation.num_envs, self.weight)
