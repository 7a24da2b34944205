"""Learning in stages: what they share. Counts, evaluations and the best weights, and one state on disk after every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from rl.checkpoint import load_module_state, module_state, read_state, write_state
from rl.decisions import Decisions
from rl.gate import Evaluation, Gate
from rl.loop_config import LoopResult
from sinew.config import to_json
from sinew.progress import Progress
from sinew.rundir import RunDir

STATE_FILE = "train_state.safetensors"
PART = "part."
"""Prefix of the tensors of the stage that was running."""
_NUMBERS = ("step", "episodes", "successes", "updates", "position", "lines", "stop_count", "recent", "reason")


class Part(Protocol):
    """The state of a running stage."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        ...


class Stages:
    """Runs the stages that `config.stages` names; a subclass fills `stage_of`.

    Args:
        policy: changed in place.
        run: folder.
        config: with stages, stop_success and stop_evaluations.
        evaluate: measures the policy as it is now, on the same seeds each time; None for never.
        progress: told rounds.
    """

    stage_of: Mapping[str, Callable[[], None]]

    def __init__(
        self, policy: nn.Module, run: RunDir, config: Any, evaluate: Callable[[], Mapping[str, Any]] | None, progress: Progress
    ) -> None:
        self.policy, self.run, self.config, self.evaluate, self.progress = policy, run, config, evaluate, progress
        self.gate = Gate(policy)
        self.step = self.episodes = self.successes = self.updates = self.position = self.lines = self.stop_count = 0
        self.recent: list[float] = []
        self.reason = ""
        self._saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._started_s, self._spent_s = time.monotonic(), 0.0

    def run_to_end(self) -> LoopResult:
        """Go through the stages, or go on with them; the policy ends with its best weights."""
        finished = self._load()
        if not finished:
            if self.evaluate is not None and not self.gate.history:
                self.evaluate_now(stage="base")
                self.save(None)
            while self.position < len(self.config.stages) and not self.reason:
                self.stage_of[self.config.stages[self.position]]()
                self.position += 1
                self.save(None)
            if self.evaluate is None:
                self.gate = Gate(self.policy)
            self.reason = self.reason or f"all {self.step} steps done"
            if self.episodes and not self.successes:
                self.reason = f"success was never reached in {self.step} steps; try a base that succeeds at times (more demonstrations)"
                self.progress.note(self.reason)
            self.save(None, finished=True)
        self.gate.restore()
        return LoopResult(self.step, self.updates, self.gate.base, self.gate.best, tuple(self.gate.history), self.successes, self.reason)

    # ------------------------------------------------------------ what stages tell

    def count(self, steps: int, episodes: int, successes: int) -> None:
        """What was gone through in the environment."""
        self.step, self.episodes, self.successes = self.step + steps, self.episodes + episodes, self.successes + successes
        if episodes:
            self.recent = [*self.recent, successes / episodes][-4:]

    def recent_success(self) -> float:
        """Share of successes in what was gone through last."""
        return sum(self.recent) / max(1, len(self.recent))

    def log(self, **values: Any) -> None:
        """A line of metrics."""
        wall_s = round(self._spent_s + time.monotonic() - self._started_s, 3)
        self.run.log(step=self.step, **values, wall_s=wall_s)
        self.lines += 1

    def evaluate_now(self, **values: Any) -> tuple[Evaluation | None, bool]:
        """Measure the policy as it is, if it can be, and tell the gate; whether it is the best."""
        if self.evaluate is None:
            return None, False
        found = Evaluation.of(self.evaluate(), self.step)
        kept = self.gate.consider(found)
        self.log(**values, k=found.k, n=found.n, success=found.rate, kept=kept)
        self.stop_count = self.stop_count + 1 if found.rate >= self.config.stop_success else 0
        if self.stop_count >= self.config.stop_evaluations:
            self.reason = f"success {found.k}/{found.n} reached {self.config.stop_success:.2f} after {self.step} steps"
        return found, kept

    def kept(self, name: str, make: Callable[[], Decisions]) -> Decisions:
        """Decisions in the file `name` of the run; made, and written, where there are none yet."""
        counts, path = ("step", "episodes", "successes", "recent"), self.run / name
        if path.exists():
            tensors, numbers = read_state(path)
            if self.step < numbers["step"]:
                for key in counts:
                    setattr(self, key, numbers[key])
            return Decisions.of_tensors(tensors)
        made = make()
        write_state(path, made.tensors(), {key: getattr(self, key) for key in counts})
        return made

    # ------------------------------------------------------------ saving

    def save(self, part: Part | None, *, finished: bool = False) -> None:
        """Everything, with the state of the running stage; None between stages."""
        tensors, numbers = ({}, {}) if part is None else part.state()
        tensors = {PART + k: v for k, v in tensors.items()} | module_state("policy", self.policy)
        best, measured = self.gate.state()
        state: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        state |= {"part": None if part is None else numbers, "config": to_json(self.config), "finished": finished}
        state |= measured | {"wall_s": self._spent_s + time.monotonic() - self._started_s}
        write_state(self.run / STATE_FILE, tensors | best, state)

    def resume(self, part: Part) -> bool:
        """Put the saved state of the running stage back, once; False where none was saved."""
        saved, self._saved = self._saved, None
        if saved is None:
            return False
        part.load_state(*saved)
        return True

    def _load(self) -> bool:
        """Whether the run is finished; its state is put back."""
        path = self.run / STATE_FILE
        if not path.exists():
            self._trim()
            return False
        tensors, state = read_state(path)
        self.run.check_same(state["config"], to_json(self.config))
        for name in _NUMBERS:
            setattr(self, name, state[name])
        load_module_state("policy", self.policy, tensors)
        self.gate.load_state(tensors, state)
        if state["part"] is not None:
            self._saved = {k.removeprefix(PART): v for k, v in tensors.items() if k.startswith(PART)}, state["part"]
        self._spent_s = state["wall_s"]
        self._trim()
        return state["finished"]

    def _trim(self) -> None:
        """Drop lines of work that was lost with an interruption and is done again."""
        lines = list(self.run.metrics())
        own = [i for i, line in enumerate(lines) if line.get("stage") != "reward"]  # others write there what rewards say
        if len(own) > self.lines:
            self.run.keep_metrics(lines[: own[self.lines]])
