"""The loop of learning by doing: act, remember, update, evaluate, keep the best; the same for every off-policy method.

A method tells what is stored of an observation and how to act. Acting is one half of the loop (`rl.worlds`), in this process or
in others (`rl.source`); the runner is the other half: it owns the replay, the updates, the gate and the checkpoints.

Resuming: where acting waits for learning, a checkpoint is also where every running episode is cut (bootstrapped like a
time-out) and all worlds start anew, in a run that goes on as in one that was killed and goes on later; so both compute the
same, if the environment's seed fixes its episodes. Work since the last checkpoint is done again. Where worlds act on their own
a checkpoint cuts nothing, and what they did meanwhile is sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from rl.batch import FrameSpec
from rl.episodes import check_demos
from rl.gate import Evaluation, Gate, eased
from rl.group import read_together, write_together
from rl.loop_config import LoopConfig, LoopResult
from rl.memory import Files, Memory, View, make_memory
from rl.outpost import Outpost
from rl.replay import Mix, Ring, Sampler
from rl.source import Arrival, Source, here
from rl.worlds import REQUESTS, Method
from sinew.config import to_json
from sinew.errors import InputError, unknown
from sinew.progress import Progress
from sinew.protocols import VecEnv
from sinew.rundir import RunDir, atomic_write, read_json

__all__ = ["ACTOR_FILE", "STATE_FILE", "Method", "Runner"]

STATE_FILE = "train_state.safetensors"
ACTOR_FILE = "actor.safetensors"
SLICE = 50
"""Updates between two looks at what has arrived, where acting does not wait for learning."""
PAUSE_S = 0.02
"""Between two questions while paused."""


class Runner:
    """The loop and its state; see `rl.residual.train_residual` for what goes in.

    Args:
        env: worlds to learn in; a `Source` whose worlds are elsewhere; or an `Outpost`, whose learning half is.
        method: acts and learns.
        run: folder of the training state, the actor and metrics.
        config: settings.
        demos: recorded episodes.
        evaluate: measures the actor as it is now.
        progress: is told what happens.
    """

    def __init__(
        self,
        env: VecEnv | Source | Outpost,
        method: Method,
        run: RunDir,
        config: LoopConfig,
        demos: Ring | None,
        evaluate: Callable[[], Mapping[str, Any]] | None,
        progress: Progress,
    ) -> None:
        self.method, self.actor = method, method.actor
        self.from_scratch = getattr(method, "from_scratch", False)
        self.run, self.config, self.evaluate, self.progress = run, config, evaluate, progress
        self.outpost = env if isinstance(env, Outpost) else None
        if isinstance(env, Outpost):
            return
        self.source = env if isinstance(env, Source) else here(env, method, config.seed)
        self.group = self.source.group
        self.control = self.source.control
        """Asked for requests (`rl.worlds.REQUESTS`) before every step, never during updates; None to ask nobody."""
        self.step = self.successes = self.block = self.stop_count = self.actor_waits = self.updates = 0
        self.update_debt = 0.0
        self.critic_only_done = self.stopped = self.finished = False
        self.recent: list[float] = []
        self.reason = ""
        self.started_s = time.monotonic()
        self.spent_s = 0.0
        # what has learned nothing gives way to what has learned something, even if nothing is solved yet
        self.gate = Gate(self.actor, margin=-1.0 if self.from_scratch else 0.0)
        self.demos = demos if demos is not None and len(demos) else None
        self._open()

    def _open(self) -> None:
        """Worlds begin, and what learns is made for what they look like; goes on from the run's checkpoint if there is one."""
        config, path = self.config, self.run / STATE_FILE
        saved = read_together(path, self.group)
        acting = None
        if saved is not None:
            self._recall(*saved)
            acting = {k.removeprefix("source."): v for k, v in saved[0].items() if k.startswith("source.")}, saved[1]["source"]
            self.updates = saved[1]["learner"]["updates"]
            if self.finished and not self.source.together:
                return  # nobody has to act any more
        self.source.progress = self.progress
        frames = self.source.open(self.block, self.step, acting)
        if not self.source.together:  # what was sent is on the CPU
            place = next((p.device for p in self.actor.parameters()), torch.device("cpu"))
            frames = {k: v.to(place) for k, v in frames.items()}
        self.learner = self.method.make_learner(frames)
        device = next(iter(frames.values())).device
        owner = {"task": _task(self.run), "action": list(self.source.action_spec.names)}
        check_demos(self.demos, self.method.layout(frames), self.source.action_spec.dim)
        layout, files = self.method.layout(frames), saved[1]["files"] if saved is not None and not self.finished else None
        self.memory = self._make_memory(layout, device, Files(self.run / "replay", owner, files))
        if self.demos is not None and self.demos.device != self.memory.place:
            self.demos = self.demos.moved(self.memory.place)
        self.replay_rng = torch.Generator(self.memory.place).manual_seed(config.seed + 2)
        self.draw_through(None)
        if saved is None or acting is None:
            self._drop_lines_after(-1)
            self.group.attach(self.learner)
            return
        self.learner.load_state(saved[0], saved[1]["learner"])
        self._charge()
        self.group.attach(self.learner)
        self.replay_rng.set_state(saved[0]["replay_rng"])
        if not self.finished:
            self.memory.load_state({k.removeprefix("replay."): v for k, v in saved[0].items() if k.startswith("replay.")})
            self.source.go_on(self.block, self.step, acting)

    def _make_memory(self, layout: FrameSpec, device: torch.device, files: Files) -> Memory:
        return make_memory(layout, self.source, self.config, device, files)

    def _recall(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Counters, evaluations and the best weights of a checkpoint.

        Raises:
            InputError: it is of learning with other settings; the first that differs is named.
        """
        self.run.check_same(state["config"], to_json(self.config))
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.gate.load_state(tensors, state)
        self.spent_s = state["wall_s"]
        self._drop_lines_after(self.step)

    @property
    def ring(self) -> Ring:
        """The replay of worlds in this process.

        Raises:
            InputError: there are several, one for each place that acts.
        """
        if len(self.memory.rings) != 1:
            raise InputError("this method looks into one replay, and each actor has its own: leave out --actors")
        return self.memory.rings[0]

    def draw_through(self, view: View | None) -> None:
        """Batches come from `view` of every ring, demonstrations included; None for the rings themselves."""
        if self.outpost is None:
            self.memory.view = view
            demos = self.demos if self.demos is None or view is None else view(self.demos)
            self.sampler: Sampler = self.memory if demos is None else Mix(self.memory, demos, self.config.demo_fraction)

    # ------------------------------------------------------------ loop

    @property
    def _stage(self) -> str:
        return "learn" if self.from_scratch else "improve"

    def run_to_end(self) -> LoopResult:
        """Learn, or go on learning, until the steps are spent, success is reached or somebody asks to stop."""
        if self.outpost is not None:
            return self.outpost.act(self.method, self.config)
        reason = self.reason
        if self.finished:
            self.gate.restore()
        else:
            steps, first = self.config.steps, self.config.random_steps
            if steps <= first:
                self.progress.note(f"the first {first} steps only fill the replay: {steps} leave the policy as it is")
            self.source.publish(self.actor, self.learner.updates, self.step, now=True)
            if self.evaluate is not None and self.gate.base is None:
                base = self._evaluate()
                self._log(step=0, k=base.k, n=base.n, success=base.rate, kept=True)
            if self.evaluate is not None and len(self.gate.history) == 1:
                self._evaluate_start()
            self.progress.start(self._stage, self.config.steps, min(self.step, self.config.steps))
            self._learn()
            reason = self._stop() if self.stopped else self._finish()
            self.updates = self.learner.updates
        return LoopResult(self.step, self.updates, self.gate.base, self.gate.best, tuple(self.gate.history), self.successes, reason)

    def _learn(self) -> None:
        config = self.config
        while not self.reason:
            before = self.step
            self._obey()
            if (self.stopped and self.group.size == 1) or (self.step >= config.steps and int(self.update_debt) < 1):
                return
            if self.step < config.steps and (self.update_debt < SLICE or self.source.together or self.source.forgets):
                self._gather()
            if self.stopped:
                return
            if self.step >= config.random_steps:
                self._update()
            values = {"success": float(np.mean(self.recent[-100:]))} if self.recent else {}
            self.progress.advance(min(self.step, config.steps) - min(before, config.steps), **values)
            if before < config.random_steps <= self.step:
                self._warn_without_success("after the warm-up")
            if _crossed(before, self.step, config.evaluate_every):
                self._report()
            if _crossed(before, self.step, config.checkpoint_every) and self.step < config.steps and not self.reason:
                self._checkpoint()

    def _obey(self) -> None:
        """Do what was asked for, and wait where a pause was."""
        paused = False
        while self.control is not None and not self.stopped:
            asked = self.control()
            if asked not in (None, *REQUESTS):
                raise unknown("request", str(asked), REQUESTS)
            if asked == "reset":
                self.block += 1
                self.source.restart(self.block, self.step)
            self.stopped = asked == "stop"
            if asked == "pause" and not paused:
                self.progress.note(f"paused after {self.step} steps")
            paused = (paused or asked == "pause") and asked != "resume"
            if not paused:
                return
            time.sleep(PAUSE_S)

    def _gather(self) -> None:
        """Take in what has arrived."""
        config = self.config
        behind = self.update_debt / config.updates_per_step if config.updates_per_step else 0.0
        nothing_due = self.step < config.random_steps or self.update_debt < 1
        fresh = 0
        for arrival in self.source.gather(self.step, behind, nothing_due):
            self._take(arrival)
            fresh += 0 if arrival.step is None else self.source.num_envs
        steps, full, stopped = self.group.total([fresh, self.memory.full, self.stopped])
        self.step += int(steps)
        self.update_debt += config.updates_per_step * steps if self.step > config.random_steps else 0.0
        self.stopped = bool(stopped)
        if full:
            self._save(finished=False)
        if self.source.forgets:
            self.update_debt = min(self.update_debt, SLICE)

    def _take(self, arrival: Arrival) -> None:
        made = arrival.step
        if made is None:
            self.memory.start(arrival.place, arrival.frames)
        else:
            self.memory.add(arrival.place, made)
            self.successes += int(sum(made.success))
            self.recent = (self.recent + list(made.success))[-200:]
        self.source.took(arrival)

    # ------------------------------------------------------------ updates

    def _update(self) -> None:
        config = self.config
        if not self.critic_only_done:
            self.progress.start("critics first", config.critic_only_updates)
            for _ in range(0, config.critic_only_updates, 50):
                self._update_many(50, train_actor=False)
                self.progress.advance(50)
            self.critic_only_done, self.update_debt = True, 0.0
            self.progress.start(self._stage, config.steps, self.step - self.source.num_envs)  # this round is told after it
            self._wake()
            return
        whole = int(self.update_debt) if self.source.together else min(int(self.update_debt), SLICE)
        self.update_debt -= whole
        if whole:
            self._update_many(whole, train_actor=self.step >= self.actor_waits)
            self.source.publish(self.actor, self.learner.updates, self.step)

    def _wake(self) -> None:
        """An actor that stands aside until it learns is asked from now on."""
        active = getattr(self.actor, "active", None)
        if isinstance(active, Tensor):
            active.fill_(True)

    def _update_many(self, number: int, *, train_actor: bool) -> None:
        config = self.config
        for batch in self.sampler.sample(
            self.group.share(config.batch_size),
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
        row: dict[str, Any] = {"step": self.step, "updates": self.learner.updates}
        row |= self.source.metrics(self.step, self.learner.updates) | metrics
        if self.recent:
            row["train_success"] = float(np.mean(self.recent[-100:]))
        shown = {k: metrics[k] for k in ("q", "loss") if k in metrics}
        if self.evaluate is not None and self.critic_only_done and self.learner.updates:
            evaluation = self._evaluate()
            row |= {"k": evaluation.k, "n": evaluation.n, "success": evaluation.rate, "kept": self.gate.best is evaluation}
            shown["success"] = evaluation.rate
            row |= self._hold_floor(evaluation)
            self._charge()
            self.stop_count = self.stop_count + 1 if evaluation.rate >= config.stop_success else 0
            if self.stop_count >= config.stop_evaluations:
                self.reason = f"success {evaluation.k}/{evaluation.n} reached {config.stop_success:.2f} after {self.step} steps"
        row["wall_s"] = round(self.spent_s + time.monotonic() - self.started_s, 3)
        self._log(**row)
        self.progress.advance(0, **shown)

    def _hold_floor(self, evaluation: Evaluation) -> dict[str, Any]:
        """Go back to the best actor from one that fell too far below the base; what the critics saw of the fall, they keep.

        An actor that stood aside while the base was measured has no weights that equal the base: it goes on.
        """
        base, floor = self.gate.base, self.config.floor
        if base is None or floor is None or evaluation.rate >= base.rate - floor:
            return {}
        if self.gate.best is base and hasattr(self.actor, "active"):
            return {}
        self.learner.return_to(self.gate.weights)
        self._wake()
        self.actor_waits = self.step + self.config.evaluate_every // 2
        self.source.publish(self.actor, self.learner.updates, self.step, now=True)
        return {"went_back": True}

    def _log(self, **row: Any) -> None:
        self.run.log(**row)

    def _evaluate(self) -> Evaluation:
        """Measure the actor's slow copy; the gate keeps its weights if they are the best."""
        if self.evaluate is None:
            raise RuntimeError("there is nothing to evaluate with")
        with self.learner.slow_actor() if self.config.evaluate_slow else nullcontext():
            evaluation = Evaluation.of(self.group.lead(self.evaluate), self.step)
            if self.gate.consider(evaluation):
                self._write_actor()
        return evaluation

    def _evaluate_start(self) -> None:
        """Measure an actor that begins as another policy than the base: nothing worse than that is handed back."""
        if self.method.anchor is not None:
            self._wake()
            try:
                start = self._evaluate()
            finally:
                self.actor.active.fill_(False)  # type: ignore[operator, union-attr]
            self._log(step=0, k=start.k, n=start.n, success=start.rate, kept=self.gate.best is start)
            self._charge()

    def _charge(self) -> None:
        """What the actor's output costs from now on, by what evaluations have said."""
        config, anchor, history = self.config, self.method.anchor, self.gate.history
        if anchor is not None and len(history) > 1:
            anchor(self.learner, history[1].rate - history[0].rate)
        if config.cost_half_life is not None:
            first = self.learner.output_cost.fill_(config.learner.output_l2) if anchor is None else self.learner.output_cost
            first.mul_(eased(history, config.random_steps, config.cost_half_life))

    def _write_actor(self) -> None:
        atomic_write(self.run / ACTOR_FILE, save({k: v.cpu().contiguous() for k, v in self.gate.weights.items()}))

    def _warn_without_success(self, when: str) -> None:
        if not self.successes and self.demos is None and not self.from_scratch:
            self.progress.note(_no_success(self.step, when))

    def _finish(self) -> str:
        """Evaluate what was learned last, keep the best, write it; gives why it ended."""
        history = self.gate.history
        if self.evaluate is not None and self.learner.updates and (not history or history[-1].step < self.step):
            self._report()
        self._restore()
        if not self.reason:
            self.reason = f"all {self.step} steps done"
        if not self.successes:
            self.reason = _no_success(self.step, "while learning", self.from_scratch)
            self.progress.note(self.reason)
        self._write_actor()
        self._save(finished=True)
        self.memory.forget_files()
        return self.reason

    def _restore(self) -> None:
        """The best weights; the last where nothing was measured."""
        if self.evaluate is None:
            self.gate.weights = {k: v.detach().clone() for k, v in self.actor.state_dict().items()}
        self.gate.restore()

    def _stop(self) -> str:
        """Somebody asked to stop: the best so far is what is left, and the checkpoint to go on from."""
        self.block += 1
        self._save(finished=False)
        self._restore()
        return f"stopped as asked after {self.step} steps; the same command goes on"

    # ------------------------------------------------------------ saving

    def _checkpoint(self) -> None:
        """Save, and start all worlds anew where they wait for learning; resuming goes on from exactly here."""
        self.block += 1
        self._save(finished=False)
        self.source.restart(self.block, self.step)

    def _save(self, *, finished: bool) -> None:
        self.finished = finished
        tensors, numbers = self.learner.state()
        acting, source = self.source.state()
        best, measured = self.gate.state()
        tensors |= {"replay_rng": self.replay_rng.get_state()} | {f"source.{k}": v for k, v in acting.items()} | best
        if not finished:
            tensors |= {f"replay.{k}": v for k, v in self.memory.state().items()}
        state = {name: getattr(self, name) for name in _NUMBERS}
        state |= {
            "learner": numbers,
            "source": source,
            "files": self.memory.files,
            "config": to_json(self.config),
            "wall_s": self.spent_s + time.monotonic() - self.started_s,
        }
        write_together(self.run / STATE_FILE, tensors, state | measured, self.group)
        self.memory.kept()
        self.source.saved()

    def _drop_lines_after(self, step: int) -> None:
        """Of metrics: that work was lost with the interruption and is done again."""
        self.run.keep_metrics(line for line in self.run.metrics() if line.get("step", 0) <= step)


_NUMBERS = ("step", "successes", "block", "stop_count", "actor_waits", "update_debt", "critic_only_done", "recent", "reason", "finished")


def _task(run: RunDir) -> Any:
    """The task of a run, where its config names one."""
    return read_json(run / "config.json").get("task") if (run / "config.json").exists() else None


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every


def _no_success(steps: int, when: str, from_scratch: bool = False) -> str:
    if from_scratch:
        return f"success was never reached in {steps} steps {when}; try more steps, more worlds, or a denser reward"
    return (
        f"success was never reached in {steps} steps {when}; try a base that succeeds at times (more demonstrations), "
        "demonstrations in the replay, a larger residual scale or random_scale, or longer episodes"
    )
