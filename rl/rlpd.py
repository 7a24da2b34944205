"""Off-policy reinforcement learning from scratch with demonstrations in half of each batch; without them it is plain SAC.

What the methods that build on a base are to be compared with: the same replay, critics and gate, and an actor that knows nothing.

Source: RLPD, Ball et al. 2023, arXiv:2302.02948; soft actor-critic, Haarnoja et al. 2018, arXiv:1801.01290.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl.batch import Batch, FrameSpec
from rl.learner import Frames, Learner, LearnerConfig, features_and_action
from rl.loop_config import LoopConfig, LoopResult
from rl.replay import Ring
from rl.runner import Runner
from sinew.progress import SILENT, Progress
from sinew.protocols import Obs, VecEnv
from sinew.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class RlpdConfig(LoopConfig):
    """Settings of learning from scratch; the warm-up acts uniformly at random."""

    random_steps: int = 2_000
    critic_only_updates: int = 0
    updates_per_step: float = 1.0
    critic_heads: int = 10
    n_step: int = 1
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(
            actor_lr=3e-4, actor_reduce="mean", smoothing_std=0.0, output_l2=0.0, target_actor=False, target_entropy=0.0
        )
    )


class RlpdMethod:
    """An action at every tick; see `train_rlpd`."""

    stride, anchor = 1, None

    def __init__(self, actor: Any, observe: Callable[[Obs], Tensor], action_dim: int, config: RlpdConfig) -> None:
        self.actor, self.observe, self.action_dim, self.config = actor, observe, action_dim, config

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """Nothing is planned ahead."""

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Features; the planned action, which demonstrations have, is none."""
        features = self.observe(obs)
        return {"features": features, "base_action": features.new_zeros(len(features), self.action_dim)}

    def look_last(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """The same."""
        features = self.observe(obs)
        return {"features": features, "base_action": features.new_zeros(len(features), self.action_dim)}

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """A draw from the actor, or anything at all at first."""
        features = frames["features"]
        if step < self.config.random_steps:
            return (2 * torch.rand(len(features), self.action_dim, generator=generator) - 1).to(features)
        self.actor.active.fill_(True)
        with torch.no_grad():
            return self.actor.draw(features, torch.randn(len(features), self.action_dim, generator=generator).to(features))[0]

    def layout(self, frames: Frames) -> FrameSpec:
        """All of it is kept, as demonstrations are."""
        return {key: (tuple(value.shape[1:]), value.dtype) for key, value in frames.items()}

    def prepare(self, batch: Batch) -> Batch:
        """As it is."""
        return batch

    def make_learner(self, frames: Frames) -> Learner:
        """Critics of actions, and the actor up their mean."""
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        features = frames["features"]
        critic = config.make_critic(features.shape[1] + self.action_dim, generator)

        def propose(actor: Any, frames: Frames) -> tuple[Tensor, Tensor]:
            seen = frames["features"]
            return actor.draw(seen, torch.randn(len(seen), self.action_dim, generator=generator).to(seen))

        return Learner(
            self.actor,
            critic.to(features.device),
            propose=propose,
            decode=lambda frames, u: u,
            critic_input=features_and_action,
            config=config.learner,
            generator=generator,
        )


def train_rlpd(
    env: VecEnv,
    actor: Any,
    observe: Callable[[Obs], Tensor],
    run: RunDir,
    config: RlpdConfig,
    *,
    demos: Ring | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> LoopResult:
    """Learn from scratch; the arguments are those of `rl.residual.train_residual`, without a base.

    Args:
        env: worlds to learn in.
        actor: features → action, with `draw` and `active` as `policies.steered.NoiseActor` has them.
        observe: observations → features (N, D).
        run: folder.
        config: settings.
        demos: recorded episodes; None for plain SAC.
        evaluate: as there.
        progress: as there.
    """
    method = RlpdMethod(actor, observe, env.action_spec.dim, config)
    return Runner(env, method, run, config, demos, evaluate, progress).run_to_end()
