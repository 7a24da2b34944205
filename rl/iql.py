"""Implicit Q-learning: values of the best recorded actions, without ever asking about another action.

V(s) is an upper expectile of Q(s, a) over the recorded actions, Q is regressed on r + gamma V(s'), and the actor on the
recorded actions, each weighted by exp(beta (Q - V)).

Source: Kostrikov et al. 2021, arXiv:2110.06169.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rl.batch import Batch
from rl.critic import Critic, EnsembleMLP
from rl.engine import make_engine
from rl.learner import Frames, Learner, LearnerConfig, features_and_action
from rl.offline import OfflineConfig, OfflineMethod
from rl.td3_bc import clamped
from sinew.errors import InputError

LARGEST_WEIGHT = 100.0
"""Of a recorded action."""


@dataclass(frozen=True, kw_only=True)
class IqlConfig(OfflineConfig):
    """Settings of implicit Q-learning."""

    expectile: float = 0.8
    """Which expectile of the recorded actions' values V is: 0.5 is their mean, towards 1 the best of them."""
    beta: float = 10.0
    """How sharply the actor prefers recorded actions of higher advantage; 0 is plain regression."""
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(actor_lr=3e-4, actor_every=1, smoothing_std=0.0, output_l2=0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.expectile < 1 or self.beta < 0:
            raise InputError(f"expectile {self.expectile} must be in (0, 1) and beta {self.beta} not negative")


def expectile_gradient(value: Tensor, target: Tensor, expectile: float) -> tuple[Tensor, Tensor]:
    """Mean of |expectile - 1[d < 0]| d^2 with d = target - value, and its gradient in `value`; both (B,)."""
    difference = target - value
    weight = torch.where(difference > 0, expectile, 1 - expectile)
    return (weight * difference.square()).mean(), weight * difference * (-2.0 / len(value))


class IqlLearner(Learner):
    """A learner with a value network beside the critics.

    Args:
        value: features (1, B, D) → V (1, B, 1).
        iql: expectile and beta.
        others: arguments of `Learner`.
    """

    def __init__(self, value: EnsembleMLP, iql: IqlConfig, *others: Any, **named: Any) -> None:
        super().__init__(*others, **named)
        self.value, self.iql = value, iql
        self.value_engine = make_engine(value, named["config"].engine)
        self.value_optimizer = torch.optim.Adam(value.parameters(), lr=named["config"].critic_lr, fused=True)

    def update(self, batch: Batch, *, train_actor: bool = True) -> None:
        """V towards its expectile, the critics towards r + gamma V, the actor towards good recorded actions."""
        with torch.no_grad():
            out = self.target_engine.evaluate(self.critic_input(batch.frames, batch.action), self.draw_heads())
            q = self.critic_target.head.value(out).amin(0).clone()
            v = self.value_engine.forward(batch.frames["features"])[0, :, 0].clone()
            _, gradient = expectile_gradient(v, q, self.iql.expectile)
        self.value_engine.backward(gradient[None, :, None], parameters=True, inputs=False)
        self.value_optimizer.step()
        self._recorded = batch.action, (self.iql.beta * (q - v)).exp().clamp(max=LARGEST_WEIGHT)
        super().update(batch, train_actor=train_actor)

    @torch.no_grad()
    def target(self, batch: Batch, heads: list[int] | None = None, noise: Tensor | None = None) -> Tensor:
        """Targets (B,): r + gamma V(s'), clipped as the config says."""
        value = self.value_engine.evaluate(batch.next_frames["features"])[0, :, 0]
        target = torch.addcmul(batch.reward, batch.discount, value)
        if self.config.target_low is not None or self.config.target_high is not None:
            target = target.clamp_(self.config.target_low, self.config.target_high)
        self._sums[2] += target.mean()
        return target

    def actor_step(self, frames: Frames) -> None:
        """One Adam step of the weighted regression: the likelihood of a Gaussian of fixed width."""
        action, weight = self._recorded
        u: Any = self.propose(self.actor, frames)
        self.actor_optimizer.zero_grad(set_to_none=True)
        (weight * (u - action).square().mean(-1)).mean().backward()
        self.actor_optimizer.step()
        self._sums[4] += u.detach().square().mean()
        self._actor_updates += 1

    def _modules(self) -> dict[str, nn.Module]:
        return {**super()._modules(), "value": self.value}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {**super()._optimizers(), "value_optimizer": self.value_optimizer}


class IqlMethod(OfflineMethod):
    """An action at a time from features; see the module."""

    config: IqlConfig

    def build(self, frames: Frames) -> Learner:
        """Twin critics, a value network, and the actor."""
        config, features = self.config, frames["features"]
        generator = torch.Generator().manual_seed(config.seed)
        width = features.shape[1]
        critic = Critic(width + self.action_dim, config.critic_hidden, config.critic_heads, generator=generator)
        value = EnsembleMLP(width, config.critic_hidden, heads=1, generator=generator)
        return IqlLearner(
            value.to(features.device),
            config,
            self.actor,
            critic.to(features.device),
            propose=lambda actor, frames: actor(frames["features"]),
            decode=clamped,
            critic_input=features_and_action,
            config=config.learner,
            generator=generator,
        )
