"""Two runs on the same seeds: is the second better than the first, and how sure is that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.errors import DataError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from sinew.rundir import RunDir

Outcomes = dict[int, bool]
USUAL = {
    "noise": "sample",
    "executor": "sync",
    "act_steps": None,
    "delay": 0,
    "best_of": 1,
    "scorer": None,
    "with": [],
    "instruction": None,
    "goal_scale": None,
    "randomise": None,
}
"""How an evaluation is made where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Two runs on the same seeds: is the second better than the first, and how sure is that."""

    a: Annotated[Path, tyro.conf.Positional]
    """Folder of the run that is compared with, for example the older one; or one evaluation in it, RUN/eval/NAME.json."""
    b: Annotated[Path, tyro.conf.Positional]
    """Folder of the run that is asked about, or one evaluation in it."""
    task: str | None = None
    """Task, where both were evaluated on several."""
    noise: str = "sample"
    """Compare evaluations with this noise: sample, zero or fixed:K."""
    executor: Literal["sync", "ensemble", "async", "rtc"] = "sync"
    """Compare evaluations with this executor."""
    delay: int = 0
    """Compare evaluations with this delay in ticks."""
    best_of: int = 1
    """Compare evaluations with this many candidates."""
    scorer: Literal["count", "energy", "q"] = "count"
    """Compare evaluations that ranked candidates by this, where there are several."""
    act_steps: int | None = None
    """Compare evaluations with this many actions executed of each chunk; all if left out."""
    sequential: bool = False
    """Judge with the anytime-valid test: use it when you looked at the result before all episodes were in."""
    alpha: float = 0.05
    """Largest probability of calling a difference between two that are alike."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


def run(args: Args) -> dict[str, Any]:
    """Pair the evaluations of both runs by seed and test the difference.

    Raises:
        InputError: a run is missing, or nothing was evaluated on common seeds.
        DataError: two evaluations of one run contradict each other.
    """
    from sinew.rundir import RunDir
    from sinew.stats import paired, success_summary

    if not 0 < args.alpha < 1:
        raise InputError(f"--alpha {args.alpha}: give a probability between 0 and 1, for example 0.05")
    how = {"noise": args.noise, "executor": args.executor, "act_steps": args.act_steps}
    wanted = {**USUAL, **how, "delay": args.delay, "best_of": args.best_of, "scorer": args.scorer if args.best_of > 1 else None}
    evaluations = [
        outcomes_of([path], path) if path.suffix == ".json" else evaluations_of(RunDir.open(path), wanted) for path in (args.a, args.b)
    ]
    task = common_task(args, *evaluations)
    a, b = (e[task] for e in evaluations)
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise InputError(f"{args.a} and {args.b} share no seed on task {task}; evaluate both with the same --seed and --episodes")
    first, second = [a[s] for s in seeds], [b[s] for s in seeds]
    once, always = paired(first, second, alpha=args.alpha), sequential(first, second, args.alpha)
    return {
        "task": task, **how, "alpha": args.alpha,
        "a": {"run": str(args.a), **success_summary(first, seeds)}, "b": {"run": str(args.b), **success_summary(second, seeds)},
        "left_out": {"a": len(a) - len(seeds), "b": len(b) - len(seeds)},
        "paired": once, "sequential": always, "verdict": (always if args.sequential else once)["verdict"],
        "test": "sequential" if args.sequential else "mcnemar_exact",
    }  # fmt: skip


def evaluations_of(run: RunDir, how: Mapping[str, Any]) -> dict[str, Outcomes]:
    """{task: {seed: success}} of every evaluation made that way in a run's eval folder."""
    return outcomes_of(sorted((run / "eval").glob("*.json")), run.path, how)


