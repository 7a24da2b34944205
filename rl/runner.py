"""The loop of learning by doing: act, remember, update, evaluate, keep the best; the same for every off-policy method.

A method tells what is stored of an observation and how to act; the runner owns time, seeds, the replay, the gate and the
checkpoints.

Resuming: a checkpoint is also where every running episode is cut (bootstrapped like a time-out) and all worlds start anew, in
a run that goes on as in one that was killed and goes on later; so both compute the same, if the environment's seed fixes its
episodes. Work since the last checkpoint is done again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from rl.batch import Batch, FrameSpec
from rl.checkpoint import read_state, write_state
from rl.gate import Evaluation, Gate
from rl.learner import Frames, Learner
from rl.loop_config import LoopConfig, LoopResult
from rl.replay import POLICY, Mix, Ring, Sampler
from sinew.config import to_json
from sinew.errors import InputError
from sinew.progress import Progress
from sinew.protocols import Obs, VecEnv
from sinew.rundir import RunDir, atomic_write

STATE_FILE = "train_state.safetensors"
ACTOR_FILE = "actor.safetensors"


class Method(Protocol):
    """What a method decides: what is kept of an observation, how to act, and how to learn."""

    actor: nn.Module
    """What is learned, evaluated and kept."""
    stride: int
    """Environment steps per decision: the length of a transition."""

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """Worlds `ids` (None for all) begin new episodes, whose noise `seeds` fix."""
        ...

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """{key: (N, ...)} of the newest observations: the frames that are kept, and what `act` needs; advances plans."""
        ...

    def look_last(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """The frames after the last step of worlds `ids`; nothing moves on."""
        ...

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """The action (N, A) in [-1, 1] that is executed while learning."""
        ...

    def layout(self, frames: Frames) -> FrameSpec:
        """Which of the frames are kept."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """A batch of the replay as the learner takes it."""
        ...

    def make_learner(self, frames: Frames) -> Learner:
        """The learner for such frames."""
        ...


class Runner:
    """The loop and its state; see `rl.residual.train_residual` for what goes in."""

    def __init__(
        self,
        env: VecEnv,
        method: Method,
        run: RunDir,
        config: LoopConfig,
        demos: Ring | None,
        evaluate: Callable[[], Mapping[str, Any]] | None,
        progress: Progress,
    ) -> None:
        self.env, self.method, self.actor = env, method, method.actor
        self.run, self.config, self.evaluate, self.progress = run, config, evaluate, progress
        self.action_spec = env.action_spec
        self.step = self.successes = self.episodes = self.block = self.stop_count = 0
        self.update_debt = 0.0
        self.critic_only_done = False
        self.history: list[Evaluation] = []
        self.recent: list[float] = []
        self.reason = ""
        self.started_s = time.monotonic()
        self.spent_s = 0.0
        self.rng = torch.Generator().manual_seed(config.seed + 1)
        self.gate = Gate(self.actor)
        self.demos = demos if demos is not None and len(demos) else None
        self._frames = self._start_worlds()
        self.learner = method.make_learner(self._frames)
        device = next(iter(self._frames.values())).device
        length = -(-min(config.replay_steps, config.steps) // env.num_envs) + 1
        self.ring = Ring(max(2, length), env.num_envs, method.layout(self._frames), self.action_spec.dim, device=device)
        self.replay_rng = torch.Generator(device).manual_seed(config.seed + 2)
        self.sampler: Sampler = self.ring if self.demos is None else Mix(self.ring, self.demos, config.demo_fraction)

    # ------------------------------------------------------------ loop

    def run_to_end(self) -> LoopResult:
        """Learn, or go on learning, until the steps are spent or success is reached."""
        config, path = self.config, self.run / STATE_FILE
        if path.exists():
            self._load()
        else:
            self._trim_metrics()
        self.progress.start("improve", config.steps, min(self.step, config.steps))
        if not self.reason:
            if self.evaluate is not None and self.gate.base is None:
                base = self._evaluate()
                self.run.log(step=0, k=base.k, n=base.n, success=base.rate, kept=True)
            self._learn()
            self._finish()
        return LoopResult(
            self.step, self.learner.updates, self.gate.base, self.gate.best, tuple(self.history), self.successes, self.reason
        )

    def _learn(self) -> None:
        config = self.config
        while self.step < config.steps and not self.reason:
            before = self.step
            self._interact()
            if self.step >= config.random_steps:
                self._update()
            values = {"success": float(np.mean(self.recent[-100:]))} if self.recent else {}
            self.progress.advance(min(self.step, config.steps) - before, **values)
            if before < config.random_steps <= self.step:
                self._warn_without_success("after the warm-up")
            if _crossed(before, self.step, config.evaluate_every):
                self._report()
            if _crossed(before, self.step, config.checkpoint_every) and self.step < config.steps and not self.reason:
                self._checkpoint()

    def _interact(self) -> None:
        """One step of all worlds, stored."""
        frames, config = self._frames, self.config
        action = self.method.act(frames, self.step, self.rng)
        obs, reward, terminated, truncated, info = self.env.step(self.action_spec.denormalize(action))
        self._refuse_non_finite("reward", reward)
        if "executed_action" in info:  # somebody took over: what was executed is what is remembered
            action = self.action_spec.normalize(info["executed_action"]).to(action)
        ended = terminated | truncated
        final, any_ended = None, bool(ended.any())
        if any_ended:
            final = self._end_episodes(torch.nonzero(ended)[:, 0].tolist(), info, reward)
        self.ring.add(frames, action, reward, terminated, truncated, final=final, source=info.get("source", POLICY))
        self._frames = self._look(obs)
        self.step += self.env.num_envs
        self.update_debt += config.updates_per_step * self.env.num_envs if self.step > config.random_steps else 0.0

    def _end_episodes(self, ids: list[int], info: Mapping[str, Any], reward: Tensor) -> dict[str, Tensor]:
        """Frames after the last step of worlds `ids`; their plans start anew before anything of the next episode is planned."""
        last = {k: v[ids] for k, v in info["final_observation"].items()}
        final = self.method.look_last(last, ids)
        self._refuse_frames("the final observation", final, ids)
        self.method.reset(ids, [self._episode_seed() for _ in ids])
        success = info.get("success", reward > 0)
        results = success[ids].float().tolist()
        self.successes += int(sum(results))
        self.recent = (self.recent + results)[-200:]
        return final

    def _look(self, obs: Obs) -> dict[str, Tensor]:
        frames = self.method.look(obs, self.step, self.rng)
        self._refuse_frames("the observation", frames)
        return frames

    def _refuse_frames(self, what: str, frames: Mapping[str, Tensor], ids: list[int] | None = None) -> None:
        for key, value in frames.items():
            if value.is_floating_point():
                self._refuse_non_finite("the base policy's action" if key == "base_action" else what, value, ids)

    def _start_worlds(self) -> dict[str, Tensor]:
        """All worlds anew, with seeds of this block of steps."""
        worlds = range(self.env.num_envs)
        seeds = [int(np.random.SeedSequence([self.config.seed, self.block, w]).generate_state(1)[0] >> 1) for w in worlds]
        obs = self.env.reset(seeds)
        self.method.reset(None, [self._episode_seed() for _ in worlds])
        return self._look(obs)

    def _episode_seed(self) -> int:
        """Seed of the base's noise in the next episode."""
        self.episodes += 1
        return int(np.random.SeedSequence([self.config.seed, 7, self.episodes]).generate_state(1)[0] >> 1)

    def _refuse_non_finite(self, what: str, values: Tensor, ids: list[int] | None = None) -> None:
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            row = int(torch.nonzero(~finite.reshape(len(values), -1).all(1))[0])
            world = row if ids is None else ids[row]
            raise InputError(
                f"world {world}: {what} is not finite after {self.step} environment steps; "
                "check the task's simulation for divergence (smaller time step, bounded actions); the last checkpoint is kept"
            )

    # ------------------------------------------------------------ updates

    def _update(self) -> None:
        config = self.config
        if not self.critic_only_done:
            self.progress.start("critics first", config.critic_only_updates)
            for _ in range(0, config.critic_only_updates, 50):
                self._update_many(50, train_actor=False)
                self.progress.advance(50)
            self.critic_only_done, self.update_debt = True, 0.0
            self.progress.start("improve", config.steps, self.step - self.env.num_envs)  # this round is told after it
            return
        whole = int(self.update_debt)
        self.update_debt -= whole
        if whole:
            self._update_many(whole, train_actor=True)

    def _update_many(self, number: int, *, train_actor: bool) -> None:
        config = self.config
        for batch in self.sampler.sample(
            config.batch_size,
            updates=number,
            n_step=config.n_step,
            gamma=config.gamma,
            stride=self.method.stride,
            generator=self.replay_rng,
        ):
            self.learner.update(self.method.prepare(batch), train_actor=train_actor)

    # ------------------------------------------------------------ evaluation

    def _report(self) -> None:
        """Evaluate where the actor has learned, and log."""
        config = self.config
        metrics = self.learner.read_metrics()
        row: dict[str, Any] = {"step": self.step, "updates": self.learner.updates, "train_episodes": self.episodes, **metrics}
        if self.recent:
            row["train_success"] = float(np.mean(self.recent[-100:]))
        shown = {k: metrics[k] for k in ("q", "loss") if k in metrics}
        if self.evaluate is not None and self.critic_only_done and self.learner.updates:
            evaluation = self._evaluate()
            row |= {"k": evaluation.k, "n": evaluation.n, "success": evaluation.rate, "kept": self.gate.best is evaluation}
            shown["success"] = evaluation.rate
            self.stop_count = self.stop_count + 1 if evaluation.rate >= config.stop_success else 0
            if self.stop_count >= config.stop_evaluations:
                self.reason = f"success {evaluation.k}/{evaluation.n} reached {config.stop_success:.2f} after {self.step} steps"
        row["wall_s"] = round(self.spent_s + time.monotonic() - self.started_s, 3)
        self.run.log(**row)
        self.progress.advance(0, **shown)

    def _evaluate(self) -> Evaluation:
        """Measure the actor as it is now; the gate keeps its weights if they are the best."""
        if self.evaluate is None:
            raise RuntimeError("there is nothing to evaluate with")
        evaluation = Evaluation.of(self.evaluate(), self.step)
        self.history.append(evaluation)
        if self.gate.consider(evaluation):
            self._write_actor()
        return evaluation

    def _write_actor(self) -> None:
        atomic_write(self.run / ACTOR_FILE, save({k: v.cpu().contiguous() for k, v in self.gate.weights.items()}))

    def _warn_without_success(self, when: str) -> None:
        if not self.successes and self.demos is None:
            self.progress.note(_no_success(self.step, when))

    def _finish(self) -> None:
        """Evaluate what was learned last, keep the best, write it."""
        if self.evaluate is None:
            self.gate.weights = {k: v.detach().clone() for k, v in self.actor.state_dict().items()}
        elif self.learner.updates and (not self.history or self.history[-1].step < self.step):
            self._report()
        self.gate.restore()
        if not self.reason:
            self.reason = f"all {self.step} steps done"
        if not self.successes:
            self.reason = _no_success(self.step, "while learning")
            self.progress.note(self.reason)
        self._write_actor()
        self._save(finished=True)

    # ------------------------------------------------------------ saving

    def _checkpoint(self) -> None:
        """Cut running episodes, start all worlds anew and save; resuming goes on from exactly here."""
        self.ring.cut(self._frames)
        self.block += 1
        self._save(finished=False)
        self._frames = self._start_worlds()

    def _save(self, *, finished: bool) -> None:
        tensors, numbers = self.learner.state()
        tensors |= {"rng": self.rng.get_state(), "replay_rng": self.replay_rng.get_state()} | {
            f"best.{k}": v for k, v in self.gate.weights.items()
        }
        if not finished:
            tensors |= {f"replay.{k}": v for k, v in self.ring.state().items()}
        state = {name: getattr(self, name) for name in _NUMBERS}
        state |= {
            "learner": numbers,
            "config": to_json(self.config),
            "finished": finished,
            "wall_s": self.spent_s + time.monotonic() - self.started_s,
        }
        state |= {"history": [asdict(e) for e in self.history], "best": self._position(self.gate.best)}
        write_state(self.run / STATE_FILE, tensors, state)

    def _position(self, evaluation: Evaluation | None) -> int | None:
        return None if evaluation is None else self.history.index(evaluation)

    def _load(self) -> None:
        tensors, state = read_state(self.run / STATE_FILE)
        config = to_json(self.config)
        for name in sorted(set(config) | set(state["config"])):
            if config.get(name) != state["config"].get(name):
                raise InputError(
                    f"{self.run.path} holds learning with another {name}: {state['config'].get(name)!r} there, {config.get(name)!r} here; "
                    "choose another --out"
                )
        self.learner.load_state(tensors, state["learner"])
        self.rng.set_state(tensors["rng"])
        self.replay_rng.set_state(tensors["replay_rng"])
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.history = [Evaluation(**e) for e in state["history"]]
        self.gate.weights = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        if state["best"] is not None:
            self.gate.base, self.gate.best = self.history[0], self.history[state["best"]]
        self.spent_s = state["wall_s"]
        self._trim_metrics()
        if state["finished"]:
            self.gate.restore()
            return
        self.ring.load_state({k.removeprefix("replay."): v for k, v in tensors.items() if k.startswith("replay.")})
        self._frames = self._start_worlds()

    def _trim_metrics(self) -> None:
        """Drop lines of work that was lost with the interruption and is done again."""
        lines = list(self.run.metrics())
        kept = [line for line in lines if self.step and line.get("step", 0) <= self.step]
        if lines:
            atomic_write(self.run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


_NUMBERS = ("step", "successes", "episodes", "block", "stop_count", "update_debt", "critic_only_done", "recent", "reason")


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every


def _no_success(steps: int, when: str) -> str:
    return (
        f"success was never reached in {steps} steps {when}; try a base that succeeds at times (more demonstrations), "
        "demonstrations in the replay, a larger residual scale or random_scale, or longer episodes"
    )
