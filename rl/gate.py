"""Keep the best weights by the evidence of evaluations, so that improving a policy never hands back a worse one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinew.errors import DataError, InputError

SAVED_AS = "best."
"""What names of weights begin with in a training state."""


@dataclass(frozen=True)
class Evaluation:
    """Successes in an evaluation."""

    step: int
    """Environment steps of training before it."""
    k: int
    """Successes."""
    n: int
    """Episodes."""

    @property
    def rate(self) -> float:
        """Share of successes, k / n."""
        return self.k / self.n

    @classmethod
    def of(cls, result: Mapping[str, Any], step: int) -> Evaluation:
        """From what an evaluation gave: at least "k" and "n".

        Raises:
            InputError: these are missing or make no rate.
        """
        k, n = result.get("k"), result.get("n")
        if not isinstance(k, int) or not isinstance(n, int) or not 0 <= k <= n or n < 1:
            raise InputError(f"an evaluation must give whole numbers k <= n with n > 0, found k={k!r}, n={n!r}")
        return cls(step, k, n)


def eased(history: Sequence[Evaluation], start: int, half_life: int) -> float:
    """The part of its first cost that leaving the base still has: it halves while success holds, and is four times that after a fall.

    How far an actor may safely go before critics know enough differs by task; evaluations tell. A fall is two standard errors of the
    difference to the best evaluation before; after each one, halving takes twice as long.

    Args:
        history: evaluations in order; those at step 0 are of the base.
        start: step that learning begins at.
        half_life: steps, at first.
    """
    part, slower, best, last = 1.0, 1, history[0] if history else None, start
    for now in history[1:]:
        assert best is not None
        rate = (now.k + best.k) / (now.n + best.n)
        fell = best.rate - now.rate > 2 * math.sqrt(rate * (1 - rate) * (1 / now.n + 1 / best.n))
        if now.step > start:
            part = min(1.0, 4 * part) if fell else part * 0.5 ** ((now.step - last) / (slower * half_life))
            slower, last = 2 * slower if fell else slower, now.step
        best = now if now.rate >= best.rate else best
    return part


class Gate:
    """Remembers the best weights of a module.

    A candidate replaces the start (the base) only if its success rate is higher by more than `margin`; among candidates a
    later one wins a tie. Give evaluations on the same seeds each time.

    Args:
        module: whose weights are kept; as it is now, it is the base.
        margin: by how much the base must be beaten.
    """

    def __init__(self, module: nn.Module, margin: float = 0.0) -> None:
        self.module, self.margin = module, margin
        self.history: list[Evaluation] = []
        """Every evaluation, in order."""
        self.base: Evaluation | None = None
        self.best: Evaluation | None = None
        self.weights = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.module.state_dict().items()}

    def consider(self, evaluation: Evaluation) -> bool:
        """Take in an evaluation of the module as it is now; the first is the base's. Whether its weights are now the best."""
        self.history.append(evaluation)
        if self.base is None or self.best is None:
            self.base = self.best = evaluation
            self.weights = self._copy()
            return True
        better = evaluation.rate > self.base.rate + self.margin and evaluation.rate >= self.best.rate
        if better:
            self.best, self.weights = evaluation, self._copy()
        return better

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The best weights, and {"history", "best"}: all evaluations, and which of them the weights were measured in."""
        best = None if self.best is None else self.history.index(self.best)
        return {SAVED_AS + k: v for k, v in self.weights.items()}, {"history": [asdict(e) for e in self.history], "best": best}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Put back what `state` gave; what else is there is left alone.

        Raises:
            DataError: it is of another module.
        """
        if missing := [k for k in self.weights if SAVED_AS + k not in tensors]:
            raise DataError(f"the training state has no best weights of {missing[0]}; it is of another policy or version")
        self.weights = {k: tensors[SAVED_AS + k].to(v) for k, v in self.weights.items()}
        self.history = [Evaluation(**e) for e in numbers["history"]]
        if numbers["best"] is not None:
            self.base, self.best = self.history[0], self.history[numbers["best"]]

    def restore(self) -> None:
        """Put the best weights into the module."""
        with torch.no_grad():
            self.module.load_state_dict(self.weights)
