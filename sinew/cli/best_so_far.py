"""The best policy so far, in its run's folder for other verbs while learning goes on, or when it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policies import PolicyModule

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
    from sinew.rundir import RunDir

    most: list[int] = []

    def measured() -> Mapping[str, int]:
        if not most:
            most.append(max((row.get("k", -1) for row in RunDir(out).metrics()), default=-1))
        found = measure()
        if found["k"] >= most[0]:
            most[0] = found["k"]
            policies.save(policy(), out)
        return found

    return measured
