"""The loop of learning on a robot that a person stands beside: it learns between episodes, while the robot stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rl.interventions import Judged, Replanned, SupervisedMix
from rl.labels import Labels
from rl.loop_config import LoopConfig, LoopResult
from rl.replay import Ring
from rl.runner import STATE_FILE, Method, Runner
from rl.source import Arrival
from sinew.errors import InputError, SafetyStop, SinewError
from sinew.progress import Progress
from sinew.protocols import VecEnv
from sinew.rundir import RunDir

LABELS_FILE = "labels.jsonl"
"""Labels of a run; anybody may append to it."""
LABELS_STATE = "labels.json"


class Interrupted(SinewError):  # noqa: N818
    """A measurement was not finished, since the run shall stop."""


class Assessor(Protocol):
    """Saw every step, and tells the rewards of episodes once they are over, while the robot stands."""

    def kept(self, time: int) -> None:
        """The newest step is in the replay, as its step `time`."""
        ...

    def assess(self, begin: int, steps: int, success: bool, terminated: bool) -> Sequence[float] | None:
        """See `rl.labels.Assess`."""
        ...


class SupervisedRunner(Runner):
    """A runner whose worlds a person may act in, label and stop.

    Updates, evaluations and checkpoints wait for the end of an episode, so that no action of the policy comes late for them;
    updates that were due meanwhile are all made then. A stop for safety leaves a checkpoint.

    Args:
        env: one world, with info["source"] and info["executed_action"].
        method: acts and learns.
        run: as for `Runner`.
        config: settings.
        demos: recorded episodes.
        evaluate: measures the actor as it is now; raises `Interrupted` where it is not to be finished.
        progress: is told what happens.
        judged: whether the method's critics judge what was executed, or its own choices.
        evaluates_here: whether `evaluate` plays in the same world, which then has to begin anew.
        assessor: rewards whole episodes, where success, which is what worlds tell, is not all that is rewarded.
    """

    def __init__(
        self,
        env: VecEnv,
        method: Method,
        run: RunDir,
        config: LoopConfig,
        demos: Ring | None,
        evaluate: Callable[[], Mapping[str, Any]] | None,
        progress: Progress,
        *,
        judged: Judged = "actions",
        evaluates_here: bool = False,
        assessor: Assessor | None = None,
    ) -> None:
        goes_on = (run / STATE_FILE).exists()
        self.evaluates_here, self.assessor = evaluates_here, assessor
        super().__init__(Replanned(env, method.reset), method, run, config, demos, evaluate, progress)
        if not goes_on:
            (run / LABELS_FILE).unlink(missing_ok=True)  # of steps that were lost before the first checkpoint
        self.labels = Labels(self.ring, run / LABELS_FILE, None if assessor is None else assessor.assess)
        if goes_on and not self.finished:
            self.labels.load(run / LABELS_STATE)
        self.sampler = SupervisedMix(self.ring, self.demos, config.demo_fraction, judged=judged, labels=self.labels)

    def label(self, word: str) -> None:
        """A person's word about the newest episode that has ended: "last_success", "last_failure" or "undo"; told, and noted."""
        try:
            number = self.labels.undo() if word == "undo" else self.labels.say(word == "last_success")
        except InputError as e:
            self.progress.note(str(e))
            return
        self.progress.note(f"episode {number}: {'label taken back' if word == 'undo' else word.removeprefix('last_')}")

    def run_to_end(self) -> LoopResult:
        """See `Runner.run_to_end`.

        Raises:
            SafetyStop: the robot was stopped; the checkpoint of that moment is there to go on from.
        """
        try:
            return super().run_to_end()
        except Interrupted:
            best, history, reason = self.gate.best, tuple(self.gate.history), self._stop()
            return LoopResult(self.step, self.learner.updates, self.gate.base, best, history, self.successes, reason)
        except SafetyStop:
            self._stop()
            raise

    # ------------------------------------------------------------ between episodes

    def _learn(self) -> None:
        learned = self.step
        while not self.reason:
            self._obey()
            if self.stopped:
                return
            if self._between():
                self._learn_since(learned)
                learned = self.step
                if self.reason or self.step >= self.config.steps:
                    return
            before = self.step
            self._gather()
            self.progress.advance(min(self.step, self.config.steps) - min(before, self.config.steps))

    def _between(self) -> bool:
        """Whether no episode runs."""
        ring = self.ring
        newest = (ring.count - 1) % ring.length
        return ring.count == 0 or bool(ring.terminated[newest] | ring.truncated[newest])

    def _take(self, arrival: Arrival) -> None:
        super()._take(arrival)
        if self.assessor is not None and arrival.step is not None:
            self.assessor.kept(self.ring.count - 1)

    def _learn_since(self, before: int) -> None:
        """Make the updates that are due since step `before`, and whatever else has come due."""
        config = self.config
        if self.step == before:
            return
        self.labels.settle()
        while self.labels.refused:
            self.progress.note(self.labels.refused.pop(0))
        if self.step >= config.random_steps:
            self._update()
        if before < config.random_steps <= self.step:
            self._warn_without_success("after the warm-up")
        if before // config.evaluate_every != self.step // config.evaluate_every:
            self._report()
        due = before // config.checkpoint_every != self.step // config.checkpoint_every
        if due and self.step < config.steps and not self.reason:
            self._checkpoint()

    def _evaluate(self) -> Any:
        evaluation = super()._evaluate()
        if self.evaluates_here:
            self.block += 1
            self.source.restart(self.block, self.step)
        return evaluation

    def _finish(self) -> str:
        self.labels.settle()
        said = [self.labels.outcome(number) for number in self.labels.episodes]
        self.successes = max(self.successes, sum(bool(success) for success in said))
        return super()._finish()

    def _save(self, *, finished: bool) -> None:
        if self.assessor is not None:
            self.labels.settle()
            self.labels.pay_running()
        super()._save(finished=finished)
        self.labels.save(self.run / LABELS_STATE)
