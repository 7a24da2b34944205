"""Train a policy on a dataset; interrupted, the same command goes on exactly where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Args:
    """Train a policy on a dataset; interrupted, the same command goes on exactly where it stopped."""

    data: Path
    """Folder of a LeRobotDataset v3."""
    out: Path
    """Folder of the run."""
    policy: str = "flow"
    """Kind of policy."""
    set: tuple[str, ...] = ()
    """Settings of the policy as name=value, for example --set backbone=unet steps=5."""
    steps: int = 8000
    """Optimiser steps."""
    batch_size: int = 256
    """Windows in a batch, over all processes."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule."""
    horizon: int = 8
    """Actions in a chunk."""
    obs_steps: int = 1
    """Observations looked at together."""
    keys: tuple[str, ...] = ()
    """Observation keys to use; all of the dataset's if empty."""
    device: str = "cpu"
    """cpu or cuda; under torchrun each process takes its own."""
    seed: int = 0
    """Seed of weights, batch order and noise."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Train, and tell the last loss."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return train(args, progress)


def train(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Train the policy that `args` describe, or go on with it.

    Raises:
        InputError: a key is not in the dataset, or the folder holds another run.
    """
    import policies
    from demos import Dataset
    from policies.parallel import own_device
    from policies.train import train as fit
    from sinew.cli.collect import task_of_dataset
    from sinew.rundir import RunDir
    from sinew.specs import ObservationSpec, PolicySpec

    data = Dataset(args.data)
    missing = [k for k in args.keys if k not in data.observation_spec.tensors]
    if missing:
        raise InputError(f"{args.data} has no {missing[0]!r}; it has {', '.join(data.observation_spec)}")
    keys = args.keys or tuple(data.observation_spec)
    observation = ObservationSpec({k: data.observation_spec[k] for k in keys})
    spec = PolicySpec(observation=observation, action=data.action_spec, horizon=args.horizon, n_obs_steps=args.obs_steps)
    settings = dict(_setting(text) for text in args.set)
    config = {
        "verb": "train",
        "task": task_of_dataset(args.data),
        "data": str(args.data),
        "data_hash": data.content_hash(),
        "policy": args.policy,
        "set": settings,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "horizon": args.horizon,
        "obs_steps": args.obs_steps,
        "keys": list(keys),
        "seed": args.seed,
    }
    device = own_device(args.device)
    policy = policies.make(args.policy, spec, data.stats(), settings or None, seed=args.seed)
    budget = policies.TrainConfig(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        log_every=min(50, max(1, args.steps)),
    )
    # The folder comes into being when nothing can be wrong with the arguments any more, so that --out stays free.
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process writes
        run = RunDir.create(args.out, config, seeds={"train": args.seed}, inputs={"data": config["data_hash"]})
        hold = run.held()
    else:
        run, hold = RunDir(args.out), contextlib.nullcontext()
    with hold:
        policy = fit(policy, data, run, budget, progress=progress, device=device)
    last = [m for m in run.metrics() if "loss" in m][-1]
    return {"run": str(args.out), "steps": args.steps, "loss": last["loss"], "parameters": sum(p.numel() for p in policy.parameters())}


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"--set {text!r}: expected name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def show(result: dict[str, Any], console: Console) -> None:
    """Print one line."""
    console.print(f"{result['run']}: {result['steps']} steps, loss {result['loss']:.4f}, {result['parameters']:,} parameters")
