"""Put a guard on a reward: it watches whether the policy leaves what demonstrations visit, says so, and can make that cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Args:
    """Put a guard on a reward: it watches whether the policy leaves what demonstrations visit, says so, and can make that cost."""

    reward: Annotated[Path, tyro.conf.Positional]
    """Reward file to guard."""
    data: Path
    """Dataset whose successes are the demonstrations."""
    out: Path
    """Reward file to write, in the same folder as the other."""
    strength: float = 1.0
    """What leaving costs, in standard deviations of the reward; 0 only watches and raises the alarm."""
    alarm: float = 10.0
    """χ² of the policy's states against the demonstrations' above which the alarm is raised."""
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
    reference = args.out.with_suffix(".safetensors")
    made = {"data": str(args.data), "hash": data.content_hash(), "successes": len(infos)}
    save_tensors(reference, {"states": states}, made)
    guard = GuardConfig(strength=args.strength, alarm=args.alarm, seed=args.seed)
    files.save(args.out, "guarded", GuardedSettings(inside=args.reward.name, reference=reference.name, keys=keys, guard=guard), made)
    return {"out": str(args.out), "inside": str(args.reward), "kind": kind, "states": len(states), "successes": len(infos)}


def show(result: dict[str, Any], console: Console) -> None:
    """What was written."""
    told = (
        f"{result['out']}: {result['inside']} ({result['kind']}), near {result['states']} states of {result['successes']} successes"
    )
    console.print(told, markup=False, highlight=False, soft_wrap=True)
