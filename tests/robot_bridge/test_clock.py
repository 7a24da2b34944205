"""A clock that only moves when told to."""

from __future__ import annotations

import pytest

from robot_bridge.cadence import Cadence, next_deadline
from robot_bridge.clock import MonotonicClock, SteppedClock, sleep


def test_stepped_clock_runs_what_is_due_in_order():
    clock, seen = SteppedClock(), []
    clock.every(10, lambda: seen.append(("a", clock.now_ns())))
    end = clock.every(15, lambda: seen.append(("b", clock.now_ns())))
    clock.wait_until(30)
    assert seen == [("a", 10), ("b", 15), ("a", 20), ("a", 30), ("b", 30)] and clock.now_ns() == 30
    end()
    clock.wait_until(46)
    assert seen[5:] == [("a", 40)] and clock.now_ns() == 46
    clock.wait_until(40)
    assert clock.now_ns() == 46  # never back


def test_monotonic_clock_waits():
    clock = MonotonicClock()
    before = clock.now_ns()
    sleep(clock, 0.01)
    assert clock.now_ns() - before >= 10_000_000
    clock.wait_until(before)  # passed: returns at once


@pytest.mark.parametrize(("now", "expected"), [(100, 110), (109, 110), (110, 120), (135, 140), (90, 110)])
def test_deadlines_stay_on_the_grid_and_are_never_made_up_for(now, expected):
    assert next_deadline(100, 10, now) == expected


def test_cadence_report():
    cadence = Cadence(("read", "gate"), 0.01)
    for i in range(100):
        due = i * 10_000_000
        start = due + (15_000_000 if i == 50 else 1_000)
        cadence.add(due, (start, start + 2_000, start + 5_000))
    report = cadence.report()
    assert report["ticks"] == 100 and report["late_ticks"] == 1 and report["rate_hz"] == 100.0
    assert report["achieved_hz"] == pytest.approx(100.0, rel=1e-3)
    assert report["stages_us"]["read"] == {"p50": 2.0, "p99": 2.0, "max": 2.0} and report["stages_us"]["gate"]["p50"] == 3.0
    assert report["lateness_us"]["p50"] == 1.0 and report["lateness_us"]["max"] == 15_000.0


MS = 1_000_000


def played(ticks: list[tuple[float, float, float, float]]) -> dict:
    """The report of a 10 ms loop with stages read and gate: (due, begun, after read, after gate) in ms."""
    cadence = Cadence(("read", "gate"), 0.01)
    for due, *marks in ticks:
        cadence.add(round(due * MS), [round(mark * MS) for mark in marks])
    return cadence.report()


def test_a_loop_in_time_blames_nobody():
    report = played([(10 * k, 10 * k + 0.1, 10 * k + 1, 10 * k + 9) for k in range(20)])
    assert (report["late_ticks"], report["missed_deadlines"], report["overrun_ticks"], report["due_to"]) == (0, 0, 0, {})


def test_the_stage_that_made_a_tick_overrun_is_named():
    """The gate takes 24 ms at 10: deadlines 20 and 30 pass, and the next tick is at 40."""
    report = played([(0, 0, 1, 2), (10, 10, 11, 35), (40, 40, 41, 42), (50, 50, 62, 63), (70, 70, 71, 72)])
    assert report["overrun_ticks"] == 2 and report["due_to"] == {"gate": 1, "read": 1}
    assert report["missed_deadlines"] == 3 and report["late_ticks"] == 0


def test_a_thread_that_is_woken_late_is_nobodys_stage():
    report = played([(0, 0, 1, 2), (10, 25, 26, 27), (30, 30, 31, 32)])
    assert report["late_ticks"] == 1 and report["due_to"] == {"waking": 1} and report["missed_deadlines"] == 1


def test_a_pause_is_no_slow_tick():
    cadence = Cadence(("x",), 0.01)
    for i in (0, 1, 2, 500, 501):
        if i == 500:
            cadence.resume()
        cadence.add(i * 10_000_000, (i * 10_000_000,) * 2)
    assert cadence.report()["achieved_hz"] == 100.0
    assert Cadence(("x",), 0.01).report()["lateness_us"] is None
