"""Learn what actions lead to: a world model in a latent space, and the success that it sees ahead as a reward."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinew.cli.reward_learned import LearnedArgs
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Args(LearnedArgs):
    """Learn what actions lead to: a world model in a latent space, and the success that it sees ahead as a reward."""

    horizon: int = 8
    """Actions that are rolled out."""
    updates: int = 1500
    """Gradient steps."""


def run(args: Args) -> dict[str, Any]:
    """Train, measure on held-out episodes, and write the reward file."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return make(args, progress)


def make(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """The same, telling `progress`.

    Raises:
        InputError: no such dataset or key, too few episodes of known outcome, or all shorter than the horizon.
        DataError: a label cannot be read.
    """
    import torch

    from demos import Dataset
    from rewards import files
    from rewards.world import candidates, model
    from sinew.cli import reward_learned

    started = time.monotonic()
    weights = reward_learned.check_out(args.out)
    data = Dataset(args.data)
    config = model.WorldConfig(updates=args.updates, horizon=args.horizon, seed=args.seed)
    keys, encoder, stats = reward_learned.seen_by(data, args.keys, config.dim)
    (learn, _, test), numbers, said = reward_learned.parts(data, keys, args.labels, args.seed)
    taught, held = (torch.from_numpy(reward_learned.actions_of(data, said, numbers[i])) for i in (0, 2))
    world = model.train(learn, taught, encoder, stats, config, progress)
    measured: dict[str, Any] = {"error": model.prediction_error(world, test, held, args.horizon)}
    measured["ranking"] = {
        by: candidates.ranking_of_recorded(world, test, held, candidates.Ranking(by=by), args.horizon)  # type: ignore[arg-type]
        for by in ("outcome", "goal")
    }
    made = reward_learned.made_of(data, args.data, args.seed, measured=measured)
    model.save_world(weights, world, made)
    files.save(args.out, model.KIND, candidates.WorldSettings(weights=weights.name, weight=args.weight), made)
    told = {"out": str(args.out), "weights": str(weights), "keys": list(keys), "learned": len(learn), "held_out": len(test)}
    return {**told, **measured, "seconds": round(time.monotonic() - started, 1)}


def show(result: dict[str, Any], console: Console) -> None:
    """How well it predicts, and whether it ranks plans."""
    console.print(
        f"{result['out']}: learned from {result['learned']} episodes in {result['seconds']:g} s, sees {', '.join(result['keys'])}"
    )
    error = result["error"]
    for step, ratio in zip(error["steps"], error["ratio"], strict=True):
        if step in (1, 2, 4) or step == error["steps"][-1]:
            console.print(
                f"{step} steps ahead it is off by {ratio:.0%} of what copying the last state is off, on {result['held_out']} episodes"
            )
    for by, found in result["ranking"].items():
        low, high = found["bootstrap95_over_episodes"]
        console.print(
            f"by {by}: the recorded plan ranks first of {round(1 / found['chance'])} in {found['share']:.0%} ({low:.0%} to {high:.0%} over "
            f"episodes; chance {found['chance']:.0%})"
        )
