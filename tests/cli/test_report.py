"""The report: one page without outside parts, true to the numbers it is given, and honest about evidence."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sinew import stats
from sinew.cli import report
from sinew.cli.report_charts import Line, histogram, line_chart, log_ticks, nice_ticks
from sinew.rundir import RunDir, write_json

SEEDS = list(range(1000, 1100))


def outcomes(rate: float, seed: int, n: int = 100) -> list[bool]:
    return [bool(x) for x in np.random.default_rng(seed).random(n) < rate]


def group(successes: list[bool], seeds: list[int]) -> dict:
    return {**stats.success_summary(successes, seeds), "successes": successes}


def sample_summary() -> dict:
    """A whole demo's summary from made-up numbers."""
    rng = np.random.default_rng(0)
    bc, improved = outcomes(0.55, 1), outcomes(0.97, 2)
    steps = np.arange(0, 8001, 100)
    loss = 0.9 * np.exp(-steps / 900) + 0.06 + 0.01 * rng.random(len(steps))
    rates = [0.55, 0.58, 0.66, 0.72, 0.84, 0.90, 0.96, 0.98]
    lateness = rng.gamma(2.0, 35.0, size=4000)
    counts, edges = np.histogram(lateness, bins=40, range=(0, 400))

    def quantiles(p50: float, p99: float, most: float) -> dict[str, float]:
        return {"p50": p50, "p99": p99, "max": most}

    control = {
        "rate_hz": 100.0, "achieved_hz": 99.98, "ticks": 41_230, "late_ticks": 12, "scheduler": "SCHED_FIFO 50",
        "lateness_us": quantiles(61.0, 232.0, 4120.0), "histogram": {"edges_us": edges.tolist(), "counts": counts.tolist()},
        "stages_us": {"read": quantiles(12, 40, 350), "gate": quantiles(45, 120, 900), "write": quantiles(80, 210, 1900)},
    }  # fmt: skip
    policy = {
        "rate_hz": 20.0, "achieved_hz": 20.0, "ticks": 8200, "late_ticks": 0, "lateness_us": quantiles(80, 400, 5200),
        "stages_us": {"observe": quantiles(150, 420, 2100), "policy": quantiles(900, 2300, 9800), "ik": quantiles(210, 330, 800)},
    }  # fmt: skip
    return {
        "task": "lift", "demos": {"episodes": 60, "successes": 41},
        "bc": group(bc, SEEDS), "improved": group(improved, SEEDS), "deployed": group(outcomes(0.95, 3, 20), list(range(5000, 5020))),
        "controls": {"zero_noise": group(outcomes(0.57, 4), SEEDS), "best_fixed_noise": group(outcomes(0.63, 5), SEEDS)},
        "paired": stats.paired(bc, improved),
        "curves": {"bc": np.stack([steps, loss], 1).tolist(), "rl": [[5000 * i, r, 50] for i, r in enumerate(rates)]},
        "deploy": {"controller": control, "policy": policy, "gate": {
            "counts": {"velocity": 214, "expired": 3},
            "events": [{"stamp_ns": 10**9, "outcome": "clamp", "reason": "velocity", "detail": "joint 3"},
                       {"stamp_ns": 3 * 10**9, "outcome": "hold", "reason": "expired", "detail": "0.21 s old"}]}},
        "stages": {"collect": 31.0, "train": 62.0, "evaluate": 24.0, "improve": 402.0, "evaluate again": 22.0, "deploy": 96.0},
        "wall_s": 648.0,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir.create(tmp_path / "demo", {"verb": "demo"}, seeds={"demo": 0}, inputs={"data": "b3a1" * 8})
    (run / "videos").mkdir()
    for name in ("bc_seed_1003_failure", "bc_seed_1007_success", "improved_seed_1003_success", "improved_seed_1007_success"):
        (run / "videos" / f"{name}.mp4").write_bytes(b"")
    return run


class Page(HTMLParser):
    """Checks that every element is closed, and gathers what the page points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.targets: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs) -> None:
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        self.targets += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data + " "


def written(run: RunDir, summary: dict) -> Page:
    return Page(report.write_report(run, summary).read_text())


def test_page_is_self_contained_and_well_formed(run: RunDir) -> None:
    page = written(run, sample_summary())
    names = ("bc_seed_1003_failure", "improved_seed_1003_success", "bc_seed_1007_success", "improved_seed_1007_success")
    assert page.targets == [f"videos/{name}.mp4" for name in names]  # scene by scene, both policies side by side
    text = (run / "report.html").read_text()
    assert not re.findall(r"https?://|@import|url\(|<script", text)
    assert "nan" not in page.words.lower().split() and "None" not in page.words


def test_every_figure_is_told(run: RunDir) -> None:
    summary = sample_summary()
    words = re.sub(r"\s+", " ", written(run, summary).words)
    for key in ("bc", "improved", "deployed"):
        k, n = summary[key]["k"], summary[key]["n"]
        assert f"{k} / {n}" in words
        low, high = summary[key]["wilson95"]
        assert f"{100 * low:.0f} to {100 * high:.0f} %" in words
    told = ("zero noise", "best of 20 fixed noises", "seeds 1000 to 1099", "10 min 48 s", "SCHED_FIFO 50", "expired", "99.98 Hz", "b3a1")
    for text in (*told, "1.9 ms"):
        assert text in words, text
    assert summary["paired"]["losses"] == 1 and f"{summary['paired']['wins']} wins, 1 loss" in words


def test_better_is_said_only_with_evidence(run: RunDir) -> None:
    summary = sample_summary()
    assert "improved is better" in written(run, summary).words
    assert "is better than the base" in report.claim(summary)
    few = summary | {"bc": group(outcomes(0.5, 1, 5), SEEDS[:5]), "improved": group([True] * 5, SEEDS[:5])}
    few["paired"] = stats.paired(few["bc"]["successes"], few["improved"]["successes"])
    assert few["paired"]["p"] > 0.05
    words = written(run, few).words
    assert "improved is better" not in words and "No evidence that the improved policy differs" in words
    worse = summary | {"paired": {"p": 1e-9, "wins": 1, "losses": 40}}
    assert "is worse than the base" in report.claim(worse)


def test_a_gain_that_zero_noise_gives_for_free_is_called_none(run: RunDir) -> None:
    summary = sample_summary()
    assert "not one the sampler gives for free" in written(run, summary).words
    summary["controls"]["zero_noise"] = group(outcomes(0.97, 9), SEEDS)
    words = written(run, summary).words
    assert "no evidence that the improved policy is better than this control" in words and "for free" not in words


def test_a_run_made_of_runs_shows_their_videos_and_provenance(tmp_path: Path) -> None:
    for name, seed in (("bc", 1), ("improved", 2)):
        part = RunDir.create(tmp_path / name, {"verb": "train"}, seeds={"train": seed}, inputs={"data": name * 4})
        (part / "videos").mkdir()
        (part / "videos" / "20000000-success.mp4").write_bytes(b"")
    page = written(RunDir(tmp_path), {"task": "lift"})
    assert page.targets == ["bc/videos/20000000-success.mp4", "improved/videos/20000000-success.mp4"]
    assert "seed 20000000 success" in page.words and "bc train 1, improved train 2" in page.words and "bcbcbcbc" in page.words


def test_failures_of_the_deployment_are_named(run: RunDir) -> None:
    episodes = [{"seed": 7, "success": True, "ended_by": "success"}, {"seed": 8, "success": False, "ended_by": "time_limit"}]
    deploy = {"robot": "dds", "episodes": episodes, "latency_us": {"p50": 900.0, "p99": 2300.0, "max": 1e4}, "stopped": "non_finite"}
    words = written(run, {"deploy": deploy}).words
    assert (
        "1 of 2 episodes failed: seed 8 (time limit)" in words and "p99 2.3 ms" in words and "stopped before its end: non_finite" in words
    )


def test_a_partial_run_and_hostile_names_are_shown(run: RunDir) -> None:
    (run / "videos" / "<b>&.mp4").write_bytes(b"")
    page = written(run, {"task": "<script>alert(1)</script>", "bc": {"k": 0, "n": 10}})
    assert "0 / 10" in page.words and "<script>alert(1)</script>" in page.words  # as text: the parser saw no such element
    assert "videos/<b>&.mp4" in page.targets
    Page(report.write_report(run, {}).read_text())


def test_lists_of_gate_events_and_missing_stages_do_not_break_the_page(run: RunDir) -> None:
    deploy = {"rate_hz": 100.0, "ticks": 0, "stages_us": {"read": None}, "lateness_us": None, "events": ["hold"], "counts": {}}
    page = written(run, {"deploy": deploy})
    assert "hold" in page.words
    assert "Every command passed unchanged" in written(run, {"deploy": {"counts": {}, "events": []}}).words


def test_written_atomically_beside_the_old_one(run: RunDir) -> None:
    first = report.write_report(run, {"task": "a"})
    assert report.write_report(run, {"task": "b"}) == first and "b: from" in first.read_text()
    assert not [p for p in run.path.iterdir() if p.name.startswith(".report")]
    write_json(run / "provenance.json", {"commit": "abc123"})
    assert "abc123" in report.write_report(run, {}).read_text()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 35_000), (-3, 4), (0.001, 0.0017), (5, 5)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 12 and all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    assert len(set(np.round(np.diff(ticks), 12))) <= 1
    assert log_ticks(0.05, 1.1) == pytest.approx([0.1, 0.3, 1.0]) or len(log_ticks(0.05, 1.1)) >= 3


def test_charts_leave_out_what_is_not_a_number() -> None:
    svg = line_chart([Line(name="loss", points=[(0, 1.0), (1, math.nan), (2, 0.0), (3, 0.5)])], x_label="x", y_label="y", log_y=True)
    points = re.search(r'polyline class="curve improved" points="([^"]+)"', svg)
    assert points and len(points.group(1).split()) == 2 and "nan" not in svg
    assert "Nothing was recorded" in line_chart([Line(name="a", points=[])], x_label="x", y_label="y")
    assert "Nothing was recorded" in histogram([0, 1], [0], x_label="x")


def test_chart_geometry() -> None:
    svg = line_chart([Line(name="r", points=[(0, 0.0), (10, 1.0)])], x_label="x", y_label="y", y_range=(0, 1), percent=True)
    assert 'points="58.0,210.0 426.0,12.0"' in svg  # lower left to upper right corner of the plot
    assert "100 %" in svg
