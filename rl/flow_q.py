"""Flow Q-learning, on single actions or on chunks: a flow that imitates the data, and a one-step policy that climbs the critics.

The behaviour flow is only ever trained to imitate. The policy maps noise to an action in one step; it minimises
alpha |pi(s, z) - flow(s, z)|^2 - Q(s, pi(s, z)) / mean |Q|, so nothing is differentiated through the flow's many steps. On chunks of
h actions (Q-chunking) the critics judge whole chunks and bootstrap after them, h steps at once and without bias. Instead of learning a
one-step policy, the best of several chunks of the flow may be taken, by the critics.

Source: flow Q-learning, Park et al. 2025, arXiv:2502.02538; Q-chunking, Li et al. 2025, arXiv:2507.07969.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rl.batch import Batch
from rl.ibrl import share_weights
from rl.learner import Frames, Learner, LearnerConfig, features_and_action
from rl.offline import OfflineConfig, OfflineMethod
from rl.td3_bc import ImitatingLearner, clamped
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FlowQConfig(OfflineConfig):
    """Settings of flow Q-learning."""

    alpha: float = 10.0
    """Weight of the distance from the behaviour flow, beside the value in units of its own mean size."""
    candidates: int = 0
    """Chunks of the flow of which the best is taken; 0 for the one-step policy."""
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(
            actor_lr=3e-4, actor_every=1, target_reduce="mean", actor_reduce="mean", smoothing_std=0.0, output_l2=0.0, target_actor=False
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0 or self.candidates < 0 or (self.candidates and self.critic_head != "scalar"):
            raise InputError(f"alpha {self.alpha} and candidates {self.candidates} must not be negative; candidates need scalar critics")


class FlowQLearner(ImitatingLearner):
    """Critics, behaviour flow and one-step policy; the last noise that the policy was given is kept for its distillation."""

    settings: FlowQConfig
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
        self._noise = drawn(features, size, self.settings.candidates, self.generator)
        return decide(actor, features, self._noise)

    def actor_step(self, frames: Frames) -> None:
        """One Adam step; the flow alone learns where the best of its chunks is taken."""
        if not self.settings.candidates:
            super().actor_step(frames)
            return
        self.actor_optimizer.zero_grad(set_to_none=True)
        self.behaviour(self._batch).backward()
        self.actor_optimizer.step()
        self._actor_updates += 1

    def imitation(self, u: Tensor, batch: Batch) -> Tensor:
        """Distance of the policy from where the flow takes the same noise, and the flow's own loss."""
        actor: Any = self.actor
        with torch.no_grad():
            wanted = actor.flow(batch.frames["features"], self._noise)
        return self.settings.alpha * (u - wanted).square().mean() + self.behaviour(batch)

    def behaviour(self, batch: Batch) -> Tensor:
        """The flow's loss on recorded chunks, as far as they lie within their episodes."""
        actor: Any = self.actor
        action = batch.action
        noise = torch.randn(action.shape, generator=self.generator).to(action)
        t = torch.rand(len(action), generator=self.generator).to(action)
        x = t[:, None] * noise + (1 - t[:, None]) * action
        error = (actor.velocity(batch.frames["features"], x, t) - (noise - action)).square()
        return error.mean() if self._past is None else (error * ~self._past).sum() / (~self._past).sum()


def drawn(features: Tensor, size: int, candidates: int, generator: torch.Generator) -> Tensor:
    """Noise (B, U), or (B, N, U) for N candidates."""
    shape = (len(features), candidates, size) if candidates else (len(features), size)
    return torch.randn(shape, generator=generator).to(features)


def decide(actor: Any, features: Tensor, noise: Tensor) -> Tensor:
    """Chunks (B, U) of noise as `drawn` gives it."""
    return actor.jump(features, noise) if noise.dim() == 2 else actor.best(features, noise)


def _past_end(batch: Batch, action_dim: int) -> Tensor | None:
    """(B, U) which elements of a chunk lie past its episode's end; None for single actions."""
    if batch.action.dim() == 2:
        return None
    steps = torch.arange(batch.action.shape[1], device=batch.action.device)
    return (steps >= batch.span[:, None]).repeat_interleave(action_dim, 1)


class FlowQMethod(OfflineMethod):
    """Chunks of `stride` actions from features; stride 1 is flow Q-learning, above 1 Q-chunking.

    The actor is `policies.flow_q.FlowQActor`, or has its `jump`, `velocity` and `flow`, and for candidates `best` and `critic`.
    """

    config: FlowQConfig

    def choose(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """The policy's own draws explore."""
        return decide(self.actor, features, drawn(features, self.stride * self.action_dim, self.config.candidates, generator))

    def build(self, frames: Frames) -> Learner:
        """Critics of chunks, and the actor."""
        config, features = self.config, frames["features"]
        if self.stride > 1 and config.n_step > 1:
            raise InputError(f"a chunk of {self.stride} actions is judged as a whole; n_step is {config.n_step} and must be 1")
        generator = torch.Generator().manual_seed(config.seed)
        width = features.shape[1] + self.stride * self.action_dim
        learner: FlowQLearner
        learner = FlowQLearner(
            self.actor,
            config.make_critic(width, generator).to(features.device),
            propose=lambda actor, frames: learner.draw(actor, frames),
            decode=clamped,
            critic_input=features_and_action,
            config=config.learner,
            generator=generator,
        )
        learner.settings, learner.action_dim = config, self.action_dim
        if config.candidates:  # the policy keeps the slow copy of the critics
            share_weights(self.actor.critic, learner.critic_target.net)  # type: ignore[arg-type]
        return learner
