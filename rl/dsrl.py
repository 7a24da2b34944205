"""Latent steering by off-policy reinforcement learning: an actor chooses the noise of a frozen policy.

With noise aliasing ("na") critics judge the executed chunks, so that what anybody did can be learned from, and the actor climbs a
critic of noise that is fitted to them; nothing is differentiated through the policy. Where it can be, the actor climbs the critics
of chunks themselves ("grad"). Or critics judge noise at once ("sac"): cheaper, and blind to which noises lead to the same actions.

Source: DSRL, Wagenmaker et al. 2025, arXiv:2506.15799; the start and stay at zero noise are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rl.batch import Batch, FrameSpec
from rl.critic import Critic
from rl.learner import Frames, Learner, LearnerConfig, features_and_action
from rl.loop_config import LoopConfig, LoopResult
from rl.noise_judge import NoiseJudge, with_executed
from rl.replay import Ring
from rl.runner import Runner
from sinew.errors import SpecError
from sinew.progress import SILENT, Progress
from sinew.protocols import Obs, Steering, VecEnv
from sinew.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class DsrlConfig(LoopConfig):
    """Settings of latent steering; the warm-up draws noise of every size from none to the prior's."""

    variant: Literal["na", "grad", "sac"] = "na"
    """How noise is judged, see the module."""
    anchor: float = 2.0
    """Cost of noise of unit size, as a multiple of what drawing it was seen to cost (`DsrlMethod.anchor`)."""
    steps: int = 10_000
    random_steps: int = 1_500
    critic_only_updates: int = 1_500
    updates_per_step: float = 0.75
    n_step: int = 3
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(actor_lr=3e-4, tau=0.01, smoothing_std=0, output_l2=0, target_actor=False, target_entropy=0)
    )


class DsrlMethod:
    """A choice of noise for every chunk; see `train_dsrl`."""

    def __init__(self, steering: Steering, num_envs: int, action_dim: int, config: DsrlConfig) -> None:
        self.steering, self.actor, self.config = steering, steering.actor, config
        self.stride, self.action_dim = steering.act_steps, action_dim
        place = next(self.actor.parameters()).device
        self._queue = torch.zeros(num_envs, self.stride, action_dim, device=place)
        self._u = torch.zeros(num_envs, self.actor.size, device=place)
        self._used = torch.full((num_envs,), self.stride, device=place)

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """New chunks are due."""
        self.steering.reset(ids)
        self._used[slice(None) if ids is None else list(ids)] = self.stride

    def anchor(self, learner: Learner, gained: float) -> None:
        """Stay near zero noise, and explore less, where that was measured to succeed more often than what the policy draws."""
        if gained > 0:
            learner.stay_near(self.config.anchor * gained, temperature=1e-3)

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Frames, with the noise behind the chunk of each world and its action for this tick."""
        frames = self.steering.frames(obs)
        due = torch.nonzero(self._used >= self.stride)[:, 0]
        if len(due):
            asked = {key: value[due] for key, value in frames.items()}
            u = self._choose(asked["features"], step, generator)
            self._queue[due], self._u[due], self._used[due] = self.steering.decode(asked, u), u, 0
        action = self._queue[torch.arange(len(self._used), device=self._used.device), self._used]
        self._used += 1
        return {**frames, "u": self._u.clone(), "action": action}

    def _choose(self, features: Tensor, step: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(len(features), self.actor.size, generator=generator).to(features)
        if step < self.config.random_steps:
            normal = normal * torch.rand(len(features), 1, generator=generator).to(features)
            return normal.clamp(-self.actor.bound, self.actor.bound)
        self.actor.active.fill_(True)
        with torch.no_grad():
            return self.actor.draw(features, normal)[0]

    def look_last(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """Frames alone: nothing is chosen any more."""
        frames = self.steering.frames(obs, ids, remember=False)
        return {**frames, "u": frames["features"].new_zeros(len(ids), self.actor.size)}

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """The action of this tick."""
        return frames["action"]

    def layout(self, frames: Frames) -> FrameSpec:
        """All but the action, which is kept as what was executed."""
        return {key: (tuple(value.shape[1:]), value.dtype) for key, value in frames.items() if key != "action"}

    def prepare(self, batch: Batch) -> Batch:
        """What the critics judge as the action: the executed chunk in one vector, or the noise behind it."""
        return replace(batch, action=batch.frames["u"]) if self.config.variant == "sac" else with_executed(batch)

    def make_learner(self, frames: Frames) -> Learner:
        """Critics of chunks with a judge of noise or without, or critics of noise."""
        config, actor, variant = self.config, self.actor, self.config.variant
        generator, width = torch.Generator().manual_seed(config.seed), frames["features"].shape[1]
        device, chosen = frames["features"].device, actor.size if variant == "sac" else self.stride * self.action_dim

        def chunk(frames: Frames, u: Tensor) -> Tensor:
            return self.steering.decode(frames, u).flatten(1)

        def propose(actor: Any, frames: Frames) -> tuple[Tensor, Tensor]:
            return actor.draw(frames["features"], torch.randn(len(frames["features"]), actor.size, generator=generator).to(device))

        if variant == "grad" and not chunk(frames, frames["u"].detach().requires_grad_()).requires_grad:
            raise SpecError("the policy's chunks cannot be differentiated in their noise, so it is steered with dsrl or dsrl-sac only")
        critic, judge = config.make_critic(width + chosen, generator).to(device), None
        if variant == "na":
            of_noise = Critic(width + actor.size, config.critic_hidden, config.critic_heads, generator=generator)
            judge = NoiseJudge(of_noise.to(device), config.learner.critic_lr, chunk)
        decoded = judge.decode if judge else (lambda frames, u: u) if variant == "sac" else chunk
        slots: dict[str, Any] = {"propose": propose, "decode": decoded, "critic_input": features_and_action, "judge": judge}
        actor.active.fill_(True)
        made = Learner(actor, critic, config=config.learner, generator=generator, **slots)
        actor.active.fill_(False)
        return made


def train_dsrl(
    env: VecEnv,
    steering: Steering,
    run: RunDir,
    config: DsrlConfig,
    *,
    demos: Ring | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> LoopResult:
    """Learn to steer; the actor ends with the best weights, inactive where nothing beat the policy alone.

    The rest is as in `rl.residual.train_residual`, and `demos` are made by `rl.episodes.add_frames`.
    """
    method = DsrlMethod(steering, env.num_envs, env.action_spec.dim, config)
    return Runner(env, method, run, config, demos, evaluate, progress).run_to_end()
