"""Distil a trained policy into one that samples in a single step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Args:
    """Distil a trained policy into one that samples in a single step; interrupted, the same command goes on where it stopped."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run of the policy to distil; it is not changed."""
    out: Path
    """Folder of the distilled run; an interrupted one there goes on."""
    steps: int = 1
    """Steps in which the distilled policy samples."""
    form: Literal["rl100", "ctm"] = "rl100"
    """rl100 learns the end of the teacher's own paths, ctm consistency trajectories from the demonstrations."""
    teacher_steps: int = 10
    """Steps of the teacher's samples."""
    updates: int = 4000
    """Optimiser steps."""
    batch_size: int = 256
    """Windows in a batch, over all processes."""
    learning_rate: float = 3e-3
    """Peak of the cosine schedule; for networks beyond some millions of parameters take less."""
    encoder: Literal["frozen", "trained"] = "frozen"
    """Whether the teacher's image or language encoder is taken over as it is, or trained further."""
    data: tuple[Path, ...] = ()
    """Datasets whose observations are distilled on; those that the run was trained on if left out."""
    device: str = "cpu"
    """cpu or cuda; under torchrun each process takes its own."""
    seed: int = 0
    """Seed of batch order and noise."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Distil, and tell the last loss."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return distil(args, progress)


def distil(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Distil the run that `args` name, or go on with it; sample weights are those that it was trained with.

    Raises:
        InputError: no such run or dataset, or the folder holds another run.
        SpecError: the policy cannot be distilled, or does not fit the data.
    """
    import contextlib
    import os

    import policies
    from policies.distill import DistillConfig, distilling
    from policies.parallel import own_device
    from policies.train import train as fit
    from sinew import calibrations
    from sinew.cli import train as train_verb
    from sinew.cli.assembly import resized_for
    from sinew.rundir import RunDir, read_json
    from sinew.specs import check_action_join, check_observation_join

    config = DistillConfig(steps=args.steps, form=args.form, teacher_steps=args.teacher_steps, encoder=args.encoder)
    budget = policies.TrainConfig(
        steps=args.updates,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        log_every=min(50, max(1, args.updates)),
    )
    source = RunDir.open(args.run)
    teacher, made = policies.load(source), read_json(source / "config.json")
    folders, keys = args.data or _own_data(source, made), tuple(teacher.spec.observation)
    shares = None if args.data else made.get("shares")
    named = folders if shares is None else tuple(Path(f"{path}={share}") for path, share in zip(folders, shares, strict=True))
    data, origin = train_verb._data(train_verb.Args(data=named, out=args.out, keys=keys, normalize=made.get("normalize", "all")))
    data, column = resized_for(teacher, data), made.get("weights")
    weights = None if column is None else train_verb._weights(data, column)
    check_observation_join("the dataset", data.observation_spec, "the policy", teacher.spec.observation)
    check_action_join("the dataset", data.action_spec, "the policy", teacher.spec.action)
    train_verb.check_windows(data, teacher.spec.horizon, args.batch_size)
    device = own_device(args.device)
    trainer = distilling(teacher, config, data.stats(), seed=args.seed)
    described = {
        "verb": "distill",
        **origin,
        "data_hash": data.content_hash(),
        "teacher": str(args.run),
        "policy": "consistency",
        "distill": config,
        "updates": args.updates,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        **({"weights": column} if column is not None else {}),
        "teacher_hash": hashlib.sha256((source / "policy.safetensors").read_bytes()).hexdigest(),
    }
    # The folder comes into being when nothing can be wrong with the arguments any more, so that --out stays free.
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process writes
        out = RunDir.create(args.out, described, seeds={"distill": args.seed}, inputs={"data": described["data_hash"]})
        hold = out.held()
        calibrations.store(calibrations.collected(folders), args.out)
    else:
        out, hold = RunDir(args.out), contextlib.nullcontext()
    with hold:
        student = fit(trainer, data, out, budget, progress=progress, device=device, weights=weights)
    last = [m for m in out.metrics() if "loss" in m][-1]
    parameters = sum(p.numel() for p in student.parameters())
    runs = {"run": str(args.out), "teacher": str(args.run)}
    return {**runs, "steps": args.steps, "updates": args.updates, "loss": last["loss"], "parameters": parameters}


def _own_data(run: Any, config: Mapping[str, Any]) -> tuple[Path, ...]:
    """The datasets that a run was trained on.

    Raises:
        InputError: the run does not say, or they are not there any more.
    """
    named = config.get("data") or config.get("demos")
    folders = tuple(Path(name) for name in ([named] if isinstance(named, str) else named or ()))
    if not folders:
        raise InputError(f"{run.path} does not say which data it was trained on; name them with --data")
    gone = [folder for folder in folders if not folder.is_dir()]
    if gone:
        raise InputError(f"{run.path} was trained on {gone[0]}, which is not there; say where it is with --data")
    return folders


def show(result: dict[str, Any], console: Console) -> None:
    """Print two lines."""
    console.print(
        f"{result['run']}: {result['updates']} updates, loss {result['loss']:.4f}, {result['parameters']:,} parameters, "
        f"samples in {result['steps']} step{'s' if result['steps'] > 1 else ''}"
    )
    console.print(f"compare it with its teacher: sinew eval {result['run']}, then sinew compare {result['teacher']} {result['run']}")
