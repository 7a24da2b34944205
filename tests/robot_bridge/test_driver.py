"""The last check before a robot obeys: limits, and commands that are old, by stamps of a clock that need not be ours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from robot_bridge.driver import Arrivals, DriverCheck

MS = 1_000_000
HOUR_NS = 3_600_000 * MS


@pytest.mark.parametrize("clock_ns", [0, HOUR_NS, -HOUR_NS])
def test_what_comes_in_time_is_taken_whatever_the_senders_clock_says(clock_ns):
    arrivals, rng = Arrivals(0.1), np.random.default_rng(0)
    for tick in range(500):
        sent_ns = tick * 10 * MS
        age_ns = arrivals.age_ns(sent_ns + clock_ns, sent_ns + int(rng.uniform(1, 60)) * MS)
        assert age_ns is not None and 0 <= age_ns < 60 * MS
    assert not arrivals.passed_over


def test_what_was_on_its_way_for_too_long_is_passed_over_at_first_and_for_ever():
    arrivals = Arrivals(0.1)
    for tick in range(100):
        assert arrivals.age_ns(tick * 10 * MS, tick * 10 * MS + 2 * MS) is not None
    for tick in range(100, 1000):  # from here on the link holds everything up for a third of a second, steadily
        assert arrivals.age_ns(tick * 10 * MS, tick * 10 * MS + 330 * MS) is None
    assert arrivals.passed_over == {"old": 900}
    assert arrivals.age_ns(10_000 * MS, 10_003 * MS) is not None


def test_nothing_that_was_sent_before_what_was_taken_is_taken():
    arrivals = Arrivals(0.1)
    assert arrivals.age_ns(100 * MS, 101 * MS) == 0
    for sent_ms in (100, 99, 0):  # twice, overtaken, of a session before
        assert arrivals.age_ns(sent_ms * MS, 102 * MS) is None
    assert arrivals.passed_over == {"out_of_order": 3}
    assert arrivals.age_ns(110 * MS, 111 * MS) == 0


def test_a_clock_that_is_set_back_holds_the_robot_until_its_sender_has_left():
    arrivals = Arrivals(0.1)
    assert arrivals.age_ns(HOUR_NS, 1 * MS) == 0
    assert all(arrivals.age_ns(tick * 10 * MS, tick * 10 * MS + MS) is None for tick in range(1, 200))
    arrivals.forget()
    assert arrivals.age_ns(2010 * MS, 2011 * MS) == 0


def test_clocks_may_drift_as_the_kernel_lets_them():
    arrivals = Arrivals(0.1)
    for second in range(0, 3600, 10):  # half a millisecond per second: 1.8 s in the end
        assert arrivals.age_ns(second * 1000 * MS, int(second * 1000.5 * MS) + MS) is not None


def test_commands_beyond_the_limits_are_refused_and_counted(spec):
    check = DriverCheck(spec, 100.0)
    good = np.array([0.1, 0.2, 0.3, 0.04])
    far, wide = np.add(good, [2.0, 0, 0, 0]), np.add(good, [0, 0, 0, 1.0])
    wrong = {"position": far, "gripper": wide, "non_finite": good * np.nan, "shape": good[:2]}
    stamps = itertools.count(0, 10 * MS)
    assert check.judge(good, next(stamps)) == "" and check.judge(good[:3], next(stamps)) == ""
    for reason, values in wrong.items():
        assert check.judge(values, next(stamps)) == reason
    assert check.refused == dict.fromkeys(wrong, 1) and check.taken == 2 and check.sudden == 0
    check.judge(np.add(good, [0.5, 0, 0, 0]), next(stamps))  # half a radian in 50 ms, where 1 rad/s is allowed
    assert check.sudden == 1
    check.restart()
    check.judge(-good[:3], next(stamps))
    assert check.sudden == 1
