"""Success rate of a run on fixed seeds, with its Wilson interval."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.cli.scenes import check_seed, first_scene
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from policies import PolicyModule
    from sim import GymnasiumTask, TaskInterface

WORLDS = 50
"""Worlds stepped side by side; results do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Success rate of a run on fixed seeds, with its Wilson interval."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    task: str | None = None
    """Task; the one the run was trained on if left out."""
    episodes: int = 100
    """Episodes, one seed each."""
    executor: Literal["sync", "ensemble"] = "sync"
    """How chunks become actions."""
    act_steps: int | None = None
    """Actions executed of each chunk; all if left out."""
    noise: str = "sample"
    """Noise behind each chunk: sample (the policy as it is), zero, or fixed:K (one vector, drawn from seed K)."""
    instruction: str | None = None
    """What a language policy is told to do; the task's own text if left out."""
    videos: int = 0
    """Episodes to film into the run's videos/."""
    seed: int = 0
    """Chooses the test scenes; they are never those of collection, of training or of the gate."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Evaluate, write eval/<name>.json into the run, and tell the result."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return evaluate(args, progress)


def test_seeds(episodes: int, seed: int = 0) -> list[int]:
    """Seeds of the test scenes.

    Raises:
        InputError: no episodes.
    """
    if episodes < 1:
        raise InputError(f"--episodes {episodes}: at least 1 is needed")
    first = first_scene("test", seed)
    return list(range(first, first + episodes))


def evaluate(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Evaluate the run that `args` name and write eval/<task>….json and videos.

    Raises:
        InputError: no such run or task, or a number that cannot be.
        SpecError: policy and task do not fit.
    """
    import policies
    import sim
    from sinew.rundir import RunDir, write_json

    if args.videos < 0:
        raise InputError(f"--videos {args.videos}: at least 0 is needed")
    run = RunDir.open(args.run)
    policy = policies.load(run)
    check_instruction(policy, args.instruction)
    task = args.task or task_of(run)
    interface = sim.GymnasiumTask(task) if task.startswith("gym:") else interface_of(policy, task)
    if args.videos and isinstance(interface, sim.GymnasiumTask):
        raise InputError(f"--videos {args.videos}: worlds of Gymnasium are not filmed; leave it out for {task}")
    options = {"mode": args.executor, "act_steps": args.act_steps, "noise": noise_of(policy, args.noise)}
    if args.instruction is not None:
        options["instruction"] = args.instruction
    result = success(policy, interface, test_seeds(args.episodes, args.seed), options, progress)
    how = {"noise": args.noise, "executor": args.executor, "act_steps": args.act_steps, "instruction": args.instruction}
    result = {"run": str(args.run), "task": task, **how, **result}
    write_json(run / f"eval/{file_name(task, args)}.json", result)
    if args.videos and not isinstance(interface, sim.GymnasiumTask):
        from sinew.cli.video import film

        result["videos"] = film(policy, interface, test_seeds(args.videos, args.seed), run / "videos", options, progress)
    return result


def file_name(task: str, args: Args) -> str:
    """Name of an evaluation: the task, and whatever was not left as it is; evaluations made in different ways never meet."""
    parts = [task.replace("/", "_").replace(":", "_")]
    parts += [args.noise.replace(":", "-")] if args.noise != "sample" else []
    parts += [args.executor] if args.executor != "sync" else []
    parts += [f"act{args.act_steps}"] if args.act_steps is not None else []
    parts += [f"seed{args.seed}"] if args.seed else []
    return "-".join(parts) + instruction_tag(args.instruction)


def instruction_tag(instruction: str | None) -> str:
    """What an instruction adds to a file name, with a digest that keeps different ones apart; "" for the task's own text."""
    if instruction is None:
        return ""
    words = "-".join(re.findall(r"[a-z0-9]+", instruction.lower()))[:40].strip("-")
    return f"-told-{words}-{hashlib.sha256(instruction.encode()).hexdigest()[:8]}"


