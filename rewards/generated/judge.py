"""What generated code makes of recorded episodes, before anything is learned from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.generated.fields import Field
from rewards.generated.reward import Statistics, evaluate
from rewards.generated.sandbox import Sandbox
from rewards.measures import auc, auc_interval, rank_correlation
from sinew.errors import DataError, InputError
from sinew.protocols import EpisodeData
from sinew.specs import ACTION

LEAST_CORRELATION = 0.5
"""Mean rank correlation with time along successes that a value must reach."""
LEAST_AUC = 0.7
"""Share of pairs in which a success must score above a failure, where there are failures."""
MOST_CLIPPED = 0.05
"""Share of frames whose value may lie outside of its range, where it is clipped and tells nothing."""
RANGES: Mapping[str, tuple[float, float]] = {"potential": (0.0, 1.0), "reward": (-1.0, 1.0)}
FEW = 3
"""Failures from which on an AUC is asked for."""


@dataclass(frozen=True)
class Recorded:
    """Recorded episodes as code is tried on them."""

    episodes: tuple[Mapping[str, np.ndarray], ...]
    """{observation key or "action": (T, D)} each."""
    outcome: tuple[bool, ...]
    """Whether each succeeded."""

    def ranges(self, fields: Mapping[str, Field]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Smallest and largest values (D,) of each field."""
        ends = {}
        for name, field in fields.items():
            values = np.concatenate([episode[field.key][:, list(field.columns)] for episode in self.episodes])
            ends[name] = (values.min(axis=0), values.max(axis=0))
        return ends


@dataclass(frozen=True)
class Judgement:
    """How a piece of code did."""

    successes: int
    failures: int
    not_finite: float
    """Share of frames."""
    clipped: float
    """Share of frames outside the range."""
    rank_correlation: float
    """Of the value with time, mean over successes; -1 to 1."""
    auc: float | None
    """Success against failure, by the last value of a potential or the mean of a reward; None without failures."""
    auc95: tuple[float, float] | None
    parts: Mapping[str, Mapping[str, float]]
    """{name: {"min", "mean", "max", "rank_correlation"}}."""
    problems: tuple[str, ...]
    """Why it must not be learned from; empty where it may."""

    @property
    def passed(self) -> bool:
        """Whether it may be learned from."""
        return not self.problems

    @property
    def score(self) -> float:
        """For choosing among candidates; higher is better."""
        ranked = 0.5 if self.auc is None else self.auc
        return self.rank_correlation + ranked - self.clipped - 10 * self.not_finite - 10 * (not self.passed)

    def told(self) -> str:
        """A few lines for a model that is to do better, or for a person."""
        lines = [f"rank correlation of the value with time along successes: {self.rank_correlation:.2f} (at least {LEAST_CORRELATION:g})"]
        if self.auc is not None:
            lines.append(f"share of pairs in which a success scores above a failure: {self.auc:.2f} (at least {LEAST_AUC:g})")
        lines.append(f"frames outside the range: {self.clipped:.1%}; not finite: {self.not_finite:.1%}")
        for name, part in self.parts.items():
            lines.append(
                f"{name}: min {part['min']:.3g}, mean {part['mean']:.3g}, max {part['max']:.3g}, with time {part['rank_correlation']:.2f}"
            )
        return "\n".join([*lines, *self.problems])


def read(data: EpisodeData, fields: Mapping[str, Field]) -> Recorded:
    """The episodes of a dataset.

    Raises:
        InputError: no episode succeeded, or the dataset does not tell.
    """
    given: Any = data
    infos = [info for info in (given.episode(i) for i in range(data.num_episodes)) if info.success is not None]
    outcome = tuple(bool(info.success) for info in infos)
    if not any(outcome):
        raise InputError(
            f"none of the {len(outcome)} episodes of the dataset is a success: code cannot be tried on it; record some, or mark them"
        )
    columns = {key: np.asarray(given.column(key), np.float32) for key in {*(f.key for f in fields.values()), ACTION}}
    wrong = [key for key, values in columns.items() if not np.isfinite(values).all()]
    if wrong:
        raise DataError(f"{wrong[0]} of the dataset is not finite somewhere; run sinew data check on it")
    cut = [slice(info.start, info.start + info.length) for info in infos]
    return Recorded(tuple({key: values[part] for key, values in columns.items()} for part in cut), outcome)


