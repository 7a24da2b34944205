"""Train a policy on a dataset; interrupted, the same command goes on exactly where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinew.cli import train_weights
from sinew.cli.mixture import folders_and_shares
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from demos import Concat, Dataset, Shelf


@dataclass(frozen=True, kw_only=True)
class Args:
    """Train a policy on a dataset; interrupted, the same command goes on exactly where it stopped."""

    data: tuple[Path, ...]
    """Folders of LeRobotDataset v3; several with the same observations and actions are trained on together, their frames all
    alike, or with shares as in --data A=0.7 B=0.3."""
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
    image_size: int | None = None
    """Height and width in pixels to which pictures are resized; as they were recorded if left out."""
    weights: str | None = None
    """Column of the data, one number per frame, that says how much each frame counts; quality: episodes are drawn by the weights that
    sinew data quality found, which is also what happens if this is left out and they are there; none: all alike."""
    normalize: Literal["all", "first", "own"] = "all"
    """Several datasets: normalise observations by the statistics of all of them, each with its share; of the first; or each by
    its own, expressed as the first's, on whose robot the policy then acts."""
    pool_mb: int = 0
    """Megabytes for pools of frames that are read in a row and shuffled, for data larger than memory on slow disks or with
    keyframes far apart; 0 draws every frame from everywhere."""
    cache_dir: Path | None = None
    """Folder that keeps decoded pictures up to 256 by 256 pixels, so that the next run need not decode them; $SINEW_CACHE or
    ~/.cache/sinew if left out."""
    cache_gb: float = 20.0
    """Most gigabytes that are kept there; 0 for none."""
    early_share: float = 0.0
    """Share of each batch that is drawn from the beginnings of episodes: raise it when a policy follows its own motion
    and not what it sees or is told."""
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
        InputError: a key is not in the dataset, weights are unusable, the horizon is longer than every episode, or the folder
            holds another run.
        SpecError: several datasets differ in what is to be used of them.
    """
    import policies
    from policies.parallel import own_device
    from policies.train import TIMES
    from policies.train import train as fit
    from sinew import calibrations
    from sinew.rundir import RunDir
    from sinew.specs import ObservationSpec, PolicySpec

    data, origin = _data(args)
    args = replace(args, data=folders_and_shares(args.data)[0])
    data = data if args.image_size is None else data.resized(args.image_size)
    draw = train_weights.draw(data, args.weights, progress)
    weights = None if args.weights in (None, train_weights.QUALITY, train_weights.NONE) else _weights(data, args.weights)
    keys = args.keys or tuple(data.observation_spec)
    observation = ObservationSpec({k: data.observation_spec[k] for k in keys})
    spec = PolicySpec(observation=observation, action=data.action_spec, horizon=args.horizon, n_obs_steps=args.obs_steps)
    settings = dict(_setting(text) for text in args.set)
    config = {
        "verb": "train",
        **origin,
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
        **({"image_size": args.image_size} if args.image_size is not None else {}),
        **({"weights": args.weights} if weights is not None else {}),
        **({"draw": train_weights.digest(draw)} if draw is not None else {}),
        **({"early_share": args.early_share} if args.early_share else {}),
        **({"pool_mb": args.pool_mb} if args.pool_mb else {}),
    }
    device = own_device(args.device)
    policy = policies.make(args.policy, spec, data.stats(), {**_instructions(args.policy, data), **settings} or None, seed=args.seed)
    budget = policies.TrainConfig(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        early_share=args.early_share,
        pool_mb=args.pool_mb,
        seed=args.seed,
        log_every=min(50, max(1, args.steps)),
    )
    check_windows(data, args.horizon, args.batch_size)
    # The folder comes into being when nothing can be wrong with the arguments any more, so that --out stays free.
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process writes
        placed = calibrations.collected(args.data)
        inputs = {"data": config["data_hash"], **({"calibration": " ".join(c.hash for c in placed if c.hash)} if placed else {})}
        inputs |= {"draw": config["draw"]} if draw is not None else {}
        run = RunDir.create(args.out, config, seeds={"train": args.seed}, inputs=inputs)
        hold = run.held()
        _keep_contract(args)
        calibrations.store(placed, args.out)
    else:
        run, hold = RunDir(args.out), contextlib.nullcontext()
    with hold:
        policy = fit(policy, data, run, budget, progress=progress, device=device, weights=weights, draw=draw)
    last = [m for m in run.metrics() if "loss" in m][-1]
    times = {name: last[name] for name in (*TIMES, "samples_per_s")}
    count = sum(p.numel() for p in policy.parameters())
    return {"run": str(args.out), "steps": args.steps, "loss": last["loss"], "parameters": count, "times": times}


def check_windows(data: Dataset | Concat, horizon: int, batch_size: int) -> None:
    """Refuse what training would refuse of its batches.

    Raises:
        InputError: the horizon is longer than every episode, or the batch does not divide over the processes.
    """
    from policies.batches import check_horizon
    from policies.parallel import Group

    check_horizon(data, horizon)
    Group(size=int(os.environ.get("WORLD_SIZE", "1"))).share(batch_size)


def _keep_contract(args: Args) -> None:
    """Put the contract of the robot that the data are from beside the policy, where all of the data have the same one."""
    from robot_bridge.contract import load, store

    contracts = [load(path) for path in args.data]
    if contracts[0] is not None and all(contract is not None and contract.hash() == contracts[0].hash() for contract in contracts):
        store(contracts[0], args.out)


def _data(args: Args) -> tuple[Dataset | Concat, dict[str, Any]]:
    """The data that `args` name, and what the run's config tells of where they come from."""
    from demos import Concat, Dataset
    from sinew.cli.collect import task_of_dataset

    if not args.data:
        raise InputError("--data names no folder: record one with sinew collect")
    folders, shares = folders_and_shares(args.data)
    parts = [Dataset(path, shelf=_shelf(args)) for path in folders]
    for part in parts:
        missing = [k for k in args.keys if k not in part.observation_spec.tensors]
        if missing:
            raise InputError(f"{part.root} has no {missing[0]!r}; it has {', '.join(part.observation_spec)}")
    if len(parts) == 1:
        return parts[0], {"task": task_of_dataset(folders[0]), "data": str(folders[0])}
    tasks = [task_of_dataset(path) for path in folders]
    known = sorted({task for task in tasks if task})
    only = known[0] if len(known) == 1 and None not in tasks else None
    whole = Concat(parts, args.keys or None, shares, args.normalize)
    told = {"shares": list(whole.shares)} if whole.shares else {}
    told |= {"normalize": args.normalize} if args.normalize != "all" else {}
    return whole, {"task": only, "tasks": known, "data": [str(path) for path in folders], **told}


