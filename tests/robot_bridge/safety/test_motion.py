"""The stream of one gate after another, over random limits, rates and hostile commands: no limit is passed at any tick."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from robot_bridge.gate import GateConfig, SafetyGate
from robot_bridge.kinematics import CallableTool
from robot_bridge.safety.fuzz import Judge, fuzz
from robot_bridge.safety.motion import JointStream


def random_config(rng: np.random.Generator, **changes) -> GateConfig:
    joints, rate_hz = int(rng.integers(1, 5)), float(rng.choice([50, 100, 250, 500, 1000]))
    acceleration = 10 ** rng.uniform(0, 2.2, joints)
    jerk = np.maximum(acceleration * 10 ** rng.uniform(1.1, 3.5, joints), acceleration * 2.05 / (0.25 - 2 / rate_hz))
    middle, half = rng.uniform(-1, 1, joints), rng.uniform(0.05, 3, joints)
    values = {
        "dt_s": 1.0 / rate_hz,
        "position_low_rad": tuple(middle - half),
        "position_high_rad": tuple(middle + half),
        "velocity_max_rad_s": tuple(10 ** rng.uniform(-0.5, 1, joints)),
        "acceleration_max_rad_s2": tuple(acceleration),
        "jerk_max_rad_s3": tuple(jerk),
        "gripper_low_m": 0.0,
        "gripper_high_m": 0.08,
        "gripper_velocity_max_m_s": 0.5,
    }
    return GateConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def counts():
    """Reasons that the fuzzed gates gave."""
    return Counter()


@pytest.mark.parametrize("seed", range(40))
def test_no_limit_is_passed_whatever_is_sent(seed, counts):
    """10^5 commands in all, to 40 robots: NaN, infinity, denormals, 1e9, wrong shapes, old stamps, steps to and fro."""
    config = random_config(np.random.default_rng(seed))
    gate = SafetyGate(config)
    judge = fuzz(gate, 2500, seed, (np.array(config.position_low_rad) + config.position_high_rad) / 2)
    assert not judge.violations, (judge.worst, config)
    assert judge.worst["stop_time"] <= 1.0 and judge.worst["acceleration"] > 0.5  # it did move
    counts.update(gate.counts)
    released = [incident for incident in gate.incidents if incident.released_by == "fuzz"]
    assert len(released) > 5 and all(incident.ended_ns is not None for incident in released)


def test_the_wild_commands_gave_every_reason_that_they_can(counts):
    if not counts:
        pytest.skip("run together with the test before")
    wanted = "velocity position jump non_finite shape expired out_of_order stale_observation measurement_order bad_measurement"
    assert {*wanted.split(), "measured_jump"} <= set(counts)


@pytest.mark.parametrize("kind", ["clamp", "reject"])
def test_no_wall_is_passed_whatever_is_sent(kind, spec):
    weights = np.random.default_rng(3).normal(size=(3, 3)) * 0.3
    box = (0.35,) * 3
    config = GateConfig.of(
        spec, 100.0, workspace_low_m=tuple(-v for v in box), workspace_high_m=box, singularity_stop=np.inf,
        on_position=kind, on_velocity=kind, on_workspace=kind,
    )  # fmt: skip
    gate = SafetyGate(config, CallableTool(lambda q: weights @ np.sin(q), 3))
    farthest = []
    judge = fuzz(gate, 4_000, 7, np.zeros(3), lambda q: farthest.append(np.abs(weights @ np.sin(q)).max()))
    assert not judge.violations and max(farthest) <= 0.35
    if kind == "clamp":
        assert gate.counts["workspace"] and max(farthest) > 0.3  # it did go there


def run(config: GateConfig, goals: np.ndarray) -> tuple[np.ndarray, Judge]:
    """Positions of a stream that follows goals (T,) rad, judged."""
    stream, judge, before, path = JointStream(config), Judge(config), None, []
    stream.seed([0.0])
    judge.restart(np.zeros(1))
    for goal in goals:
        chosen, limited = stream.towards([goal], before)
        before = [goal]
        stream.advance(chosen, None if limited else [goal])
        path.append(stream.position[0])
        judge(np.array(stream.position))
    return np.array(path), judge


ONE = {
    "position_low_rad": (-3.0,), "position_high_rad": (3.0,), "velocity_max_rad_s": (1.0,), "acceleration_max_rad_s2": (10.0,),
    "gripper_low_m": 0.0, "gripper_high_m": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("dt_s", [0.01, 0.002])
@pytest.mark.parametrize("jerk", [200.0, 1000.0, 5000.0])
def test_a_step_is_done_in_nearly_the_least_time_and_not_run_past(dt_s, jerk):
    """Rest to rest over 0.5 rad at 1 rad/s, 10 rad/s²: 0.5 + 1/10 + 10/jerk seconds in continuous time."""
    path, judge = run(GateConfig(dt_s=dt_s, jerk_max_rad_s3=(jerk,), **ONE), np.full(round(1.2 / dt_s), 0.5))
    assert not judge.violations and path[-1] == 0.5 and path.max() <= 0.5 + 1e-4
    took = np.flatnonzero(np.abs(path - 0.5) > 1e-3)[-1] * dt_s
    assert took <= 1.05 * (0.6 + 10.0 / jerk) + 6 * dt_s


@pytest.mark.parametrize("dt_s", [0.01, 0.002])
def test_goals_within_the_limits_are_followed_to_the_bit(dt_s):
    time = np.arange(1, round(3 / dt_s)) * dt_s
    goals = 0.1 * (1 - np.cos(3 * time)) ** 2
    path, judge = run(GateConfig(dt_s=dt_s, **ONE), goals)
    assert not judge.violations and np.array_equal(path, goals)


def test_a_goal_beyond_the_position_limit_is_approached_to_the_limit():
    path, judge = run(GateConfig(dt_s=0.01, jerk_max_rad_s3=(300.0,), **{**ONE, "position_high_rad": (0.4,)}), np.full(200, 0.4))
    assert not judge.violations and path[-1] == pytest.approx(0.4, abs=1e-9)


def test_speed_is_kept_up_at_the_limit_without_swinging():
    """A goal that runs away at twice the speed limit: the stream ends up at the limit, and stays there."""
    path, judge = run(GateConfig(dt_s=0.002, jerk_max_rad_s3=(500.0,), **ONE), 2.0 * 0.002 * np.arange(1, 700))
    speed = np.diff(path) / 0.002
    assert not judge.violations and speed[200:].min() > 0.97 and np.ptp(np.diff(speed[200:]) / 0.002) < 5.0
