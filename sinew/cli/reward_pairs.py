"""Pairs of better and worse plans of a policy's own, by a world model, and the policy trained on them (flow-DPO)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from policies.batches import Windows


@dataclass(frozen=True, kw_only=True)
class Args:
    """Pairs of better and worse plans of a policy's own, by a world model, and the policy trained on them (flow-DPO)."""

    policy: Annotated[Path, tyro.conf.Positional]
    """Run of the policy; it is not changed."""
    world: Path
    """Reward file of sinew reward world."""
    out: Path
    """Folder of the new run, with the pairs; an interrupted one there goes on."""
    data: Path | None = None
    """Dataset whose observations plans are made for; the run's own if left out."""
    pairs: int = 1000
    """Observations, each of which gives one pair."""
    candidates: int = 5
    """Plans per observation; the best and the worst make the pair."""
    by: Literal["outcome", "goal"] = "outcome"
    """What ranks them: the success predicted to lie ahead, or the predicted distance to what a demonstration saw at that time."""
    deviation: float = 0.1
    """Weight of the deviation from what was demonstrated, in episodes that succeeded."""
    steps: int = 0
    """Optimiser steps of preference training; 0 for the pairs alone."""
    learning_rate: float = 1e-5
    """Of preference training; NORA-1.5 takes 5e-7 for a large model."""
    beta: float = 500.0
    """How sharply a difference of losses is held to be a preference."""
    batch_size: int = 16
    """Pairs in a step."""
    seed: int = 0
    """Of observations, plans and batches."""
    json: bool = False
    """Print one JSON object."""


