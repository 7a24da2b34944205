"""What each episode of a dataset is worth for imitation: a table, a picture, and weights that training draws by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from demos import Dataset
    from demos.quality.scores import Scores

SHOWN = 12
"""Episodes in the table, the most doubtful ones."""
PICTURE = "sinew_quality.png"
NAMED = 3
"""Reasons that are named in the table."""
TELLING = 1.5
"""Robust deviations from which a score is named as a reason."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Score every episode of a dataset, find the doubtful ones, and write weights that sinew train draws by."""

    dir: Annotated[Path, tyro.conf.Positional]
    """Folder of a LeRobotDataset v3."""
    policy_folds: int = 5
    """Parts the episodes are dealt into: small policies learn from all but one and judge that one; 0 leaves this score out."""
    out: Path | None = None
    """Folder for the picture; the dataset's meta/ if left out."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Of dealing episodes, of the small policies, and of what is drawn for speed."""


def quality(args: Quality) -> dict[str, Any]:
    """Score, draw, and write the weights into the dataset.

    Raises:
        InputError: a number of folds that cannot be.
        DataError: no dataset, too few episodes, or values that are not finite.
    """
    from demos import Dataset
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        data = Dataset(args.dir)
        scores = scored(data, args.policy_folds, args.seed, progress)
    from demos.quality import weights
    from sinew.cli import data_quality_picture

    picture = (args.out or args.dir / "meta") / PICTURE
    file = weights.store(data, scores, {"policy_folds": args.policy_folds, "seed": args.seed})
    data_quality_picture.write(picture, data, scores)
    return {"action": "quality", "root": str(args.dir), "weights_file": str(file), "picture": str(picture), **table(data, scores)}


def scored(data: Dataset, folds: int, seed: int, progress: Any) -> Scores:
    """Scores of a dataset, with those of small policies unless `folds` is 0."""
    from demos.quality.scores import check_enough, score
    from sinew.cli.data_quality_loss import losses

    if folds < 0 or folds == 1:
        raise InputError(f"--policy-folds {folds}: 2 or more, or 0 to leave the policy out")
    check_enough(data)
    return score(data, losses(data, min(folds, data.num_episodes), seed, progress=progress) if folds else None, seed, progress)


def table(data: Dataset, scores: Scores) -> dict[str, Any]:
    """What the terminal and --json tell: one entry for each episode, the most doubtful first."""
    from demos.quality.scores import deviations

    apart = deviations(scores.values)
    rows = []
    for i in np.argsort(-scores.doubt, kind="stable").tolist():
        episode = data.episode(i)
        reasons = sorted((name for name in apart if apart[name][i] >= TELLING), key=lambda name: -apart[name][i])
        rows.append(
            {
                "episode": i, "frames": episode.length, "success": episode.success, "doubt": float(scores.doubt[i]),
                "weight": float(scores.weights[i]), "because": reasons, **{k: float(v[i]) for k, v in scores.values.items()},
            }
        )  # fmt: skip
    return {"episodes": rows, "less": int((scores.weights < 1).sum()), "none": int((scores.weights == 0).sum())}


def show(result: dict[str, Any], console: Console) -> None:
    """The most doubtful episodes, what follows, and where it is."""
    from rich.table import Table

    rows, drawn = result["episodes"], Table(box=None, padding=(0, 2, 0, 0))
    for name in ("episode", "frames", "outcome", "doubt", "weight"):
        drawn.add_column(name, justify="left" if name == "outcome" else "right")
    drawn.add_column("because of")
    outcomes = {True: "success", False: "failure", None: "unknown"}
    for row in rows[:SHOWN]:
        cells = [str(row["episode"]), str(row["frames"]), outcomes[row["success"]], f"{row['doubt']:.2f}", f"{row['weight']:.2f}"]
        drawn.add_row(*cells, ", ".join(f"{name.replace('_', ' ')} {row[name]:.2g}" for name in row["because"][:NAMED]))
    console.print(drawn)
    if len(rows) > SHOWN:
        console.print(f"… and {len(rows) - SHOWN} less doubtful ones; --json tells all", highlight=False)
    lines = (
        f"{result['root']}: {len(rows)} episodes, {result['less']} weigh less than 1, {result['none']} of them nothing",
        f"weights  {result['weights_file']}; sinew train draws by them, --weights none does not",
        f"picture  {result['picture']}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
