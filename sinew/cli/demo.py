"""The whole loop on this machine: collect, train, evaluate, improve in two ways, evaluate again, deploy over DDS, report.

The policy is corrected (residual RL) in this process and steered (DSRL-NA) in another beside it, each on its own core. Every stage
leaves its result in <out>/stages/; run again, finished stages are taken from there and the one that was interrupted goes on.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from sinew.cli import collect as collect_verb
from sinew.cli import deploy as deploy_verb
from sinew.cli import eval as eval_verb
from sinew.cli import improve as improve_verb
from sinew.cli import train as train_verb
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

FIXED_NOISES = 20
"""Candidates of the control that keeps the best fixed noise."""
PLAN_S = {
    "collect": 5,
    "train": 30,
    "evaluate": 5,
    "controls": 10,
    "improve": 240,
    "steer": 60,
    "evaluate_improved": 5,
    "evaluate_steered": 5,
    "deploy": 40,
}
"""Stages in order, with the seconds that each takes on two cores; only the time left is guessed from it."""
CHOICE_EPISODES = 50
"""Scenes on which that noise is chosen, apart from the test scenes."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """The whole loop on this machine: collect, train, evaluate, improve, evaluate again, deploy over DDS, report."""

    task: str = "lift"
    """Task; the settings below were chosen for lift."""
    out: Path = Path("runs/demo")
    """Folder of everything that is made; an interrupted demo there goes on."""
    episodes: int = 60
    """Demonstrations, failures included."""
    train_steps: int = 6000
    """Optimiser steps of behaviour cloning."""
    improve_steps: int = 25_000
    """Environment steps of residual RL at most."""
    steer_steps: int = 10_000
    """Environment steps of latent steering at most; 0 leaves it out."""
    eval_episodes: int = 100
    """Test scenes, the same for every policy."""
    deploy_episodes: int = 20
    """Episodes on the robot at the other end of the network."""
    videos: int = 2
    """Films of each policy."""
    seed: int = 0
    """Seed of demonstrations, weights and exploration; test scenes stay the same."""
    json: bool = False
    """Print one JSON object."""


class Stages:
    """Results of finished stages, kept as files.

    Args:
        folder: where they are kept.
        settings: what they depend on.
        phase: told the name of each stage that begins.

    Raises:
        InputError: the folder holds a demo with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], phase: Callable[[str], None]) -> None:
        from sinew.rundir import read_json, write_json

        self.folder, self.phase = folder, phase
        known = folder / "settings.json"
        if known.exists():
            found = read_json(known)
            differ = [k for k in sorted(set(found) | set(settings)) if found.get(k) != settings.get(k)]
            if differ:
                k = differ[0]
                raise InputError(
                    f"{folder.parent} holds a demo with {k} {found.get(k)!r}, not {settings.get(k)!r}; choose another --out or delete it"
                )
        else:
            write_json(known, settings)

    def do(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of stage `name`: from its file, or from `work`, with the seconds it took under "wall_s"."""
        from sinew.rundir import read_json, write_json

        path = self.folder / f"{name}.json"
        if not path.exists():
            self.phase(name)
            spent = self.folder / f"{name}.spent.json"
            before = read_json(spent)["wall_s"] if spent.exists() else 0.0
            begin = time.monotonic()
            try:
                result = work()
            except BaseException:
                write_json(spent, {"wall_s": before + time.monotonic() - begin})
                raise
            write_json(path, {"result": result, "wall_s": before + time.monotonic() - begin})
        return read_json(path)["result"]

    def finished(self, name: str) -> bool:
        """Whether the result of stage `name` is there."""
        return (self.folder / f"{name}.json").exists()

    def seconds(self) -> dict[str, float]:
        """Seconds that each finished stage took, interruptions counted once."""
        from sinew.rundir import read_json

        paths = [p for p in self.folder.glob("*.json") if p.name != "settings.json" and not p.name.endswith(".spent.json")]
        return {p.stem: read_json(p)["wall_s"] for p in sorted(paths, key=lambda p: p.stat().st_mtime)}


class Beside:
    """Latent steering in a process of its own, beside what this one does; what it says is in <out>/steered.log.

    Args:
        args: of the demo.
        needed: whether it is to run at all.
    """

    def __init__(self, args: Args, needed: bool) -> None:
        self.log = args.out / "steered.log"
        self.command = [
            sys.executable,
            "-m",
            "sinew",
            "improve",
            str(args.out / "bc"),
            "--method",
            "dsrl",
            "--out",
            str(args.out / "steered"),
        ]
        self.command += ["--steps", str(args.steer_steps), "--seed", str(args.seed), "--with-parent", "--json"]
        self.needed, self.process = needed, None

    def __enter__(self) -> Beside:
        if self.needed:
            with open(self.log, "wb") as log:
                self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
                    self.command, stdout=subprocess.PIPE, stderr=log, start_new_session=True
                )
        return self

    def wait(self) -> dict[str, Any]:
        """What it measured, when it is done.

        Raises:
            InputError: it failed; its last line is told.
        """
        if self.process is None:
            raise RuntimeError("steering was not begun")
        told, _ = self.process.communicate()
        if self.process.returncode:
            lines = self.log.read_text().strip().splitlines()
            raise InputError(f"steering failed: {lines[-1] if lines else f'exit {self.process.returncode}'}; see {self.log}")
        return json.loads(told)

    def __exit__(self, *_: object) -> None:
        """Where it is not waited for, it is asked to stop, and the same demo goes on with it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.communicate()


def run(args: Args) -> dict[str, Any]:
    """Run every stage that is not finished, write summary.json and report.html, and tell the summary."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress(PLAN_S) as progress:
        return demo(args, progress, progress.phase)


def demo(args: Args, progress: Progress = SILENT, phase: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The loop, stage by stage."""
    from sinew.cli.report import write_report
    from sinew.rundir import RunDir, write_json
    from sinew.stats import paired

    check(args)
    out = args.out
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "json")}
    stages = Stages(out / "stages", settings, phase)
    seeds = eval_verb.test_seeds(args.eval_episodes)

    data = stages.do(
        "collect",
        lambda: collect_verb.collect(
            collect_verb.Args(task=args.task, out=out / "data", episodes=args.episodes, quality="human", seed=args.seed), progress
        ),
    )
    stages.do(
        "train",
        lambda: train_verb.train(train_verb.Args(data=(out / "data",), out=out / "bc", steps=args.train_steps, seed=args.seed), progress),
    )
    bc = stages.do("evaluate", lambda: _evaluate(out / "bc", args, progress))
    controls = stages.do("controls", lambda: _controls(out / "bc", args, progress))
    with Beside(args, needed=args.steer_steps > 0 and not stages.finished("steer")) as beside:
        learned = stages.do(
            "improve",
            lambda: improve_verb.improve(
                improve_verb.Args(run=out / "bc", out=out / "improved", steps=args.improve_steps, demos=out / "data", seed=args.seed),
                progress,
            ),
        )
        steering = stages.do("steer", beside.wait) if args.steer_steps else None
    steered = stages.do("evaluate_steered", lambda: _evaluate(out / "steered", args, progress)) if steering else None
    improved = stages.do("evaluate_improved", lambda: _evaluate(out / "improved", args, progress))
    deployed = stages.do("deploy", lambda: _deploy(out / "improved", args, progress))
    spent = stages.seconds()
    summary = {
        "task": args.task,
        "demos": {"episodes": data["episodes"], "frames": data["frames"], "successes": data["successes"]},
        "bc": bc,
        "improved": improved,
        "deployed": deployed["success"],
        "paired": paired(bc["successes"], improved["successes"]),
        "controls": controls,
        **({"steered": steered, "steered_paired": paired(bc["successes"], steered["successes"])} if steered else {}),
        "curves": {"bc": _losses(RunDir(out / "bc")), "rl": learned["curve"], "steering": steering["curve"] if steering else []},
        "training_times": _times(RunDir(out / "bc")),
        "deploy": deployed["report"],
        "seeds": {"demo": args.seed, "test": [seeds[0], seeds[-1]]},
        "stages": spent,
        "wall_s": sum(spent.values()),
    }
    write_json(out / "summary.json", summary)
    return {**summary, "report": str(write_report(out, summary))}


