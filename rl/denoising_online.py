"""The online stage: rounds of PPO in the denoising chain on what the policy does, undone where success falls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl.decisions import ChainActor, Decisions
from rl.denoising_ppo import ChainLearner, Metrics, PpoConfig
from rl.gate import Evaluation
from rl.snapshot import Snapshot
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Settings of the stage."""

    round_steps: int = 5_000
    """Environment steps between updates, over all worlds."""
    value_only_steps: int = 10_000
    """Steps at the start from which only the value function learns."""
    evaluate_every: int = 10_000
    """Steps between evaluations."""
    fall: float = 0.1
    """Policy and optimiser go back to the best where an evaluation is more than this below it …"""
    retreat: float = 0.5
    """… and the step size is multiplied by this."""
    ppo: PpoConfig = field(default_factory=PpoConfig)
    """Settings of the updates."""

    def __post_init__(self) -> None:
        if min(self.round_steps, self.evaluate_every) < 1 or self.value_only_steps < 0 or not 0 < self.retreat <= 1 or not self.fall > 0:
            raise InputError(
                f"round_steps {self.round_steps} and evaluate_every {self.evaluate_every} must be at least 1, value_only_steps "
                f"{self.value_only_steps} not negative, retreat {self.retreat} in (0, 1], fall {self.fall} above 0"
            )


class OnlineStage:
    """The stage and its state.

    Args:
        actor: the policy, at first the best so far; trained in place.
        config: settings.
        first_step: environment steps that were done before.
        generator: of the value function's weights.
    """

    def __init__(self, actor: ChainActor, config: OnlineConfig, first_step: int, generator: torch.Generator) -> None:
        self.config, self.first_step = config, first_step
        self.learner = ChainLearner(actor, config.ppo, generator)
        self.best = Snapshot(actor.policy, self.learner.optimizer)

    def learn(self, table: Decisions, step: int, generator: torch.Generator) -> Metrics:
        """One round on what the policy did until environment step `step`."""
        return self.learner.learn(table, generator, train_policy=step - self.first_step > self.config.value_only_steps)

    def evaluated(self, found: Evaluation | None, best: Evaluation | None, kept: bool) -> bool:
        """Remember the policy, where it is the best, or go back to the best from far below it; whether it went back."""
        if found is None or best is None or kept:
            self.best.take()
            return False
        if found.rate >= best.rate - self.config.fall:
            return False
        rate = self.learner.learning_rate
        self.best.restore()
        self.learner.learning_rate = self.config.retreat * rate
        return True

    # ------------------------------------------------------------ saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers that `load_state` needs."""
        tensors, numbers = self.learner.state()
        return tensors | self.best.state(), numbers | {"first_step": self.first_step}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Become the stage that `state` was taken from."""
        self.learner.load_state(tensors, numbers)
        self.best.load_state(tensors)
        self.first_step = numbers["first_step"]