def _shelf(args: Args) -> Shelf | None:
    """Where decoded pictures are kept between runs."""
    from demos.decoded import Shelf, default_folder

    if not 0 <= args.cache_gb < float("inf"):
        raise InputError(f"--cache-gb {args.cache_gb:g}: gigabytes are finite and not negative; 0 keeps no pictures")
    return Shelf(args.cache_dir or default_folder(), int(args.cache_gb * 1e9)) if args.cache_gb else None


def _instructions(policy: str, data: Dataset | Concat) -> dict[str, Any]:
    """The instructions of the data, as a setting of policies that are made for certain ones."""
    import policies

    names = {field.name for field in fields(policies.registry.get(policy).Config)}
    return {"instructions": list(data.tasks)} if "instructions" in names else {}


def _weights(data: Dataset | Concat, name: str) -> np.ndarray:
    """A column of one number per frame, (frames,).

    Raises:
        DataError: there is no such column.
        InputError: it holds something else, or a number that cannot be a weight.
    """
    from policies.batches import check_weights

    values = data.column(name)
    values = values[:, 0] if values.shape[1:] == (1,) else values
    if values.ndim != 1 or values.dtype.kind != "f":
        raise InputError(f"--weights {name}: the column holds {values.dtype} {values.shape[1:]} per frame, one float is needed")
    return check_weights(values, len(data))


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"--set {text!r}: expected name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def show(result: dict[str, Any], console: Console) -> None:
    """Print two lines."""
    console.print(f"{result['run']}: {result['steps']} steps, loss {result['loss']:.4f}, {result['parameters']:,} parameters")
    console.print(times_of_a_step(result["times"]))


def times_of_a_step(times: Mapping[str, float]) -> str:
    """The four times in words."""
    load, preprocess, update = (1e3 * times[name] for name in ("load_s", "preprocess_s", "update_s"))
    return f"a step: load {load:.3g} ms, preprocess {preprocess:.3g} ms, update {update:.3g} ms; {times['samples_per_s']:,.0f} samples/s"