def check(args: Args) -> None:
    """Refuse at once what would stop a stage only minutes later.

    Raises:
        InputError: no such task, or a number of nothing.
    """
    import sim

    sim.make_interface(args.task)
    for name in ("episodes", "train_steps", "improve_steps", "steer_steps", "eval_episodes", "deploy_episodes", "videos"):
        least = 0 if name in ("videos", "steer_steps") else 1
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least {least} is needed")


def _evaluate(run: Path, args: Args, progress: Progress) -> dict[str, Any]:
    result = eval_verb.evaluate(eval_verb.Args(run=run, episodes=args.eval_episodes, videos=args.videos), progress)
    return {k: result[k] for k in ("k", "n", "wilson95", "seeds", "successes", "videos") if k in result}


def _controls(run: Path, args: Args, progress: Progress) -> dict[str, Any]:
    """What the base policy gains for free: zero noise, and the best of a few fixed noises chosen on other scenes."""
    import policies

    policy = policies.load(run)
    interface = eval_verb.interface_of(policy, args.task)
    test = eval_verb.test_seeds(args.eval_episodes)
    choice = eval_verb.test_seeds(CHOICE_EPISODES, seed=1)

    def rate(noise: str, seeds: list[int]) -> dict[str, Any]:
        return eval_verb.success(policy, interface, seeds, {"noise": eval_verb.noise_of(policy, noise)}, progress)

    tried = [rate(f"fixed:{i}", choice)["k"] for i in range(FIXED_NOISES)]
    best = max(range(FIXED_NOISES), key=tried.__getitem__)
    return {"zero_noise": rate("zero", test), "best_fixed_noise": {**rate(f"fixed:{best}", test), "noise_seed": best, "chosen_on": tried}}


