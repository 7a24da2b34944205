"""Improving a denoising policy in stages: first from data, behind a gate, then by doing, in the environment.

- offline: the policy's random sampler plays some episodes, which join the demonstrations; then `rl.denoising_offline`.
- online: the policy learns from what it does, in `rl.denoising_online`; evaluations keep the best.

What comes of it is never worse than the base by the evaluations, where there are some. Everything random in a round is drawn from
a stream that its number fixes, and all worlds start anew in each; so a run that was killed goes on as if it had not been.

Source: RL-100, Lei et al. 2025, arXiv:2510.14830.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from rl.decisions import ChainActor, Collector, Decisions
from rl.denoising_offline import OfflineStage
from rl.denoising_online import OnlineStage
from rl.loop_config import LoopResult
from rl.rl100_config import Rl100Config
from rl.stages import Stages
from sinew.progress import SILENT, Progress
from sinew.protocols import VecEnv
from sinew.rundir import RunDir

ROLLOUTS_FILE = "rollouts.safetensors"


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

    def _online(self) -> None:
        config, end = self.config.online, self.config.steps
        stage = OnlineStage(self.actor, config, self.step, self.stream("online weights"))
        self.resume(stage)
        self.progress.start("online", end, min(self.step, end))
        while self.step < end and not self.reason:
            before = self.step
            table = self._play(min(config.round_steps, end - before), "online", before)
            metrics = stage.learn(table, self.step, self.stream("updates", before))
            self.progress.advance(self.step - before, success=self.recent_success())
            learned = stage.learner.updates
            self.log(stage="online", train_success=self.recent_success(), updates=self.updates + learned, **metrics)
            if learned and (before // config.evaluate_every != self.step // config.evaluate_every or self.step >= end):
                found, kept = self.evaluate_now(stage="online")
                if stage.evaluated(found, self.gate.best, kept):
                    self.log(stage="online", reverted=True, learning_rate=stage.learner.learning_rate)
            self.save(stage)
        self.updates += stage.learner.updates


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
