"""The table of methods: what a dip is, and what is laid out of finished cells."""

from __future__ import annotations

import json

import pytest

from sinew.cli.benchmarks import improve
from sinew.errors import InputError


@pytest.mark.parametrize(
    ("rates", "steps"),
    [
        ([0.5, 0.9, 1.0], 0),
        ([0.5, 0.41, 0.9], 0),  # nine points are no dip
        ([0.5, 0.3, 0.9], 2500),
        ([0.5, 0.3, 0.2, 0.9, 0.1, 0.8], 5000),
        ([0.5, 0.9, 0.3], 0),  # it ended there: nobody knows for how long
    ],
)
def test_a_dip_lasts_until_an_evaluation_says_that_it_is_over(rates, steps):
    assert improve.longest_dip([(2500 * i, rate, 100) for i, rate in enumerate(rates)]) == steps


def test_finished_cells_are_laid_out_and_nothing_is_made(tmp_path):
    told = {"k": 50, "n": 100, "wilson95": [0.4, 0.6]}
    base = {"sample": told, "zero": told, "fixed": told, "mean": told}
    cell = {"task": "lift", "method": "dsrl", "seed": 1, "base": base, "improved": {**told, "k": 98}, "paired": {}, "steps": 7500}
    curve = [[0, 0.5, 100], [2500, 0.3, 100], [5000, 0.97, 100]]
    (tmp_path / "cell-lift-dsrl-1.json").write_text(json.dumps({**cell, "curve": curve, "cpu_s": 120.0}))
    rows = improve.rows(True, out=tmp_path)
    assert [row.ours for row in rows] == [50, 50, 50, 50, 98] and rows[-1].holds
    assert "98/100" in rows[-1].name and "2.0 to 2.0 CPU min" in rows[-1].name and "for 2,500 steps" in rows[-1].name
    (tmp_path / "cell-lift-dsrl-2.json").write_text(json.dumps({**cell, "seed": 2, "curve": curve, "cpu_s": None}))
    row = improve.rows(True, out=tmp_path)[-1]
    assert row.holds is None and "2.0 to 2.0 CPU min of 1 that were not interrupted" in row.name
    assert [row.ours for row in improve.rows(True, out=tmp_path / "nothing")] == [None]
    with pytest.raises(InputError, match="dslr"):
        improve.rows(True, ("dslr",), out=tmp_path)


def test_a_correction_is_compared_with_learning_from_demonstrations_on_the_seeds_that_both_have(tmp_path):
    curves = {
        ("residual", 0): (0.5, 0.95),
        ("residual", 1): (0.5, 0.8, 0.9),
        ("rlpd", 0): (0.0, 0.1, 0.2, 0.3, 0.4),
        ("residual", 2): (0.5,),
    }
    for (method, seed), rates in curves.items():
        cell = {"task": "lift", "method": method, "seed": seed, "curve": [[2500 * i, rate, 100] for i, rate in enumerate(rates)]}
        (tmp_path / f"sooner-lift-{method}-{seed}.json").write_text(json.dumps(cell))
    row = improve.rows(True, out=tmp_path)[-1]
    assert (row.ours, row.peer_value, row.ratio, row.holds) == (2500, 10_000, 4, True) and "did not get there" in str(row.peer)
    assert improve.steps_to([(0, 0.5), (10, 0.9), (20, 0.95)]) == (10, True) and improve.steps_to([(0, 0.5), (10, 0.6)]) == (10, False)