class Watched:
    """Windows that tell which ones were given last, so that plans can be scored by what was seen."""

    def __init__(self, windows: Windows) -> None:
        self.windows, self.data, self.rows = windows, windows.data, None

    def __call__(self, first: int, last: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """See `policies.batches.Windows`."""
        for rows, batch in self.windows(first, last):
            self.rows = rows
            yield rows, batch


def run(args: Args) -> dict[str, Any]:
    """Make the pairs, and train on them if steps are asked for."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return make(args, progress)


def make(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """The same, telling `progress`.

    Raises:
        InputError: no such run, dataset or world model, or --out holds another run.
        SpecError: policy, dataset and world model do not fit.
    """
    import torch

    from demos import Dataset
    from policies import preference
    from rewards import files
    from rewards.world import candidates
    from rewards.world.model import load_world
    from sinew.cli.assembly import open_source
    from sinew.errors import InputError
    from sinew.rundir import RunDir
    from sinew.specs import check_action_join, check_observation_join

    started = time.monotonic()
    settings: Any
    kind, settings = files.load(args.world)
    if not isinstance(settings, candidates.WorldSettings):
        raise InputError(f"{args.world} is a reward of kind {kind}; give one of sinew reward world")
    world = load_world(args.world.parent / settings.weights)
    source = open_source(args.policy)
    policy, path = source.policy, _data(args, source)
    data = Dataset(path)
    check_observation_join(f"dataset {path}", data.observation_spec, f"policy {args.policy}", policy.spec.observation)
    check_action_join(f"dataset {path}", data.action_spec, f"policy {args.policy}", policy.spec.action)
    _check_world(world, data, args.world)
    ranking = candidates.Ranking(by=args.by, deviation=args.deviation)
    config = preference.PreferConfig(
        pairs=args.pairs, candidates=args.candidates, beta=args.beta, steps=max(1, args.steps), batch_size=args.batch_size,
        learning_rate=args.learning_rate, warmup_steps=min(150, args.steps // 4), checkpoint_every=max(1, min(1000, args.steps)),
        seed=args.seed,
    )  # fmt: skip
    described = {"verb": "reward pairs", "base": str(args.policy), "data": str(path), "hash": data.content_hash(), "world": str(args.world)}
    described |= {"by": args.by, "deviation": args.deviation, "pairs": config.pairs, "candidates": config.candidates, "seed": args.seed}
    described |= {"batch_size": config.batch_size}
    run = RunDir.create(args.out, described, seeds={"pairs": args.seed})
    with run.held():
        frames, windows = preference.pair_windows(policy, data, config, progress)
        if not (run / preference.PAIRS_NAME).exists():
            watched = Watched(windows)
            scorer = _scorer(world, data, frames, watched, ranking, policy.spec.horizon)
            cpu = torch.device("cpu")
            made = preference.make_pairs(policy, watched, scorer, config, cpu, progress)  # type: ignore[arg-type]  # it is used as windows
            preference.write_pairs(run, made, frames, config)
        result = {"out": str(args.out), "pairs": len(frames), **_told(run)}
        if args.steps:
            preference.prefer(policy, data, _never, run, config, progress)
            lines = [line for line in run.metrics() if line.get("stage") == "prefer"]
            result |= {"steps": args.steps, "curve": [[line["step"], line["loss"], line["accuracy"]] for line in lines]}
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def _data(args: Args, source: Any) -> Path:
    from sinew.errors import InputError
    from sinew.rundir import read_json

    if args.data is not None:
        return args.data
    config = read_json(source.run / "config.json") if (source.run / "config.json").is_file() else {}
    if not isinstance(config.get("data"), str) or not Path(config["data"]).is_dir():
        raise InputError(f"{args.policy} does not name a dataset that is there: give --data DIR")
    return Path(config["data"])


def _check_world(world: Any, data: Any, path: Path) -> None:
    """Whether a dataset gives what a world model sees and does.

    Raises:
        SpecError: names the difference.
    """
    from sinew.errors import SpecError

    spec, config = data.observation_spec, world.encoder.config
    for key in (*config.vectors, *config.pictures):
        shape = spec[key].shape if key in spec else None
        if shape is None or (key in config.vectors and shape != (config.vectors[key],)):
            raise SpecError(f"the world model {path} sees {key!r}, of which the dataset has {shape or 'nothing'}; it has {', '.join(spec)}")
    if world.action_dim != data.action_spec.dim:
        raise SpecError(f"the world model {path} knows actions of {world.action_dim} elements, the dataset has {data.action_spec.dim}")


def _scorer(world: Any, data: Any, frames: np.ndarray, watched: Watched, ranking: Any, horizon: int) -> Any:
    """Scores of plans, by what was seen where they start and what was demonstrated there."""
    import numpy as np
    import torch

    from rewards.progress.predictive import read
    from rewards.world.candidates import scores

    config = world.encoder.config
    keys = (*config.vectors, *config.pictures)
    good, last = np.zeros(len(data), bool), np.zeros(len(data), np.int64)
    for i in range(data.num_episodes):
        info = data.episode(i)
        part = slice(info.start, info.start + info.length)
        good[part], last[part] = bool(info.success), part.stop - 1

    def score(chunk: Any, ctx: Any) -> torch.Tensor:
        at = frames[watched.rows]
        done = data.action_spec.normalize(data.window(at, 1, horizon, ())["action"].astype(np.float32))
        done[~good[at]] = np.nan
        goal = world.all(read(data, keys, np.minimum(at + horizon, last[at])))
        goal[torch.from_numpy(~good[at])] = torch.nan
        return scores(world, read(data, keys, at), chunk.actions.cpu(), ranking, torch.from_numpy(done), goal)

    return score


def _never(*_: Any) -> Any:
    raise AssertionError("the pairs were made already")


def _told(run: Any) -> dict[str, Any]:
    """How far apart winners and losers are."""
    from policies.checkpoint import read_tensors
    from policies.preference import PAIRS_NAME

    pairs, _ = read_tensors(run / PAIRS_NAME)
    away = (pairs["winner"] - pairs["loser"]).abs().mean()
    return {"gap": {"mean": float(pairs["gap"].mean()), "least": float(pairs["gap"].min())}, "apart": float(away)}


def show(result: dict[str, Any], console: Console) -> None:
    """What was made, and what was learned."""
    gap = result["gap"]
    console.print(f"{result['out']}: {result['pairs']} pairs in {result['seconds']:g} s; scores differ by {gap['mean']:.3g}")
    if result.get("curve"):
        step, loss, accuracy = result["curve"][-1]
        console.print(f"after {step} steps the loss is {loss:.3f}; {accuracy:.0%} of a batch's winners are preferred more than before")
        console.print(f"is it better? sinew compare A {result['out']}", highlight=False, soft_wrap=True)
    else:
        console.print("train on them: the same command with --steps 500", highlight=False)
