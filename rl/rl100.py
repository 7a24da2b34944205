"""Improving a denoising policy in stages: first from data, behind a gate, then by doing, in the environment.

- offline: the policy's random sampler plays some episodes, which join the demonstrations; then `rl.denoising_offline`.
- online: PPO in the denoising chain on what the policy does. Evaluations keep the best; where one falls far below it, policy and
  optimiser go back and smaller steps are tried.

What comes of it is never worse than the base by the evaluations, where there are some. Everything random in a round is drawn from
a stream that its number fixes, and all worlds start anew in each; so a run that was killed goes on as if it had not been.

Source: RL-100, Lei et al. 2025, arXiv:2510.14830.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rl.decisions import ChainActor, Collector, Decisions
from rl.denoising_offline import OfflineConfig, OfflineStage
from rl.denoising_ppo import ChainLearner, PpoConfig, Snapshot
from rl.loop_config import LoopResult
from rl.stages import Stages
from sinew.errors import InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import VecEnv
from sinew.rundir import RunDir

ROLLOUTS_FILE = "rollouts.safetensors"
StageName = Literal["offline", "online"]


@dataclass(frozen=True, kw_only=True)
class Rl100Config:
    """Settings. A "step" is one environment step of one world."""

    stages: tuple[StageName, ...] = ("offline", "online")
    """What is done, in this order."""
    steps: int = 100_000
    """Environment steps in all, over all worlds and stages."""
    seed: int = 0
    """Fixes episodes, noise, weights and batches."""
    gamma: float = 0.99
    """Discount per environment step."""
    rollout_steps: int = 20_000
    """Steps that the base plays for the offline stage; 0 for demonstrations alone."""
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    """Settings of the offline stage."""
    ppo: PpoConfig = field(default_factory=PpoConfig)
    """Settings of the updates of the online stage."""
    iteration_steps: int = 5_000
    """Steps between updates of the online stage."""
    value_only_steps: int = 10_000
    """Steps at the start of the online stage from which only the value function learns."""
    evaluate_every: int = 10_000
    """Steps between evaluations of the online stage."""
    fall: float = 0.1
    """Policy and optimiser go back to the best where an evaluation is this much below it …"""
    retreat: float = 0.5
    """… and the step size is multiplied by this."""
    stop_success: float = 0.99
    """Learning ends early when evaluations reach this success rate …"""
    stop_evaluations: int = 2
    """… this many times in a row."""

    def __post_init__(self) -> None:
        if not self.stages or any(s not in ("offline", "online") for s in self.stages) or len(set(self.stages)) < len(self.stages):
            raise InputError(f"stages {', '.join(self.stages) or 'none'}: name offline, online or both, each once")
        if min(self.steps, self.iteration_steps, self.evaluate_every, self.stop_evaluations) < 1 or self.rollout_steps < 0:
            raise InputError("steps, iteration_steps, evaluate_every and stop_evaluations must be at least 1, rollout_steps not negative")
        if not 0 < self.gamma <= 1 or not 0 < self.retreat <= 1 or not self.fall > 0:
            raise InputError(f"gamma {self.gamma} and retreat {self.retreat} must be in (0, 1], fall {self.fall} above 0")


class Rl100(Stages):
    """The stages and their state; see `train_rl100` for what goes in."""

    def __init__(
        self,
        env: VecEnv,
        actor: ChainActor,
        run: RunDir,
        config: Rl100Config,
        demos: Decisions | None,
        evaluate: Callable[[], Mapping[str, Any]] | None,
        progress: Progress,
    ) -> None:
        super().__init__(actor.policy, run, config, evaluate, progress)
        self.env, self.actor, self.demos = env, actor, demos
        self.collector = Collector(env, actor, config.gamma)
        self.stage_of = {"offline": self._offline, "online": self._online}

    def stream(self, *names: str | int) -> torch.Generator:
        """The random stream that the seed and these names fix."""
        return torch.Generator().manual_seed(self._seeds(1, *names)[0])

    def _seeds(self, count: int, *names: str | int) -> list[int]:
        numbers = [zlib.crc32(n.encode()) if isinstance(n, str) else n for n in names]
        state = np.random.SeedSequence([self.config.seed, *numbers]).generate_state(count)
        return [int(s >> 1) for s in state]

    def _play(self, steps: int, name: str, index: int) -> Decisions:
        """What the policy's random sampler does in about `steps` environment steps."""
        ticks, worlds = max(1, round(steps / self.env.num_envs)), self.env.num_envs
        got = self.collector.collect(ticks, self._seeds(worlds, name, index), self.stream(name, index, "noise"))
        self.count(got.steps, got.episodes, got.successes)
        return got.decisions

    # ------------------------------------------------------------ offline

    def _offline(self) -> None:
        config = self.config.offline
        played = None
        if self.config.rollout_steps:
            played = self.kept(ROLLOUTS_FILE, lambda: self._play(self.config.rollout_steps, "rollouts", 0))
        stage = OfflineStage(self.actor, self.demos, played, config, self.stream)
        if not self.resume(stage):
            self.progress.start("critics", 1)
            self.log(stage="offline", **stage.fit())
            self.save(stage)
        self.progress.start("offline", config.rounds, stage.round)
        while not stage.over:
            row = stage.step()
            self.log(stage="offline", **row)
            self.progress.advance(1, value=row["value"], accepted=stage.accepted)
            self.save(stage)
        self.updates += stage.learner.updates
        self.evaluate_now(stage="offline", accepted=stage.accepted)
        self.gate.restore()  # what success does not bear out, no critic can

    # ------------------------------------------------------------ online

    def _online(self) -> None:
        config = self.config
        learner = ChainLearner(self.actor, config.ppo, self.stream("online weights"))
        best = Snapshot(self.actor.policy, learner.optimizer)
        part = _Online(learner, best, self.step)
        self.resume(part)
        self.progress.start("online", config.steps, min(self.step, config.steps))
        while self.step < config.steps and not self.reason:
            before, first = self.step, part.first_step
            table = self._play(min(config.iteration_steps, config.steps - self.step), "online", self.step)
            metrics = learner.learn(table, self.stream("updates", self.step), train_policy=self.step - first > config.value_only_steps)
            self.progress.advance(self.step - before, success=self.recent_success())
            self.log(stage="online", train_success=self.recent_success(), updates=self.updates + learner.updates, **metrics)
            if learner.updates and (before // config.evaluate_every != self.step // config.evaluate_every or self.step >= config.steps):
                self._compare(part)
            self.save(part)
        self.updates += learner.updates

    def _compare(self, part: _Online) -> None:
        """Evaluate; the best is remembered with its optimiser, and gone back to from far below."""
        found, kept = self.evaluate_now(stage="online")
        if kept or found is None:
            part.best.take()
        elif self.gate.best is not None and found.rate < self.gate.best.rate - self.config.fall:
            rate = part.learner.learning_rate
            part.best.restore()
            part.learner.learning_rate = self.config.retreat * rate
            self.log(stage="online", reverted=True, learning_rate=part.learner.learning_rate)


class _Online:
    """The state of the online stage."""

    def __init__(self, learner: ChainLearner, best: Snapshot, first_step: int) -> None:
        self.learner, self.best, self.first_step = learner, best, first_step

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, numbers = self.learner.state()
        return tensors | self.best.state(), numbers | {"first_step": self.first_step}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self.learner.load_state(tensors, numbers)
        self.best.load_state(tensors)
        self.first_step = numbers["first_step"]


def train_rl100(
    env: VecEnv,
    actor: ChainActor,
    run: RunDir,
    config: Rl100Config,
    *,
    demos: Decisions | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> LoopResult:
    """Improve a denoising policy; `actor.policy` ends with its best weights.

    Args:
        env: worlds to learn in; reset here.
        actor: the policy in these worlds, changed in place.
        run: folder for the training state, the rollouts and metrics; if it holds a training state, learning goes on from it.
        config: settings.
        demos: decisions of recorded episodes, without chains.
        evaluate: measures the policy as it is now, always on the same seeds: {"k": successes, "n": episodes, ...}.
        progress: told rounds and steps.

    Raises:
        InputError: a reward or observation is not finite, the offline stage has no data, or the run was made with another config.
        DataError: the training state of the run is damaged or does not fit.
    """
    return Rl100(env, actor, run, config, demos, evaluate, progress).run_to_end()
