"""`sinew bench sim`: what learning from nothing takes is made once and pooled over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sinew.cli.benchmarks import sim_scale


def test_learning_is_made_once_and_measured_on_scenes_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def told(words: list[str]) -> dict[str, Any]:
        asked.append(words)
        return {"steps": 1_000, "minutes": 2.0} if words[0] == "train-rl" else {"k": 190, "n": 200, "other": 1}

    monkeypatch.setattr(sim_scale, "_sinew", told)
    first, again = (sim_scale._learn("lift", "ppo", 3, tmp_path) for _ in range(2))
    assert first == again and len(asked) == 2 and first["k"] == 190 and first["cpu_s"] >= 0 and "other" not in first
    assert asked[0][:7] == ["train-rl", "--task", "lift", "--algorithm", "ppo", "--seed", "3"]
    assert asked[1] == ["eval", str(tmp_path / "lift-ppo-3"), "--episodes", "200"]


def test_seeds_are_pooled_with_their_interval() -> None:
    results = [{"k": k, "n": 200, "steps": 1_000 * k, "cpu_s": 60.0 * i, "minutes": 9.0} for i, k in enumerate((199, 200, 198), 1)]
    row = sim_scale.learned("lift", "ppo", results)
    assert "597/600 test scenes of 3 seeds [98.5, 99.8] %, after 199,000, 200,000, 198,000 steps" in row.name
    assert row.ours == 2.0 and row.detail and row.detail["won"] == [199, 200, 198]
    assert sim_scale.learned("lift", "ppo", [*results, {**results[0], "cpu_s": None}]).ours is None


def test_the_time_of_a_run_that_was_interrupted_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lift-ppo-3").mkdir()
    monkeypatch.setattr(sim_scale, "_sinew", lambda words: {"steps": 1_000, "minutes": 2.0, "k": 190, "n": 200})
    assert sim_scale._learn("lift", "ppo", 3, tmp_path)["cpu_s"] is None