def outcomes_of(paths: Sequence[Path], whose: Path, how: Mapping[str, Any] | None = None) -> dict[str, Outcomes]:
    """{task: {seed: success}} of these evaluations, as far as they were made that way.

    Raises:
        DataError: one is damaged, or two contradict each other.
    """
    from sinew.rundir import read_json

    found: dict[str, Outcomes] = {}
    for path in paths:
        entry = read_json(path)
        if not isinstance(entry, Mapping) or not {"task", "seeds", "successes"} <= entry.keys():
            continue
        if any(entry.get(name, USUAL[name]) != value for name, value in (how or {}).items()):
            continue
        if len(entry["seeds"]) != len(entry["successes"]):
            raise DataError(f"{path}: {len(entry['seeds'])} seeds and {len(entry['successes'])} outcomes; evaluate again")
        outcomes = found.setdefault(entry["task"], {})
        for seed, success in zip(entry["seeds"], entry["successes"], strict=True):
            if outcomes.setdefault(int(seed), bool(success)) != bool(success):
                raise DataError(f"{path} contradicts another evaluation of {whose} on seed {seed}; remove the one that is not meant")
    return found


def common_task(args: Args, a: Mapping[str, Outcomes], b: Mapping[str, Outcomes]) -> str:
    """The task to compare on.

    Raises:
        InputError: there is none, or several and none was named.
    """
    for path, evaluations in ((args.a, a), (args.b, b)):
        if not evaluations:
            raise InputError(f"{path} was not evaluated so: run sinew eval {path}{_options(args)}")
        if args.task is not None and args.task not in evaluations:
            raise InputError(f"{path} was not evaluated on task {args.task}; it was on {', '.join(sorted(evaluations))}")
    if args.task is not None:
        return args.task
    common = sorted(a.keys() & b.keys())
    if not common:
        raise InputError(f"no common task: {args.a} was evaluated on {', '.join(sorted(a))}, {args.b} on {', '.join(sorted(b))}")
    if len(common) > 1:
        raise InputError(f"both were evaluated on {', '.join(common)}; name one with --task")
    return common[0]


def _options(args: Args) -> str:
    """The options of `sinew eval` that make the evaluations that are asked for."""
    asked = {"noise": args.noise, "executor": args.executor, "delay": args.delay, "act_steps": args.act_steps, "best_of": args.best_of}
    asked = {name: value for name, value in asked.items() if value != USUAL[name]}
    asked |= {"scorer": args.scorer} if args.best_of > 1 else {}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in asked.items())


def sequential(before: list[bool], after: list[bool], alpha: float) -> dict[str, Any]:
    """Anytime-valid comparison, pair by pair in the order of the seeds."""
    from sinew.stats import SequentialComparison

    comparison = SequentialComparison(alpha)
    for x, y in zip(before, after, strict=True):
        comparison.update(x, y)
    return comparison.report()


def show(result: dict[str, Any], console: Console) -> None:
    """Both rates, the split of the pairs, and the verdict in words."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "k/n", "rate", "Wilson 95 %"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for side in ("a", "b"):
        group = result[side]
        low, high = group["wilson95"]
        table.add_row(group["run"], f"{group['k']}/{group['n']}", f"{group['k'] / group['n']:.0%}", f"{low:.1%} to {high:.1%}")
    console.print(table)
    test = result["paired"] if result["test"] == "mcnemar_exact" else result["sequential"]
    name = "exact McNemar" if result["test"] == "mcnemar_exact" else "anytime-valid"
    console.print(
        f"\n{test['wins']} seeds that only the second solves, {test['losses']} only the first; {name} p = {test['p']:.2g}", highlight=False
    )
    console.print(sentence(result), highlight=False, markup=False)


def sentence(result: Mapping[str, Any]) -> str:
    """The verdict in words; never "better" without evidence."""
    a, b, n = result["a"]["run"], result["b"]["run"], result["a"]["n"]
    if result["verdict"] == "no evidence":
        return f"No evidence that {a} and {b} differ on {result['task']} (n = {n}); more episodes on common seeds may tell."
    return f"{b} is {result['verdict']} than {a} on {result['task']} (n = {n}, alpha = {result['alpha']:g})."
