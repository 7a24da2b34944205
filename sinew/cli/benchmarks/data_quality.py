"""Does curation help? Demonstrations with planted bad ones: what the scores find of them, and what drawing by weights gives.

A cell is one task with one seed: episodes of which a part is spoiled in five ways (`data_planted`), scored as `sinew data quality` does
it, which never looks at outcomes; a policy of all episodes drawn alike, one drawn by the weights, and one of the good episodes alone,
as the most that curation could give. All are judged on the same test scenes. Finished cells stay in the results folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row

TASKS, SEEDS, POLICIES = ("lift", "drawer"), (0, 1, 2), ("direct", "flow")
FOLDER = Path("runs/bench-quality")
WAYS = ("all", "weighted", "good")
BASELINES = ("length", "failed")
"""Scores that nobody needs a method for: how long an episode is, and whether it was marked as failed."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every cell gets."""

    good: int = 50
    bad_each: int = 6
    """Episodes of each of the five kinds of bad ones."""
    folds: int = 5
    steps: int = 1000
    batch_size: int = 128
    scenes: int = 200


BUDGET, QUICK = Budget(), Budget(good=12, bad_each=1, folds=2, steps=60, scenes=4)


def rows(
    quick: bool,
    policies: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path | None = None,
) -> list[Row]:
    """Make the cells that are missing, then lay out all that were asked for.

    Args:
        quick: one tiny cell in a folder of its own, to see that it works.
        policies: kinds of policy; two if empty.
        tasks: tasks; two if empty.
        seeds: seeds; three if empty.
        out: results folder.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if quick:
            with tempfile.TemporaryDirectory() as folder:
                return _rows(policies or POLICIES[:1], tasks or TASKS[:1], seeds or SEEDS[:1], Path(folder), QUICK)
        return _rows(policies or POLICIES, tasks or TASKS, seeds or SEEDS, out or FOLDER, BUDGET)
    finally:
        torch.set_num_threads(threads)


def _rows(policies: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], out: Path, budget: Budget) -> list[Row]:
    data = {(task, seed): found(task, seed, out, budget) for seed in seeds for task in tasks}
    runs = {(p, task, seed): success(p, task, seed, out, budget) for p in policies for seed in seeds for task in tasks}
    laid = [row for task in tasks for row in _found_rows(task, [data[task, seed] for seed in seeds])]
    for policy in policies:
        for task in tasks:
            laid += _success_rows(policy, task, [runs[policy, task, seed] for seed in seeds])
    return laid


def _folder(task: str, seed: int, out: Path) -> Path:
    return out / f"{task}-{seed}"


def found(task: str, seed: int, out: Path, budget: Budget) -> dict[str, Any]:
    """Episodes of a cell and what the scores make of them.

    Returns:
        {"kinds": of the episodes, "scores": {score: high is bad}, "weights", "cpu_s" that scoring took}.
    """
    from demos import Dataset
    from demos.quality import weights
    from demos.quality.scores import BAD_IS_HIGH
    from sinew.cli.benchmarks.data_planted import collect, kinds_of
    from sinew.cli.data_quality import scored
    from sinew.progress import SILENT
    from sinew.rundir import read_json, write_json

    folder = _folder(task, seed, out)
    note, kinds = folder / "scores.json", kinds_of(budget.good, budget.bad_each, seed)
    if note.exists():
        return read_json(note)
    collect(folder / "data", task, kinds, seed)
    data, begin = Dataset(folder / "data"), time.process_time()
    scores = scored(data, budget.folds, seed, SILENT)
    weights.store(data, scores, {"policy_folds": budget.folds, "seed": seed})
    told = {name: (v if BAD_IS_HIGH[name] is not False else -v).tolist() for name, v in scores.values.items()}
    episodes = [data.episode(i) for i in range(data.num_episodes)]
    told |= {"doubt": scores.doubt.tolist(), "length": [float(e.length) for e in episodes]}
    told |= {"failed": [float(not e.success) for e in episodes]}
    result = {"kinds": kinds, "scores": told, "weights": scores.weights.tolist(), "cpu_s": time.process_time() - begin}
    write_json(note, result)
    return result


def success(policy: str, task: str, seed: int, out: Path, budget: Budget) -> dict[str, Any]:
    """Successes of a policy trained in each of `WAYS`: {way: [outcome of every scene], "seeds": of the scenes, "cpu_s"}."""
    from demos.edit import assemble, pieces_of
    from sinew.cli import eval, train
    from sinew.cli.benchmarks.data_planted import kinds_of
    from sinew.rundir import read_json, write_json

    folder = _folder(task, seed, out)
    note, data, good = folder / f"{policy}.json", folder / "data", folder / "good"
    if note.exists():
        return read_json(note)
    if not (good / "meta/info.json").exists():
        kinds = kinds_of(budget.good, budget.bad_each, seed)
        assemble(good, [piece for piece, kind in zip(pieces_of(data), kinds, strict=True) if kind == "good"])
    made: dict[str, Any] = {}
    begin = time.process_time()
    for way in WAYS:
        run = folder / f"{policy}-{way}"
        train.train(
            train.Args(
                data=(good if way == "good" else data,), out=run, policy=policy, weights="quality" if way == "weighted" else "none",
                steps=budget.steps, batch_size=budget.batch_size, seed=seed,
            )
        )  # fmt: skip
        told = eval.evaluate(eval.Args(run=run, task=task, episodes=budget.scenes, seed=seed))
        made |= {way: told["successes"], "seeds": told["seeds"]}
    made["cpu_s"] = time.process_time() - begin
    write_json(note, made)
    return made


# ---------------------------------------------------------------- the table


def area(bad: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a bad episode has the higher score than a good one, ties counting half."""
    apart = score[bad][:, None] - score[~bad]
    return float((apart > 0).mean() + 0.5 * (apart == 0).mean())


