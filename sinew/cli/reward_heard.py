"""What a reward says while a policy learns with it: told to the user, kept in the run, and found again in its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from sinew.rundir import RunDir

STAGE = "reward"
"""What marks lines of metrics.jsonl that are about the reward."""
IN_LOG = "reward: "
"""What lines of actors' logs begin with that are about theirs."""
CHI_SQUARE = "guard_chi_square"
"""Figure of a guard (`rewards.guard`)."""


class Heard:
    """Passes on what a reward says.

    Args:
        tell: tells the user a line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._run = tell, None
        self._before: list[str] = []

    def say(self, text: str) -> None:
        """A line for the user, which the run keeps as well."""
        self._tell(text)
        if self._run is None:
            self._before.append(text)
        else:
            self._run.log(stage=STAGE, note=text)

    def log(self, values: Mapping[str, Any]) -> None:
        """Figures for the run."""
        if self._run is not None:
            self._run.log(**{"stage": STAGE, **values})

    def keep(self, run: RunDir) -> None:
        """The run is there and takes what will be said."""
        self._run = run

    def end(self, run: RunDir) -> None:
        """Learning is over: the run takes what was said before it began as well, which a learner that begins would have dropped."""
        there = told(run)["said"]
        for text in self._before:
            if text not in there:
                run.log(stage=STAGE, note=text)


def told(run: RunDir) -> dict[str, Any]:
    """What a reward had to say over a whole run, interruptions and actors in processes of their own included.

    Returns:
        {"said": lines, each once; "chi_square": {"last", "highest"} of its guard, None without one}.
    """
    from rl.crew import LOGS

    lines = [line for line in run.metrics() if line.get("stage") == STAGE]
    found = [float(line[CHI_SQUARE]) for line in lines if CHI_SQUARE in line]
    said = [str(line["note"]) for line in lines if "note" in line]
    for log in sorted((run / LOGS).glob("*.log")):
        said += [line.removeprefix(IN_LOG) for line in log.read_text(errors="replace").splitlines() if line.startswith(IN_LOG)]
    return {"said": list(dict.fromkeys(said)), "chi_square": {"last": found[-1], "highest": max(found)} if found else None}


def show(result: Mapping[str, Any], console: Console) -> None:
    """The same for a person: it scrolled by long ago."""
    for text in result.get("said") or ():
        console.print(f"the reward: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if chi := result.get("chi_square"):
        console.print(f"the guard's χ² at the end {chi['last']:.1f}, at most {chi['highest']:.1f}", highlight=False)
