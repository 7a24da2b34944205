"""The fastest way of one joint: closed forms, limits, and durations that Ruckig found."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.profile import JointWay, moved, velocity_change, ways

LIMITS = (1.0, 10.0, 500.0)


def sampled(way: JointWay) -> np.ndarray:
    """(N, 3) states along a way and a little beyond."""
    return np.array([way.at(t) for t in np.linspace(0.0, way.duration_s * 1.01 + 1e-3, 400)])


def random_case(rng: np.random.Generator):
    limits = (rng.uniform(0.5, 3.0), rng.uniform(2.0, 20.0), rng.uniform(20.0, 3000.0))
    velocity, acceleration = rng.uniform(-0.9, 0.9) * limits[0], rng.uniform(-0.9, 0.9) * limits[1]
    if abs(velocity + acceleration * abs(acceleration) / (2 * limits[2])) > limits[0]:
        acceleration = 0.0  # else it could not keep its velocity limit
    return (rng.uniform(-1, 1), velocity, acceleration), rng.uniform(-1, 1), rng.uniform(-0.5, 0.5) * limits[0], limits


@pytest.mark.parametrize(("distance", "limits", "expected_s"), [
    (0.004, (10.0, 100.0, 500.0), (32 * 0.004 / 500.0) ** (1 / 3)),  # four pieces of jerk
    (1.0, (10.0, 10.0, 1e9), 2 * (1.0 / 10.0) ** 0.5),  # two pieces of acceleration
    (1.0, (1.0, 10.0, 500.0), 1.0 + 1.0 / 10.0 + 10.0 / 500.0),  # all seven: s/v + v/a + a/j
])  # fmt: skip
def test_from_rest_to_rest_it_takes_what_the_closed_form_says(distance, limits, expected_s):
    for sign in (1.0, -1.0):
        assert JointWay((0.0, 0.0, 0.0), sign * distance, 0.0, limits).duration_s == pytest.approx(expected_s, rel=1e-6)


def test_it_ends_where_it_shall_and_keeps_every_limit():
    rng = np.random.default_rng(0)
    for _ in range(300):
        state, position, velocity, limits = random_case(rng)
        way = JointWay(state, position, velocity, limits)
        end = state
        for duration_s, jerk in way.pieces:
            assert abs(jerk) <= limits[2] and duration_s > 0.0
            end = moved(end, jerk, duration_s)
        assert np.allclose(end, (position, velocity, 0.0), atol=1e-7)
        seen = sampled(way)
        assert np.abs(seen[:, 1]).max() <= limits[0] * (1 + 1e-9) and np.abs(seen[:, 2]).max() <= limits[1] * (1 + 1e-9)
        assert np.abs(np.diff(seen[:, 0])).max() <= limits[0] * np.ptp(np.linspace(0.0, way.duration_s * 1.01 + 1e-3, 400)[:2]) * 1.01


@pytest.mark.parametrize(("state", "position", "velocity", "expected_s"), [
    ((0.0, 0.0, 0.0), 0.3, 0.0, 0.4200000000),
    ((0.0, 0.5, 0.0), 0.3, 0.2, 0.3575000000),
    ((0.0, -0.5, 2.0), 0.1, 0.0, 0.2824834407),
    ((0.1, 0.8, -5.0), -0.2, -0.3, 0.4981145833),
    ((0.0, 0.0, 8.0), 0.01, 0.0, 0.0772195580),
])  # fmt: skip
def test_durations_are_those_of_ruckig(state, position, velocity, expected_s):
    """Ruckig 0.19.4 on the same cases, to the ten digits above."""
    assert JointWay(state, position, velocity, LIMITS).duration_s == pytest.approx(expected_s, abs=1e-8)


def test_a_way_that_may_take_longer_does():
    rng = np.random.default_rng(1)
    for _ in range(100):
        state, position, velocity, limits = random_case(rng)
        way = JointWay(state, position, velocity, limits, 3.0)
        assert way.duration_s >= 3.0 - 1e-9 and np.allclose(way.at(way.duration_s), (position, velocity, 0.0), atol=1e-6)


def test_joints_end_together():
    states = [(0.0, 0.0, 0.0)] * 3
    together = ways(states, [0.5, -0.05, 0.0], [0.0] * 3, [LIMITS] * 3)
    assert together[0].duration_s == JointWay(states[0], 0.5, 0.0, LIMITS).duration_s
    assert all(way.duration_s == pytest.approx(together[0].duration_s, abs=1e-6) for way in together)


def test_a_change_of_velocity_is_a_trapezoid_of_acceleration():
    (rise_s, jerk), (flat_s, _), (fall_s, back) = velocity_change(0.0, 0.0, 1.0, 10.0, 500.0)
    assert (rise_s, flat_s, fall_s) == pytest.approx((0.02, 0.08, 0.02)) and (jerk, back) == (500.0, -500.0)
    assert sum(d for d, _ in velocity_change(0.3, 0.0, 0.3, 10.0, 500.0)) == 0.0
