"""Success rate of a run on fixed seeds, with its Wilson interval."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.cli.scenes import check_seed, first_scene
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from policies import PolicyModule
    from policies.evaluate import Goals
    from sim import GymnasiumTask, Randomisation, TaskInterface
    from sinew.cli.assembly import Source

WORLDS = 50
"""Worlds stepped side by side, if nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Success rate of a run on fixed seeds, with its Wilson interval."""

    run: Annotated[str | Path, tyro.conf.Positional]
    """Folder of a run, hf:<folder or hub id> for a policy of LeRobot, or ws://host:port for one behind sinew serve."""
    others: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Further policies that it is composed with, with --weight."""
    task: str | None = None
    """Task; the one the run was trained on if left out."""
    episodes: int = 100
    """Episodes, one seed each."""
    weight: str | None = None
    """Weight of the first of several policies, the others share the rest; one for each as 0.5,0.2,0.3; or search."""
    search_episodes: int = 50
    """Episodes for each weight of a search, on the gate's scenes, which are never the test's."""
    best_of: int = 1
    """Candidates for each chunk, of which the best is executed."""
    scorer: Literal["count", "energy", "q"] = "count"
    """What is best: what demonstrations know (count, learned on first use), least energy, or most value to the run's critics (q)."""
    executor: Literal["sync", "ensemble", "async", "rtc"] = "sync"
    """How chunks become actions."""
    delay: int = 0
    """Ticks from an observation to its chunk, for async and rtc."""
    act_steps: int | None = None
    """Actions executed of each chunk; all if left out."""
    noise: str = "sample"
    """Noise behind each chunk: sample (the policy as it is), zero, or fixed:K (one vector, drawn from seed K)."""
    instruction: str | None = None
    """What a language policy is told to do; the task's own text if left out."""
    goal_scale: float | None = None
    """Give a policy with goals the one that the scripted expert reaches in the same scene, followed this much: 1 as the policy
    was set to, more for more; no goal if left out."""
    videos: int = 0
    """Episodes to film into the run's videos/."""
    data: Path | None = None
    """Dataset for --scorer count; the run's own if left out."""
    action: str = "ee_delta"
    """What the actions of a policy of LeRobot command."""
    token_file: Path | None = None
    """File with the secret of a policy server; SINEW_TOKEN if left out."""
    ca: Path | None = None
    """Certificate of the authority that signed the policy server's, PEM."""
    trust_first_use: bool = False
    """Trust a policy server that was never seen, and remember its certificate."""
    out: Path | None = None
    """Folder for eval/ and videos/; the run if left out, and none for a policy that is no run."""
    device: str = "cpu"
    """Where the policy runs, and worlds of every other backend than mujoco too: cpu or cuda."""
    backend: Literal["mujoco", "warp", "isaaclab", "isaacgym"] = "mujoco"
    """What steps the worlds: MuJoCo on the CPU, MuJoCo Warp, thousands of them on a GPU, or Isaac (docs/simulation.md)."""
    num_envs: int = WORLDS
    """Worlds stepped side by side; results do not depend on it."""
    randomise: Path | None = None
    """What every episode draws anew, a file of ranges with units: masses, friction, delays, light, cameras, …; docs/simulation.md."""
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
    """Evaluate what `args` put together and write eval/<task>….json and videos.

    Raises:
        InputError: no such run or task, a number that cannot be, or options that do not go together.
        SpecError: policies do not fit each other or the task, or lack what an option needs.
    """
    import policies
    import sim
    from policies.parallel import own_device
    from sinew.cli.assembly import best_of, check_best_of, compose, open_source
    from sinew.rundir import write_json

    check_numbers(args)
    seeds = test_seeds(args.episodes, args.seed)
    device = own_device(args.device)
    sources = [
        open_source(name, args.task, args.action, args.token_file, args.ca, args.trust_first_use) for name in (args.run, *args.others)
    ]
    for source in sources:
        source.policy.to(device)
    policy = compose(sources, weights := first_weights(args))
    check_instruction(policy, args.instruction)
    task = args.task or sources[0].task()
    interface = sim.GymnasiumTask(task) if task.startswith("gym:") else interface_of(policy, task)
    if args.videos and isinstance(interface, sim.GymnasiumTask):
        raise InputError(f"--videos {args.videos}: worlds of Gymnasium are not filmed; leave it out for {task}")
    folder = args.out or (sources[0].run.path if sources[0].run else None)
    if args.videos and folder is None:
        raise InputError(f"--videos {args.videos}: {args.run} is no run to keep them in; give --out FOLDER")
    goals = None
    if args.goal_scale is not None:
        goals = expert_goals(policy, task, args.goal_scale)
        policy = policy if args.goal_scale == 1 else policies.Guided(policy, goal_scale=args.goal_scale)
    options = executor_options(policy, args)
    policies.ChunkExecutor(policy, 1, **{"instruction": interface.task_text, **options})  # refuses now what it would refuse later
    check_best_of(policy, args.best_of, args.scorer, sources, folder=folder, data=args.data)
    search = None
    if args.weight == "search":
        search = search_weight(sources, interface, options, args, progress)
        policy = compose(sources, weights := weights_of_search(search, len(sources)))
    policy = best_of(policy, args.best_of, args.scorer, sources, weights=weights, folder=folder, data=args.data, progress=progress)
    policy = policy.to(device)
    result = success(policy, interface, seeds, options, progress, goals, args.backend, args.num_envs, args.randomise)
    result = {"run": str(args.run), "task": task, **how(args, weights), **({"search": search} if search else {}), **result}
    against = [entry for source in sources if (entry := compared(source, task, result))] if changed(args) else []
    result |= {"against": against} if against else {}
    if folder is not None:
        write_json(folder / f"eval/{file_name(task, args)}.json", result)
    if args.videos and not isinstance(interface, sim.GymnasiumTask) and folder is not None:
        from sinew.cli.video import film

        seeds = test_seeds(args.videos, args.seed)
        result["videos"] = film(policy, interface, seeds, folder / "videos", options, progress, _drawn(args.randomise))
    return result


