"""Deterministic off-policy learning from scratch in many worlds at once: large batches, distributional twin critics, few updates.

Each world explores with noise of its own size, drawn anew with every episode, so that there is always some of everything. The
actor acts and bootstraps itself, without a slow copy. What is observed is divided by running statistics, which are part of the
actor. n-step sums are made when sampling, from what is stored (`rl.replay`), so they end where an episode does and are
discounted by the steps they cover. Nothing here knows a device: with worlds and actor on a GPU, replay and updates are there.

Source: FastTD3, Seo et al. 2025, arXiv:2505.22642. Differently from it, critics have layer norm and weights do not decay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rl.batch import Batch, FrameSpec
from rl.group import ALONE, Group
from rl.heads import HeadName
from rl.learner import Frames, Learner, LearnerConfig
from rl.loop_config import LoopConfig, LoopResult
from rl.runner import Runner
from rl.running_norm import NormalisedActor
from rl.source import here
from sinew.errors import InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import Obs, VecEnv
from sinew.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class FastTd3Config(LoopConfig):
    """Settings for some 64 worlds on a CPU; thousands on a GPU go with batches of 32 768 and wider critics."""

    steps: int = 300_000
    replay_steps: int = 500_000
    random_steps: int = 2_000
    critic_only_updates: int = 0
    updates_per_step: float = 1 / 32
    batch_size: int = 1_024
    critic_head: HeadName = "c51"
    critic_bins: int = 101
    noise_low: float = 0.001
    """Smallest standard deviation of a world's exploration, in units of the normalised action."""
    noise_high: float = 0.4
    """Largest."""
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(
            actor_lr=3e-4, tau=0.1, smoothing_std=0.001, smoothing_clip=0.5, output_l2=0.0, target_actor=False
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise_low <= self.noise_high:
            raise InputError(f"noise from {self.noise_low} to {self.noise_high} is no range; 0 <= noise_low <= noise_high is needed")


class FastTd3Method:
    """An action at every tick; see `train_fast_td3`."""

    stride, anchor, from_scratch = 1, None, True

    def __init__(
        self, actor: NormalisedActor, observe: Callable[[Obs], Tensor], num_envs: int, config: FastTd3Config, group: Group = ALONE
    ) -> None:
        self.actor: nn.Module = actor
        self.norm, self.observe, self.config, self.group = actor.norm, observe, config, group
        self.noise = torch.zeros(num_envs, 1, device=next(actor.parameters()).device)
        """Standard deviation of each world's exploration."""

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """The noise of these worlds is of another size now."""
        low, high = self.config.noise_low, self.config.noise_high
        drawn = torch.from_numpy(low + (high - low) * uniform(seeds)).to(self.noise)
        self.noise[slice(None) if ids is None else list(ids)] = drawn[:, None]

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Features, as they are: statistics are of the time of learning."""
        return {"features": self.observe(obs)}

    def look_last(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """The same."""
        return {"features": self.observe(obs)}

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """The actor's action with the world's noise."""
        with torch.no_grad():
            action = self.actor(frames["features"])
        return (action + torch.randn(action.shape, generator=generator).to(action) * self.noise).clamp(-1, 1)

    def layout(self, frames: Frames) -> FrameSpec:
        """Features are kept."""
        return {key: (tuple(value.shape[1:]), value.dtype) for key, value in frames.items()}

    def prepare(self, batch: Batch) -> Batch:
        """As it is; the statistics take it in."""
        self.norm.update(batch.frames["features"], self.group)
        return batch

    def make_learner(self, frames: Frames) -> Learner:
        """Twin critics that see what the actor sees."""
        features, norm = frames["features"], self.norm
        generator = torch.Generator(features.device).manual_seed(self.config.seed)
        width = features.shape[1] + self.actor(features).shape[1]
        return Learner(
            self.actor,
            self.config.make_critic(width, generator).to(features.device),
            propose=lambda actor, frames: actor(frames["features"]),
            decode=lambda frames, u: u.clamp(-1, 1),
            critic_input=lambda frames, action: torch.cat((norm(frames["features"]), action), -1),
            config=self.config.learner,
            generator=generator,
        )


def uniform(seeds: Sequence[int]) -> np.ndarray:
    """A number in [0, 1) of every seed (M,), unrelated between near ones, without a generator for each (splitmix64, Steele et al. 2014)."""
    z = np.asarray(seeds, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def train_fast_td3(
    env: VecEnv,
    actor: NormalisedActor,
    observe: Callable[[Obs], Tensor],
    run: RunDir,
    config: FastTd3Config,
    *,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
    group: Group = ALONE,
) -> LoopResult:
    """Learn from scratch in all worlds of `env`, alone or as one of `group`; the rest is as in `rl.residual.train_residual`."""
    method = FastTd3Method(actor, observe, env.num_envs, config, group)
    return Runner(here(env, method, config.seed, group), method, run, config, None, evaluate, progress).run_to_end()
