"""Residual off-policy reinforcement learning on a frozen, chunked base policy.

The base plans an action for every tick; a small actor adds a bounded correction, and critics learn from what was executed,
clip(base + correction, -1, 1). The planned action is stored with every frame, so no update asks the base again.

Source: ResFiT, arXiv:2509.19301, with TD3-style smoothing; the cost of a correction and how it is eased are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rl.batch import Batch, FrameSpec
from rl.learner import Frames, Learner, LearnerConfig, features_and_action
from rl.loop_config import LoopConfig, LoopResult
from rl.replay import Ring
from rl.runner import ACTOR_FILE, STATE_FILE, Runner
from sinew.progress import SILENT, Progress
from sinew.protocols import Executor, Obs, VecEnv
from sinew.rundir import RunDir

__all__ = ["ACTOR_FILE", "STATE_FILE", "ResidualConfig", "make_learner", "train_residual"]


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(LoopConfig):
    """Settings of residual learning; the warm-up acts by base + uniform noise.

    Little noise, and a cost of the correction itself. A policy that closes its own loop stalls when it is pushed around (on handover a
    correction of 0.05 at every tick costs a quarter of the successes), and corrections drift that far while critics know nothing yet.
    """

    steps: int = 25_000
    random_steps: int = 3_000
    n_step: int = 5
    cost_half_life: int | None = 2_500
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(smoothing_std=0.03, smoothing_clip=0.06, output_l2=15.0))
    random_scale: float = 0.05
    """That noise is in plus or minus this, in units of the normalised action."""
    exploration_std: float = 0.03
    """Noise on the executed action while learning, in units of the normalised action."""
    progressive_steps: int = 0
    """Steps after the warm-up over which the share of ticks that use the residual grows from 0 to 1; 0 for at once."""


def propose(actor: nn.Module, frames: Frames) -> Tensor:
    """The residual (N, A) for frames with "features" and "base_action"."""
    return actor(frames["features"], frames["base_action"])


def decode(frames: Frames, u: Tensor) -> Tensor:
    """The action that is executed, stored and judged: the planned one plus the residual, within bounds."""
    return (frames["base_action"] + u).clamp(-1.0, 1.0)


def make_learner(actor: nn.Module, feature_dim: int, action_dim: int, config: ResidualConfig) -> Learner:
    """The learner of the five slots as residual learning fills them, on the device of `actor`."""
    device = next(actor.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed)
    critic = config.make_critic(feature_dim + action_dim, generator).to(device)
    slots: dict[str, Any] = {"propose": propose, "decode": decode, "critic_input": features_and_action}
    return Learner(actor, critic, config=config.learner, generator=generator, **slots)


def train_residual(
    env: VecEnv,
    executor: Executor,
    actor: nn.Module,
    observe: Callable[[Obs], Tensor],
    run: RunDir,
    config: ResidualConfig,
    *,
    demos: Ring | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> LoopResult:
    """Learn a residual; `actor` ends with the best weights, which are also in the run's actor.safetensors.

    Args:
        env: worlds to learn in; reset here.
        executor: plans the base's actions for these worlds; `peek` and `plan` only, no correction.
        actor: (features (N, D), base_action (N, A)) → residual (N, A), zero at first, changed in place.
        observe: observations → features (N, D) float32, frozen.
        run: folder for the training state, the actor and metrics; if it holds a training state, learning goes on from it.
        config: settings.
        demos: recorded episodes (`rl.episodes.add_episode`), mixed into every batch.
        evaluate: measures the policy with `actor` as it is now, always on the same seeds: {"k": successes, "n": episodes, …}.
            With it the result is never worse than the base by these evaluations; without it the last weights are kept.
        progress: told steps with success, q and loss.

    Raises:
        InputError: a reward or observation is not finite (the world is named), or the run was made with another config.
        DataError: the training state of the run is damaged or does not fit.
    """
    method = ResidualMethod(executor, actor, observe, config)
    return Runner(env, method, run, config, demos, evaluate, progress).run_to_end()


class ResidualMethod:
    """A correction at every tick; see `train_residual`."""

    stride, anchor = 1, None

    def __init__(self, executor: Executor, actor: nn.Module, observe: Callable[[Obs], Tensor], config: ResidualConfig) -> None:
        self.executor, self.actor, self.observe, self.config = executor, actor, observe, config

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """The base's queues start anew."""
        self.executor.reset(ids, seeds)

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Features and planned action."""
        return {"features": self.observe(obs), "base_action": self.executor.plan(obs).clamp(-1.0, 1.0)}

    def look_last(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """Features, and what would have been planned."""
        return {"features": self.observe(obs), "base_action": self.executor.peek(obs, ids).clamp(-1.0, 1.0)}

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """The planned action with the residual and its exploration noise."""
        return decode(frames, self._explore(frames, step, generator))

    def _explore(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        config, base = self.config, frames["base_action"]
        if step < config.random_steps:
            noise = torch.rand(base.shape, generator=generator).to(base)
            return (2 * noise - 1) * config.random_scale
        with torch.no_grad():
            u = propose(self.actor, frames)
        u = u + config.exploration_std * torch.randn(u.shape, generator=generator).to(u)
        if config.progressive_steps:
            u = u * (torch.rand(len(u), 1, generator=generator).to(u) * config.progressive_steps < step - config.random_steps)
        return u

    def layout(self, frames: Frames) -> FrameSpec:
        """Both are kept."""
        return {key: (tuple(value.shape[1:]), value.dtype) for key, value in frames.items()}

    def prepare(self, batch: Batch) -> Batch:
        """As it is."""
        return batch

    def make_learner(self, frames: Frames) -> Learner:
        """See the function of this name."""
        return make_learner(self.actor, frames["features"].shape[1], frames["base_action"].shape[1], self.config)
