"""Hold a reward against recorded episodes: does it rank success over failure, grow on the way, and can it be had without the task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console

PROBLEM = 2
"""Exit code where a verdict does not hold."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Hold a reward against recorded episodes: does it rank success over failure, grow on the way, and can it be had without the task."""

    reward: Annotated[str, tyro.conf.Positional]
    """Reward file; or sparse or shaped."""
    data: Path
    """Dataset of the task, with failures among its episodes."""
    episodes: int = 64
    """Episodes that are looked at, half of them failures where there are enough."""
    seed: int = 0
    """Of the choice of episodes."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Check.

    Raises:
        RewardUnavailable: the data lacks what the reward looks at.
        InputError: no success among the episodes.
    """
    import sys

    from demos import Dataset
    from rewards.inspection import inspect
    from sinew.cli.reward_recorded import builder, episodes, load

    data = Dataset(args.data)
    build = builder(args.reward, data, lambda text: print(text, file=sys.stderr))
    vectors = [key for key in data.observation_spec if key not in data.observation_spec.images]
    found = inspect(data, episodes(data, args.episodes, args.seed), build, vectors)
    outcome = [e.success for e in found.episodes]
    return {
        "reward": args.reward,
        "kind": load(args.reward)[0],
        "data": str(args.data),
        "episodes": {"successes": sum(outcome), "failures": len(outcome) - sum(outcome)},
        "findings": [asdict(f) for f in found.findings],
        "passed": not found.problems,
    }


def exit_code(result: dict[str, Any]) -> int:
    """0, or 2 where a verdict does not hold."""
    return 0 if result["passed"] else PROBLEM


def show(result: dict[str, Any], console: Console) -> None:
    """One line for each verdict, and what comes of them."""
    for finding in result["findings"]:
        mark, colour = {True: ("yes", "green"), False: ("no", "red"), None: ("-", "dim")}[finding["holds"]]
        console.print(f"[{colour}]{mark:<4}[/]", end="")
        console.print(finding["text"], markup=False, highlight=False, soft_wrap=True)
    n = result["episodes"]
    unknown = any(f["name"] == "ranking" and f["holds"] is None for f in result["findings"])
    judged = "may be learned from, as far as is known" if unknown else "can be learned from"
    judged = judged if result["passed"] else "should not be learned from as it is"
    told = f"{result['reward']} ({result['kind']}) {judged}, by {n['successes']} successes and {n['failures']} failures"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
