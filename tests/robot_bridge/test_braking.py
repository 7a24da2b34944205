"""The closed forms against stopping step by step."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.braking import braking_distance, braking_speed


def covered(speed: float, acceleration: float, step: float) -> float:
    """Distance after this period when `speed` loses acceleration * step in each."""
    way = 0.0
    while (speed := speed - acceleration * step) > 0:
        way += speed * step
    return way


@pytest.mark.parametrize(("acceleration", "step"), [(10.0, 0.01), (3.0, 0.002), (100.0, 0.05)])
def test_distance_and_speed_agree_with_simulation(acceleration, step):
    rng = np.random.default_rng(0)
    for speed in [*rng.uniform(0, 5, 200), 0.0, acceleration * step, 3 * acceleration * step]:
        assert braking_distance(speed, acceleration, step) == pytest.approx(covered(speed, acceleration, step), abs=1e-12)
        assert braking_distance(-speed, acceleration, step) == pytest.approx(-covered(speed, acceleration, step), abs=1e-12)
        room = speed * step + covered(speed, acceleration, step)
        assert braking_speed(room, acceleration, step) == pytest.approx(speed, rel=1e-9, abs=1e-12)


def test_no_room_no_speed():
    assert braking_speed(0.0, 1.0, 0.01) == braking_speed(-1.0, 1.0, 0.01) == 0.0
