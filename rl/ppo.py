"""Proximal policy optimisation from scratch in many worlds at once: short rollouts, a few epochs on each, then they are forgotten.

What is observed is divided by running statistics, which are part of the actor and stand still while a rollout is made and learned from,
so that ratios begin at 1. The first rollout only fills them. Checkpoints lie between rollouts, where there is nothing to be kept of them.

Source: PPO, Schulman et al. 2017, arXiv:1707.06347.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rl.batch import Batch, FrameSpec
from rl.critic import Critic
from rl.group import ALONE, Group
from rl.learner import Frames
from rl.loop_config import LoopConfig, LoopResult
from rl.memory import Files, Memory
from rl.ppo_update import GaussianActor, PpoLearner, PpoUpdateConfig
from rl.rollout import Rollouts
from rl.runner import Runner
from rl.source import here
from sinew.errors import InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import Obs, VecEnv
from sinew.rundir import RunDir

__all__ = ["GaussianActor", "PpoConfig", "PpoMethod", "PpoRunner", "PpoUpdateConfig", "train_ppo"]


@dataclass(frozen=True, kw_only=True)
class PpoConfig(LoopConfig):
    """Settings for some 64 worlds on a CPU; thousands on a GPU need fewer steps of each. What is of replay has no effect."""

    steps: int = 1_000_000
    random_steps: int = 0
    critic_only_updates: int = 0
    updates_per_step: float = 0.0
    rollout_steps: int = 32
    """Steps of every world between two rounds of updates."""
    decay: float = 0.9
    """Lambda of the generalised advantage."""
    initial_std: float = 0.5
    """Spread of actions at first, in units of the normalised action."""
    evaluate_slow: bool = False
    floor: float | None = None
    evaluate_every: int = 50_000
    checkpoint_every: int = 50_000
    critic_hidden: tuple[int, ...] = (128, 128)
    update: PpoUpdateConfig = field(default_factory=PpoUpdateConfig)
    """Settings of the updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout_steps < 1 or not 0 <= self.decay <= 1 or not self.initial_std > 0:
            raise InputError(
                f"rollout_steps {self.rollout_steps} must be at least 1, decay {self.decay} in [0, 1], "
                f"initial_std {self.initial_std} above 0"
            )
        if self.random_steps or self.updates_per_step or self.floor is not None or self.evaluate_slow:
            raise InputError("PPO learns from its own newest steps alone: leave random_steps, updates_per_step, floor and evaluate_slow")


class PpoMethod:
    """An action at every tick, drawn from the policy; see `train_ppo`."""

    stride, anchor, from_scratch = 1, None, True

    def __init__(self, actor: GaussianActor, observe: Callable[[Obs], Tensor], config: PpoConfig, group: Group = ALONE) -> None:
        self.actor: nn.Module = actor
        self.gaussian, self.observe, self.config, self.group = actor, observe, config, group

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """Nothing is remembered from step to step."""

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Features, and the action that is drawn there."""
        features = self.observe(obs)
        with torch.no_grad():
            mean = self.gaussian(features)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            return {"features": features, "u": mean + noise * self.gaussian.log_std.exp()}

    def look_last(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """Features alone: nothing is drawn any more."""
        return {"features": self.observe(obs)}

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """What was drawn, within bounds."""
        return frames["u"].clamp(-1, 1)

    def layout(self, frames: Frames) -> FrameSpec:
        """Both are kept."""
        return {key: (tuple(value.shape[1:]), value.dtype) for key, value in frames.items()}

    def prepare(self, batch: Batch) -> Batch:
        """There are no batches of a replay."""
        return batch

    def make_learner(self, frames: Frames) -> Any:
        """A value function beside the actor."""
        features, config = frames["features"], self.config
        value = Critic(features.shape[1], config.critic_hidden, 1, generator=torch.Generator().manual_seed(config.seed)).to(features.device)
        return PpoLearner(self.gaussian, value, config.update, config.gamma, config.decay, self.group)


class PpoRunner(Runner):
    """The loop with a rollout and a round of updates in turn; checkpoints lie between them."""

    config: PpoConfig
    memory: Rollouts

    def _make_memory(self, layout: FrameSpec, device: torch.device, files: Files) -> Memory:
        return Rollouts(device)

    def _gather(self) -> None:
        for _ in range(self.config.rollout_steps):
            super()._gather()

    def _update(self) -> None:
        self.critic_only_done = True
        self.learner.learn(self.memory.taken(), self.replay_rng)  # type: ignore[attr-defined]  # a learner of its own kind


def train_ppo(
    env: VecEnv,
    actor: GaussianActor,
    observe: Callable[[Obs], Tensor],
    run: RunDir,
    config: PpoConfig,
    *,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
    group: Group = ALONE,
) -> LoopResult:
    """Learn from scratch in all worlds of `env`; the other arguments are those of `rl.fast_td3.train_fast_td3`."""
    method = PpoMethod(actor, observe, config, group)
    source = here(env, method, config.seed, group)
    return PpoRunner(source, method, run, config, None, evaluate, progress).run_to_end()
