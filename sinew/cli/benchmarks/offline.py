"""Learning from recorded steps side by side: every method on the same data, with the same number of updates, on the same scenes.

The data are ours: a scripted expert that is clean, that is mixed with failures as people's demonstrations are, that shakes, or that
plays, aiming anywhere. A cell is one method on one kind of data of one task with one seed; finished cells stay in the results folder
and are not made again, interrupted ones go on. No method sees the world before its test, and the last weights are tested.
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
from sinew.cli.scenes import first_scene
from sinew.errors import InputError, unknown

METHODS = ("bc", "iql", "td3-bc", "fql", "qc", "recap")
REFERENCE = "bc"
"""Imitation by a flow policy; what the others are compared with."""
TASKS = ("lift", "push")
KINDS = ("expert", "mixed", "noisy", "play")
SEEDS = (0, 1, 2)
FOLDER = Path("runs/bench-offline")
WORLDS = 50


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every cell gets, whatever its method."""

    episodes: int = 100
    """Recorded episodes, failures among them."""
    updates: int = 4_000
    """Optimiser steps."""
    batch_size: int = 128
    """Windows or transitions in a batch."""
    horizon: int = 8
    """Actions in a chunk of bc, qc and recap."""
    scenes: int = 50
    """Test scenes of each seed."""


BUDGET, QUICK = Budget(), Budget(episodes=6, updates=40, batch_size=32, scenes=4)


