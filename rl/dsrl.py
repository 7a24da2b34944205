"""Latent steering by off-policy reinforcement learning: an actor chooses the noise of a frozen policy.

Two ways to learn it. With noise aliasing ("na") the critics judge the chunks that were executed, so that what any policy did
can be learned from, and a second critic, fitted to the first through the frozen policy, judges noise: the actor climbs that
one, and nothing is differentiated through the policy. Without ("sac") the critics judge noise at once: cheaper per update,
and blind to which noises lead to the same actions.

Source: DSRL, Wagenmaker et al. 2025, arXiv:2506.15799.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rl.batch import Batch, FrameSpec
from rl.critic import Critic
from rl.engine import make_engine
from rl.learner import Frames, Judge, Learner, LearnerConfig
from rl.loop_config import LoopConfig, LoopResult
from rl.runner import Runner
from sinew.progress import SILENT, Progress
from sinew.protocols import Obs, VecEnv
from sinew.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class DsrlConfig(LoopConfig):
    """Settings of latent steering; the warm-up draws noise as the policy alone does, within the actor's bound."""

    variant: Literal["na", "sac"] = "na"
    """How noise is judged, see the module."""
    steps: int = 10_000
    random_steps: int = 3_000
    critic_only_updates: int = 0
    n_step: int = 1
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(smoothing_std=0.0, output_l2=0.0, target_actor=False, target_entropy=0.0)
    )


class Steering(Protocol):
    """The frozen policy as learning sees it; `policies.steered.Steering` is one."""

    actor: Any
    """Features → noise, with `draw(features, normal) → (u, log probability)`, `size`, `bound` and the buffer `active`."""
    act_steps: int

    def reset(self, ids: Sequence[int] | None) -> None:
        """Worlds `ids` (None for all) begin new episodes."""
        ...

    def frames(self, obs: Obs, ids: Sequence[int] | None = None, *, remember: bool = True) -> dict[str, Tensor]:
        """"features" (N, D) and whatever `decode` needs."""
        ...

    def decode(self, frames: Frames, u: Tensor) -> Tensor:
        """Frames and noise (B, U) → executed actions (B, act_steps, A)."""
        ...


class NoiseJudge(Judge):
    """A critic of noise that is fitted to the critics of actions through the frozen policy."""

    def __init__(self, critic: Critic, learning_rate: float, decode: Callable[[Frames, Tensor], Tensor]) -> None:
        engine = make_engine(critic.net)
        super().__init__(critic, engine, lambda frames, u: torch.cat((frames["features"], u), -1))
        self.optimizer = torch.optim.Adam(critic.parameters(), lr=learning_rate, fused=True)
        self.decode = decode

    def fit(self, learner: Learner, frames: Frames) -> None:
        """One step towards what the critics say of the chunks of half drawn, half chosen noise, all within the actor's bound."""
        actor, features = learner.actor, frames["features"]
        normal = torch.randn(len(features), actor.size, generator=learner.generator).to(features)  # type: ignore[arg-type]
        with torch.no_grad():
            chosen, _ = actor.draw(features, normal)  # type: ignore[operator]
            half = (torch.arange(len(features), device=features.device) % 2 == 0)[:, None]
            u = torch.where(half, normal.clamp(-actor.bound, actor.bound), chosen)  # type: ignore[operator]
            out = learner.engine.evaluate(learner.critic_input(frames, self.decode(frames, u)))
            wanted = learner.critic.head.value(out).clone()[..., None]
        error = self.engine.forward(self.see(frames, u)) - wanted
        self.engine.backward(error * (2.0 / error.numel()), parameters=True, inputs=False)
        self.optimizer.step()

    def modules(self) -> dict[str, nn.Module]:
        """The critic of noise."""
        return {"noise_critic": self.critic}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Its optimiser."""
        return {"noise_optimizer": self.optimizer}


class DsrlMethod:
    """A choice of noise for every chunk; see `train_dsrl`."""

    def __init__(self, steering: Steering, num_envs: int, action_dim: int, config: DsrlConfig) -> None:
        self.steering, self.actor, self.config = steering, steering.actor, config
        self.stride, self.action_dim = steering.act_steps, action_dim
        self._queue = torch.zeros(num_envs, self.stride, action_dim)
        self._u = torch.zeros(num_envs, self.actor.size)
        self._used = torch.full((num_envs,), self.stride)

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """New chunks are due; noise comes from the runner's stream, not from `seeds`."""
        self.steering.reset(ids)
        self._used[slice(None) if ids is None else list(ids)] = self.stride

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Frames, with the noise behind the chunk of each world and its action for this tick."""
        frames = self.steering.frames(obs)
        due = torch.nonzero(self._used >= self.stride)[:, 0]
        if len(due):
            asked = {key: value[due] for key, value in frames.items()}
            u = self._choose(asked["features"], step, generator)
            self._queue[due], self._u[due], self._used[due] = self.steering.decode(asked, u).cpu(), u.cpu(), 0
        action = self._queue[torch.arange(len(self._used)), self._used]
        self._used += 1
        return {**frames, "u": self._u.to(frames["features"]), "action": action.to(frames["features"])}

    def _choose(self, features: Tensor, step: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(len(features), self.actor.size, generator=generator).to(features)
        if step < self.config.random_steps:
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
        return replace(batch, action=batch.action.flatten(1) if self.config.variant == "na" else batch.frames["u"])

    def make_learner(self, frames: Frames) -> Learner:
        """Critics of chunks with a judge of noise, or critics of noise."""
        config, actor, na = self.config, self.actor, self.config.variant == "na"
        generator, width = torch.Generator().manual_seed(config.seed), frames["features"].shape[1]
        device = frames["features"].device

        def critic(inputs: int) -> Critic:
            return Critic(width + inputs, config.critic_hidden, config.critic_heads, generator=generator).to(device)

        def chunk(frames: Frames, u: Tensor) -> Tensor:
            return self.steering.decode(frames, u).flatten(1)

        def propose(actor: Any, frames: Frames) -> tuple[Tensor, Tensor]:
            features = frames["features"]
            return actor.draw(features, torch.randn(len(features), actor.size, generator=generator).to(features))

        actor.active.fill_(True)
        made = Learner(
            actor,
            config.make_critic(width + (self.stride * self.action_dim if na else actor.size), generator).to(device),
            propose=propose,
            decode=chunk if na else lambda frames, u: u,
            critic_input=lambda frames, action: torch.cat((frames["features"], action), -1),
            config=config.learner,
            generator=generator,
            judge=NoiseJudge(critic(actor.size), config.learner.critic_lr, chunk) if na else None,
        )
        actor.active.fill_(False)
        return made


def train_dsrl(
    env: VecEnv,
    steering: Steering,
    run: RunDir,
    config: DsrlConfig,
    *,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> LoopResult:
    """Learn to steer; the actor ends with the best weights, inactive where nothing beat the policy alone.

    Args:
        env: worlds to learn in; reset here.
        steering: the frozen policy; its actor is changed in place.
        run: as for `rl.residual.train_residual`; errors are the same.
        config: settings.
        evaluate: as there.
        progress: as there.
    """
    method = DsrlMethod(steering, env.num_envs, env.action_spec.dim, config)
    return Runner(env, method, run, config, None, evaluate, progress).run_to_end()
