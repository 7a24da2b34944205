"""From policy rate to controller rate: no jump in position, velocity or acceleration, within all limits."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.interpolation import Interpolator, Motion, MotionLimits, braking_path
from sinew.errors import InputError

LIMITS = MotionLimits(
    position_low_rad=(-1.5,) * 3,
    position_high_rad=(1.5,) * 3,
    velocity_max_rad_s=(1.0, 2.0, 3.0),
    acceleration_max_rad_s2=(10.0, 20.0, 30.0),
    jerk_max_rad_s3=(500.0, 1000.0, 1500.0),
)
BLEND_S = 0.05
TIMES = BLEND_S * np.arange(1, 60)


def stream(targets, step_s: float = 0.01, after_s: float = 1.0, start=(0.0, 0.0, 0.0)):
    """Positions (N, 3) of a stream along targets, one for every policy period, and what comes after them."""
    made = Interpolator(LIMITS, step_s, BLEND_S)
    made.start(np.array(start))
    path, motions = [made.now.position], []
    for target in targets:
        made.aim(np.asarray(target, dtype=float))
        for _ in range(round(BLEND_S / step_s)):
            motions.append(made.advance())
            path.append(motions[-1].position)
    for _ in range(round(after_s / step_s)):
        path.append(made.advance().position)
    return np.array(path), motions, made


def shares(path: np.ndarray, step_s: float) -> list[float]:
    """Largest share of the limits of velocity, acceleration and jerk that differences of a path take."""
    tops = (LIMITS.velocity_max_rad_s, LIMITS.acceleration_max_rad_s2, LIMITS.jerk_max_rad_s3)
    return [float((np.abs(np.diff(path, n, axis=0)).max(0) / step_s**n / np.array(top)).max()) for n, top in enumerate(tops, 1)]


def sine(amplitude: float, hz: float) -> np.ndarray:
    return np.repeat(amplitude * (1 - np.cos(2 * np.pi * hz * TIMES))[:, None], 3, axis=1)


CASES = {
    "even": np.outer(np.arange(1, 20), [0.005, 0.01, 0.02]),
    "sine": sine(0.1, 1.0),
    "one jump": np.array([[0.5, 0.3, -0.2]]),
    "a random walk": 0.02 * np.random.default_rng(0).normal(size=(60, 3)).cumsum(0),
    "anything": np.random.default_rng(1).uniform(-2.0, 2.0, size=(60, 3)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step_s", [0.01, 0.002])
def test_keeps_every_limit_and_comes_to_rest_at_the_last_target(name, step_s):
    path, _, _ = stream(CASES[name], step_s, after_s=2.0)
    assert max(shares(path, step_s)) <= 1.0 + 1e-6
    assert np.abs(path).max() <= 1.5
    assert np.allclose(path[-1], np.clip(CASES[name][-1], -1.5, 1.5), atol=1e-9) and np.ptp(path[-3:], axis=0).max() < 1e-12


def test_even_targets_give_even_motion():
    path, motions, _ = stream(CASES["even"])
    assert np.allclose(np.diff(path[:, 0])[50:90], 0.001, atol=1e-9)
    assert np.allclose(motions[80].velocity, [0.1, 0.2, 0.4], atol=1e-9) and np.abs(motions[80].acceleration).max() < 1e-6


def test_a_smooth_motion_is_at_its_targets_when_they_are_due():
    targets = sine(0.2, 0.4)
    path, motions, made = stream(targets)
    reached = path[5 : 5 * len(targets) + 1 : 5]
    assert np.abs(reached - targets)[10:].max() < 5e-4 and made.stretched < 5
    speed = 0.2 * 2 * np.pi * 0.4 * np.sin(2 * np.pi * 0.4 * TIMES)
    assert np.abs(np.array([m.velocity[0] for m in motions[4::5]]) - speed)[10:].max() < 0.04  # of 0.5, where the motion turns


def test_a_motion_that_starts_too_fast_is_caught_up_with():
    """The 1 Hz sine begins with an acceleration of 4 rad/s² at once: behind at first, then on time."""
    targets = sine(0.1, 1.0)
    reached = stream(targets)[0][5 : 5 * len(targets) + 1 : 5]
    assert np.abs(reached - targets)[4:].max() < 2e-3


@pytest.mark.parametrize("jump", [0.005, 0.05, 0.5])
def test_a_single_target_is_not_run_past(jump):
    path, _, _ = stream([[jump, jump, -jump]])
    assert path[:, 0].max() <= jump + 1e-9 and path[:, 2].min() >= -jump - 1e-9 and np.allclose(path[-1], [jump, jump, -jump])


def test_an_even_motion_that_ends_without_warning_ends_near_its_last_target():
    path, _, _ = stream(CASES["even"])
    last = CASES["even"][-1]
    speed = np.array([0.1, 0.2, 0.4])
    # a quarter of a period goes on as before, then the stop of two pieces of jerk covers v sqrt(v / j)
    most = speed * BLEND_S / 4 + speed * np.sqrt(speed / LIMITS.jerk_max_rad_s3)
    assert np.all(path.max(0) - last <= most) and np.allclose(path[-1], last, atol=1e-9)


def test_targets_beyond_the_limits_are_reached_at_the_limits():
    path, _, _ = stream([[2.0, -2.0, 0.0]] * 20, after_s=3.0)
    assert np.allclose(path[-1], [1.5, -1.5, 0.0], atol=1e-9) and np.abs(path).max() <= 1.5


def test_it_goes_on_from_a_motion():
    made = Interpolator(LIMITS, 0.01, BLEND_S)
    made.start(np.zeros(3), np.array([0.5, 0.5, 0.5]), np.array([1.0, 0.0, -1.0]))
    made.aim(np.full(3, 0.025))
    path = np.array([made.advance().position for _ in range(5)])
    assert np.allclose(path[0], 0.005, atol=1e-3) and np.allclose(path[-1], 0.025, atol=2e-3)


def test_what_is_left_of_the_jerk_limit_is_guessed_from_the_acceleration():
    class Robot:
        position_low_rad, position_high_rad = (-1.0,), (1.0,)
        velocity_max_rad_s, acceleration_max_rad_s2 = (2.0,), (10.0,)

    limits = MotionLimits.of(Robot(), share=1.0)
    assert limits.jerk_max_rad_s3 == (500.0,) and limits.velocity_max_rad_s == (2.0,)
    assert MotionLimits.of(Robot(), speed=(0.5,)).velocity_max_rad_s == (0.475,)
    with pytest.raises(InputError, match="above 0"):
        MotionLimits(
            position_low_rad=(-1.0,), position_high_rad=(1.0,), velocity_max_rad_s=(0.0,),
            acceleration_max_rad_s2=(1.0,), jerk_max_rad_s3=(1.0,),
        )  # fmt: skip


def test_the_way_to_rest_brakes_as_fast_as_it_may():
    now = Motion(np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.0, -1.0]), np.array([2.0, 0.0, 0.0]))
    times, positions, velocities = braking_path(now, LIMITS, 8)
    assert positions.shape == velocities.shape == (8, 3) and np.all(np.diff(times) > 0) and not velocities[-1].any()
    # the first joint lets go of 2 rad/s² (4 ms, +0.004 rad/s), then loses 0.504 rad/s by a trapezoid: v/a + a/j
    assert times[-1] == pytest.approx(0.004 + 0.504 / 10.0 + 0.02, abs=1e-6)
    assert positions[-1, 0] > 0.1 and positions[-1, 1] == 0.2 and positions[-1, 2] < 0.3
    still = Motion(np.zeros(3), np.zeros(3), np.zeros(3))
    assert braking_path(still, LIMITS)[0].shape == (0,)
