"""How stepping and learning grow with the worlds: control steps, memory, and how long a task takes to be learned from nothing.

Stepping is with still actions, resets included. Learning is `sinew train-rl` as a user runs it, the gate's evaluations and start-up
included, until the gate has twice seen the success rate that is asked for; then `sinew eval` on scenes that nothing was chosen on.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import torch

import sim
from sinew.bench import Row
from sinew.cli.benchmarks import sim_warp
from sinew.rundir import atomic_write
from sinew.stats import wilson

WORLDS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384)
TARGET = 0.95
SCENES = 200
"""That nothing was chosen on, for each seed."""
SEEDS = (3, 4, 5)
"""Settings were chosen on others."""
LEARNED = (("reach", "ppo"), ("lift", "ppo"), ("peg", "ppo"), ("reach", "fasttd3"))
"""Tasks that are learned from nothing, and how."""
MINUTES_GPU = 10.0
"""Wanted of lift from nothing to 95 % on an H100."""
GPU = "sinew train-rl --task lift --algorithm ppo --backend warp --num-envs 8192 --device cuda --out DIR"


def rows(quick: bool, out: Path | None = None) -> list[Row]:
    """Scaling on the CPU, and what learning takes, where there is a folder for its runs: it takes an hour.

    Args:
        quick: fewer worlds and steps.
        out: folder of runs; those that are finished there are not made again.
    """
    found = [_stepping("lift", worlds, 10 if quick else 60) for worlds in (WORLDS[:4] if quick else WORLDS)]
    if out is not None:
        for task, algorithm in LEARNED:
            found.append(learned(task, algorithm, [_learn(task, algorithm, seed, out) for seed in SEEDS]))
    return [*found, _not_measured()]


def _stepping(task: str, worlds: int, steps: int) -> Row:
    interface = sim.make_interface(task)
    sim.worlds(interface, 1).close()  # what is loaded with the first is not a world's
    tracemalloc.start()  # NumPy tells it what it allocates
    env = sim.worlds(interface, worlds)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    low, high = torch.tensor(env.action_spec.low), torch.tensor(env.action_spec.high)
    action = ((low + high) / 2).repeat(worlds, 1)
    steps = max(3, min(steps, 20_000 // worlds))
    env.step(action)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        env.step(action)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    env.close()
    done = worlds * steps
    return Row(
        name=f"{task}, MuJoCo on the CPU, {sim_warp.counted(worlds)}, {held / worlds / 1024:.1f} KiB a world",
        unit="control steps per core-second", ours=done / cpu, detail={"per_second": done / wall, "bytes_a_world": held / worlds},
    )  # fmt: skip


def _learn(task: str, algorithm: str, seed: int, out: Path) -> dict[str, Any]:
    """`sinew train-rl` and `sinew eval` in processes of their own: what the first tells, with the second's "k" and "n" and CPU seconds."""
    run = out / f"{task}-{algorithm}-{seed}"
    kept = run.with_suffix(".json")
    if not kept.exists():
        whole = not run.exists()  # nobody counted what a run that was interrupted had spent
        words = ["train-rl", "--task", task, "--algorithm", algorithm, "--seed", str(seed), "--target", str(TARGET), "--out", str(run)]
        begun = _children_s()
        told = _sinew(words)
        told["cpu_s"] = _children_s() - begun if whole else None
        told |= {name: value for name, value in _sinew(["eval", str(run), "--episodes", str(SCENES)]).items() if name in ("k", "n")}
        atomic_write(kept, json.dumps(told))
    return json.loads(kept.read_text())


def _children_s() -> float:
    """CPU seconds of processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _sinew(words: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "sinew", *words, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def learned(task: str, algorithm: str, results: list[dict[str, Any]]) -> Row:
    """What came of learning with several seeds.

    Args:
        task: its name.
        algorithm: how it was learned.
        results: of `_learn`, one for each seed.
    """
    won, played = (sum(result[key] for result in results) for key in ("k", "n"))
    low, high = wilson(won, played)
    steps, spent = [result["steps"] for result in results], [result["cpu_s"] for result in results]
    told = f"{won}/{played} test scenes of {len(results)} seeds [{100 * low:.1f}, {100 * high:.1f}] %"
    return Row(
        name=f"{task} from nothing, {algorithm}, 64 worlds: {told}, after {', '.join(f'{n:,}' for n in steps)} steps",
        unit="core-minutes, median", ours=None if None in spent else statistics.median(spent) / 60, higher_is_better=False,
        peer="interrupted, so that its time is not known" if None in spent else "",
        detail={"steps": steps, "cpu_s": spent, "wall_minutes": [r["minutes"] for r in results],
                "won": [r["k"] for r in results], "played": [r["n"] for r in results]},
    )  # fmt: skip


def _not_measured() -> Row:
    return Row(
        name="lift from nothing to 95 % on an H100, 8,192 worlds", unit="minutes", ours=None, peer=f"not measured: no GPU here; {GPU}",
        target=f"<= {MINUTES_GPU:g}", higher_is_better=False,
    )  # fmt: skip
