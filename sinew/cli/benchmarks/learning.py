"""Policies side by side: every kind on the same demonstrations, with the same budget, judged on the same scenes.

A cell is one policy on one task with one seed: collect, train and evaluate, as the verbs of these names do it. The seed draws
demonstrations, weights and test scenes, so the policies meet the same demonstrations and scenes and are compared in pairs.
Finished cells stay in the results folder and are not made again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks import learning_ways
from sinew.errors import MissingDependency

POLICIES = ("flow", "diffusion", "edm", "energy", "consistency", "act")
REFERENCE = "flow"
"""What the others are compared with."""
TASKS = ("lift", "peg", "push", "handover")
SEEDS = (0, 1, 2)
FOLDER = Path("runs/bench-learning")
DISTILLED = "consistency"
"""Comes from the reference's run by as many steps more."""
SETTINGS = {"act": ("width=64", "feedforward=128", "style_layers=1", "encoder_layers=1", "decoder_layers=1")}
"""Policies whose usual size is many times that of the others, brought to it."""
LATENCY_CALLS = 200
KINDS = ((False, "sync"), (False, "ensemble"), (True, "sync"))
"""Tables in their order: whether the tasks are Gymnasium's, and the executor."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every cell gets, whatever its policy."""

    demonstrations: int = 100
    """Episodes, failures among them."""
    quality: Literal["clean", "human"] = "human"
    """Style of the scripted expert in our tasks."""
    steps: int = 4000
    """Optimiser steps."""
    batch_size: int = 128
    """Windows in a batch."""
    scenes: int = 100
    """Test scenes of each seed."""


BUDGET, QUICK = Budget(), Budget(demonstrations=6, quality="clean", steps=60, batch_size=64, scenes=4)


