"""Residual correction and latent steering on bases from elsewhere: three tasks of Meta-World, and a diffusion policy of LeRobot.

A cell is one base, one method and one seed: demonstrations and a policy of their own (or LeRobot's, which is given), the base and
its control without noise, the improved policy, all on the same test scenes. Cells are kept in a folder and made once, so that an
interrupted table goes on. Meta-World wants a venv of its own, and so does LeRobot (`make conformance`'s, and `pip install
tyro mujoco==3.17.0 rosbags mcap scipy cyclonedds` into it); each makes its own cells into the same folder:

    python -m sinew.cli.benchmarks.rl_bases FOLDER gym:Meta-World/peg-insert-side-v3 residual 0
    python -m sinew.cli.benchmarks.rl_bases FOLDER hf:POLICY=lift residual 0 DATA
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sinew.bench import Row

TASKS = {"gym:Meta-World/peg-insert-side-v3": 20, "gym:Meta-World/assembly-v3": 18, "gym:Meta-World/pick-place-v3": 8}
"""Tasks of Meta-World and how many demonstrations of their scripted experts the base has: few, so that it fails at times."""
METHODS = ("residual", "dsrl")
SEEDS = (0, 1, 2)
SCENES = 200
"""Test scenes of an evaluation."""
TRAIN_STEPS = 4_000
WANTED, LOW, HIGH = 0.97, 0.30, 0.75
"""Success that is aimed at, of bases in between."""


def rows(quick: bool, folder: Path = Path("runs/bench-bases")) -> list[Row]:
    """What is in the folder; nothing is made here, since each cell takes minutes and a venv of its own."""
    from sinew.rundir import read_json

    kept = [read_json(path) for path in sorted(folder.glob("*/cell-*.json"))]
    names = dict.fromkeys([(task, method) for task in TASKS for method in METHODS] + [(cell["base"], cell["method"]) for cell in kept])
    return [row(name, method, [c for c in kept if (c["base"], c["method"]) == (name, method)]) for name, method in names]


def row(name: str, method: str, cells: Sequence[dict[str, Any]]) -> Row:
    """A base and a method over the seeds that are finished."""
    if not cells:
        return Row(name=f"{name}: {method}", unit="%", ours=None, peer="not run yet", target=f">= {100 * WANTED:.0f}")
    rate, base = (100 * sum(c[part]["k"] for c in cells) / sum(c[part]["n"] for c in cells) for part in ("improved", "before"))
    fits = LOW <= base / 100 <= HIGH
    return Row(
        name=f"{name}: {method}, {len(cells)} seeds, {max(c['steps'] for c in cells)} steps at most",
        unit="%",
        ours=rate,
        peer="the base",
        peer_value=base,
        target=f">= {100 * WANTED:.0f}" if fits else f"none: the base is not within {100 * LOW:.0f} to {100 * HIGH:.0f}",
        holds=rate >= 100 * WANTED if fits else None,
        detail={"cells": list(cells)},
    )


def cell(base: str, method: Literal["residual", "dsrl"], seed: int, folder: Path, data: Path | None = None) -> dict[str, Any]:
    """Make one cell, or read it.

    Args:
        base: a task of Meta-World, or "hf:<folder>=<task>" for a policy of LeRobot.
        method: of `METHODS`.
        seed: of demonstrations, training and learning.
        folder: of results.
        data: demonstrations for residual, where the base does not name its own.

    Returns:
        {"base", "method", "seed", "before", "zero", "improved": {"k", "n", "wilson95"}, "paired", "steps", "curve", "wall_s"}.
    """
    from sinew.cli import eval, improve
    from sinew.rundir import read_json, write_json
    from sinew.stats import paired

    place = folder / base.partition("=")[0].replace("/", "_").replace(":", "_")
    note = place / f"cell-{method}-{seed}.json"
    if note.exists():
        return read_json(note)
    run, task = base.split("=") if base.startswith("hf:") else (made_base(base, seed, place), None)
    before, zero = (
        eval.evaluate(eval.Args(run=run, task=task, episodes=SCENES, noise=noise, out=place / "eval")) for noise in ("sample", "zero")
    )
    started, out = time.monotonic(), place / f"{method}-{seed}"
    learned = improve.improve(
        improve.Args(run=run, task=task, method=method, seed=seed, out=out, demos=data if method == "residual" else None)
    )
    spent_s = round(time.monotonic() - started, 1)
    improved = eval.evaluate(eval.Args(run=out, episodes=SCENES))
    told = {"base": base, "method": method, "seed": seed, "steps": learned["steps"], "curve": learned["curve"], "wall_s": spent_s}
    told |= {name: {key: result[key] for key in ("k", "n", "wilson95")} for name, result in
             (("before", before), ("zero", zero), ("improved", improved))}  # fmt: skip
    told["paired"] = paired(before["successes"], improved["successes"])
    write_json(note, told)
    return told


def made_base(task: str, seed: int, place: Path) -> Path:
    """The run of a flow policy on demonstrations of the task's scripted expert."""
    from sinew.cli import collect, train

    data, run = place / f"data-{seed}", place / f"bc-{seed}"
    collect.collect(collect.Args(task=task, out=data, episodes=TASKS[task], seed=seed))
    train.train(train.Args(data=(data,), out=run, steps=TRAIN_STEPS, batch_size=128, seed=seed))
    return run


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    where, what, how, number, *recorded = sys.argv[1:]
    done = cell(what, "dsrl" if how == "dsrl" else "residual", int(number), Path(where), Path(recorded[0]) if recorded else None)
    sys.stdout.write(f"{done['before']} -> {done['improved']} ({done['steps']} steps, {done['wall_s']} s)\n")
