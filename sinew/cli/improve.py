"""Improve a trained policy with off-policy RL in simulation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.cli.scenes import first_scene
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from sim import TaskInterface
    from sinew.protocols import VecEnv

GATE_EPISODES = 100
"""Scenes on which the gate decides; apart from training scenes and from the test scenes of `sinew eval`."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Improve a trained policy with off-policy RL in simulation."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run of the policy to improve; it is not changed."""
    out: Path
    """Folder of the improved run; an interrupted one there goes on."""
    task: str | None = None
    """Task; the one the run was trained on if left out."""
    method: Literal["residual", "dsrl", "dsrl-sac", "rlpd", "sac"] = "residual"
    """residual corrects every action; dsrl chooses the noise behind every chunk, judged by the actions that come of it, and
    dsrl-sac judged as noise; rlpd starts from nothing but demonstrations and sac from nothing, for comparison."""
    steps: int | None = None
    """Environment steps at most, over all worlds; 10 000 for dsrl and 40 000 for the others if left out."""
    demos: Path | None = None
    """Dataset whose episodes fill half of each batch, for residual and rlpd; the run's own if left out."""
    reward: Literal["sparse", "shaped"] = "sparse"
    """sparse success, or with a potential that draws the tool to the task's object."""
    scale: float = 0.5
    """Largest correction of residual, in normalised action units."""
    bound: float = 1.5
    """Largest element of the noise that dsrl chooses."""
    knots: int = 0
    """Vectors that the noise of dsrl is interpolated from; 1 repeats one over the chunk, 0 has one for each action."""
    num_envs: int = 4
    """Worlds stepped side by side."""
    target: float = 0.99
    """Stop early when the gate's success rate reaches this twice."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Seed of weights, exploration and training scenes."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Improve, and tell what the gate measured."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return improve(args, progress)


def improve(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Learn on top of the run's frozen policy, and keep the best weights that the gate has seen.

    Raises:
        InputError: no such run, task or dataset, options that do not go together, or --out holds another run.
        SpecError: policy and task do not fit, or the policy lacks what the method needs.
    """
    import policies
    import sim
    from policies.evaluate import evaluate
    from policies.parallel import own_device
    from sinew.cli.eval import WORLDS, interface_of, task_of
    from sinew.cli.improve_methods import METHODS
    from sinew.rundir import RunDir, read_json

    remembers = args.method in ("residual", "rlpd")
    if args.demos and not remembers:
        raise InputError(f"--demos {args.demos}: {args.method} learns from what it does itself; leave it out, or use --method residual")
    base_run = RunDir.open(args.run)
    task = args.task or task_of(base_run)
    base = policies.load(base_run)
    interface = interface_of(base, task)
    demos = (args.demos or _own_demos(read_json(base_run / "config.json"))) if remembers else None
    if args.method == "rlpd" and demos is None:
        raise InputError(f"--method rlpd learns from demonstrations beside its own steps, and {args.run} names none: give --demos DIR")
    device = own_device(args.device)
    method = METHODS[args.method](base, interface, args, demos, device)
    env, gate_env = _practice(interface, args, method.config.gamma), sim.MujocoVecEnv(interface, WORLDS)
    gate_scene = first_scene("gate")
    told = {"device": device, "instruction": interface.task_text}

    def gate() -> dict[str, Any]:
        outcome = evaluate(method.policy, gate_env, range(gate_scene, gate_scene + GATE_EPISODES), executor_kwargs=told)
        return {"k": outcome.k, "n": outcome.n}

    described = {
        "verb": "improve",
        "task": task,
        "base": str(args.run),
        "demos": str(demos) if demos else None,
        "reward": args.reward,
        "num_envs": args.num_envs,
        **method.described,
    }
    try:
        learn = method.prepare()
        # The folder comes into being when nothing can be wrong with the arguments any more, so that --out stays free.
        inputs = {"base": _file_hash(base_run / "policy.safetensors")}
        run = RunDir.create(args.out, described, seeds={"improve": args.seed}, inputs=inputs)
        with run.held():
            result = learn(env, run, gate, progress)
            policies.save(method.policy, run)
    finally:
        env.close()
        gate_env.close()
    best = result.best
    return {
        "run": str(args.out),
        "task": task,
        "method": args.method,
        "steps": result.steps,
        "updates": result.updates,
        "reason": result.reason,
        "gate": {"k": best.k, "n": best.n} if best else None,
        "curve": [[e.step, e.k / e.n, e.n] for e in result.history],
    }


def _practice(interface: TaskInterface, args: Args, gamma: float) -> VecEnv:
    """The worlds to learn in, with the reward that was asked for."""
    import rewards
    import sim
    from rewards.environment import Rewarded
    from rewards.shaping import DistancePotential

    env = sim.MujocoVecEnv(interface, args.num_envs, first_scene("practice", args.seed))
    if args.reward == "sparse":
        return env
    potential = DistancePotential(interface.observation_spec, interface.objects[0])
    return Rewarded(env, rewards.make("shaped", potential=potential, gamma=gamma))


def _own_demos(config: dict[str, Any]) -> Path | None:
    path = config.get("data") or config.get("demos")  # of a trained run, of an improved one
    return Path(path) if isinstance(path, str) and Path(path).is_dir() else None


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def show(result: dict[str, Any], console: Console) -> None:
    """Print two lines."""
    console.print(f"{result['run']}: {result['steps']} steps, {result['updates']} updates; {result['reason']}")
    if result["gate"]:
        console.print(f"on the gate's own scenes {result['gate']['k']}/{result['gate']['n']}; measure it with: sinew eval {result['run']}")
