"""Critics of recorded chunks, by implicit Q-learning.

A chunk's value bootstraps on a value function of states that is an upper expectile of the values of recorded chunks, so no
critic is asked about a chunk that nobody did while it is fitted.

Source: IQL, Kostrikov et al. 2021, arXiv:2110.06169.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rl.critic import Critic, polyak
from rl.decisions import Decisions
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Settings of critics that are fitted to data."""

    updates: int = 800
    """Adam steps."""
    batch_size: int = 128
    """Decisions per step."""
    learning_rate: float = 3e-4
    """Adam step size."""
    expectile: float = 0.7
    """Of recorded chunks' values that a state is worth; 0.5 is their mean."""
    tau: float = 0.005
    """Share by which the target follows."""
    heads: int = 3
    """Size of the ensemble."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of hidden layers."""
    low: float | None = 0.0
    """Least return there can be, for a sparse reward of success; None where that is not known …"""
    high: float | None = 1.0
    """… and the largest."""

    def __post_init__(self) -> None:
        if not 0 < self.expectile < 1 or min(self.updates, self.batch_size, self.heads) < 1:
            raise InputError(
                f"critics need expectile in (0, 1), and updates, batch_size and heads of at least 1; given {self.expectile}, "
                f"{self.updates}, {self.batch_size} and {self.heads}"
            )

    def limited(self, returns: Tensor) -> Tensor:
        """Returns within what they can be."""
        return returns if self.low is None and self.high is None else returns.clamp(self.low, self.high)

    def possible(self, value: float) -> bool:
        """Whether a mean return can be that, but for a tenth."""
        return (self.low is None or value >= self.low - 0.1) and (self.high is None or value <= self.high + 0.1)


class ChunkCritics(nn.Module):
    """Values of chunks, by an ensemble, and of states.

    Args:
        feature_dim: D of a state's features.
        elements: H * A of a chunk.
        config: settings.
        generator: of the initial weights.
    """

    def __init__(self, feature_dim: int, elements: int, config: CriticConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.q = Critic(feature_dim + elements, config.hidden, config.heads, generator=generator)
        self.v = Critic(feature_dim, config.hidden, 1, generator=generator)

    def values(self, features: Tensor, action: Tensor) -> Tensor:
        """Values (E, B) of chunks (B, H, A) in states (B, D)."""
        return self.q(torch.cat((features, action.flatten(1)), -1))

    @torch.no_grad()
    def advantage(self, features: Tensor, action: Tensor) -> Tensor:
        """(B,) by how much chunks are worth more than their states, by the mean of the ensemble."""
        return self.values(features, action).mean(0) - self.v(features)[0]

    def fit(self, table: Decisions, generator: torch.Generator) -> float:
        """Fit to decisions, whoever made them; the mean squared error of the last tenth of the updates."""
        config, target = self.config, copy.deepcopy(self.q).requires_grad_(False)
        optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate, fused=True)
        online, slow = list(self.q.parameters()), list(target.parameters())
        seen = torch.cat((table.frames["features"], table.action.flatten(1)), -1)
        tail = torch.zeros((), device=seen.device)
        last = config.updates - max(1, config.updates // 10)
        for step in range(config.updates):
            rows = torch.randint(len(table), (config.batch_size,), generator=generator).to(seen.device)
            with torch.no_grad():
                bootstrap = self.v(table.next_features[rows])[0]
                wanted = config.limited(table.reward[rows] + table.discount[rows] * bootstrap)
                above = target(seen[rows]).amin(0)
            gap = above - self.v(table.frames["features"][rows])[0]
            weight = torch.where(gap > 0, config.expectile, 1 - config.expectile)
            error = (self.q(seen[rows]) - wanted).square().mean()
            optimizer.zero_grad(set_to_none=True)
            (error + (weight * gap.square()).mean()).backward()
            optimizer.step()
            polyak(slow, online, config.tau)
            if step >= last:
                tail += error.detach()
        return float(tail / (config.updates - last))
