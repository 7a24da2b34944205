"""`sinew compare`: pairs by seed, says better only with evidence, and refuses what cannot be paired."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sinew.cli import compare
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir, write_json

ROOT = Path(__file__).resolve().parents[2]


def make_run(path: Path, successes: list[bool], first: int = 100, task: str = "lift", file: str = "lift.json", **more: Any) -> Path:
    run = RunDir.create(path, {"verb": "train"})
    seeds = list(range(first, first + len(successes)))
    write_json(run / "eval" / file, {"task": task, "seeds": seeds, "successes": successes, "noise": "sample", **more})
    return path


def compared(*runs: Path, **settings: Any) -> dict[str, Any]:
    return compare.run(compare.Args(a=runs[0], b=runs[1], **settings))


def test_better_with_evidence(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [False] * 12 + [True] * 28)
    new = make_run(tmp_path / "new", [True] * 40)
    result = compared(old, new)
    assert result["verdict"] == "better" and result["paired"] == {"p": 2 / 2**12, "wins": 12, "losses": 0, "n": 40, "verdict": "better"}
    assert result["a"]["k"] == 28 and result["b"]["k"] == 40 and result["a"]["seeds"] == list(range(100, 140))
    assert compare.sentence(result) == f"{new} is better than {old} on lift (n = 40, alpha = 0.05)."
    assert compared(new, old)["verdict"] == "worse"


def test_few_pairs_are_no_evidence(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [False] * 5 + [True] * 15)
    new = make_run(tmp_path / "new", [True] * 20)
    result = compared(old, new)
    assert result["verdict"] == "no evidence" and result["paired"]["p"] == 1 / 16
    assert "better" not in compare.sentence(result) and "No evidence" in compare.sentence(result)


def test_only_common_seeds_count(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [False] * 20, first=100)
    new = make_run(tmp_path / "new", [True] * 20, first=110)
    result = compared(old, new)
    assert result["paired"]["n"] == 10 and result["left_out"] == {"a": 10, "b": 10}
    with pytest.raises(InputError, match="share no seed on task lift"):
        compared(old, make_run(tmp_path / "far", [True] * 5, first=900))


def test_the_sequential_verdict_needs_more(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old", [False] * 7 + [True]), make_run(tmp_path / "new", [True] * 8)
    assert compared(old, new)["verdict"] == "better"  # 7 to 0: p = 1/64
    result = compared(old, new, sequential=True)
    assert result["verdict"] == "no evidence" and result["test"] == "sequential"  # needs 8 to 0 at alpha = 0.05


def test_several_evaluations_of_a_run_are_joined(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old", [False] * 10), make_run(tmp_path / "new", [True] * 10)
    make_run(old, [False] * 10, first=500, file="lift-seed1.json")
    make_run(new, [True] * 10, first=500, file="lift-seed1.json")
    make_run(new, [False] * 10, first=100, file="lift-zero.json", noise="zero")
    assert compared(old, new)["paired"]["n"] == 20
    with pytest.raises(InputError, match=r"old was not evaluated so: run sinew eval .*old --noise zero$"):
        compared(old, new, noise="zero")
    with pytest.raises(InputError, match=r"run sinew eval .*old --delay 2 --act-steps 4 --best-of 8 --scorer count$"):
        compared(old, new, delay=2, act_steps=4, best_of=8)


def test_evaluations_with_a_goal_are_no_plain_ones(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old", [False] * 10), make_run(tmp_path / "new", [True] * 10, goal_scale=None)
    make_run(new, [False] * 10, file="lift-goal1.json", goal_scale=1.0)
    assert compared(old, new)["b"]["k"] == 10


def test_contradictory_and_damaged_evaluations_are_named(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old", [False] * 10), make_run(tmp_path / "new", [True] * 10)
    make_run(new, [False] * 10, file="other.json")
    with pytest.raises(DataError, match=r"other\.json contradicts another evaluation of .*new on seed 100"):
        compared(old, new)
    write_json(new / "eval" / "other.json", {"task": "lift", "seeds": [1, 2], "successes": [True]})
    with pytest.raises(DataError, match="2 seeds and 1 outcomes"):
        compared(old, new)


def test_the_task_must_be_common_and_clear(tmp_path: Path) -> None:
    lift, push = make_run(tmp_path / "lift", [True] * 4), make_run(tmp_path / "push", [True] * 4, task="push", file="push.json")
    with pytest.raises(InputError, match=r"no common task: .*lift was evaluated on lift, .*push on push"):
        compared(lift, push)
    make_run(lift, [True] * 4, task="push", file="push.json")
    make_run(push, [True] * 4)
    with pytest.raises(InputError, match="both were evaluated on lift, push; name one with --task"):
        compared(lift, push)
    assert compared(lift, push, task="push")["task"] == "push"
    with pytest.raises(InputError, match="was not evaluated on task peg; it was on lift, push"):
        compared(lift, push, task="peg")


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old", [False] * 8), make_run(tmp_path / "new", [True] * 8)
    write_json(new / "eval" / "gate.json", {"k": 3, "n": 4})
    write_json(new / "eval" / "list.json", [1, 2])
    assert compared(old, new)["paired"]["n"] == 8


def test_command_line(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old", [False] * 30), make_run(tmp_path / "new", [True] * 30)
    never = RunDir.create(tmp_path / "never", {"verb": "train"}).path

    def sinew(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sinew", "compare", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )

    done = sinew(old, new, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["verdict"] == "better"
    done = sinew(old, new)
    assert "is better than" in done.stdout.replace("\n", " ") and "30/30" in done.stdout
    done = sinew(old, never)
    assert done.returncode == 2 and done.stdout == "" and "sinew eval" in done.stderr and done.stderr.count("\n") == 1