def _found_rows(task: str, cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """How well each score tells planted episodes from good ones, the mean over seeds."""
    laid = []
    for name in cells[0]["scores"]:
        areas, by_kind = [], {}
        for cell in cells:
            kinds, score = np.array(cell["kinds"]), np.array(cell["scores"][name])
            areas.append(area(kinds != "good", score))
            for kind in sorted(set(cell["kinds"]) - {"good"}):
                among = (kinds == "good") | (kinds == kind)
                by_kind.setdefault(kind, []).append(area(kinds[among] == kind, score[among]))
        detail = {"task": task, "score": name, "by_seed": areas, "by_kind": {k: float(np.mean(v)) for k, v in by_kind.items()}}
        what = "baseline" if name in BASELINES else ", ".join(f"{k} {np.mean(v):.2f}" for k, v in by_kind.items())
        laid.append(Row(name=f"{task}, planted episodes found by {name}", unit="AUC", ours=float(np.mean(areas)), peer=what, detail=detail))
    kept = [np.array(c["weights"])[np.array(c["kinds"]) == "good"].mean() for c in cells]
    left = [np.array(c["weights"])[np.array(c["kinds"]) != "good"].mean() for c in cells]
    who = "mean weight of the planted ones"
    laid.append(
        Row(name=f"{task}, mean weight of good episodes", unit="", ours=float(np.mean(kept)), peer=who, peer_value=float(np.mean(left)))
    )
    return laid


def _success_rows(policy: str, task: str, cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Success drawn by weights, beside all alike and beside the good ones alone, on the scenes of all seeds."""
    from sinew.stats import paired, success_summary

    seeds = [s for cell in cells for s in cell["seeds"]]
    outcome = {way: [s for cell in cells for s in cell[way]] for way in WAYS}
    summary = {way: success_summary(outcome[way], seeds) for way in WAYS}
    laid = []
    for other in ("all", "good"):
        test = paired(outcome[other], outcome["weighted"])
        words = {way: _told(summary[way]) for way in ("weighted", other)}
        text = f"{words[other]}, {'all alike' if other == 'all' else 'only the good ones'}; ours {words['weighted']}, {_verdict(test)}"
        rates = [100 * summary[way]["k"] / summary[way]["n"] for way in ("weighted", other)]
        detail = {"task": task, "policy": policy, "paired": test, "by_seed": {way: [sum(c[way]) for c in cells] for way in WAYS}}
        target = "better than all alike, paired" if other == "all" else ""
        laid.append(
            Row(
                name=f"{task}, {policy}: drawn by weights", unit="%", ours=rates[0], peer=text, peer_value=rates[1], target=target,
                holds=test["verdict"] == "better" if target else None, detail=detail,
            )
        )  # fmt: skip
    return laid


def _told(summary: Mapping[str, Any]) -> str:
    low, high = summary["wilson95"]
    return f"{summary['k']}/{summary['n']} [{100 * low:.0f} – {100 * high:.0f} %]"


def _verdict(test: Mapping[str, Any]) -> str:
    return f"{test['wins']} won, {test['losses']} lost, p = {test['p']:.1g}: {test['verdict']}"
