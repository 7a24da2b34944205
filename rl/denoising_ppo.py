"""PPO through the denoising chain: a round of learning from a table of decisions.

A policy that samples by denoising has no density of its actions, but its random sampler has one at every step. So a decision
is a chain of K small Gaussian actions that share what came of the last one; `rl.surrogate` holds the objective.

Source: DPPO, Ren et al. 2024, arXiv:2409.00588; RL-100, Lei et al. 2025, arXiv:2510.14830.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rl.checkpoint import load_module_state, load_optimizer_state, module_state, optimizer_state
from rl.critic import Critic
from rl.decisions import ChainActor, Decisions
from rl.surrogate import SurrogateConfig, generalised_advantage, normalised, surrogate
from sinew.errors import InputError

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """Settings of the updates."""

    learning_rate: float = 2e-5
    """Adam step size of the policy."""
    value_learning_rate: float = 1e-3
    """Adam step size of the value function."""
    epochs: int = 10
    """How often a round goes through its decisions."""
    batch_size: int = 128
    """Decisions in an update; all steps of their chains are in it."""
    decay: float = 0.95
    """Lambda of the generalised advantage."""
    target_divergence: float = 0.05
    """A round ends when the mean divergence of a step of the chain from the policy that walked it reaches this."""
    gradient_norm: float = 1.0
    """Gradients are shortened to this norm."""
    value_hidden: tuple[int, ...] = (256, 256)
    """Widths of the value function."""
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    """Settings of the objective."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or not self.target_divergence > 0 or not 0 <= self.decay <= 1:
            raise InputError("PPO needs epochs and batch_size of at least 1, target_divergence above 0 and decay in [0, 1]")


class ChainLearner:
    """The policy's optimiser, a value function, and their updates.

    Args:
        actor: the policy; trained in place.
        config: settings.
        generator: of the value function's weights and the order of batches.
    """

    def __init__(self, actor: ChainActor, config: PpoConfig, generator: torch.Generator) -> None:
        self.actor, self.config = actor, config
        self.parameters = [p for p in actor.policy.parameters() if p.requires_grad]
        device = self.parameters[0].device
        self.value = Critic(actor.feature_dim, config.value_hidden, 1, generator=generator).to(device)
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, fused=True)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=config.value_learning_rate, fused=True)
        self.updates = 0

    def learn(self, table: Decisions, generator: torch.Generator, *, train_policy: bool = True) -> Metrics:
        """A round on decisions that the policy has just made: advantages by its value function, then both are updated.

        Decisions in which somebody took over are left out of the policy's objective: their chains were not executed.
        """
        with torch.no_grad():
            value, after = self.value(table.frames["features"])[0], self.value(table.next_features)[0]
        advantage, wanted = generalised_advantage(table.reward, table.discount, value, after, table.follows, self.config.decay)
        metrics: Metrics = {}
        if train_policy and bool(table.own.any()):
            own = table[table.own]
            metrics = self.improve(own.frames, own.chain, own.means, advantage[table.own], generator)
        error = self._fit_value(table.frames["features"], wanted, generator)
        return metrics | {"value": float(value.mean()), "value_error": error}

    def improve(self, frames: Mapping[str, Tensor], chain: Tensor, means: Tensor, advantage: Tensor, generator: torch.Generator) -> Metrics:
        """Updates of the policy alone, towards chains (M, K + 1, H, A) whose advantage (M,) is larger than that of others.

        The policy as it is now has walked them in `frames` {key: (M, ...)}; `means` (M, K, H, A) is where their steps led without noise.
        """
        actor, config = self.actor, self.config
        gain, elements, old = normalised(advantage), actor.shape[0] * actor.shape[1], actor.log_prob(means, chain)
        sums, batches = torch.zeros(3, device=gain.device), 0
        for rows in self._batches(len(gain), generator, config.epochs):
            now = actor.log_prob(actor.means({k: v[rows] for k, v in frames.items()}, chain[rows]), chain[rows])
            made = surrogate(now, old[rows], gain[rows], elements, config.surrogate)
            if batches and float(made.divergence) > config.target_divergence:
                break
            self.optimizer.zero_grad(set_to_none=True)
            made.loss.backward()
            norm = nn.utils.clip_grad_norm_(self.parameters, config.gradient_norm)
            self.optimizer.step()
            sums += torch.stack((made.divergence, made.clipped, norm))
            batches += 1
        self.updates += batches
        divergence, clipped, norm = (sums / max(1, batches)).tolist()
        return {"divergence": divergence, "clipped": clipped, "gradient_norm": norm, "batches": batches}

    def _fit_value(self, features: Tensor, wanted: Tensor, generator: torch.Generator) -> float:
        total, batches = torch.zeros((), device=features.device), 0
        for rows in self._batches(len(wanted), generator, self.config.epochs):
            loss = (self.value(features[rows])[0] - wanted[rows]).square().mean()
            self.value_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.value_optimizer.step()
            total += loss.detach()
            batches += 1
        return float(total / max(1, batches))

    def _batches(self, rows: int, generator: torch.Generator, epochs: int) -> list[Tensor]:
        return [part for _ in range(epochs) for part in torch.randperm(rows, generator=generator).split(self.config.batch_size)]

    # ------------------------------------------------------------ saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers that `load_state` needs."""
        tensors = module_state("policy", self.actor.policy) | module_state("value", self.value)
        tensors |= optimizer_state("policy_optimizer", self.optimizer) | optimizer_state("value_optimizer", self.value_optimizer)
        return tensors, {"updates": self.updates, "learning_rate": self.learning_rate}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Become the learner that `state` was taken from."""
        load_module_state("policy", self.actor.policy, tensors)
        load_module_state("value", self.value, tensors)
        load_optimizer_state("policy_optimizer", self.optimizer, tensors)
        load_optimizer_state("value_optimizer", self.value_optimizer, tensors)
        self.updates = numbers["updates"]
        self.learning_rate = numbers["learning_rate"]

    @property
    def learning_rate(self) -> float:
        """Of the policy."""
        return self.optimizer.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value