def style(kind: str) -> Any:
    """How the expert behind a kind of data deviates."""
    from sim.expert import CLEAN, HUMAN, ExpertStyle

    if kind == "noisy":
        return ExpertStyle(noise=0.4)
    if kind == "play":
        return ExpertStyle(
            noise=0.1, aim_error_probability=1.0, aim_error_m=(-0.08, 0.08), aim_jitter_m=0.03, speed=(0.4, 1.0),
            height_m=(-0.03, 0.06), side_m=0.05, pause_probability=0.05,
        )  # fmt: skip
    return {"expert": CLEAN, "mixed": HUMAN}[kind]


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
        quick: two tiny cells in a folder of their own, to see that it works; with `out`, no cell but those that are finished there.
        policies: methods; all if empty.
        tasks: "lift" for all kinds of data of a task, "lift:mixed" for one; all if empty.
        seeds: seeds; three if empty.
        out: results folder.
        budget: what every cell gets; `BUDGET` if None.

    Raises:
        InputError: no such method or kind of data.
    """
    import torch

    for method in policies:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if quick and out is None:
            with tempfile.TemporaryDirectory() as folder:
                return _rows(policies or ("bc", "iql"), _worlds(tasks or ("lift:mixed",)), seeds or SEEDS[:1], Path(folder), QUICK)
        return _rows(policies or METHODS, _worlds(tasks or TASKS), seeds or SEEDS, out or FOLDER, None if quick else budget or BUDGET)
    finally:
        torch.set_num_threads(threads)


def _worlds(tasks: Sequence[str]) -> list[tuple[str, str]]:
    """(task, kind of data) for every one that is named."""
    found = []
    for text in tasks:
        task, _, kind = text.partition(":")
        if kind and kind not in KINDS:
            raise unknown("kind of data", kind, KINDS)
        found += [(task, one) for one in ((kind,) if kind else KINDS)]
    return found


def _rows(methods: Sequence[str], worlds: Sequence[tuple[str, str]], seeds: Sequence[int], out: Path, budget: Budget | None) -> list[Row]:
    """See `rows`; without a budget nothing is made."""
    from sinew.cli.console_progress import ConsoleProgress

    cells: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {(*world, method): {} for world in worlds for method in methods}
    with ConsoleProgress() as progress:
        for seed in seeds:  # the first seed of everything comes first, so that an interrupted table is broad
            for task, kind, method in cells:
                progress.note(f"{task}, {kind}: {method}, seed {seed}")
                made = cell(method, task, kind, seed, out, budget, progress)
                if made is not None:
                    cells[task, kind, method][seed] = made
    return [_row(*key, made, cells.get((*key[:2], REFERENCE), {})) for key, made in cells.items()]


# ---------------------------------------------------------------- one cell


def cell(method: str, task: str, kind: str, seed: int, out: Path, budget: Budget | None, progress: Any) -> dict[str, Any] | None:
    """Outcome of one method on one kind of data with one seed, from the results folder or, given a budget, made now.

    Returns:
        {"successes" of the test scenes, "seeds" of these, "train_s" (CPU, of the last sitting), "recorded" successes, "budget"}, or
        None where there is none and no budget to make it.

    Raises:
        InputError: the folder holds a cell of another budget.
    """
    from policies.evaluate import evaluate
    from sim import MujocoVecEnv
    from sinew.config import to_json
    from sinew.rundir import read_json, write_json

    folder = out / f"{task}-{kind}" / f"{method}-{seed}"
    note = folder / "cell.json"
    if note.exists():
        found = read_json(note)
        if budget is not None and found["budget"] != to_json(budget):
            raise InputError(f"{note} was made with another budget; choose another --out")
        return found
    if budget is None:
        return None
    data, interface = dataset(task, kind, seed, out, budget, progress)
    started = time.process_time()
    policy = learn(method, data, task, folder, budget, seed, progress)
    train_s, first = time.process_time() - started, first_scene("test", seed)
    env = MujocoVecEnv(interface, min(WORLDS, budget.scenes))
    try:
        tested = evaluate(policy, env, range(first, first + budget.scenes), progress=progress)
    finally:
        env.close()
    recorded = sum(bool(data.episode(i).success) for i in range(data.num_episodes))
    made = {"successes": list(tested.success), "seeds": list(tested.seeds), "train_s": train_s, "recorded": recorded}
    write_json(note, {**made, "budget": budget})
    return {**made, "budget": to_json(budget)}


def dataset(task: str, kind: str, seed: int, out: Path, budget: Budget, progress: Any) -> tuple[Any, Any]:
    """The data of a kind, recorded where they are missing, and their task."""
    import sim
    from demos import Dataset
    from sinew.cli.recorded import record

    interface = sim.make_interface(task)
    root, first = out / f"{task}-{kind}" / f"data-{seed}", first_scene("demonstrations", seed)
    seeds = range(first, first + budget.episodes)
    record(
        root,
        interface,
        tuple(interface.observation_spec),
        seeds,
        lambda n: sim.make_vec(task, n),
        lambda n: sim.make_expert(task, num_envs=n, style=style(kind)),
        progress,
    )
    return Dataset(root), interface


def learn(method: str, data: Any, task: str, folder: Path, budget: Budget, seed: int, progress: Any) -> Any:
    """The policy that a method makes of the data; a method that was interrupted goes on."""
    import torch

    import policies
    from policies.train import TrainConfig, train
    from sinew.rundir import RunDir
    from sinew.specs import PolicySpec

    run = RunDir.create(folder, {"verb": "bench offline", "task": task, "method": method, "seed": seed, "budget": budget})
    spec = PolicySpec(observation=data.observation_spec, action=data.action_spec, horizon=budget.horizon)
    base: Any = policies.make("flow", spec, data.stats(), seed=seed)
    supervised = TrainConfig(steps=budget.updates, batch_size=budget.batch_size, seed=seed, checkpoint_every=1_000)
    if method == "bc":
        return train(base, data, run, supervised, progress)
    if method == "recap":
        return train(*taught(base, data, seed, progress), run, supervised, progress)
    from rl.offline import train_offline
    from sinew.cli.improve_offline import offline_method, remembered

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy, make = offline_method(method, base, budget.updates, batch_size=budget.batch_size, seed=seed, evaluate_updates=1_000)
    fitted = make(1)
    train_offline(fitted, remembered(data, policy), run, fitted.config, progress=progress)
    policies.save(policy, run)
    return policy.eval()


def taught(base: Any, data: Any, seed: int, progress: Any) -> tuple[Any, Any]:
    """A policy that is told of advantages, and the data with their labels."""
    import torch

    from policies.advantage import AdvantageConditioned, AdvantageTraining, Labelled
    from rl.recap import RecapConfig, label
    from rl.recap_value import Experience
    from sinew.cli.improve_offline import features_of

    policy, infos = AdvantageConditioned(base), [data.episode(i) for i in range(data.num_episodes)]
    known = Experience(
        features_of(policy, data, torch.device("cpu")),
        np.array([e.length for e in infos]),
        np.array([bool(e.success) for e in infos]),
        np.asarray(data.column("task_index")).reshape(-1).astype(np.int64),
        np.zeros(len(data), bool),
    )
    good, _ = label(known, RecapConfig(seed=seed), progress)
    return AdvantageTraining(policy), Labelled(data, good)


# ---------------------------------------------------------------- the table


def _row(task: str, kind: str, method: str, made: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]) -> Row:
    """A method on a kind of data over the seeds that are finished, compared on those that the reference has finished too."""
    from sinew.stats import paired, success_summary

    name, detail = f"{task}, {kind}: {method}", {"task": task, "kind": kind, "method": method}
    if not made:
        return Row(name=name, unit="%", ours=None, peer="not run yet: leave out --quick", detail=detail)
    summary = success_summary([s for c in made.values() for s in c["successes"]], [s for c in made.values() for s in c["seeds"]])
    low, high = summary["wilson95"]
    recorded = {seed: f"{c['recorded']}/{c['budget']['episodes']}" for seed, c in made.items()}
    told: dict[str, Any] = {
        "k": summary["k"], "n": summary["n"], "wilson95": [low, high], "recorded": list(recorded.values()),
        "k_by_seed": {str(seed): sum(c["successes"]) for seed, c in made.items()},
        "train_s": sum(c["train_s"] for c in made.values()) / len(made),
    }  # fmt: skip
    common = [seed for seed in made if seed in reference]
    if common and method != REFERENCE:
        before, after = ([s for seed in common for s in side[seed]["successes"]] for side in (reference, made))
        told["paired"] = paired(before, after)
    text = f"{summary['k']}/{summary['n']}, 95 % [{low:.1%}, {high:.1%}], seeds {', '.join(map(str, made))}, {told['train_s']:.0f} CPU s"
    return Row(name=name, unit="%", ours=100 * summary["k"] / summary["n"], peer=text, detail=detail | told)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per kind of data, one column per method, with what the recorded episodes themselves reach; for bench_page.py."""
    details = [row["detail"] | {"measured": row["ours"] is not None} for row in rows]
    methods = list(dict.fromkeys(d["method"] for d in details))
    lines = ["| data | recorded | " + " | ".join(methods) + " |", "|---|---|" + "---:|" * len(methods)]
    for task, kind in dict.fromkeys((d["task"], d["kind"]) for d in details):
        mine = {d["method"]: d for d in details if (d["task"], d["kind"]) == (task, kind) and d["measured"]}
        recorded = ", ".join(next(iter(mine.values()))["recorded"]) if mine else "–"
        cells = [f"{mine[m]['k']}/{mine[m]['n']}" if m in mine else "not measured" for m in methods]
        lines.append(f"| {task}, {kind} | {recorded} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
