"""Flow Q-learning, on single actions or on chunks: a flow that imitates the data, and a one-step policy that climbs the critics.

The behaviour flow is only ever trained to imitate. The policy maps noise to an action in one step; it minimises
alpha |pi(s, z) - flow(s, z)|^2 - Q(s, pi(s, z)) / mean |Q|, so nothing is differentiated through the flow's many steps. On chunks of
h actions (Q-chunking) the critics judge whole chunks and bootstrap after them, h steps at once and without bias.

Source: flow Q-learning, Park et al. 2025, arXiv:2502.02538; Q-chunking, Li et al. 2025, arXiv:2507.07969.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rl.batch import Batch
from rl.critic import Critic
from rl.learner import Frames, Learner, LearnerConfig
from rl.offline import OfflineConfig, OfflineMethod
from rl.td3_bc import ImitatingLearner, clamped, features_and_action
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FlowQConfig(OfflineConfig):
    """Settings of flow Q-learning."""

    alpha: float = 10.0
    """Weight of the distance from the behaviour flow, beside the value in units of its own mean size."""
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(
            actor_lr=3e-4, actor_every=1, target_reduce="mean", actor_reduce="mean", smoothing_std=0.0, output_l2=0.0, target_actor=False
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise InputError(f"alpha is {self.alpha}; it is a weight and must not be negative")


class FlowActor(Protocol):
    """What is learned; `policies.flow_q.FlowQActor` is one. Chunks are flat, (B, U)."""

    def jump(self, features: Tensor, noise: Tensor) -> Tensor:
        """The policy: features (B, D), noise (B, U) → chunk."""
        ...

    def velocity(self, features: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The behaviour flow's velocity, noise minus chunk, at x = t noise + (1 - t) chunk; t (B,)."""
        ...

    def flow(self, features: Tensor, noise: Tensor) -> Tensor:
        """Where the behaviour flow takes the noise, within [-1, 1]."""
        ...


class FlowQLearner(ImitatingLearner):
    """Critics, behaviour flow and one-step policy; the last noise that the policy was given is kept for its distillation."""

    alpha: float
    action_dim: int

    def update(self, batch: Batch, *, train_actor: bool = True) -> None:
        """As in `Learner`. What a chunk holds past its episode's end is drawn anew each time: it has no effect, and critics learn so."""
        flat = batch.action.flatten(1)
        self._past = _past_end(batch, self.action_dim)
        if self._past is not None:
            drawn = 2 * torch.rand(flat.shape, generator=self.generator).to(flat) - 1
            flat = torch.where(self._past, drawn, flat)
        super().update(replace(batch, action=flat), train_actor=train_actor)

    def draw(self, actor: Any, frames: Frames) -> Tensor:
        """The policy's chunks (B, U) from fresh noise."""
        features = frames["features"]
        size = self.critic.net.in_dim - features.shape[1]
        self._noise = torch.randn(len(features), size, generator=self.generator).to(features)
        return actor.jump(features, self._noise)

    def imitation(self, u: Tensor, batch: Batch) -> Tensor:
        """Distance of the policy from where the flow takes the same noise, and the flow's own loss."""
        actor: Any = self.actor
        features, action = batch.frames["features"], batch.action
        with torch.no_grad():
            wanted = actor.flow(features, self._noise)
        noise = torch.randn(action.shape, generator=self.generator).to(action)
        t = torch.rand(len(action), generator=self.generator).to(action)
        x = t[:, None] * noise + (1 - t[:, None]) * action
        error = (actor.velocity(features, x, t) - (noise - action)).square()
        behaviour = error.mean() if self._past is None else (error * ~self._past).sum() / (~self._past).sum()
        return self.alpha * (u - wanted).square().mean() + behaviour


def _past_end(batch: Batch, action_dim: int) -> Tensor | None:
    """(B, U) which elements of a chunk lie past its episode's end; None for single actions."""
    if batch.action.dim() == 2:
        return None
    steps = torch.arange(batch.action.shape[1], device=batch.action.device)
    return (steps >= batch.span[:, None]).repeat_interleave(action_dim, 1)


class FlowQMethod(OfflineMethod):
    """Chunks of `stride` actions from features; stride 1 is flow Q-learning, above 1 Q-chunking."""

    config: FlowQConfig

    def choose(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """The policy's own draws explore."""
        actor: Any = self.actor
        noise = torch.randn(len(features), self.stride * self.action_dim, generator=generator).to(features)
        return actor.jump(features, noise)

    def build(self, frames: Frames) -> Learner:
        """Critics of chunks, and the actor."""
        config, features = self.config, frames["features"]
        if self.stride > 1 and config.n_step > 1:
            raise InputError(f"a chunk of {self.stride} actions is judged as a whole; n_step is {config.n_step} and must be 1")
        generator = torch.Generator().manual_seed(config.seed)
        width = features.shape[1] + self.stride * self.action_dim
        critic = Critic(width, config.critic_hidden, config.critic_heads, generator=generator).to(features.device)
        learner: FlowQLearner

        def propose(actor: Any, frames: Mapping[str, Tensor]) -> Tensor:
            return learner.draw(actor, frames)

        learner = FlowQLearner(
            self.actor,
            critic,
            propose=propose,
            decode=clamped,
            critic_input=features_and_action,
            config=config.learner,
            generator=generator,
        )
        learner.alpha, learner.action_dim = config.alpha, self.action_dim
        return learner
