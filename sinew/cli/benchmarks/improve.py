"""Methods of improvement side by side: the same bases, the same scenes, what each needs in steps and time.

A base is a flow policy on demonstrations of which a part fails, so that alone it solves a third to three quarters of the scenes;
what it gains for nothing (zero noise, the best of a few fixed noises, the mean of several samples) stands beside. A cell is one
method on one base with one seed, which is that of the demonstrations, of training and of learning. Bases and cells stay in a
folder, so that an interrupted table goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinew.bench import Row
from sinew.errors import unknown

BASES: dict[str, tuple[tuple[tuple[str, int], ...], int]] = {
    "lift": ((("human", 150),), 10_000),
    "peg": ((("clean", 450), ("human", 300)), 25_000),
    "handover": ((("human", 300),), 12_000),
}
"""Task → demonstrations as (quality, episodes), and optimiser steps."""
METHODS: dict[str, int] = {
    "residual": 25_000, "dsrl": 10_000, "dsrl-grad": 10_000, "dsrl-sac": 10_000, "ibrl": 25_000, "rlpd": 25_000, "sac": 25_000,
}  # fmt: skip
"""Method → environment steps at most."""
SEEDS = (0, 1, 2)
FOLDER = Path("runs/bench-improve")
SCENES = 200
WANTED, LOW, HIGH, MINUTES = 0.97, 0.30, 0.75, 4.0
"""Success that is aimed at, of bases in between, within so many minutes of one core."""
FIXED, CHOICE_SCENES, MEAN_OF = 20, 50, 16
"""Candidates of the control with one noise for all, scenes on which it is chosen, samples of the control that averages."""
DIP_POINTS, DIP_STEPS = 10, 5_000
"""A learner may be this far below its base for this many steps."""

SOON, FEWER, OFTEN = 0.9, 3.0, 500
"""A correction shall need so many times fewer steps than learning from demonstrations alone to succeed this often, twice in a row
where the gate evaluates after every so many steps."""


def rows(
    quick: bool, policies: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = (), out: Path | None = None
) -> list[Row]:
    """Make the cells that are missing, then lay out all that were asked for.

    Args:
        quick: lay out what is finished and make nothing: a cell takes minutes.
        policies: methods; residual and dsrl if empty.
        tasks: tasks; all if empty.
        seeds: seeds; three if empty.
        out: folder of results.

    Raises:
        InputError: no such method or task.
    """
    import torch

    for what, given, known in (("method", policies, METHODS), ("task", tasks, BASES)):
        for name in given:
            if name not in known:
                raise unknown(what, name, tuple(known))
    folder, made = out or FOLDER, []
    torch.set_num_threads(1)
    for seed in seeds or SEEDS:  # the first seed of everything comes first
        for task in tasks or BASES:
            for method in policies or (METHODS if quick else ("residual", "dsrl")):
                found = cell(task, method, seed, folder, make=not quick)
                made += [] if found is None else [found]
    table = []
    for task in tasks or BASES:
        own = [c for c in made if c["task"] == task]
        table += _base_rows(task, own) if own else []
        for method in METHODS:
            of = [c for c in own if c["method"] == method]
            table += [_row(task, method, of)] if of else []
        table += _sooner_row(task, folder, seeds or SEEDS, make=not quick and "rlpd" in policies)
    return table or [Row(name="methods of improvement", unit="%", ours=None, peer="not run yet", target=f">= {100 * WANTED:.0f}")]


def _base_rows(task: str, cells: Sequence[dict[str, Any]]) -> list[Row]:
    """What the bases do alone, and what they gain for nothing."""
    bases = list({c["seed"]: c["base"] for c in cells}.values())
    told = [Row(name=f"{task}: base, {len(bases)} seeds", unit="%", ours=_rate(b["sample"] for b in bases), target="30 to 75")]
    for name, text in (("zero", "zero noise"), ("fixed", f"best of {FIXED} fixed noises"), ("mean", f"mean of {MEAN_OF} samples")):
        told.append(Row(name=f"{task}: same, {text}", unit="%", ours=_rate(b[name] for b in bases), peer="", target=""))
    return told


def _rate(results: Any) -> float:
    results = list(results)
    return 100 * sum(r["k"] for r in results) / sum(r["n"] for r in results)


def _row(task: str, method: str, cells: Sequence[dict[str, Any]]) -> Row:
    """A method over the seeds that are finished."""
    rate, base = _rate(c["improved"] for c in cells), _rate(c["base"]["sample"] for c in cells)
    steps, minutes = [c["steps"] for c in cells], [c["cpu_s"] / 60 for c in cells if c["cpu_s"] is not None]
    spent = f"{min(minutes):.1f} to {max(minutes):.1f} CPU min" if minutes else "CPU time not known"
    spent += f" of {len(minutes)} that were not interrupted" if 0 < len(minutes) < len(cells) else ""
    by_seed = ", ".join(f"{c['improved']['k']}/{c['improved']['n']}" for c in sorted(cells, key=lambda c: c["seed"]))
    dips = max(longest_dip(c["curve"]) for c in cells)
    aimed, timely = method in ("residual", "dsrl"), max(minutes) <= MINUTES if len(minutes) == len(cells) else None
    return Row(
        name=f"{task}: {method}, {by_seed}; {min(steps):,} to {max(steps):,} steps, {spent}, "
        f"below base - {DIP_POINTS} for {dips:,} steps",
        unit="%",
        ours=rate,
        peer="the base",
        peer_value=base,
        target=f">= {100 * WANTED:.0f} within {METHODS[method]:,} steps and {MINUTES:g} min" if aimed else "",
        holds=rate >= 100 * WANTED and dips <= DIP_STEPS and timely if aimed else None,
        detail={"cells": list(cells)},
    )


def _sooner_row(task: str, folder: Path, seeds: Sequence[int], make: bool) -> list[Row]:
    """Steps to a success rate, of a correction and from demonstrations alone, over the seeds that both have."""
    found = {seed: [sooner(task, method, seed, folder, make=make) for method in ("residual", "rlpd")] for seed in seeds}
    both = {seed: cells for seed, cells in found.items() if None not in cells}
    if not both:
        return []
    ours, theirs = ([steps_to(cells[i]["curve"]) for cells in both.values()] for i in (0, 1))  # type: ignore[index]
    got_there = all(reached for _, reached in theirs)
    mean, peer = (sum(steps for steps, _ in found) / len(both) for found in (ours, theirs))
    by_seed = ", ".join(f"{a:,} against {b:,}" for (a, _), (b, _) in zip(ours, theirs, strict=True))
    return [
        Row(
            name=f"{task}: steps to {100 * SOON:.0f} %, residual, by seed {by_seed}",
            unit="steps",
            ours=mean,
            peer="rlpd" if got_there else f"rlpd, which did not get there in its {METHODS['rlpd']:,}",
            peer_value=peer,
            target=f">= {FEWER:g}x fewer",
            holds=all(reached for _, reached in ours) and peer >= FEWER * mean,
            higher_is_better=False,
        )
    ]


def sooner(task: str, method: str, seed: int, folder: Path, *, make: bool = True) -> dict[str, Any] | None:
    """How soon a method is at `SOON`, with evaluations after every `OFTEN` steps, which shorten nothing else.

    Returns:
        {"task", "method", "seed", "steps", "curve"}; None where it is not in the folder and shall not be made.
    """
    from sinew.cli import improve
    from sinew.rundir import read_json, write_json

    note = folder / f"sooner-{task}-{method}-{seed}.json"
    if note.exists() or not make:
        return read_json(note) if note.exists() else None
    run, _ = base(task, seed, folder)
    given = {"method": method, "steps": METHODS[method], "seed": seed, "demos": folder / f"{task}-data-{seed}-human"}
    learned = improve.improve(
        improve.Args(run=run, out=folder / f"{task}-{method}-{seed}-sooner", evaluate_every=OFTEN, target=SOON, **given)
    )
    told = {"task": task, "method": method, "seed": seed, "steps": learned["steps"], "curve": learned["curve"]}
    write_json(note, told)
    return told


def steps_to(curve: Sequence[Sequence[float]], rate: float = SOON) -> tuple[float, bool]:
    """The step of the first evaluation that reaches a rate, or the last step of all, and whether it did; (step, rate, …) in order."""
    found = [step for step, reached, *_ in curve if reached >= rate]
    return (found[0], True) if found else (curve[-1][0], False)


# ---------------------------------------------------------------- one cell


def cell(task: str, method: str, seed: int, folder: Path, *, make: bool = True) -> dict[str, Any] | None:
    """One method on one base, from the folder or made now; None where it is not there and shall not be made.

    Returns:
        {"task", "method", "seed", "base" (see `base`), "improved" {"k", "n", "wilson95"}, "paired", "steps", "curve", "cpu_s"
        (None where it was interrupted)}.
    """
    from sinew.cli import eval, improve
    from sinew.rundir import read_json, write_json
    from sinew.stats import paired

    note = folder / f"cell-{task}-{method}-{seed}.json"
    if note.exists() or not make:
        return read_json(note) if note.exists() else None
    run, before = base(task, seed, folder)
    started, out = time.process_time(), folder / f"{task}-{method}-{seed}"
    whole = not out.exists()  # nobody counted what one that was interrupted had spent
    demos = folder / f"{task}-data-{seed}-human" if method in ("residual", "dsrl", "dsrl-grad", "ibrl", "rlpd") else None
    learned = improve.improve(improve.Args(run=run, out=out, method=method, steps=METHODS[method], seed=seed, demos=demos))  # type: ignore[arg-type]
    spent_s = round(time.process_time() - started, 1) if whole else None
    improved = eval.evaluate(eval.Args(run=out, episodes=SCENES))
    told = {"task": task, "method": method, "seed": seed, "base": {k: v for k, v in before.items() if k != "successes"}}
    told |= {"improved": {k: improved[k] for k in ("k", "n", "wilson95")}, "paired": paired(before["successes"], improved["successes"])}
    told |= {"steps": learned["steps"], "curve": learned["curve"], "cpu_s": spent_s}
    write_json(note, told)
    return told


def longest_dip(curve: Sequence[Sequence[float]]) -> int:
    """Steps for which an actor was too far below the base, from the first evaluation that says so to the next that does not.

    Args:
        curve: (step, success rate, episodes) in order; the first is the base's.
    """
    longest, since = 0.0, None
    for step, rate, _ in curve:
        if since is not None:
            longest = max(longest, step - since)
        low = rate < curve[0][1] - DIP_POINTS / 100
        since = (step if since is None else since) if low else None
    return int(longest)


def base(task: str, seed: int, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A policy on demonstrations of which a part fails, and what it and its controls do on the test scenes."""
    from sinew.cli import collect, eval, train
    from sinew.rundir import read_json, write_json

    recorded, steps = BASES[task]
    run, note = folder / f"{task}-base-{seed}", folder / f"base-{task}-{seed}.json"
    if note.exists():
        return run, read_json(note)
    data = []
    for quality, episodes in recorded:
        data.append(folder / f"{task}-data-{seed}-{quality}")
        collect.collect(collect.Args(task=task, out=data[-1], episodes=episodes, quality=quality, seed=seed))  # type: ignore[arg-type]
    train.train(train.Args(data=tuple(data), out=run, steps=steps, seed=seed))
    told: dict[str, Any] = {}
    for name in ("sample", "zero"):
        result = eval.evaluate(eval.Args(run=run, episodes=SCENES, noise=name, out=folder / "eval"))
        told[name] = {k: result[k] for k in ("k", "n", "wilson95")}
        if name == "sample":
            told["successes"] = result["successes"]
    told |= _controls(run, task)
    write_json(note, told)
    return run, told


