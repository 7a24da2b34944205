"""The best policy so far, in its run's folder for other verbs while learning goes on, or when it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policies import PolicyModule

NOTE = "best_so_far.json"
"""In a run's folder: {"k": successes, "n": episodes} of the policy that is there."""
Measured = Callable[[], Mapping[str, int]]
"""→ {"k": successes, "n": episodes}."""


def keeping(measure: Measured, policy: Callable[[], PolicyModule], out: Path) -> Measured:
    """A measurement that saves what it measured where nothing before was better, measurements before an interruption included.

    Args:
        measure: of a policy as it is now.
        policy: that policy.
        out: folder of its run.
    """
    import policies
    from sinew.rundir import read_json, write_json

    note = out / NOTE

    def measured() -> Mapping[str, int]:
        found = measure()
        before = read_json(note) if note.exists() else {"k": -1, "n": 1}
        if found["k"] * before["n"] >= before["k"] * found["n"]:
            policies.save(policy(), out)
            write_json(note, {"k": found["k"], "n": found["n"]})
        return found

    return measured
