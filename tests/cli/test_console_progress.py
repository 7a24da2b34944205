"""Progress on the console: plain lines in a log, a bar on a terminal, estimates that add up."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sinew.cli.console_progress import ConsoleProgress, StageClock, duration

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Time that moves only when it is told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (3599.9, "1 h 00 min"), (7860, "2 h 11 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rate_and_remaining_time_of_a_stage() -> None:
    clock = Clock()
    stage = StageClock("train", 100, 0, clock)
    assert stage.rate is None and stage.remaining_s is None
    for _ in range(10):
        clock.now_s += 0.5
        stage.advance(2)
    assert stage.rate == pytest.approx(4.0)
    assert stage.remaining_s == pytest.approx(20.0)  # 80 left at 4 per second


def test_work_of_an_earlier_run_does_not_count_as_speed() -> None:
    clock = Clock()
    stage = StageClock("train", 100, 90, clock)
    clock.now_s += 2
    stage.advance(1)
    assert stage.rate == pytest.approx(0.5) and stage.remaining_s == pytest.approx(18.0)


def test_the_estimate_follows_a_change_of_speed() -> None:
    clock = Clock()
    stage = StageClock("improve", 10_000, 0, clock)
    for pace, seconds in ((0.01, 30), (0.1, 30)):
        for _ in range(round(seconds / pace)):
            clock.now_s += pace
            stage.advance(1)
    assert stage.rate == pytest.approx(10.0, rel=0.1)


def test_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with ConsoleProgress(stream=out, every_s=0.0) as progress:
        progress.start("collect", 10, done=4)
        progress.advance(3, success=0.5)
        progress.note("kept 2 failures")
        progress.start("train", 5)
        progress.advance(5)
    lines = out.getvalue().splitlines()
    assert lines[0] == "collect: 10 to do, 4 done before"
    assert lines[1].startswith("collect: 7/10 (70 %), ") and lines[1].endswith("success 0.5") and " left" in lines[1]
    assert lines[2] == "kept 2 failures"
    assert lines[3].startswith("collect: 7/10 in ")
    assert lines[-1].startswith("train: 5/5 in ")
    assert "\x1b" not in out.getvalue()


def test_lines_are_seldom() -> None:
    out = io.StringIO()
    with ConsoleProgress(stream=out, every_s=60.0) as progress:
        progress.start("train", 1000)
        for _ in range(1000):
            progress.advance(1, loss=0.1)
    assert len(out.getvalue().splitlines()) <= 3


def test_a_plan_gives_the_time_left_in_all() -> None:
    out = io.StringIO()
    progress = ConsoleProgress(plan={"collect": 10.0, "train": 60.0, "deploy": 30.0}, stream=out)
    assert progress.overall_remaining_s() is None
    progress.phase("train")  # collect was finished by an earlier run
    progress.start("load", 5)
    left = progress.overall_remaining_s()
    assert left is not None and 85 < left <= 90  # the plan's 60 s, then 30 s
    assert "[2/3] train, about 1 min 30 s left in all" in out.getvalue()
    progress.phase("unplanned")
    assert progress.overall_remaining_s() is None


def test_a_fast_machine_shortens_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("sinew.cli.console_progress.time.monotonic", clock)
    progress = ConsoleProgress(plan={"collect": 10.0, "train": 60.0, "deploy": 30.0}, stream=io.StringIO())
    progress.phase("collect")
    clock.now_s += 5
    progress.phase("train")
    assert progress.overall_remaining_s() == pytest.approx(45.0)  # half of 60 + 30
    clock.now_s += 20
    assert progress.overall_remaining_s() == pytest.approx(25.0)
    clock.now_s += 100  # far over: the stage's own estimate takes over
    progress.start("train", 10)
    clock.now_s += 1
    progress.advance(5)
    assert progress.overall_remaining_s() == pytest.approx(16.0)


def test_unknown_totals_and_stray_advances_do_no_harm() -> None:
    out = io.StringIO()
    with ConsoleProgress(stream=out, every_s=0.0) as progress:
        progress.advance(1)
        progress.start("wait", 0)
        progress.advance(1)
    assert "wait: 1/?" in out.getvalue()


def test_a_bar_on_a_terminal() -> None:
    source = """
        import time
        from sinew.cli.console_progress import ConsoleProgress
        with ConsoleProgress(plan={"train": 1.0, "deploy": 1.0}) as progress:
            progress.phase("train")
            progress.start("steps", 40)
            for _ in range(40):
                time.sleep(0.02)
                progress.advance(1, loss=0.25)
            progress.note("gate passed")
            progress.phase("deploy")
            progress.start("episodes", 2)
            progress.advance(2)
    """
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "110"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)], cwd=ROOT, env=environment, stderr=slave, stdout=subprocess.PIPE, text=True
    )
    os.close(slave)
    drawn = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        drawn += part
    out, _ = process.communicate(timeout=60)
    os.close(master)
    text = drawn.decode()
    assert process.returncode == 0 and out == ""
    for expected in ("\x1b[", "━", "loss 0.25", " left", "gate passed", "[1/2] train", "steps: 40/40 in", "episodes: 2/2 in"):
        assert expected in text, expected
