"""TD3+BC: deterministic policy gradient from data, held to the recorded actions by regression.

The actor minimises mean (pi(s) - a)^2 - lambda Q(s, pi(s)) with lambda = alpha / mean |Q|: alpha 0 is regression alone.

Source: Fujimoto and Gu 2021, arXiv:2106.06860.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl.batch import Batch
from rl.critic import Critic
from rl.learner import Frames, Learner, LearnerConfig, features_and_action
from rl.offline import OfflineConfig, OfflineMethod
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Td3BcConfig(OfflineConfig):
    """Settings of TD3+BC."""

    alpha: float = 2.5
    """Weight of the value beside the regression; the value is divided by its own mean size first."""
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(actor_lr=3e-4, smoothing_std=0.2, smoothing_clip=0.5, output_l2=0.0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise InputError(f"alpha is {self.alpha}; it is a weight and must not be negative")


class ImitatingLearner(Learner):
    """A learner whose actor climbs `value_weight` times its value, in units of the mean value, and stays near the data."""

    value_weight: float = 1.0
    _batch: Batch

    def update(self, batch: Batch, *, train_actor: bool = True) -> None:
        """As in `Learner`; the actor's step sees the recorded actions too."""
        self._batch = batch
        super().update(batch, train_actor=train_actor)

    def imitation(self, u: Tensor, batch: Batch) -> Tensor:
        """Loss () of the actor's output u (B, U) beside the value: distance from the recorded action."""
        return (u - batch.action).square().mean()

    def actor_step(self, frames: Frames) -> None:
        """One Adam step down the imitation loss and up the judge's value."""
        judge = self.judge
        judge.fit(self, frames)
        u = self.propose(self.actor, frames)
        if isinstance(u, tuple):
            raise InputError("imitation needs an actor that puts out actions alone, without a probability")
        x = judge.see(frames, u)
        out = judge.engine.forward(x.detach()).detach().requires_grad_()
        values = judge.critic.head.value(out)
        value = values.amin(0) if self.config.actor_reduce == "min" else values.mean(0)
        scale = self.value_weight / value.detach().abs().mean().clamp(min=1e-6)
        (grad_out,) = torch.autograd.grad(-scale * value.mean(), out)
        grad_x = judge.engine.backward(grad_out, parameters=False, inputs=True)
        beside = self.imitation(u, self._batch)
        self.actor_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([x, beside], [grad_x, None])
        self.actor_optimizer.step()
        self._sums[3] += value.detach().mean()
        self._sums[4] += u.detach().square().mean()
        self._actor_updates += 1


class Td3BcMethod(OfflineMethod):
    """An action at a time from features; see the module."""

    config: Td3BcConfig

    def build(self, frames: Frames) -> Learner:
        """Twin critics with smoothed targets, and the actor between them and the data."""
        config, features = self.config, frames["features"]
        generator = torch.Generator().manual_seed(config.seed)
        width = features.shape[1] + self.action_dim
        critic = Critic(width, config.critic_hidden, config.critic_heads, generator=generator).to(features.device)
        learner = ImitatingLearner(
            self.actor,
            critic,
            propose=lambda actor, frames: actor(frames["features"]),
            decode=clamped,
            critic_input=features_and_action,
            config=config.learner,
            generator=generator,
        )
        learner.value_weight = config.alpha
        return learner


def clamped(frames: Frames, u: Tensor) -> Tensor:
    """The actor's output is the action, within bounds."""
    return u.clamp(-1.0, 1.0)
