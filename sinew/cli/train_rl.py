"""Learn a task in simulation from nothing: reinforcement learning in many worlds at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.cli.scenes import first_scene
from sinew.errors import InputError, unknown
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from sinew.protocols import VecEnv

GATE_EPISODES = 100
"""Scenes on which it is decided what is kept."""
ALGORITHMS = ("fasttd3", "ppo")
REWARDS = ("dense", "sparse")


@dataclass(frozen=True, kw_only=True)
class Args:
    """Learn a task in simulation from nothing: reinforcement learning in many worlds at once."""

    out: Path
    """Folder of the run; an interrupted one there goes on exactly where its last checkpoint is."""
    task: str = "reach"
    """Task; there is a dense reward for reach, lift and peg."""
    algorithm: str = "ppo"
    """ppo: on-policy, its step size by the divergence; fasttd3: off-policy, distributional critics, noise of its own in every world."""
    num_envs: int = 64
    """Worlds stepped side by side, in each process."""
    backend: str = "mujoco"
    """What steps them: mujoco on the CPU, or warp, thousands of them on a GPU."""
    randomise: Path | None = None
    """What every episode draws anew, a file of ranges with units, which may grow while success holds; the gate measures with whole
    ranges; docs/simulation.md."""
    device: str = "cpu"
    """Where networks, replay and Warp's worlds are: cpu or cuda. Under torchrun each process takes its own and gradients are averaged."""
    steps: int | None = None
    """Environment steps at most, over all worlds and processes; if left out 400 000 for fasttd3 and 2 000 000 for ppo, and above 64 worlds
    as many more as there are more worlds."""
    reward: str = "dense"
    """dense: success, and how much nearer each step has come; sparse: success alone."""
    set: tuple[str, ...] = ()
    """Settings of the algorithm as name=value, for example --set gamma=0.98 n_step=5 learner.actor_lr=0.001."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the policy."""
    action: str = "ee_delta"
    """What actions command: ee_delta or joint_position."""
    target: float = 0.95
    """Stop early when this share of the gate's scenes is solved, twice in a row."""
    evaluate_every: int = 20_000
    """Steps between two evaluations on the gate's scenes, which take time of their own; at least 50 of every world."""
    seed: int = 0
    """Seed of weights, exploration and training scenes."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Learn, and tell what the gate measured."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return train(args, progress)


def train(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Learn from nothing, and keep the weights that the gate liked best.

    Raises:
        InputError: no such task, algorithm, backend, reward, device or setting, no room for so many worlds, or --out holds another run.
        MissingDependency: the backend is not installed.
    """
    for kind, given, known in (("algorithm", args.algorithm, ALGORITHMS), ("reward", args.reward, REWARDS)):
        if given not in known:
            raise unknown(kind, given, known)
    if args.num_envs < 1:
        raise InputError(f"--num-envs {args.num_envs}: at least one world is needed")
    for name in ("steps", "evaluate_every"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least one is needed")
    if not 0 < args.target <= 1:
        raise InputError(f"--target {args.target:g} is a share of the gate's scenes, above 0 and at most 1")
    import policies
    import sim
    from policies.parallel import own_device
    from rl.group import torchrun
    from sinew.cli.best_so_far import keeping
    from sinew.cli.room import fitting, out_of_memory
    from sinew.cli.train_rl_methods import METHODS, fresh_policy, potential, rewarded
    from sinew.config import to_json
    from sinew.rundir import RunDir

    interface = sim.make_interface(args.task, args.action)
    if args.reward == "dense":
        potential(interface, args.task)  # refuses a task that has none before anything is made
    device = own_device(args.device)
    where = str(device)
    policy = fresh_policy(interface, args.hidden, args.seed).to(device)
    method = METHODS[args.algorithm](policy, interface, args, settings(args.set))
    drawn = None if args.randomise is None else sim.load_randomisation(args.randomise)
    whole = None if drawn is None else replace(drawn, curriculum=None)
    with ExitStack() as stack:
        group = stack.enter_context(torchrun(device))
        progress = progress if group.leads else SILENT
        gate = fitting(lambda n: sim.worlds(interface, n, 0, args.backend, where, whole), min(GATE_EPISODES, max(args.num_envs, 50)), where)
        stack.callback(gate.close)
        first = first_scene("practice", args.seed)
        env = fitting(lambda n: sim.worlds(interface, n, first, args.backend, where, drawn), args.num_envs, where)
        stack.callback(env.close)
        practice = rewarded(env, interface, args)

        described = {"verb": "train-rl", "task": args.task, "algorithm": args.algorithm, "reward": args.reward, "action": args.action}
        described |= {"num_envs": args.num_envs, "backend": args.backend, "hidden": list(args.hidden), "processes": group.size}
        described |= {args.algorithm: method.config} | ({} if drawn is None else {"randomise": to_json(drawn)})
        # The folder comes into being when nothing can be wrong with the arguments any more, so that --out stays free.
        run = RunDir.create(args.out, described, seeds={"train": args.seed}) if group.leads else None
        group.barrier()
        run = run or RunDir.create(args.out / "learners" / str(group.rank), described)
        stack.enter_context(run.held())
        with out_of_memory(args.num_envs, where):
            measured = keeping(lambda: _measure(method.product(), gate, device), method.product, args.out)
            result = method.learn(practice, run, measured, progress, group)
        if group.leads:
            policies.save(method.product(), run)
    best, minutes = result.best, list(run.metrics())[-1].get("wall_s", 0.0) / 60
    return {
        "run": str(args.out),
        "task": args.task,
        "algorithm": args.algorithm,
        "steps": result.steps,
        "updates": result.updates,
        "minutes": round(minutes, 2),
        "reason": result.reason,
        "gate": {"k": best.k, "n": best.n} if best else None,
        "curve": [[e.step, e.k / e.n, e.n] for e in result.history],
    }


def _measure(policy: Any, gate: VecEnv, device: Any) -> Mapping[str, int]:
    """Successes on the gate's scenes."""
    from policies.evaluate import evaluate

    scenes = range(first_scene("gate"), first_scene("gate") + GATE_EPISODES)
    outcome = evaluate(policy, gate, scenes, executor_kwargs={"device": device})
    return {"k": outcome.k, "n": outcome.n}


def settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` and `part.name=value` as nested settings.

    Raises:
        InputError: something else.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InputError(f"--set {text!r}: expected name=value")
        *parts, last = name.split(".")
        place = found
        for part in parts:
            place = place.setdefault(part, {})
        try:
            place[last] = json.loads(value)
        except json.JSONDecodeError:
            place[last] = value
    return found


def show(result: dict[str, Any], console: Console) -> None:
    """Print what came of it."""
    times = f"{result['steps']} steps, {result['updates']} updates, {result['minutes']:.1f} minutes"
    console.print(f"{result['run']}: {times}; {result['reason']}")
    if result["gate"]:
        console.print(f"on the gate's own scenes {result['gate']['k']}/{result['gate']['n']}; measure it with: sinew eval {result['run']}")