def check_instruction(policy: PolicyModule, instruction: str | None) -> None:
    """Refuse an instruction that would have no effect.

    Raises:
        InputError: the policy does not act by language, or the text is blank.
    """
    if instruction is None:
        return
    if "language" not in policy.spec.capabilities:
        have = ", ".join(policy.spec.capabilities) or "none"
        raise InputError(f"--instruction {instruction!r}: {type(policy).__name__} does not act by language, its capabilities are: {have}")
    if not instruction.strip():
        raise InputError("--instruction is blank: say what the policy shall do, or leave it out for the task's own text")


def success(
    policy: PolicyModule,
    interface: TaskInterface | GymnasiumTask,
    seeds: Sequence[int],
    options: dict[str, Any],
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """k, n, wilson95, seeds and successes of a policy on a task.

    Args:
        policy: the policy.
        interface: the task as the policy sees it.
        seeds: one episode each.
        options: arguments of `ChunkExecutor`; the instruction is the task's own text where they give none.
        progress: told every finished episode.
    """
    import sim
    from policies.evaluate import evaluate as play
    from sinew.stats import success_summary

    worlds = min(WORLDS, len(seeds))
    env = interface.make_vec(worlds) if isinstance(interface, sim.GymnasiumTask) else sim.MujocoVecEnv(interface, worlds)
    try:
        outcome = play(policy, env, seeds, executor_kwargs={"instruction": interface.task_text, **options}, progress=progress)
    finally:
        env.close()
    return {
        **success_summary(outcome.success, outcome.seeds),
        "successes": list(outcome.success),
        "lengths": list(outcome.lengths),
        "wall_s": outcome.wall_s,
    }


def task_of(run: Any) -> str:
    """Name of the task that a run was trained on.

    Raises:
        InputError: the run does not know.
    """
    from sinew.rundir import read_json

    config = read_json(run / "config.json")
    task = config.get("task")
    if not task and config.get("tasks"):
        raise InputError(f"{run.path} was trained on {', '.join(config['tasks'])}; name one with --task")
    if not task:
        raise InputError(f"{run.path} does not say which task it was trained on; name it with --task")
    return task


def interface_of(policy: PolicyModule, task: str) -> TaskInterface:
    """The task with the observations, cameras and action kind that the policy wants.

    Raises:
        InputError: no such task.
        SpecError: the task cannot give what the policy needs.
    """
    import sim
    from sinew.specs import IMAGES, check_action_join, check_observation_join

    spec = policy.spec
    cameras = tuple(k.removeprefix(IMAGES) for k in spec.observation.images)
    size = spec.observation[spec.observation.images[0]].shape[0] if cameras else 84
    interface = sim.make_interface(task, action=spec.action.kind, cameras=cameras, image_size=size)
    check_observation_join(f"task {task}", interface.observation_spec, "the policy", spec.observation)
    check_action_join("the policy", spec.action, f"task {task}", interface.action_spec)
    return interface


def noise_of(policy: PolicyModule, text: str) -> Any:
    """What `ChunkExecutor` takes as noise, from "sample", "zero" or "fixed:K".

    Raises:
        InputError: none of these.
    """
    import torch

    if text == "sample":
        return None
    if text == "zero":
        return "zero"
    kind, _, number = text.partition(":")
    if kind != "fixed" or not number.isdigit():
        raise InputError(f"--noise {text!r}: known are sample, zero and fixed:K with a whole number K")
    check_seed(int(number))
    return torch.randn(policy.spec.noise_shape, generator=torch.Generator().manual_seed(int(number)))


def show(result: dict[str, Any], console: Console) -> None:
    """Print one line."""
    low, high = result["wilson95"]
    console.print(
        f"{result['run']} on {result['task']}: {result['k']}/{result['n']} = {result['k'] / result['n']:.0%}, 95 % [{low:.1%}, {high:.1%}]"
    )