def _controls(run: Path, task: str) -> dict[str, Any]:
    """One fixed noise for all chunks, chosen on other scenes, and chunks that are means of several samples."""
    import policies
    from sinew.cli import eval

    policy, test = policies.load(run), eval.test_seeds(SCENES)
    interface, choice = eval.interface_of(policy, task), eval.test_seeds(CHOICE_SCENES, seed=1)

    def rate(policy: Any, noise: str, seeds: list[int]) -> dict[str, Any]:
        result = eval.success(policy, interface, seeds, {"noise": eval.noise_of(policy, noise)})
        return {k: result[k] for k in ("k", "n")}

    tried = [rate(policy, f"fixed:{i}", choice)["k"] for i in range(FIXED)]
    best = max(range(FIXED), key=tried.__getitem__)
    return {"fixed": rate(policy, f"fixed:{best}", test), "mean": rate(_averaged(policy), "sample", test)}


def _averaged(policy: Any) -> Any:
    """The same policy, whose chunks are means of `MEAN_OF` samples."""
    from dataclasses import replace

    from policies.base import Wrapper

    class Averaged(Wrapper):
        def sample(self, ctx: Any, *, n: int = 1, noise: Any = None, generator: Any = None, **options: Any) -> Any:
            many = self.base.sample(ctx, n=n * MEAN_OF, generator=generator, **options)
            means = many.actions.unflatten(1, (n, MEAN_OF)).mean(2)
            return replace(many, actions=means, noise=many.noise.unflatten(1, (n, MEAN_OF))[:, :, 0])

    return Averaged(policy.spec, policy.config, policy)