def _deploy(run: Path, args: Args, progress: Progress) -> dict[str, Any]:
    with deploy_verb.simulated_robot(args.task) as domain:
        return deploy_verb.deploy(deploy_verb.Args(run=run, robot="dds", domain=domain, episodes=args.deploy_episodes), progress)


def _losses(run: Any) -> list[list[float]]:
    return [[m["step"], m["loss"]] for m in run.metrics() if "loss" in m]


def _times(run: Any) -> dict[str, float]:
    """Median over a training of the seconds that a step spends on each part, and of samples per second."""
    lines = [m for m in run.metrics() if "samples_per_s" in m]
    return {name: median(m[name] for m in lines) for name in ("load_s", "preprocess_s", "update_s", "samples_per_s")} if lines else {}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    from rich.table import Table

    table = Table(title=f"{result['task']}: {result['demos']['episodes']} demonstrations, {result['wall_s'] / 60:.1f} minutes")
    for column in ("policy", "success", "rate", "95 % interval"):
        table.add_column(column)
    rows = {
        "behaviour cloning": result["bc"],
        "  same, zero noise": result["controls"]["zero_noise"],
        f"  same, best of {FIXED_NOISES} fixed noises": result["controls"]["best_fixed_noise"],
        "improved by residual RL": result["improved"],
        **({"steered by DSRL": result["steered"]} if "steered" in result else {}),
        "improved, deployed over DDS": result["deployed"],
    }
    for name, row in rows.items():
        low, high = row["wilson95"]
        table.add_row(name, f"{row['k']}/{row['n']}", f"{row['k'] / row['n']:.0%}", f"{low:.1%} – {high:.1%}")
    console.print(table)
    console.print(f"report: {result['report']}")
    p = result["paired"]
    console.print(f"same scenes, improved against cloned: {p['verdict']} ({p['wins']} won, {p['losses']} lost, McNemar p = {p['p']:.2g})")