def check_numbers(args: Args) -> None:
    """Refuse options that cannot be, or do not go together.

    Raises:
        InputError: names them.
    """
    if args.videos < 0:
        raise InputError(f"--videos {args.videos}: at least 0 is needed")
    if args.search_episodes < 1:
        raise InputError(f"--search-episodes {args.search_episodes}: at least 1 is needed")
    if args.executor == "rtc" and args.best_of > 1:
        raise InputError(f"--executor rtc guides every sample, which --best-of {args.best_of} cannot take: use async")
    if args.others and args.weight is None:
        raise InputError(f"{1 + len(args.others)} policies are composed: give --weight 0.5 or --weight search; sinew compare compares")
    if args.goal_scale is not None and (args.others or args.best_of > 1 or args.videos):
        raise InputError(f"--goal-scale {args.goal_scale:g} is for one policy by itself, without --weight, --best-of or --videos")
    if args.weight is not None and not args.others:
        raise InputError(f"--weight {args.weight} is for several policies: name a second one after {args.run}")


def first_weights(args: Args) -> tuple[float, ...]:
    """The weights that `args` name; equal ones where they are to be searched for."""
    from sinew.cli.assembly import weights_of

    count = 1 + len(args.others)
    return (1 / count,) * count if args.weight in (None, "search") else weights_of(args.weight, count)


def weights_of_search(search: dict[str, Any], count: int) -> tuple[float, ...]:
    """The weights that a search chose."""
    from sinew.cli.assembly import weights_of

    return weights_of(str(search["weight"]), count)