def judge(sandbox: Sandbox, fields: Mapping[str, Field], recorded: Recorded) -> Judgement:
    """Try code on recorded episodes.

    Raises:
        CodeRefused: it does not work out.
        WorkerLost: it brought its process down.
    """
    curves = [evaluate(sandbox, fields, episode.__getitem__, episode[ACTION]) for episode in recorded.episodes]
    names, form = ("total", *sandbox.described.parts), sandbox.described.form
    low, high = RANGES[form]
    whole = np.concatenate([c[0] for c in curves])
    finite = np.isfinite(np.concatenate(curves, axis=1)).all(axis=0)
    clipped = float(((whole < low - 1e-9) | (whole > high + 1e-9)).mean())
    statistics = Statistics(names)
    statistics.add(np.concatenate(curves, axis=1))
    good = [np.clip(np.nan_to_num(c), -1e9, 1e9) for c, ok in zip(curves, recorded.outcome, strict=True) if ok]
    bad = [np.clip(np.nan_to_num(c), -1e9, 1e9) for c, ok in zip(curves, recorded.outcome, strict=True) if not ok]
    growth = {name: float(np.mean([rank_correlation(c[i]) for c in good])) for i, name in enumerate(names)}
    ends = [[float(np.clip(c[0], low, high)[-1 if form == "potential" else slice(None)].mean()) for c in group] for group in (good, bad)]
    ranked = auc(*ends) if bad else None
    parts = {name: {**told, "rank_correlation": growth[name]} for name, told in statistics.told().items()}
    share = float(1.0 - finite.mean())
    return Judgement(
        successes=len(good), failures=len(bad), not_finite=share, clipped=clipped, rank_correlation=growth["total"], auc=ranked,
        auc95=None if ranked is None else auc_interval(ranked, len(good), len(bad)), parts=parts,
        problems=_problems(form, share, clipped, growth["total"], ranked if len(bad) >= FEW else None),
    )  # fmt: skip


def _problems(form: str, not_finite: float, clipped: float, growth: float, ranked: float | None) -> tuple[str, ...]:
    found = []
    low, high = RANGES[form]
    if not_finite > 0:
        found.append(f"{not_finite:.1%} of the frames give what is not finite: guard divisions, roots and logarithms")
    if clipped > MOST_CLIPPED:
        found.append(f"{clipped:.1%} of the frames lie outside of {low:g} to {high:g}, where the value is clipped: scale it")
    if growth < LEAST_CORRELATION and (form == "potential" or ranked is None):
        found.append(f"the value does not grow along successes: rank correlation with time {growth:.2f}, at least {LEAST_CORRELATION:g}")
    if ranked is not None and ranked < LEAST_AUC:
        found.append(f"the value does not tell success from failure: {ranked:.2f} of pairs, at least {LEAST_AUC:g}")
    return tuple(found)


def tenths(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Per-part statistics of training, in ten equal stretches, from the lines of `GeneratedReward` in a training log.

    Returns:
        {part: [{"min", "mean", "max"}, at most 10]}; empty without such lines.
    """
    told = [line for line in lines if line.get("stage") == "reward" and isinstance(line.get("parts"), Mapping)]
    made: dict[str, list[dict[str, float]]] = {}
    for block in np.array_split(np.arange(len(told)), min(10, max(1, len(told)))):
        for name in told[0]["parts"] if len(told) else ():
            of = [told[i]["parts"][name] for i in block if name in told[i]["parts"]]
            if of:
                made.setdefault(name, []).append(
                    {"min": min(p["min"] for p in of), "mean": float(np.mean([p["mean"] for p in of])), "max": max(p["max"] for p in of)}
                )
    return made
