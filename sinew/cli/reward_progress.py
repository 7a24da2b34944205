"""Make a reward from demonstrations: how far an episode has come, as the nearest recorded success sees it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sinew.cli.reward_learned import RewardArgs, check_out
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from demos import Dataset
    from rewards.progress.nearest import Successes

HELD_OUT = 5
"""One episode of so many is not learned from; the reward is measured on those."""


@dataclass(frozen=True, kw_only=True)
class Args(RewardArgs):
    """Make a reward from demonstrations: how far an episode has come, as the nearest recorded success sees it."""

    data: Path
    """Dataset with at least three successes; failures among its episodes help to see what is not on the way."""
    kind: Literal["progress", "transport"] = "progress"
    """progress: what the closest frames of successes say, as a potential; transport: an episode pays at its end, as its frames can be
    moved onto those of a demonstration, at most half as much as success."""
    keys: tuple[str, ...] = ()
    """What is looked at, for example observation.images.front; if left out, all vectors, and all pictures where no poses of
    objects are among the vectors."""
    updates: int | None = None
    """Gradient steps of the encoder; 1000, or 400 with pictures if left out."""


def run(args: Args) -> dict[str, Any]:
    """Train, measure on held-out episodes, and write the reward file."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return make(args, progress)


def make(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Train an encoder on the episodes, keep the successes in its latents, and measure.

    Raises:
        InputError: no such dataset or key, fewer than three successes, or --out is no file to write.
        DataError: the episodes differ too little from frame to frame.
    """
    from demos import Dataset
    from rewards import files
    from rewards.latent import EncoderConfig
    from rewards.progress import nearest, predictive, transport

    started = time.monotonic()
    check_out(args.out)
    data = Dataset(args.data)
    keys = args.keys or default_keys(data)
    learned, held = split(data, args.seed)
    pictures = any(key in data.observation_spec.images for key in keys)
    updates, batch_size, hidden = (400, 64, 128) if pictures else (1000, 256, 64)
    updates = updates if args.updates is None else args.updates
    config = predictive.PredictiveConfig(updates=updates, batch_size=batch_size, hidden=hidden, seed=args.seed)
    sees = EncoderConfig.of(data.observation_spec, keys, dim=config.dim, hidden=config.hidden)
    seen, spans = frames(data, keys, learned)
    encoder = predictive.train(seen, spans, sees, config, progress)
    latents = predictive.encode(encoder, seen)
    good = [latents[s] for s, e in zip(spans, learned, strict=True) if data.episode(e).success]
    successes = nearest.Successes.of(good)
    weights = args.out.with_suffix(".safetensors")
    made = {"data": str(args.data), "hash": data.content_hash(), "successes": len(good), "seed": args.seed, "updates": config.updates}
    nearest.save(weights, encoder, successes, made)
    if args.kind == "progress":
        settings = nearest.Progress(weights=weights.name, weight=args.weight)
    else:
        settings = transport.Transport(weights=weights.name, weight=transport.Transport.weight * args.weight)
    files.save(args.out, args.kind, settings, made)
    seen, spans = frames(data, keys, held)
    latents = predictive.encode(encoder, seen)
    result = {"out": str(args.out), "weights": str(weights), "kind": args.kind, "keys": list(keys), "successes": len(good)}
    measured = measure(args.kind, successes, [latents[s] for s in spans], [bool(data.episode(e).success) for e in held])
    return {**result, **measured, "rank": predictive.effective_rank(latents), "seconds": round(time.monotonic() - started, 1)}


def default_keys(data: Dataset) -> tuple[str, ...]:
    """All vectors; all pictures too where nothing tells where objects are."""
    from sinew.specs import ENVIRONMENT_STATE

    vectors = tuple(key for key in data.observation_spec if key not in data.observation_spec.images)
    return vectors if ENVIRONMENT_STATE in vectors else (*vectors, *data.observation_spec.images)


def split(data: Dataset, seed: int) -> tuple[list[int], list[int]]:
    """Episodes to learn from and episodes held out, successes and failures alike.

    Raises:
        InputError: fewer than three successes.
    """
    outcome = np.array([bool(data.episode(i).success) for i in range(data.num_episodes)], dtype=bool)
    if outcome.sum() < 3:
        raise InputError(
            f"{data.root} holds {int(outcome.sum())} successes among {len(outcome)} episodes; at least 3 are needed, "
            "two to learn from and one to measure on"
        )
    generator, held = np.random.default_rng(seed), []
    for group in (np.flatnonzero(outcome), np.flatnonzero(~outcome)):
        held += generator.permutation(group)[: max(1, len(group) // HELD_OUT) if len(group) > 2 else 0].tolist()
    return [i for i in range(len(outcome)) if i not in set(held)], sorted(held)


def frames(data: Dataset, keys: Sequence[str], episodes: Sequence[int]) -> tuple[dict[str, Tensor], list[slice]]:
    """Frames of episodes, one after the other, and the span of each in them."""
    from rewards.progress import predictive

    infos = [data.episode(i) for i in episodes]
    rows = np.concatenate([np.arange(e.start, e.start + e.length) for e in infos])
    ends = np.cumsum([e.length for e in infos])
    return predictive.read(data, keys, rows), [slice(int(end) - e.length, int(end)) for end, e in zip(ends, infos, strict=True)]


def measure(kind: str, successes: Successes, episodes: Sequence[Tensor], outcome: Sequence[bool]) -> dict[str, Any]:
    """Of held-out episodes (T_i, L): AUC of success against failure and, for a kind that pays on the way, rank correlation with time.

    A "progress" reward is judged by what it says at the end, and along successes; "transport" by the cost of the whole.
    """
    from rewards.measures import auc, auc_interval, rank_correlation
    from rewards.progress.transport import Demonstrations, moments

    if kind == "transport":
        import torch

        scores = (-Demonstrations.of(successes).costs(torch.stack([moments(e) for e in episodes]))).tolist()
        correlation = None
    else:
        curves = [successes.progress(latents).numpy() for latents in episodes]
        scores = [float(c[-1]) for c in curves]
        correlation = float(np.mean([rank_correlation(c) for c, ok in zip(curves, outcome, strict=True) if ok]))
    good = [s for s, ok in zip(scores, outcome, strict=True) if ok]
    bad = [s for s, ok in zip(scores, outcome, strict=True) if not ok]
    value = auc(good, bad)
    return {
        "held_out": {"successes": len(good), "failures": len(bad)},
        "rank_correlation": correlation,
        "auc": None if not bad else value,
        "auc95": None if not bad else list(auc_interval(value, len(good), len(bad))),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """What was written, and how good it is."""
    n = result["held_out"]
    console.print(f"{result['out']}: {result['kind']} from {result['successes']} successes, seen by {', '.join(result['keys'])}")
    if result["rank_correlation"] is not None:
        told = f"rank correlation {result['rank_correlation']:.3f}"
        console.print(f"on {n['successes']} held-out successes progress goes with time: {told}")
    if result["auc"] is None:
        console.print("no failures among the episodes: whether it tells them from successes is not known")
    else:
        low, high = result["auc95"]
        compared = "ends higher" if result["kind"] == "progress" else "is worth more"
        console.print(f"a success {compared} than a failure with {result['auc']:.3f} ({low:.2f} to {high:.2f}, {n['failures']} failures)")
    console.print(f"look at it with: sinew reward preview {result['out']} --data DIR", soft_wrap=True)