def search_weight(
    sources: Sequence[Source], interface: TaskInterface | GymnasiumTask, options: dict[str, Any], args: Args, progress: Progress
) -> dict[str, Any]:
    """Success of every weight of the grid on the gate's scenes: {"weight": the best, "n", "k": {weight: successes}}."""
    from sinew.cli.assembly import GRID, best_weight, compose, weights_of

    first = first_scene("gate", args.seed)
    seeds = range(first, first + args.search_episodes)
    rates = []
    for weight in GRID:
        policy = compose(sources, weights_of(str(weight), len(sources)))
        found = success(policy, interface, seeds, options, progress, None, args.backend, args.num_envs, args.randomise)
        rates.append((weight, found["k"]))
        progress.note(f"weight {weight:g}: {rates[-1][1]}/{len(seeds)} on the gate's scenes")
    return {"weight": best_weight(rates), "n": len(seeds), "k": {f"{weight:g}": k for weight, k in rates}}


def executor_options(policy: PolicyModule, args: Args) -> dict[str, Any]:
    """Arguments of `ChunkExecutor`."""
    options = {"mode": args.executor, "act_steps": args.act_steps, "noise": noise_of(policy, args.noise), "delay": args.delay}
    options["device"] = args.device
    return options if args.instruction is None else {**options, "instruction": args.instruction}


def how(args: Args, weights: Sequence[float]) -> dict[str, Any]:
    """What an evaluation was made with, for its file."""
    return {
        "noise": args.noise,
        "executor": args.executor,
        "delay": args.delay,
        "act_steps": args.act_steps,
        "instruction": args.instruction,
        "goal_scale": args.goal_scale,
        "best_of": args.best_of,
        "scorer": args.scorer if args.best_of > 1 else None,
        "with": list(args.others),
        "weights": [round(w, 6) for w in weights] if args.others else None,
        "randomise": None if args.randomise is None else str(args.randomise),
    }


def changed(args: Args) -> bool:
    """Whether anything but the plain run is evaluated."""
    usual = args.noise == "sample" and args.executor == "sync" and args.act_steps is None and args.goal_scale is None
    return bool(args.others) or args.best_of > 1 or args.randomise is not None or not usual


def compared(source: Source, task: str, result: dict[str, Any]) -> dict[str, Any] | None:
    """This result against the plain evaluation of a run, by the seeds that both have; None where there is none."""
    from sinew.cli.compare import USUAL, evaluations_of
    from sinew.stats import paired

    plain = {} if source.run is None else evaluations_of(source.run, USUAL).get(task, {})
    pairs = [(plain[seed], won) for seed, won in zip(result["seeds"], result["successes"], strict=True) if seed in plain]
    if not pairs:
        return None
    before, after = zip(*pairs, strict=True)
    return {"run": source.name, "k": sum(before), **paired(before, after)}


