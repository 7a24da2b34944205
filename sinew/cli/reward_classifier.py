"""Learn from success and failure of recorded episodes when the task is done, with a chance that can be believed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinew.cli.reward_learned import LearnedArgs
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

PAUSE_S = 2.0
"""Between looks for new episodes."""


@dataclass(frozen=True, kw_only=True)
class Args(LearnedArgs):
    """Learn from success and failure of recorded episodes when the task is done, with a chance that can be believed."""

    updates: int = 600
    """Gradient steps."""
    follow: bool = False
    """Go on: learn anew whenever the recorder has added episodes or somebody has labelled some, until Ctrl-C."""


def run(args: Args) -> dict[str, Any]:
    """Train, calibrate, measure on held-out episodes, and write the reward file."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        before = _state(args)  # what is saved while this learns is not missed
        found = make(args, progress)
        if args.follow:
            _follow(args, progress, found, before)
        return found


def make(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """The same once, telling `progress`.

    Raises:
        InputError: no such dataset or key, or fewer than 5 successes or failures.
        DataError: a label cannot be read.
    """
    import torch

    from demos import Dataset
    from rewards import files
    from rewards.preference import classifier
    from rewards.preference.scored import save_scored
    from sinew.cli import reward_learned

    started = time.monotonic()
    weights = reward_learned.check_out(args.out)
    data = Dataset(args.data)
    config = classifier.ClassifierConfig(updates=args.updates, seed=args.seed)
    keys, encoder, stats = reward_learned.seen_by(data, args.keys, config.dim)
    (learn, tune, test), _, said = reward_learned.parts(data, keys, args.labels, args.seed)
    scored = classifier.train(learn, encoder, stats, config, progress)
    rows, done = classifier.frames(tune, config.tail)
    scored.temperature.fill_(classifier.fit_temperature(scored.all(tune.seen)[rows], torch.from_numpy(done)))
    measured = classifier.measure(scored, test, config.tail)
    made = reward_learned.made_of(data, args.data, args.seed, labels=None if args.labels is None else str(args.labels), measured=measured)
    save_scored(weights, scored, classifier.KIND, made)
    files.save(args.out, classifier.KIND, classifier.ClassifierSettings(weights=weights.name, weight=args.weight), made)
    told = {"out": str(args.out), "weights": str(weights), "keys": list(keys), "episodes": len(said), "learned": len(learn)}
    return {**told, **measured, "seconds": round(time.monotonic() - started, 1)}


def _follow(args: Args, progress: Progress, found: dict[str, Any], before: tuple[Any, ...]) -> None:
    """Learn anew for as long as new outcomes come, until Ctrl-C; `before` is the state that `found` is of.

    The last reward file stays where the data cannot be read for a moment.
    """
    from sinew.errors import SinewError

    with contextlib.suppress(KeyboardInterrupt):
        progress.note(f"{found['out']} is written; waiting for episodes and labels, until Ctrl-C")
        while True:
            if (now := _state(args)) == before:
                time.sleep(PAUSE_S)
                continue
            before = now
            try:
                found |= make(args)
                error = found["calibration_error"]
                progress.note(f"{found['episodes']} episodes: AUC {found['auc']:.3f}, calibration error {error:.3f}; {found['out']} is new")
            except SinewError as problem:
                progress.note(f"not learned anew: {problem}")


def _state(args: Args) -> tuple[Any, ...]:
    """What changes when an episode is saved or a label is written."""
    paths = [args.data / "meta/info.json", *([args.labels] if args.labels else [])]
    return tuple((p.stat().st_mtime_ns, p.stat().st_size) if p.is_file() else None for p in paths)


def show(result: dict[str, Any], console: Console) -> None:
    """How good it is."""
    low, high = result["auc95"]
    held = f"{result['successes']} successes and {result['failures']} failures held out"
    console.print(
        f"{result['out']}: learned from {result['learned']} episodes in {result['seconds']:g} s, sees {', '.join(result['keys'])}"
    )
    console.print(f"{held}: AUC {result['auc']:.3f} ({low:.2f} to {high:.2f}), {result['accuracy']:.0%} told right at one half")
    error, raw = result["calibration_error"], result["calibration_error_raw"]
    console.print(f"calibration error {error:.4f} with temperature {result['temperature']:.2f}, {raw:.4f} without")
    for bin in result["curve"]:
        bar = "#" * round(40 * bin["was"])
        console.print(f"  said {bin['said']:.2f}  was {bin['was']:.2f}  {bin['count']:>6} frames  {bar}", highlight=False, markup=False)
