"""Policy Decorator: soft actor-critic on a bounded correction of a frozen base, let in progressively.

Early on the correction is used in few ticks only, so that episodes still succeed by the base and critics learn from successes:
P(use it) = min(steps / progressive_steps, 1). The correction is made at every tick and closed loop, where the published code
corrects whole chunks; so a chunk of one action is that code's, and longer ones of the base are corrected with a newer look.

Source: Policy Decorator, Yuan et al. 2024, arXiv:2412.13630; soft actor-critic, Haarnoja et al. 2018, arXiv:1801.01290.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rl.learner import CriticInput, Frames, Learner, LearnerConfig
from rl.loop_config import LoopConfig, LoopResult
from rl.replay import Ring
from rl.residual import ResidualMethod, decode
from rl.runner import Runner
from sinew.errors import InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import Executor, Obs, VecEnv
from sinew.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class DecoratorConfig(LoopConfig):
    """Settings of the decorator; the warm-up corrects uniformly at random within the scale."""

    random_steps: int = 4_000
    critic_only_updates: int = 2_000
    progressive_steps: int = 10_000
    """Steps from the start over which the share of corrected ticks grows from 0 to 1; 0 for all at once."""
    critic_input: Literal["sum", "residual", "concat"] = "sum"
    """What critics see beside the features: the executed action, the correction in units of its scale, or that and the planned one."""
    entropy_per_element: float = -1.0
    """Entropy that each element of the correction is held to, in units of its scale."""
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(smoothing_std=0.0, output_l2=0.0, target_actor=False))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_input not in ("sum", "residual", "concat") or self.progressive_steps < 0:
            raise InputError(
                f"critic_input {self.critic_input!r} is not sum, residual or concat, or progressive_steps {self.progressive_steps} < 0"
            )


class DecoratorMethod(ResidualMethod):
    """A drawn correction at every tick, or none; see `train_decorator`."""

    config: DecoratorConfig  # type: ignore[assignment]
    actor: Any

    def __init__(self, executor: Executor, actor: Any, observe: Callable[[Obs], Tensor], config: DecoratorConfig) -> None:
        super().__init__(executor, actor, observe, config)  # type: ignore[arg-type]

    def _explore(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        config, base = self.config, frames["base_action"]
        if step < config.random_steps:
            u = (2 * torch.rand(base.shape, generator=generator).to(base) - 1) * self.actor.bound
        else:
            self.actor.active.fill_(True)
            with torch.no_grad():
                u, _ = self._draw(self.actor, frames, generator)
        if config.progressive_steps:
            u = u * (torch.rand(len(u), 1, generator=generator).to(u) < step / config.progressive_steps)
        return u

    def _draw(self, actor: Any, frames: Frames, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        base = frames["base_action"]
        return actor.draw(actor.sight(frames["features"], base), torch.randn(base.shape, generator=generator).to(base))

    def make_learner(self, frames: Frames) -> Learner:
        """Soft actor-critic on the correction."""
        config, action_dim = self.config, frames["base_action"].shape[1]
        generator, features = torch.Generator().manual_seed(config.seed), frames["features"]
        width = features.shape[1] + action_dim * (2 if config.critic_input == "concat" else 1)
        return Learner(
            self.actor,
            config.make_critic(width, generator).to(features.device),
            propose=lambda actor, frames: self._draw(actor, frames, generator),
            decode=decode,
            critic_input=critic_input(config.critic_input, self.actor.bound),
            config=replace(config.learner, target_entropy=config.entropy_per_element * action_dim),
            generator=generator,
        )


def critic_input(kind: str, scale: float) -> CriticInput:
    """(frames, executed action) → what critics see of it; the correction is what was executed less what was planned.

    Args:
        kind: as `DecoratorConfig.critic_input`.
        scale: largest correction.
    """

    def see(frames: Frames, action: Tensor) -> Tensor:
        features, base = frames["features"], frames["base_action"]
        if kind == "sum":
            return torch.cat((features, action), -1)
        correction = (action - base) / scale
        return torch.cat((features, correction) if kind == "residual" else (features, base, correction), -1)

    return see


def train_decorator(
    env: VecEnv,
    executor: Executor,
    actor: Any,
    observe: Callable[[Obs], Tensor],
    run: RunDir,
    config: DecoratorConfig,
    *,
    demos: Ring | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> LoopResult:
    """Learn to decorate; arguments, errors and result are those of `rl.residual.train_residual`, but for the actor.

    Args:
        env: worlds to learn in.
        executor: plans the base's actions.
        actor: `policies.decorated.Decoration` or alike: `sight(features, planned)`, `draw(sight, normal) → (u, log probability)`,
            `bound` and the buffer `active`; changed in place.
        observe: observations → features (N, D).
        run: folder.
        config: settings.
        demos: recorded episodes, mixed into every batch; the published method has none.
        evaluate: as there.
        progress: as there.
    """
    method = DecoratorMethod(executor, actor, observe, config)
    return Runner(env, method, run, config, demos, evaluate, progress).run_to_end()
