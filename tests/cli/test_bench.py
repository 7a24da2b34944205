"""`sinew bench`: the row format, benchmarks that do not exist, and a page that keeps what people wrote."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinew.bench import Row
from sinew.cli import bench, bench_page
from sinew.errors import DataError, InputError

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    Row(name="steps | fast", unit="1/s", ours=12345.6, peer="plain mj_step", peer_value=4000.0, target=">= 3x peer", holds=True),
    Row(name="latency", unit="ms", ours=2.0, peer="lerobot", peer_value=1.0, target="<= peer", holds=False, higher_is_better=False),
    Row(name="gpu", unit="1/s", ours=None, peer="no GPU on this machine"),
]


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(bench, "find", lambda name: lambda quick: ROWS)
    return bench.measure("sim", quick=True)


def test_result_has_the_documented_shape(result: dict[str, Any]) -> None:
    assert result["bench"] == "sim" and {"processor", "cpus", "python", "packages"} <= result["machine"].keys()
    assert [tuple(row) for row in result["rows"]] == [bench.COLUMNS] * 3
    assert [row["holds"] for row in result["rows"]] == [True, False, None]
    assert result["rows"][0]["ratio"] == pytest.approx(3.0864) and result["rows"][1]["ratio"] == 0.5 and result["rows"][2]["ratio"] is None
    json.dumps(result, allow_nan=False)


def test_numbers_that_are_none_become_null() -> None:
    row = Row(name="x", unit="", ours=float("nan"), peer_value=float("inf"), holds=np.bool_(True))  # type: ignore[arg-type]
    made = bench.as_json(row)
    assert made["ours"] is None and made["peer_value"] is None and made["holds"] is True


@pytest.mark.parametrize("name", bench.NAMES)
def test_a_benchmark_is_there_or_says_that_it_is_not(name: str) -> None:
    if importlib.util.find_spec(f"sinew.cli.benchmarks.{name}"):
        assert callable(bench.find(name))
    else:
        with pytest.raises(InputError, match=f"bench '{name}' is planned and not there yet; there are "):
            bench.find(name)


def test_every_benchmark_has_its_heading() -> None:
    assert set(bench_page.TITLES) == set(bench.NAMES)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(InputError, match="unknown bench 'simm': did you mean 'sim'"):
        bench.find("simm")
    with pytest.raises(InputError, match="which benchmark"):
        bench.run(bench.Args())


def test_figures_are_short() -> None:
    assert [bench.figure(v) for v in (12345.6, 0.000123456, 3, 999.94)] == ["12,346", "0.000123", "3", "1,000"]


def test_page_is_made_and_updated_in_place(tmp_path: Path, result: dict[str, Any]) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    bench_page.store(page, result)
    assert bench_page.write(page) == ["sim"]
    text = page.read_text()
    assert "| steps \\| fast | 12,346 1/s | 4,000 1/s (plain mj_step) | 3.09× | >= 3x peer | yes |" in text
    assert "| latency | 2 ms | 1 ms (lerobot) | 0.50× | <= peer | **no** |" in text
    assert "| gpu | not measured | no GPU on this machine |" in text
    assert "`sinew bench sim --quick`" in text and result["machine"]["processor"] in text and result["date"] in text

    before, after = "Written by hand before.\n\n", "\nWritten by hand after.\n"
    page.write_text(text.replace("<!-- begin generated: sim -->", f"{before}<!-- begin generated: sim -->") + after)
    result["rows"][0]["ours"] = 20000.0
    bench_page.store(page, result)
    bench_page.store(page, {**result, "bench": "data"})
    assert bench_page.write(page) == ["sim", "data"]
    again = page.read_text()
    assert before in again and after in again and "20,000 1/s" in again and "12,346" not in again
    assert again.count("begin generated: sim") == 1 and again.count("begin generated: data") == 1
    bench_page.write(page)
    assert page.read_text() == again  # nothing new, nothing changed


def test_a_damaged_result_is_named(tmp_path: Path, result: dict[str, Any]) -> None:
    page = tmp_path / "benchmarks.md"
    del result["rows"][1]["target"]
    bench_page.store(page, result)
    with pytest.raises(DataError, match=r"sim\.json: row 1 has no 'target'"):
        bench_page.write(page)
    bench_page.store(page, {"bench": "sim"})
    with pytest.raises(DataError, match="'machine' is missing"):
        bench_page.write(page)
    assert not page.exists()


def test_policies_bench_through_the_command_line(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    command = [sys.executable, "-m", "sinew", "bench", "policies", "--quick", "--json", "--write", str(page)]
    environment = {**os.environ, "SINEW_LEROBOT_PYTHON": str(tmp_path / "none"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["bench"] == "policies" and result["quick"] is True
    unmeasured = [row for row in result["rows"] if row["ours"] is None]
    assert all("on a GPU" in row["name"] and "not run here" in row["peer"] for row in unmeasured)
    assert all(row["ours"] > 0 for row in result["rows"] if row not in unmeasured) and any(row["ratio"] for row in result["rows"])
    beside = [row for row in result["rows"] if row["peer"].startswith("not run: lerobot is not installed beside us")]
    assert len(beside) == 5 and all(row["peer_value"] is None and row["holds"] is None for row in beside)
    assert "flow MLP, batch 1" in page.read_text() and (tmp_path / "benchmarks" / "policies.json").exists()


def test_a_peer_that_fails_says_why() -> None:
    from sinew.cli.benchmarks.policies_versus import Peer

    with Peer(Path(sys.executable)) as peer:  # has no lerobot, or no dataset there
        assert peer.ask(do="make", folder="none", dims=[8], batch=0, steps=2) == {} and peer.why.startswith("lerobot failed: ")
        assert peer.ask(do="sample", calls=1) == {}


def test_policies_are_compared_at_equal_size(tmp_path: Path) -> None:
    from sinew.cli.benchmarks import policies_versus as versus

    versus.record(tmp_path / "data", episodes=1, length=20)
    made = {"parameters": 16_894_468}  # of lerobot's DiffusionPolicy with these widths
    for policy in versus.ours(tmp_path / "data", versus.EQUALS[versus.MIDDLE_DIMS]).values():
        assert versus.size(policy, made).endswith(" M parameters")
        with pytest.raises(DataError, match="change EQUALS in policies_versus"):
            versus.size(policy, {"parameters": 18_000_000})


def test_cases_of_the_data_benchmark_take_turns() -> None:
    from sinew.cli.benchmarks import data

    asked: list[str] = []

    def case(name: str, values: list[float]) -> Any:
        return lambda: asked.append(name) or ({"s": values.pop(0)} if values else {})

    found = data.taking_turns({"a": case("a", [5.0, 1.0, 3.0]), "b": case("b", [2.0, 2.0, 8.0]), "gone": case("gone", [1.0])})
    assert found == {"a": {"s": 3.0}, "b": {"s": 2.0}, "gone": {}}
    assert "".join(name[0] for name in asked) == "abg" "gba" "abg"


def test_parts_of_the_data_benchmark_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinew.cli.benchmarks import data

    made: list[str] = []

    def part(name: str, *_: Any) -> list[Row]:
        made.append(name)
        return [Row(name=name, unit="", ours=float(len(made)), detail={"load": "1"})]

    monkeypatch.setattr(data, "_part", part)
    monkeypatch.setenv("SINEW_LEROBOT_PYTHON", str(tmp_path / "none"))
    assert [row.name for row in data.rows(True, ["size"])] == ["size"]
    assert [row.name for row in data.rows(True, ["size", "reading"], tmp_path / "out")] == ["reading", "size"]
    again = data.rows(True, ["size"], tmp_path / "out")
    assert made == ["size", "reading", "size", "size"] and [row.ours for row in again] == [2.0, 4.0], "the other one was there"
    with pytest.raises(InputError, match="unknown part 'sizes': did you mean 'size'"):
        data.rows(True, ["sizes"])


def test_the_data_benchmark_runs_without_its_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinew.cli.benchmarks import data, data_reading, data_size, data_writing

    monkeypatch.setenv("SINEW_LEROBOT_PYTHON", str(tmp_path / "none"))
    for module in (data_reading, data_writing, data_size):
        monkeypatch.setattr(module, "SIZES", ((24, 32), (32, 32)))
    with data.peer_process(tmp_path) as peer:
        for module in (data_reading, data_writing, data_size):
            rows = module.rows(True, tmp_path, peer)
            assert rows and all(row.peer_value is None and row.holds is None for row in rows)
            assert all("lerobot is not installed" in str(row.peer) and (row.ours is None or row.ours > 0) for row in rows)
