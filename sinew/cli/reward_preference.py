"""Learn from which of two recorded pieces was better: a person's preferences, or what outcomes imply."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.cli.reward_learned import LearnedArgs
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from rewards.preference.pairwise import Pair


@dataclass(frozen=True, kw_only=True)
class Args(LearnedArgs):
    """Learn from which of two recorded pieces was better: a person's preferences, or what outcomes imply."""

    preferences: Path | None = None
    """What a person preferred: lines {"a": [episode, first, last + 1], "b": [...], "better": "a"}, or "b" or "same"."""
    implied: int = 1000
    """Preferences implied by outcomes that are learned from as well: success over failure, later over earlier in a success."""
    updates: int = 600
    """Gradient steps."""


def run(args: Args) -> dict[str, Any]:
    """Train, measure on held-out episodes, and write the reward file."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return make(args, progress)


def make(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """The same, telling `progress`.

    Raises:
        InputError: no such file or key, nothing to learn from, or too few episodes of known outcome.
        DataError: a label or a preference cannot be read.
    """
    from demos import Dataset
    from rewards import files
    from rewards.preference import pairwise
    from rewards.preference.scored import save_scored
    from sinew.cli import reward_learned

    started = time.monotonic()
    weights = reward_learned.check_out(args.out)
    data = Dataset(args.data)
    config = pairwise.PairwiseConfig(updates=args.updates, seed=args.seed)
    said_by_people = pairwise.read_pairs(args.preferences, data) if args.preferences else []
    keys, encoder, stats = reward_learned.seen_by(data, args.keys, config.dim)
    (learn, _, test), numbers, _ = reward_learned.parts(data, keys, args.labels, args.seed)
    taught = [*_within(said_by_people, data, learn, numbers[0]), *pairwise.from_outcomes(learn, args.implied, args.seed)]
    asked = _within(said_by_people, data, test, numbers[2])
    scored = pairwise.train(learn, taught, encoder, stats, config, progress)
    measured = {"implied": pairwise.measure(scored, test, pairwise.from_outcomes(test, 400, args.seed + 1))}
    measured["people"] = pairwise.measure(scored, test, asked)
    made = reward_learned.made_of(data, args.data, args.seed, preferences=len(said_by_people), measured=measured)
    save_scored(weights, scored, pairwise.KIND, made)
    files.save(args.out, pairwise.KIND, pairwise.PairwiseSettings(weights=weights.name, weight=args.weight), made)
    told = {"out": str(args.out), "weights": str(weights), "keys": list(keys), "pairs": len(taught), **measured}
    return {**told, "seconds": round(time.monotonic() - started, 1)}


def _within(pairs: list[Pair], data: Any, episodes: Any, numbers: list[int]) -> list[Pair]:
    """The pairs whose pieces both lie in these episodes, with frames counted as they are there."""
    from rewards.preference.pairwise import Pair

    shift = {data.episode(n).start: (span.start, span.stop - span.start) for n, span in zip(numbers, episodes.spans, strict=True)}

    def moved(piece: tuple[int, int]) -> tuple[int, int] | None:
        for start, (at, length) in shift.items():
            if start <= piece[0] and piece[1] <= start + length:
                return piece[0] - start + at, piece[1] - start + at
        return None

    found = [(moved(pair.better), moved(pair.worse)) for pair in pairs]
    return [Pair(better, worse) for better, worse in found if better is not None and worse is not None]


def show(result: dict[str, Any], console: Console) -> None:
    """How often it agrees with preferences that it did not learn from."""
    console.print(
        f"{result['out']}: learned from {result['pairs']} preferences in {result['seconds']:g} s, sees {', '.join(result['keys'])}"
    )
    for whose in ("people", "implied"):
        found = result[whose]
        if found["pairs"]:
            low, high = found["wilson95"]
            by = "by people" if whose == "people" else "implied by outcomes"
            console.print(f"agrees with {found['right']}/{found['pairs']} held-out preferences {by} ({low:.0%} to {high:.0%})")
