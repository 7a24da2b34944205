"""Imitation-bootstrapped reinforcement learning: an actor from scratch beside a frozen base, and critics that choose between them.

At every tick the critics say whether the base's planned action or the actor's own is executed, and targets bootstrap from the
same choice: the base is a floor from which values grow before the actor is any good. The planned action is stored with every
frame, so no update asks the base again; demonstrations fill half of each batch where they are given.

Source: IBRL, Hu et al. 2023, arXiv:2311.02198. Left out: its actor's dropout and its image encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl.learner import Frames, Learner, LearnerConfig, features_and_action
from rl.loop_config import LoopConfig, LoopResult
from rl.replay import Ring
from rl.residual import ResidualMethod
from rl.runner import Runner
from sinew.errors import InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import Executor, Obs, VecEnv
from sinew.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class IbrlConfig(LoopConfig):
    """Settings of imitation-bootstrapped learning; the warm-up acts by the base alone."""

    random_steps: int = 4_000
    critic_only_updates: int = 2_000
    updates_per_step: float = 1.0
    critic_heads: int = 5
    exploration_std: float = 0.1
    """Noise on the actor's own action while learning, in units of the normalised action."""
    floor: float | None = None
    """The base is always among the choices; what falls are the critics, and going back to an earlier actor does not mend them."""
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(actor_lr=3e-4, output_l2=0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_head != "scalar":
            raise InputError(
                f"critic_head {self.critic_head!r}: the policy that ibrl makes keeps critics that put out a number, use scalar"
            )


class IbrlLearner(Learner):
    """A learner whose next action is the better one of the planned and the target actor's own."""

    def next_action(self, frames: Frames, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The action (B, A) that the target critics prefer in `frames`; in a tie the planned one."""
        own, log_p = super().next_action(frames, noise)
        planned = frames["base_action"]
        better = self._least(frames, own) > self._least(frames, planned)
        return torch.where(better[:, None], own, planned), log_p

    def return_to(self, weights: Mapping[str, Tensor]) -> None:
        """The actor's share of the chooser's `weights`; critics go on from where they are, since they know more by now."""
        super().return_to({k.removeprefix("actor."): v for k, v in weights.items() if k.startswith("actor.")})

    def _least(self, frames: Frames, action: Tensor) -> Tensor:
        """The least value (B,) of all target critics."""
        out = self.target_engine.evaluate(self.critic_input(frames, action))
        return self.critic_target.head.value(out).amin(0)


class IbrlMethod(ResidualMethod):
    """A choice between two actions at every tick; see `train_ibrl`."""

    config: IbrlConfig  # type: ignore[assignment]

    def __init__(self, executor: Executor, chooser: Any, observe: Callable[[Obs], Tensor], config: IbrlConfig) -> None:
        super().__init__(executor, chooser, observe, config)  # type: ignore[arg-type]
        self.chooser = chooser

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """The planned action, or the actor's own with its noise where the critics prefer it."""
        features, planned = frames["features"], frames["base_action"]
        if step < self.config.random_steps:
            return planned
        self.chooser.active.fill_(True)
        with torch.no_grad():
            noise = self.config.exploration_std * torch.randn(planned.shape, generator=generator).to(planned)
            return self.chooser.choose(features, planned, (self.chooser.actor(features) + noise).clamp(-1, 1))

    def make_learner(self, frames: Frames) -> IbrlLearner:
        """Its target critics are the chooser's: both are one set of weights."""
        config, chooser, features = self.config, self.chooser, frames["features"]
        generator, width = torch.Generator().manual_seed(config.seed), features.shape[1] + frames["base_action"].shape[1]
        learner = IbrlLearner(
            chooser.actor,
            config.make_critic(width, generator).to(features.device),
            propose=lambda actor, frames: actor(frames["features"]),
            decode=lambda frames, u: u.clamp(-1, 1),
            critic_input=features_and_action,
            config=config.learner,
            generator=generator,
        )
        share_weights(chooser.critic, learner.critic_target.net)
        return learner


def share_weights(follower: torch.nn.Module, leader: torch.nn.Module) -> None:
    """Make the parameters of `follower` those of `leader`, by name: what changes in place in one has changed in the other.

    Raises:
        InputError: they are not of the same shape.
    """
    theirs, mine = (dict(module.named_parameters()) for module in (leader, follower))
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
        raise InputError(
            "the chooser's critics are of another size than those that learn: make it with the config's critic_hidden and heads"
        )
    for name, parameter in mine.items():
        parameter.data = theirs[name].data


def train_ibrl(
    env: VecEnv,
    executor: Executor,
    chooser: Any,
    observe: Callable[[Obs], Tensor],
    run: RunDir,
    config: IbrlConfig,
    *,
    demos: Ring | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> LoopResult:
    """Learn beside a base; arguments, errors and result are those of `rl.residual.train_residual`, but for the chooser.

    Args:
        env: worlds to learn in.
        executor: plans the base's actions.
        chooser: `policies.bootstrapped.Chooser` or alike: `actor` (features → action), `critic` in the layout of
            `rl.critic.EnsembleMLP`, `choose(features, planned, own)` and the buffer `active`; changed in place.
        observe: observations → features (N, D).
        run: folder.
        config: settings.
        demos: recorded episodes beside what the base would have planned there (`rl.episodes`).
        evaluate: as there.
        progress: as there.
    """
    method = IbrlMethod(executor, chooser, observe, config)
    return Runner(env, method, run, config, demos, evaluate, progress).run_to_end()
