"""The table of bases from elsewhere: what is not made is said, and a base outside of the bounds decides nothing."""

from __future__ import annotations

import json

import pytest

from sinew.cli.benchmarks import rl_bases


def cell(task: str, method: str, seed: int, before: int, improved: int) -> dict:
    sides = {"before": {"k": before, "n": 200}, "improved": {"k": improved, "n": 200}}
    return {"base": task, "method": method, "seed": seed, "steps": 10_000 + seed, **sides}


@pytest.fixture
def folder(tmp_path):
    for name, cells in {"peg": [(60, 200), (90, 190)], "lerobot": [(4, 150)]}.items():
        (tmp_path / name).mkdir()
        task = next(iter(rl_bases.TASKS)) if name == "peg" else "hf:somewhere=lift"
        for seed, (before, improved) in enumerate(cells):
            (tmp_path / name / f"cell-dsrl-{seed}.json").write_text(json.dumps(cell(task, "dsrl", seed, before, improved)))
    return tmp_path


def test_cells_are_summed_over_seeds_and_judged_where_the_base_fits(folder):
    rows = {row.name.split(",")[0]: row for row in rl_bases.rows(True, folder)}
    peg = rows["gym:Meta-World/peg-insert-side-v3: dsrl"]
    assert (peg.ours, peg.peer_value, peg.holds) == (97.5, 37.5, True) and "2 seeds, 10001 steps" in peg.name
    weak = rows["hf:somewhere=lift: dsrl"]
    assert (weak.ours, weak.peer_value, weak.holds) == (75.0, 2.0, None) and "not within 30 to 75" in weak.target
    missing = rows["gym:Meta-World/assembly-v3: residual"]
    assert missing.ours is None and missing.peer == "not run yet"
    assert len(rows) == 7