def rows(
    quick: bool,
    policies: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path | None = None,
    budget: Budget | None = None,
) -> list[Row]:
    """Make the cells that are missing, then lay out all that were asked for.

    Args:
        quick: one tiny cell in a folder of its own, to see that it works; with `out`, no cell but those that are finished there.
        policies: kinds of policy; all if empty.
        tasks: tasks, also Gymnasium's as "gym:<id>"; ours if empty.
        seeds: seeds; three if empty.
        out: results folder.
        budget: what every cell gets; `BUDGET` if None.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if quick and out is None:
            with tempfile.TemporaryDirectory() as folder:
                return _rows(policies or (REFERENCE,), tasks or TASKS[:1], seeds or SEEDS[:1], Path(folder), QUICK)
        return _rows(policies or POLICIES, tasks or TASKS, seeds or SEEDS, out or FOLDER, None if quick else budget or BUDGET)
    finally:
        torch.set_num_threads(threads)


def _rows(policies: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], out: Path, budget: Budget | None) -> list[Row]:
    """See `rows`; without a budget nothing is made."""
    from sinew.cli.console_progress import ConsoleProgress

    cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {(task, policy): {} for task in tasks for policy in policies}
    with ConsoleProgress() as progress:
        for seed in seeds:  # the first seed of everything comes first, so that an interrupted table is broad
            for task, policy in cells:
                progress.note(f"{task}, {policy}, seed {seed}")
                cells[task, policy][seed] = cell(policy, task, seed, out, budget, progress)
    found = []
    for task in tasks:
        mine = {p: {seed: c for seed, c in cells[task, p].items() if "missing" not in c} for p in policies}
        runs = {p: {seed: _run(p, task, seed, out) for seed in made} for p, made in mine.items() if made}
        latency = latencies({p: next(iter(folders.values())) for p, folders in runs.items()})
        for executor in executors(task):
            for policy in policies:
                if mine[policy]:
                    found.append(_row(executor, task, policy, mine[policy], latency[policy], mine.get(REFERENCE, {})))
                else:
                    reason = next(iter(cells[task, policy].values()))["missing"]
                    detail = {"task": task, "policy": policy, "executor": executor}
                    found.append(Row(name=f"{task}, {executor}: {policy}", unit="%", ours=None, peer=reason, detail=detail))
        if task == learning_ways.TASK and budget is not QUICK:
            found += _way_rows([{p: made[seed] for p, made in runs.items() if seed in made} for seed in seeds])
    return found


# ---------------------------------------------------------------- one cell


def _run(policy: str, task: str, seed: int, out: Path) -> Path:
    return _folder(task, out) / f"{policy}-{seed}"


def _folder(task: str, out: Path) -> Path:
    return out / task.replace("/", "_").replace(":", "_")


def cell(policy: str, task: str, seed: int, out: Path, budget: Budget | None, progress: Any = None) -> dict[str, Any]:
    """Outcome of one policy on one task with one seed, from the results folder or, given a budget, made now.

    Returns:
        {"parameters", "train_s" (CPU), "demonstrations" (successful ones), "budget", "seeds" of the test scenes, and for each of
        `executors` its successes}, or {"missing": why}.
    """
    import policies
    from sinew.cli import collect, distill, eval, train
    from sinew.config import to_json
    from sinew.progress import SILENT
    from sinew.rundir import read_json, write_json

    note, data = _run(policy, task, seed, out) / "cell.json", _folder(task, out) / f"data-{seed}"
    if note.exists():
        return read_json(note)
    if budget is None:
        return {"missing": "not run yet: leave out --quick"}
    if policy not in policies.registry:
        return {"missing": f"there is no policy {policy!r}; there are {', '.join(policies.registry)}"}
    progress = progress or SILENT
    quality = "clean" if task.startswith("gym:") else budget.quality  # the experts of Gymnasium's worlds have no other
    wanted = collect.Args(task=task, out=data, episodes=budget.demonstrations, quality=quality, seed=seed)
    try:
        collected = collect.collect(wanted, progress)
    except MissingDependency as e:
        return {"missing": str(e)}
    how = {"out": note.parent, "batch_size": budget.batch_size, "seed": seed}  # and everything else as the verbs have it
    if policy == DISTILLED:
        cell(REFERENCE, task, seed, out, budget, progress)
        todo: Any = distill.Args(run=_run(REFERENCE, task, seed, out), updates=budget.steps, **how)
    else:
        todo = train.Args(data=(data,), policy=policy, set=SETTINGS.get(policy, ()), steps=budget.steps, **how)
    trained, train_s = _clocked(distill.distil if policy == DISTILLED else train.train, todo, progress)
    made = {"parameters": trained["parameters"], "train_s": train_s, "demonstrations": collected["successes"], "budget": to_json(budget)}
    for executor in executors(task):
        tested = eval.evaluate(eval.Args(run=note.parent, episodes=budget.scenes, seed=seed, executor=executor), progress)
        made |= {"seeds": tested["seeds"], executor: tested["successes"]}
    write_json(note, made)
    return made


def executors(task: str) -> tuple[Literal["sync", "ensemble"], ...]:
    """Ways to execute that a task is judged with; worlds of Gymnasium are slow and have the first only."""
    return ("sync",) if task.startswith("gym:") else ("sync", "ensemble")


def _clocked(verb: Callable[..., dict[str, Any]], arguments: Any, progress: Any) -> tuple[dict[str, Any], float]:
    """What a verb that trains tells, and the CPU seconds that it took over all interruptions."""
    from sinew.rundir import read_json, write_json

    clock = arguments.out / "train_s.json"
    before, started = read_json(clock) if clock.exists() else 0.0, time.process_time()
    try:
        trained = verb(arguments, progress)
    finally:
        spent = before + time.process_time() - started
        if arguments.out.exists():
            write_json(clock, spent)
    return trained, spent


def latencies(runs: Mapping[str, Path]) -> dict[str, float]:
    """Median CPU milliseconds from an observation to a chunk for each run, over observations of its demonstrations."""
    import torch

    import policies
    from demos import Dataset
    from sinew.rundir import RunDir, read_json

    found = {}
    for name, path in runs.items():
        policy, data = policies.load(RunDir.open(path)), Dataset(read_json(path / "config.json")["data"])
        spec, times = policy.spec, []
        for frame in np.linspace(0, len(data) - 1, LATENCY_CALLS).astype(int):
            window = data.window(np.array([frame]), spec.n_obs_steps, spec.horizon, list(spec.observation))
            obs = {key: torch.from_numpy(window[key]) for key in spec.observation}
            started = time.process_time_ns()
            with torch.no_grad():
                policy.sample(policy.encode(obs))
            times.append((time.process_time_ns() - started) / 1e6)
        found[name] = float(np.median(times))
    return found


# ---------------------------------------------------------------- the table


def _row(
    executor: str,
    task: str,
    policy: str,
    by_seed: Mapping[int, Mapping[str, Any]],
    latency_ms: float,
    reference: Mapping[int, Mapping[str, Any]],
) -> Row:
    """A policy on a task over the seeds that are finished, compared on those that the reference has finished too."""
    from sinew.stats import paired, success_summary

    name, cells = f"{task}, {executor}: {policy}", list(by_seed.values())
    detail: dict[str, Any] = {"task": task, "policy": policy, "executor": executor}
    successes = [s for c in cells for s in c[executor]]
    summary = success_summary(successes, [s for c in cells for s in c["seeds"]])
    low, high = summary["wilson95"]
    detail |= {
        "k": summary["k"], "n": summary["n"], "wilson95": [low, high], "k_by_seed": [sum(c[executor]) for c in cells],
        "parameters": cells[0]["parameters"], "train_s": sum(c["train_s"] for c in cells) / len(cells), "latency_ms": latency_ms,
        "demonstrations": [c["demonstrations"] for c in cells],
    }  # fmt: skip
    common = [seed for seed in by_seed if seed in reference]
    if common and policy != REFERENCE:
        before, after = ([s for seed in common for s in side[seed][executor]] for side in (reference, by_seed))
        detail["paired"] = paired(before, after)
    text = f"{summary['k']}/{summary['n']}, 95 % [{low:.1%}, {high:.1%}], {detail['parameters']:,} parameters"
    text += f", {detail['train_s']:.0f} CPU s, {latency_ms:.2g} CPU ms"
    return Row(name=name, unit="%", ours=100 * summary["k"] / summary["n"], peer=text, detail=detail)


def _way_rows(runs: Sequence[Mapping[str, Path]]) -> list[Row]:
    """How many first chunks keep to one of the demonstrator's two ways, averaged over seeds."""
    found = [learning_ways.shares(mine) for mine in runs]
    mean = {}
    for name in dict.fromkeys(name for shares in found for name in shares):
        mine = [shares[name] for shares in found if name in shares]
        mean[name] = {part: sum(m[part] for m in mine) / len(mine) for part in mine[0]}
    return [
        Row(
            name=f"{learning_ways.TASK}, first chunks between the two ways: {name}",
            unit="%",
            ours=100 * shares["between"],
            peer="demonstrator",
            peer_value=100 * mean["demonstrator"]["between"],
            higher_is_better=False,
            detail={"task": learning_ways.TASK, "policy": name, "ways": shares},
        )
        for name, shares in mean.items()
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for our tasks, one for the two ways to push, one for Gymnasium's; for sinew/cli/bench_page.py.

    Better and worse than the reference are said where the exact McNemar test over the common scenes gives p < 0.05 divided by the
    number of comparisons.
    """
    ways = {row["detail"]["policy"]: row["detail"]["ways"] for row in rows if "ways" in row["detail"]}
    known = [row["detail"] | {"measured": row["ours"] is not None} for row in rows if "ways" not in row["detail"]]
    comparisons = sum("paired" in d for d in known)
    kinds = dict.fromkeys((d["task"].startswith("gym:"), d["executor"]) for d in known)
    groups = {kind: [d for d in known if (d["task"].startswith("gym:"), d["executor"]) == kind] for kind in sorted(kinds, key=KINDS.index)}
    tables = [_table(group, comparisons, executor) for (_, executor), group in groups.items()]
    if ways:
        head = [f"| {learning_ways.TASK}, first chunks of a scene | left | between | right | rarer side |", "|---|---:|---:|---:|---:|"]
        lines = [f"| {name} | " + " | ".join(f"{100 * value:.0f} %" for value in shares.values()) + " |" for name, shares in ways.items()]
        tables.insert(sum(not gym for gym, _ in kinds), "\n".join(head + lines))
    return "\n\n".join(tables)


def _table(details: Sequence[Mapping[str, Any]], comparisons: int, executor: str) -> str:
    tasks = list(dict.fromkeys(d["task"] for d in details))
    costs = {"parameters": "parameters", "training, CPU s": "train_s", "latency, CPU ms": "latency_ms"} if executor == "sync" else {}
    heads = ["policy" if executor == "sync" else executor, *costs, *(task.removeprefix("gym:") for task in tasks)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for policy in dict.fromkeys(d["policy"] for d in details):
        mine = {d["task"]: d for d in details if d["policy"] == policy and d["measured"]}
        cells = [_span([d[key] for d in mine.values()]) for key in costs.values()]
        cells += [_text(mine[task], comparisons) if task in mine else "not measured" for task in tasks]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(values: Sequence[float]) -> str:
    from sinew.cli.bench import figure

    ends = dict.fromkeys([figure(min(values)), figure(max(values))]) if values else ["–"]
    return " to ".join(ends)


def _text(d: Mapping[str, Any], comparisons: int) -> str:
    low, high = d["wilson95"]
    text = f"{d['k']}/{d['n']} [{100 * low:.0f} – {100 * high:.0f} %]"
    test = d.get("paired")
    if test and test["p"] < 0.05 / comparisons:
        text += f" {test['verdict']}, p = {test['p']:.0e}"
    return text
