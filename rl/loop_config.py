"""Settings that every method has, and what learning gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rl.critic import Critic
from rl.gate import Evaluation
from rl.heads import HeadName, ValueHead, VectorHead, make_head
from rl.learner import LearnerConfig
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings that every method has. A "step" is one environment step of one world."""

    steps: int = 40_000
    """Environment steps in all, over all worlds."""
    seed: int = 0
    """Fixes episodes, noise, initial weights and batches."""
    replay_steps: int = 200_000
    """Environment steps that are remembered."""
    replay_ram_gb: float = 4.0
    """Frames that take more than this many GiB in all are kept in memory-mapped files in the run's folder."""
    random_steps: int = 8_000
    """Steps of warm-up before any update."""
    critic_only_updates: int = 3_000
    """Updates after the warm-up that leave the actor alone."""
    updates_per_step: float = 0.5
    """Updates per environment step after the warm-up."""
    batch_size: int = 256
    """Transitions per update."""
    demo_fraction: float = 0.5
    """Share of each batch that comes from demonstrations, where some are given."""
    n_step: int = 3
    """Decisions to the bootstrap state."""
    gamma: float = 0.99
    """Discount per environment step."""
    critic_heads: int = 2
    """Size of the ensemble."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of the critics' hidden layers."""
    critic_head: HeadName = "scalar"
    """What the critics put out (`rl.heads`): scalar, a number; c51 and hl-gauss, a distribution over bins; gaussian, mean and spread."""
    critic_low: float = 0.0
    """Lowest return that c51 and hl-gauss can tell apart."""
    critic_high: float = 1.0
    """Highest return that c51 and hl-gauss can tell apart."""
    critic_bins: int = 51
    """Bins in between."""
    reward_weights: tuple[float, ...] = ()
    """Of the sum that the actor climbs, where worlds give R rewards at each step, (N, R); critics then have a value for each."""
    normalise_rewards: bool = False
    """Whether each of these values counts in units of how much it usually varies."""
    evaluate_every: int = 5_000
    """Steps between evaluations."""
    evaluate_slow: bool = True
    """Whether the slow copy of the actor is evaluated and kept, which does not swing from update to update."""
    stop_success: float = 0.98
    """Learning ends early when evaluations reach this success rate …"""
    stop_evaluations: int = 2
    """… this many times in a row."""
    floor: float | None = 0.1
    """An actor whose success falls further than this below the base's gives way to the best one, and only critics learn for half
    the steps to the next evaluation; None lets it fall."""
    cost_half_life: int | None = None
    """Steps in which the cost of the actor's output halves while evaluations see no fall (`rl.gate.eased`); None leaves it as it is."""
    checkpoint_every: int = 5_000
    """Steps between checkpoints."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Settings of the updates."""

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "n_step", "critic_heads", "evaluate_every", "checkpoint_every", "stop_evaluations")
        for name in positive:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.gamma <= 1 or not 0 <= self.demo_fraction <= 1 or self.updates_per_step < 0:
            raise InputError(
                f"gamma {self.gamma} must be in (0, 1], demo_fraction {self.demo_fraction} in [0, 1], "
                f"updates_per_step {self.updates_per_step} must not be negative"
            )
        if self.cost_half_life is not None and self.cost_half_life < 1:
            raise InputError(f"cost_half_life is {self.cost_half_life}; it must be at least 1, or None")
        if self.floor is not None and not 0 <= self.floor <= 1:
            raise InputError(f"floor {self.floor} is a difference of success rates, between 0 and 1")
        self._head()  # refuses what cannot be

    def _head(self) -> ValueHead:
        if self.reward_weights:
            if self.critic_head != "scalar":
                raise InputError(f"critic_head {self.critic_head!r} is for one reward; leave it scalar for several")
            return VectorHead(self.reward_weights, normalise=self.normalise_rewards)
        return make_head(self.critic_head, self.critic_heads, self.critic_low, self.critic_high, self.critic_bins)

    def make_critic(self, in_dim: int, generator: torch.Generator | None = None) -> Critic:
        """The ensemble that these settings describe, for inputs (B, in_dim); its weights are drawn from `generator`."""
        return Critic(in_dim, self.critic_hidden, self.critic_heads, head=self._head(), generator=generator)


@dataclass(frozen=True)
class LoopResult:
    """What came of it. The actor holds the weights that `best` was measured on."""

    steps: int
    """Environment steps done."""
    updates: int
    """Critic updates done."""
    base: Evaluation | None
    """The base alone, before learning; None without `evaluate`."""
    best: Evaluation | None
    """The weights that were kept; equal to `base` if nothing beat it."""
    history: tuple[Evaluation, ...]
    """Every evaluation, in order."""
    successes: int
    """Episodes that succeeded while learning."""
    reason: str
    """Why it ended, in one line."""
