"""`sinew bench learning`: cells that are made once, a table that claims no more than it may, two ways kept or averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinew.cli import bench, bench_page, collect, train
from sinew.cli.benchmarks import learning, learning_ways
from sinew.errors import InputError
from sinew.progress import SILENT

TINY = learning.Budget(demonstrations=3, quality="clean", steps=10, batch_size=16, scenes=3)


def test_a_cell_is_made_once_and_scenes_are_common_to_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learning.rows(False, ["flow", "nothing"], ["reach"], [0, 1], tmp_path, TINY)
    assert [row.name for row in made] == [f"reach, {e}: {p}" for e in ("sync", "ensemble") for p in ("flow", "nothing")]
    flow, absent = made[0], made[1]
    assert flow.detail and flow.detail["n"] == 6 and flow.ours == pytest.approx(100 * flow.detail["k"] / 6)
    assert flow.detail["k"] == sum(flow.detail["k_by_seed"]) and flow.detail["train_s"] > 0 and flow.detail["latency_ms"] > 0
    assert absent.ours is None and "there is no policy 'nothing'" in str(absent.peer)
    cells = [learning.cell("flow", "reach", seed, tmp_path, TINY) for seed in (0, 1)]
    assert not set(cells[0]["seeds"]) & set(cells[1]["seeds"])

    def never(*_: Any) -> None:
        raise AssertionError("a finished cell was made again")

    monkeypatch.setattr(collect, "collect", never)
    again = learning.rows(False, ["flow"], ["reach"], [0, 1], tmp_path, TINY)
    assert [row.detail and row.detail["k"] for row in again] == [row.detail and row.detail["k"] for row in made[::2]]


def test_a_quick_look_at_a_results_folder_makes_nothing(tmp_path: Path) -> None:
    (row,) = learning.rows(True, ["flow"], ["gym:Pendulum-v1"], [0], tmp_path)
    assert row.ours is None and row.peer == "not run yet: leave out --quick" and not list(tmp_path.iterdir())


def test_one_seed_may_be_missing_and_pairs_are_those_of_common_seeds() -> None:
    def made(outcomes: list[bool], first: int) -> dict[str, Any]:
        seeds = list(range(first, first + len(outcomes)))
        return {"sync": outcomes, "seeds": seeds, "parameters": 5, "train_s": 2.0, "demonstrations": 3}

    flow = {0: made([True, False, False, False], 0), 1: made([True] * 4, 10)}
    row = learning._row("sync", "lift", "edm", {0: made([True, True, True, True], 0), 2: made([False] * 4, 20)}, 1.0, flow)
    assert row.ours == 50.0 and row.detail and row.detail["n"] == 8 and row.detail["k_by_seed"] == [4, 0]
    assert row.detail["paired"]["n"] == 4 and row.detail["paired"]["wins"] == 3 and row.detail["paired"]["losses"] == 0


def test_an_interrupted_training_keeps_its_clock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "train_s.json").write_text("100.0")
    collect.collect(collect.Args(task="reach", out=tmp_path / "data", episodes=2))
    _, spent = learning._clocked(train.train, train.Args(data=(tmp_path / "data",), out=run, steps=3, batch_size=4), SILENT)
    assert 100 < spent < 200


def _row(policy: str, k: int, p: float | None, verdict: str = "better", task: str = "lift") -> dict[str, Any]:
    test = {} if p is None else {"paired": {"p": p, "verdict": verdict}}
    detail = {"task": task, "policy": policy, "executor": "sync", "k": k, "n": 100, "wilson95": [0.1, 0.3], "parameters": 1000,
              "train_s": 20.0, "latency_ms": 1.5, **test}  # fmt: skip
    return {"name": policy, "ours": float(k), "detail": detail}


def test_better_is_said_only_below_the_level_shared_by_all_comparisons() -> None:
    text = learning.markdown([_row("flow", 50, None), _row("a", 70, 0.02), _row("b", 70, 0.03, "worse"), _row("c", 90, 1e-3)])
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "better" not in lines["a"] and "worse" not in lines["b"]  # 0.02 > 0.05 / 3
    assert lines["c"].endswith("| 90/100 [10 – 30 %] better, p = 1e-03 |")
    assert "| 1,000 | 20 | 1.5 |" in lines["flow"]


def test_tables_for_our_tasks_for_the_ways_and_for_gymnasium() -> None:
    absent = {"name": "x", "ours": None, "detail": {"task": "gym:w/A-v0", "policy": "act", "executor": "sync"}}
    ways = {"left": 0.5, "between": 0.0, "right": 0.5, "rarer": 0.45}
    rows = [_row("flow", 50, None), _row("flow", 20, None, task="gym:w/A-v0"), absent]
    rows += [{"name": "w", "ours": 0.0, "detail": {"task": "push", "policy": "demonstrator", "ways": ways}}]
    ours, two, gym = learning.markdown(rows).split("\n\n")
    assert "| lift |" in ours and "w/A-v0" not in ours
    assert "| demonstrator | 50 % | 0 % | 50 % | 45 % |" in two
    assert "| w/A-v0 |" in gym and "| act | – | – | – | not measured |" in gym
    machine = {"bench": "learning", "machine": {}, "rows": rows}
    assert bench_page.block(machine).endswith(gym)


def test_options_go_only_to_benchmarks_that_know_them() -> None:
    with pytest.raises(InputError, match="bench 'sim' takes no --policies"):
        bench.run(bench.Args(name="sim", policies=("flow",)))


# ---------------------------------------------------------------- two ways


def test_the_demonstrator_has_two_ways_and_their_mean_lies_between() -> None:
    shares = learning_ways.shares({}, scenes=3, samples=32)["demonstrator"]
    assert shares["between"] < 0.1 and min(shares["left"], shares["right"]) > 0.3 and shares["rarer"] > 0.3
    assert sum(shares[part] for part in ("left", "between", "right")) == pytest.approx(1)
    _, chunks = learning_ways._demonstrations(5, 32, 8)
    ways = learning_ways.clusters(learning_ways.sideways(chunks))
    mean = learning_ways.position(learning_ways.sideways(chunks.mean(0, keepdims=True)), ways)
    assert np.abs(mean) < 0.5


def test_clusters_positions_and_shares_by_hand() -> None:
    ways = learning_ways.clusters(np.array([-1.1, -0.9, 2.9, 3.1]))
    assert ways == pytest.approx((-1.0, 3.0))
    assert learning_ways.position(np.array([-1.0, 1.0, 3.0]), ways) == pytest.approx([-1, 0, 1])
    assert learning_ways.clusters(np.ones(4)) == (1.0, 1.0)
    shares = learning_ways.summary(np.array([[-1.0, -1.0, -1.0, 0.2], [1.0, 1.0, 1.0, 1.0]]))
    assert shares == {"left": 0.5, "between": 0.125, "right": 0.375, "rarer": 0.125}
    straight = np.zeros((1, 4, 4))
    straight[..., 1] = 0.01
    assert learning_ways.sideways(straight) == pytest.approx([1.0])