def file_name(task: str, args: Args) -> str:
    """Name of an evaluation: the task, and whatever was not left as it is; evaluations made in different ways never meet."""
    parts = [task.replace("/", "_").replace(":", "_")]
    if args.others:
        names = "+".join(re.sub(r"[^\w.-]+", "_", Path(str(name)).name) for name in args.others)
        digest = hashlib.sha256("\n".join(map(str, args.others)).encode()).hexdigest()[:6]
        parts += [f"with-{names}-{digest}-w{str(args.weight).replace(',', '_')}"]
    parts += [f"best{args.best_of}-{args.scorer}"] if args.best_of > 1 else []
    parts += [args.noise.replace(":", "-")] if args.noise != "sample" else []
    parts += [args.executor] if args.executor != "sync" else []
    parts += [f"delay{args.delay}"] if args.delay else []
    parts += [f"act{args.act_steps}"] if args.act_steps is not None else []
    parts += [f"goal{args.goal_scale:g}"] if args.goal_scale is not None else []
    parts += [f"randomised-{hashlib.sha256(args.randomise.read_bytes()).hexdigest()[:8]}"] if args.randomise else []
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
    goals: Goals | None = None,
    backend: str = "mujoco",
    num_envs: int = WORLDS,
    randomise: Path | None = None,
) -> dict[str, Any]:
    """k, n, wilson95, seeds and successes of a policy on a task.

    Args:
        policy: the policy.
        interface: the task as the policy sees it.
        seeds: one episode each.
        options: arguments of `ChunkExecutor`; the instruction is the task's own text where they give none.
        progress: told every finished episode.
        goals: what is to be reached in the scenes of given seeds.
        backend: what steps the worlds, one of `sim.BACKENDS`.
        num_envs: worlds side by side, at most.
        randomise: file of what every episode draws anew; ranges are whole, also where the file has a curriculum.

    Raises:
        InputError: the file cannot be, or names what the task does not have.
    """
    import sim
    from policies.evaluate import evaluate as play
    from sinew.stats import success_summary

    worlds = min(num_envs, len(seeds))
    env = sim.worlds(interface, worlds, backend=backend, device=str(options.get("device", "cpu")), randomisation=_drawn(randomise))
    try:
        outcome = play(policy, env, seeds, executor_kwargs={"instruction": interface.task_text, **options}, goals=goals, progress=progress)
    finally:
        env.close()
    return {
        **success_summary(outcome.success, outcome.seeds),
        "successes": list(outcome.success),
        "lengths": list(outcome.lengths),
        "wall_s": outcome.wall_s,
        **({} if randomise is None else {"randomised": played_with(env, outcome.seeds)}),
    }


def _drawn(path: Path | None) -> Randomisation | None:
    """What a file says that every episode draws, with whole ranges."""
    from sim import load_randomisation

    return None if path is None else replace(load_randomisation(path), curriculum=None)


def played_with(env: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """What the episodes of these seeds were played with in randomised worlds: {name: [a number for each]}."""
    values = env.randomiser.draw(list(seeds)).values
    return {name: values[:, i].tolist() for i, name in enumerate(env.randomiser.names)}


def expert_goals(policy: PolicyModule, task: str, scale: float) -> Goals:
    """What the clean scripted expert has reached at the end of the scenes of given seeds, in the terms of the policy's goal.

    Raises:
        InputError: the policy takes no goal, the scale is negative, or the world has no expert of ours.
    """
    import sim
    from policies.goals import goal_settings

    settings = goal_settings(policy)
    if "goal" not in policy.spec.capabilities or settings is None:
        raise InputError(f"--goal-scale {scale:g}: {type(policy).__name__} takes no goal; train it with --set 'goal={{\"keys\": [...]}}'")
    if not scale >= 0:
        raise InputError(f"--goal-scale {scale:g}: at least 0 is needed")
    if task.startswith("gym:"):
        raise InputError(f"--goal-scale {scale:g}: goals come from an expert in the same scene, and none is known for {task}")
    return lambda seeds: sim.reached(task, settings.keys, seeds)


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
    """Print the rate, what a search found, and how it compares with the plain runs."""
    low, high = result["wilson95"]
    if "search" in result:
        search = result["search"]
        tried = ", ".join(f"{weight}: {k}" for weight, k in search["k"].items())
        console.print(f"weight of {result['run']}, successes on {search['n']} scenes of the gate: {tried}", highlight=False)
        console.print(f"chosen: {search['weight']:g}", highlight=False)
    name = " + ".join([result["run"], *result.get("with", ())])
    rate = f"{result['k']}/{result['n']} = {result['k'] / result['n']:.0%}"
    console.print(f"{name} on {result['task']}: {rate}, 95 % [{low:.1%}, {high:.1%}]")
    for entry in result.get("against", ()):
        console.print(
            f"  {entry['run']} as it is: {entry['k']}/{entry['n']}; {entry['wins']} seeds won, {entry['losses']} lost, "
            f"exact McNemar p = {entry['p']:.2g}: {entry['verdict']}",
            highlight=False,
        )
