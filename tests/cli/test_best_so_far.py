"""Of what is measured while learning goes on, the best is in the run's folder, after an interruption too."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinew.cli.best_so_far import keeping
from sinew.rundir import RunDir


def test_only_what_nothing_before_was_better_than_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    run, now = RunDir.create(tmp_path / "run", {"verb": "improve"}), [0]
    monkeypatch.setattr("policies.save", lambda policy, out: saved.append(policy))

    def measured(*successes: int) -> None:
        measure = keeping(lambda: {"k": now[0], "n": 10}, lambda: now[0], run.path)  # type: ignore[arg-type, return-value]
        for now[0] in successes:
            assert measure() == {"k": now[0], "n": 10}

    measured(3, 5, 4, 5, 2)
    assert saved == [3, 5, 5]
    measured(4, 6)  # in another process, after an interruption that left no metrics
    assert saved == [3, 5, 5, 6]
