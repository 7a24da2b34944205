"""Put a guard on a reward: it watches whether the policy leaves what demonstrations visit, says so, and can make that cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Args:
    """Put a guard on a reward: it watches whether the policy leaves what demonstrations visit, says so, and can make that cost."""

    reward: Annotated[Path, tyro.conf.Positional]
    """Reward file to guard."""
    data: Path
    """Dataset whose successes are the demonstrations."""
    out: Path
    """Reward file to write, in the same folder as the other."""
    run: Path | None = None
    """Run of the policy that is to be improved: what it visits is known as well, also where it fails."""
    episodes: int = 50
    """Simulated episodes of that policy."""
    noise: float = 0.05
    """Largest noise on its actions, in normalised units: as much as what learns will explore with; 0.05 is what residual begins with."""
    strength: float = 1.0
    """What leaving costs, in standard deviations of the reward; 0 only watches and raises the alarm."""
    alarm: float = 10.0
    """χ² of what the policy visits against what is known above which the alarm is raised."""
    seed: int = 0
    """Of the guard's discriminator."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Keep the demonstrations' states, and write the reward file.

    Raises:
        InputError: no such reward, no success in the data, or --out lies in another folder.
    """
    import torch

    from demos import Dataset
    from rewards import files
    from rewards.guard import GuardConfig, GuardedSettings
    from rewards.latent import save_tensors
    from rewards.progress.predictive import read

    if args.episodes < 1:
        raise InputError(f"--episodes {args.episodes}: at least 1 is needed")
    if not 0 <= args.noise <= 2:
        raise InputError(f"--noise {args.noise}: it lies between 0 and 2, which is the whole range of an action")
    kind, _ = files.load(args.reward)
    if kind == "guarded":
        raise InputError(f"{args.reward} is guarded already")
    if args.out.suffix != ".json" or args.out.resolve().parent != args.reward.resolve().parent or args.out == args.reward:
        raise InputError(f"--out {args.out}: give another name that ends in .json, in the folder of {args.reward}")
    data = Dataset(args.data)
    keys = tuple(key for key in data.observation_spec if key not in data.observation_spec.images)
    infos = [e for e in (data.episode(i) for i in range(data.num_episodes)) if e.success]
    if not infos:
        raise InputError(f"{args.data} holds no success: there is nothing to stay near to")
    seen = read(data, keys, np.concatenate([np.arange(e.start, e.start + e.length) for e in infos]))
    states = torch.cat([seen[key].flatten(1) for key in keys], 1)
    demonstrated = len(states)
    if args.run is not None:
        states = torch.cat([states, visited(args, keys)])
    reference = args.out.with_suffix(".safetensors")
    made = {"data": str(args.data), "hash": data.content_hash(), "successes": len(infos)} | ({"run": str(args.run)} if args.run else {})
    save_tensors(reference, {"states": states}, made)
    guard = GuardConfig(strength=args.strength, alarm=args.alarm, seed=args.seed)
    files.save(args.out, "guarded", GuardedSettings(inside=args.reward.name, reference=reference.name, keys=keys, guard=guard), made)
    told = {"out": str(args.out), "inside": str(args.reward), "kind": kind, "states": len(states), "successes": len(infos)}
    return told | {"demonstrated": demonstrated}


def visited(args: Args, keys: Sequence[str]) -> Tensor:
    """States (N, D) that the policy of a run visits in simulation, with the noise that learning explores with.

    Raises:
        InputError: no such run, or the task does not tell what the data tells.
    """
    import torch

    import sim
    from policies import ChunkExecutor
    from sinew.cli.assembly import open_source
    from sinew.cli.eval import WORLDS, interface_of
    from sinew.cli.scenes import first_scene

    assert args.run is not None
    source = open_source(args.run)
    interface = interface_of(source.policy, source.task())
    missing = [key for key in keys if key not in interface.observation_spec]
    if missing:
        raise InputError(f"{args.data} tells {missing[0]}, and a simulated {source.task()} does not: leave out --run")
    env, generator = sim.MujocoVecEnv(interface, WORLDS), torch.Generator().manual_seed(args.seed)
    executor, first = ChunkExecutor(source.policy, WORLDS, instruction=interface.task_text), first_scene("practice", args.seed)
    found = []
    try:
        for wave in range(0, args.episodes, WORLDS):
            seeds = [first + wave + i for i in range(WORLDS)]
            obs, running = env.reset(seeds), torch.arange(WORLDS) < args.episodes - wave
            executor.reset(seeds=seeds)
            while bool(running.any()):
                with torch.no_grad():
                    action = executor.act(obs)
                noise = args.noise * (2 * torch.rand(action.shape, generator=generator) - 1)
                obs, _, terminated, truncated, info = env.step(env.action_spec.denormalize((action + noise).clamp(-1, 1)))
                after = info["final_observation"]
                found.append(torch.cat([after[key].flatten(1) for key in keys], 1)[running])
                running &= ~(terminated | truncated)
    finally:
        env.close()
    return torch.cat(found).float()


def show(result: dict[str, Any], console: Console) -> None:
    """What was written."""
    visited = result["states"] - result["demonstrated"]
    near = f"{result['demonstrated']} states of {result['successes']} successes" + (f" and {visited} of the policy" if visited else "")
    told = f"{result['out']}: {result['inside']} ({result['kind']}), near {near}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
