"""Improvement by experience: roll out, judge every step by how near success it came, teach the policy to prefer the better ones; again.

Every round starts from the first policy, so that nothing drifts, and learns from all that was recorded: demonstrations, rollouts of
all rounds, interventions. What acts, and is handed back, is the best so far by evaluations on the same scenes.

Source: RECAP of pi*0.6, arXiv:2511.14759.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import nn

from rl.checkpoint import read_state, write_state
from rl.gate import Evaluation, Gate
from rl.loop_config import LoopResult
from rl.recap_value import Experience, ValueConfig, advantages, fit_value, labels, returns
from sinew.config import to_json
from sinew.errors import InputError
from sinew.progress import SILENT, Progress
from sinew.rundir import RunDir

STATE_FILE = "recap_state.safetensors"


@dataclass(frozen=True, kw_only=True)
class RecapConfig:
    """Settings of improvement by experience."""

    rounds: int = 2
    """Times that it rolls out and learns."""
    episodes: int = 100
    """Rollouts per round."""
    positive_share: float = 0.4
    """Share of each task's steps that are taught as better than usual; interventions always are."""
    lookahead: int = 16
    """Steps after which a step is judged by the value of where it led."""
    seed: int = 0
    """Fixes scenes, noise and batches."""
    stop_success: float = 0.99
    """Success rate at which no further round is needed."""
    value: ValueConfig = field(default_factory=ValueConfig)
    """Settings of the value distribution."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.episodes, self.lookahead) < 1 or not 0 < self.positive_share < 1:
            sizes = f"rounds {self.rounds}, episodes {self.episodes} and lookahead {self.lookahead} must be at least 1"
            raise InputError(f"{sizes}, positive_share {self.positive_share} between 0 and 1")

    @property
    def gamma(self) -> float:
        """Steps to success are counted, not discounted."""
        return 1.0


class Parts(Protocol):
    """What a round needs of the world, the data and the policy. Each can be asked again after an interruption and then goes on."""

    @property
    def policy(self) -> nn.Module: ...

    def collect(self, round: int) -> tuple[int, int]:
        """Roll the policy out as it is now; (environment steps, successes)."""
        ...

    def experience(self, round: int) -> Experience:
        """Everything recorded up to this round."""
        ...

    def teach(self, round: int, good: np.ndarray) -> int:
        """Train the first policy with the label (F,) of every frame; the number of updates."""
        ...


def improve_by_experience(
    parts: Parts,
    run: RunDir,
    config: RecapConfig,
    *,
    evaluate: Callable[[], Mapping[str, Any]],
    progress: Progress = SILENT,
) -> LoopResult:
    """Rounds of rolling out and learning; the policy ends as the best that was measured, which may be the first.

    Args:
        parts: policy, data and worlds.
        run: keeps rounds that are done, the best policy and metrics; an interrupted run goes on.
        config: settings.
        evaluate: as for `rl.residual.train_residual`.
        progress: as there.

    Raises:
        InputError: the run was made with another config, or no recorded episode succeeded.
    """
    gate, done = Gate(parts.policy), {"round": 0, "steps": 0, "updates": 0, "successes": 0}
    if (run / STATE_FILE).exists():
        done = _load(gate, run, config)
    else:
        gate.consider(Evaluation.of(evaluate(), 0))
        _save(gate, done, run, config)
    while done["round"] < config.rounds and gate.history[-1].rate < config.stop_success:
        gate.restore()
        number = done["round"] + 1
        (steps, successes), known = parts.collect(number), parts.experience(number)
        if not known.success.any():
            raise InputError("none of the recorded episodes succeeded, so nothing tells good steps from bad: add demonstrations")
        good, measured = label(known, config, progress)
        done["updates"] += parts.teach(number, good)
        done["round"], done["steps"], done["successes"] = number, done["steps"] + steps, done["successes"] + successes
        kept = gate.consider(evaluation := Evaluation.of(evaluate(), done["steps"]))
        _save(gate, done, run, config)
        told = {"k": evaluation.k, "n": evaluation.n, "success": evaluation.rate, "kept": kept, "rollout_successes": successes}
        run.log(step=done["steps"], updates=done["updates"], round=number, **told, **measured)
    gate.restore()
    reason = f"{done['round']} rounds done" + (", none better than what it began with" if gate.best is gate.base else "")
    return LoopResult(done["steps"], done["updates"], gate.base, gate.best, tuple(gate.history), done["successes"], reason)


def label(known: Experience, config: RecapConfig, progress: Progress = SILENT) -> tuple[np.ndarray, dict[str, float]]:
    """Which steps (F,) are better than usual, and what is to be known of the value that judged them."""
    scale = known.scale(config.value)
    _, value = fit_value(known, config.value, config.seed, progress)
    good = labels(known, advantages(known, value, config.lookahead, scale), config.positive_share)
    outcome = returns(known, scale)
    explained, won = 1 - float((outcome - value).square().mean() / outcome.var().clamp(min=1e-9)), known.success[known.episode]
    shares = {"positive_in_successes": float(good[won].mean()), "positive_in_failures": float(good[~won].mean()) if (~won).any() else 0.0}
    return good, {"value_explained": explained, **shares}


def _save(gate: Gate, done: dict[str, int], run: RunDir, config: RecapConfig) -> None:
    weights, measured = gate.state()
    write_state(run / STATE_FILE, weights, {"config": to_json(config), "done": done} | measured)


def _load(gate: Gate, run: RunDir, config: RecapConfig) -> dict[str, int]:
    weights, state = read_state(run / STATE_FILE)
    run.check_same(state["config"] | {"rounds": config.rounds}, to_json(config))
    gate.load_state(weights, state)
    return state["done"]
