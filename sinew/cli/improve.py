"""Improve a trained policy with residual off-policy RL in simulation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from sinew.cli.scenes import first_scene
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from policies import Residual
    from rl.replay import Ring
    from sim import TaskInterface
    from sinew.protocols import VecEnv

GATE_EPISODES = 100
"""Scenes on which the gate decides; apart from training scenes and from the test scenes of `sinew eval`."""
WORLDS_PLANNED = 8
"""Recorded episodes that the base plans along side by side."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Improve a trained policy with residual off-policy RL in simulation."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run of the policy to improve; it is not changed."""
    out: Path
    """Folder of the improved run; an interrupted one there goes on."""
    task: str | None = None
    """Task; the one the run was trained on if left out."""
    method: Literal["residual"] = "residual"
    """How to improve."""
    steps: int = 40_000
    """Environment steps at most, over all worlds."""
    demos: Path | None = None
    """Dataset whose episodes fill half of each batch; the run's own if left out."""
    reward: Literal["sparse", "shaped"] = "sparse"
    """sparse success, or with a potential that draws the tool to the task's object."""
    scale: float = 0.5
    """Largest correction, in normalised action units."""
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
    """Train a correction on top of the run's frozen policy, and keep the best weights that the gate has seen.

    Raises:
        InputError: no such run, task or dataset, or --out holds another run.
        SpecError: policy and task do not fit.
    """
    import torch

    import policies
    import sim
    from policies.evaluate import evaluate
    from policies.executor import CorrectedPlans
    from policies.parallel import own_device
    from rl.learner import LearnerConfig
    from rl.residual import ResidualConfig, train_residual
    from sinew.cli.eval import WORLDS, interface_of, task_of
    from sinew.rundir import RunDir, read_json

    base_run = RunDir.open(args.run)
    task = args.task or task_of(base_run)
    base = policies.load(base_run)
    interface = interface_of(base, task)
    demos = args.demos or _own_demos(read_json(base_run / "config.json"))
    # Sparse returns lie in [0, 1] and are clipped to it; shaped ones do not.
    learner = LearnerConfig() if args.reward == "sparse" else LearnerConfig(target_low=None, target_high=None)
    config = ResidualConfig(steps=args.steps, seed=args.seed, stop_success=args.target, evaluate_every=2_500, learner=learner)
    described = {
        "verb": "improve",
        "task": task,
        "base": str(args.run),
        "demos": str(demos) if demos else None,
        "reward": args.reward,
        "scale": args.scale,
        "num_envs": args.num_envs,
        "residual": config,
    }
    device = own_device(args.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        policy = policies.Residual(base, scale=args.scale).to(device)
    env = _practice(interface, args, config.gamma)
    gate_env = sim.MujocoVecEnv(interface, WORLDS)
    told = {"device": device, "instruction": interface.task_text}
    executor = CorrectedPlans(policies.ChunkExecutor(policy.base, args.num_envs, seed=args.seed, **told))
    gate_scene = first_scene("gate")

    def gate() -> dict[str, Any]:
        outcome = evaluate(policy, gate_env, range(gate_scene, gate_scene + GATE_EPISODES), executor_kwargs=told)
        return {"k": outcome.k, "n": outcome.n}

    try:
        ring = _remember(demos, policy, args, interface.task_text) if demos else None
        # The folder comes into being when nothing can be wrong with the arguments any more, so that --out stays free.
        inputs = {"base": _file_hash(base_run / "policy.safetensors")}
        run = RunDir.create(args.out, described, seeds={"improve": args.seed}, inputs=inputs)
        with run.held():
            result = train_residual(env, executor, policy.actor, policy.observe, run, config, demos=ring, evaluate=gate, progress=progress)
            policies.save(policy, run)
    finally:
        env.close()
        gate_env.close()
    best = result.best
    return {
        "run": str(args.out),
        "task": task,
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


def _remember(root: Path, policy: Residual, args: Args, instruction: str) -> Ring:
    """Demonstrations as replay, each frame beside what the base would have planned there."""
    import torch

    from demos import Dataset
    from policies import ChunkExecutor
    from policies.executor import CorrectedPlans
    from rl.episodes import add_episode, plan_along
    from rl.replay import Ring
    from sinew.specs import check_observation_join

    data = Dataset(root)
    spec = policy.spec
    check_observation_join(str(root), data.observation_spec, f"policy {args.run}", spec.observation)
    every = data.window(np.arange(len(data)), 1, 1, tuple(spec.observation))
    action = torch.from_numpy(spec.action.normalize(every["action"][:, 0]))
    infos = [data.episode(i) for i in range(data.num_episodes)]
    spans = [slice(e.start, e.start + e.length) for e in infos]
    episodes = [{k: torch.from_numpy(every[k][s, 0]) for k in spec.observation} for s in spans]
    planner = CorrectedPlans(ChunkExecutor(policy.base, WORLDS_PLANNED, seed=args.seed, device=policy.device, instruction=instruction))
    planned = plan_along(planner, episodes, WORLDS_PLANNED)
    layout = {"features": ((policy.observation_dim,), torch.float32), "base_action": ((spec.action_dim,), torch.float32)}
    ring = Ring(len(data), 1, layout, spec.action_dim)
    for info, span, obs, base_action in zip(infos, spans, episodes, planned, strict=True):
        with torch.no_grad():
            features = policy.observe({k: v.to(policy.device) for k, v in obs.items()})
        add_episode(ring, features.cpu(), action[span], success=bool(info.success), base_action=base_action)
    return ring


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def show(result: dict[str, Any], console: Console) -> None:
    """Print two lines."""
    console.print(f"{result['run']}: {result['steps']} steps, {result['updates']} updates; {result['reason']}")
    if result["gate"]:
        console.print(f"on the gate's own scenes {result['gate']['k']}/{result['gate']['n']}; measure it with: sinew eval {result['run']}")
