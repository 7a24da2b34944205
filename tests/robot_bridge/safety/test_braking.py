"""The closed form of a stop against the row of accelerations it stands for, and against a linear programme."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from robot_bridge.safety.braking import Brake, speed_limit

steps = st.sampled_from([0.001, 0.002, 0.01, 0.02])
shares = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1.0, 1.0))


@settings(max_examples=600, deadline=None, derandomize=True)
@given(step=steps, acceleration=st.floats(0.3, 300.0), ratio=st.floats(3.0, 3000.0), speed=shares, change=shares)
def test_the_row_keeps_all_limits_ends_at_rest_and_is_what_the_closed_form_says(step, acceleration, ratio, speed, change):
    brake = Brake(acceleration, ratio * acceleration, step)
    v, a = 0.25 * acceleration * speed, acceleration * change
    stop, row = brake.stop(v, a), brake.accelerations(v, a)
    assert len(row) == stop.periods
    assert (np.abs(row) <= acceleration * (1 + 1e-9)).all()
    assert (np.abs(np.diff(np.concatenate(([a], row, [0.0])))) <= brake.change * (1 + 1e-8)).all()
    velocity = np.concatenate(([v], v + step * np.cumsum(row)))
    assert abs(velocity[-1]) <= 1e-8 * max(brake.change * step, abs(v))
    position = np.concatenate(([0.0], step * np.cumsum(velocity[1:])))
    near = 1e-9 * max(1e-3, np.abs(position).max())
    assert stop.low - near <= position.min() and position.max() <= stop.high + near
    assert stop.velocity_low - 1e-9 <= velocity.min() and velocity.max() <= stop.velocity_high + 1e-9
    if (velocity[:-1] * v > 0).all():  # it does not turn round: then the way is told exactly
        assert abs(position[-1] - (stop.high if v > 0 else stop.low)) <= near
    fast, far = brake.bound(v, a)
    assert fast >= np.abs(velocity).max() - 1e-9 and far >= np.abs(position).max() - 1e-12
    assert stop.periods - 1 - 1e-9 <= stop.length <= stop.periods


@pytest.mark.parametrize("seed", range(25))
def test_no_row_stops_sooner(seed):
    """A linear programme finds no row of fewer periods that keeps the limits and adds up to what must be lost."""
    rng = np.random.default_rng(seed)
    step, most = 0.01, 10.0
    brake = Brake(most, most * rng.uniform(10, 200), step)
    v, a = rng.uniform(-1, 1), rng.uniform(-most, most)
    fewer = brake.stop(v, a).periods - 1
    if fewer < 1:
        pytest.skip("stops at once")
    differences = np.eye(fewer + 1, fewer) - np.eye(fewer + 1, fewer, k=-1)
    before = np.zeros(fewer + 1)
    before[0] = a
    limits = np.concatenate((brake.change + before, brake.change - before))
    found = linprog(
        np.zeros(fewer), A_ub=np.concatenate((differences, -differences)), b_ub=limits,
        A_eq=np.ones((1, fewer)), b_eq=[-v / step], bounds=[(-most, most)] * fewer,
    )  # fmt: skip
    assert found.status == 2  # infeasible


def test_way_and_length_change_smoothly_with_the_state():
    brake = Brake(10.0, 300.0, 0.01)
    for a in (-7.3, 0.0, 4.1):
        velocity = np.linspace(0.3, 2.0, 20001)
        stops = [brake.stop(v, a) for v in velocity]
        way, length = np.array([s.high for s in stops]), np.array([s.length for s in stops])
        assert (np.diff(way) > 0).all() and np.diff(way).max() < 1e-4
        assert (np.diff(length) >= -1e-9).all() and np.diff(length).max() < 0.01


@pytest.mark.parametrize(("acceleration", "jerk"), [(10.0, 1000.0), (20.0, 500.0), (10.0, 5000.0)])
def test_the_speed_limit_is_the_largest_that_stops_in_time(acceleration, jerk):
    brake = Brake(acceleration, jerk, 0.002)
    fastest = speed_limit(brake, 100.0, 125)
    assert brake.stop(fastest * 0.9999, 0.0).periods <= 125 < brake.stop(fastest * 1.0001, 0.0).periods
    assert speed_limit(brake, 0.1, 125) == 0.1
    calm = speed_limit(brake, 100.0, 125, ceil(acceleration / brake.change))
    for a in np.linspace(-acceleration, acceleration, 101):
        v = calm - max(a, 0.0) ** 2 / (2 * jerk) - abs(a) * 0.002
        assert brake.stop(v, a).periods <= 125


def test_at_rest_there_is_nothing_to_stop():
    stop = Brake(10.0, 1000.0, 0.01).stop(0.0, 0.0)
    assert stop.periods == 0 and stop.low == stop.high == 0.0 and len(Brake(10.0, 1000.0, 0.01).accelerations(0.0, 0.0)) == 0
