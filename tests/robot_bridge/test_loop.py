"""The controller-rate loop between a policy and a robot."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from robot_bridge.clock import MonotonicClock, SteppedClock, sleep
from robot_bridge.gate import GateConfig, SafetyGate
from robot_bridge.loop import ControlLoop
from robot_bridge.sim_robot import SimRobot
from sinew.errors import SafetyStop
from sinew.protocols import Command

A = np.array([1.0, 0.0, 0.0])
"""The first joint."""


@pytest.fixture
def stepped(spec, physics):
    clock = SteppedClock()
    robot = SimRobot(physics, spec, clock=clock)
    robot.connect()
    loop: Any = ControlLoop(robot, SafetyGate(GateConfig.of(spec, 100.0)), blend_s=0.05, clock=clock)
    loop.start()
    assert loop.resume() == ""
    return loop, robot, clock


class Policy:
    """Submits targets as deployment does."""

    def __init__(self, loop: ControlLoop, clock) -> None:
        self.loop, self.clock, self.seq = loop, clock, 0

    def __call__(self, target, seconds: float = 0.05) -> None:
        self.seq += 1
        values = {"joint_position": np.asarray(target, dtype=float), "gripper": np.array(0.02)}
        self.loop.submit(Command(self.clock.now_ns(), self.seq, 0.1, values))
        sleep(self.clock, seconds)


def test_streams_a_straight_line_from_target_to_target(stepped, physics):
    loop, _, clock = stepped
    start = loop.gate.last_command
    policy = Policy(loop, clock)
    policy(start + A * 0.005)
    policy(start + A * 0.01)
    sent = np.array(physics.targets)[:, 0] - start[0]
    moving = sent[np.flatnonzero(sent > 1e-6)[0] - 1 :]
    assert np.allclose(np.diff(moving)[:8], 0.001, atol=1e-9)  # 0.1 rad/s throughout, no stop between the targets
    assert physics.gripper == 0.02 and loop.outcomes["pass"] == 10


def test_holds_when_the_policy_is_late_and_goes_on_with_the_next_target(stepped, physics):
    loop, _, clock = stepped
    policy = Policy(loop, clock)
    target = loop.gate.last_command + A * 0.005
    policy(target, seconds=0.3)
    assert loop.verdict.outcome == "hold" and loop.verdict.reason == "expired" and loop.gate.speed == 0.0
    assert np.allclose(physics.targets[-1], target, atol=1e-9)  # stands where it was sent, and is still sent
    policy(target + A * 0.005)
    assert loop.verdict.outcome == "pass" and not loop.gate.latched


def test_a_policy_that_stays_away_latches(stepped):
    loop, _, clock = stepped
    policy = Policy(loop, clock)
    policy(loop.gate.last_command, seconds=1.5)
    assert loop.gate.latched == "expired"
    policy(loop.gate.last_command + 0.01, seconds=0.2)
    assert loop.verdict.outcome == "latched"  # coming back does not resume motion


def test_nan_stops_within_250_ms_and_never_reaches_the_robot(stepped, physics):
    loop, _, clock = stepped
    policy = Policy(loop, clock)
    for _ in range(6):
        policy(loop.gate.last_command + 0.04)
    assert loop.gate.speed > 0.5
    policy([0.1, np.nan, 0.1], seconds=0.25)
    assert loop.gate.speed == 0.0 and loop.gate.latched == "non_finite"
    assert np.isfinite(np.array(physics.targets)).all()
    policy(loop.gate.last_command, seconds=0.5)
    assert np.ptp(np.array(physics.targets)[-40:], axis=0).max() < 1e-12


def test_an_old_target_is_ignored_and_the_new_one_followed_on(stepped):
    loop, _, clock = stepped
    policy = Policy(loop, clock)
    policy(loop.gate.last_command + 0.005, seconds=0.02)
    policy.seq -= 1
    policy(loop.gate.last_command - 0.1, seconds=0.02)
    assert loop.verdict.outcome == "pass" and loop.gate.counts["out_of_order"] == 1


def test_pause_sends_nothing_and_the_robots_watchdog_holds(stepped, physics):
    loop, robot, clock = stepped
    policy = Policy(loop, clock)
    policy(loop.gate.last_command + 0.01)
    loop.pause()
    sleep(clock, 0.3)
    assert robot.holding and np.ptp(np.array(physics.targets)[-10:], axis=0).max() == 0.0
    assert loop.resume() == "" and np.allclose(loop.gate.last_command, physics.joint_position)


def test_ramp_down_is_not_counted_as_a_violation(stepped):
    loop, _, clock = stepped
    policy = Policy(loop, clock)
    for _ in range(3):
        policy(loop.gate.last_command + 0.03)
    loop.ramp_down()
    assert loop.gate.speed == 0.0 and "expired" not in loop.gate.counts


def test_a_robot_that_refuses_latches(stepped):
    loop, robot, clock = stepped

    def refuse(command):
        raise SafetyStop("two publishers")

    robot.write = refuse
    Policy(loop, clock)(loop.gate.last_command)
    assert loop.gate.latched == "robot_fault" and robot.stopped == "two publishers"
    assert loop.gate.events[-1].detail == "SafetyStop: two publishers"


def test_a_defect_in_the_control_thread_latches_and_is_kept(stepped):
    loop, robot, clock = stepped
    robot.write = None
    Policy(loop, clock)(loop.gate.last_command)
    assert loop.gate.latched == "defect" and isinstance(loop.defect, TypeError) and robot.stopped


def test_runs_alike_every_time(spec, physics):
    def run() -> np.ndarray:
        physics.reset(0)
        clock = SteppedClock()
        robot = SimRobot(physics, spec, clock=clock)
        robot.connect()
        loop: Any = ControlLoop(robot, SafetyGate(GateConfig.of(spec, 100.0)), blend_s=0.05, clock=clock)
        loop.start()
        loop.resume()
        policy, rng = Policy(loop, clock), np.random.default_rng(0)
        for _ in range(40):
            policy(loop.gate.last_command + 0.03 * rng.normal(size=3))
        return np.array(physics.targets)

    assert np.array_equal(run(), run())


def test_in_real_time_the_stream_goes_on_while_the_policy_thinks(spec, physics):
    robot = SimRobot(physics, spec)
    robot.connect()
    clock = MonotonicClock()
    loop: Any = ControlLoop(robot, SafetyGate(GateConfig.of(spec, 100.0)), blend_s=0.05, clock=clock)
    loop.start()
    try:
        assert loop.resume() == ""
        policy, thinking = Policy(loop, clock), threading.Event()
        for _ in range(10):
            policy(loop.gate.last_command + 0.004)
        before = loop.cadence.ticks
        thinking.wait(0.3)  # a policy that takes 300 ms
        assert loop.cadence.ticks - before > 10 and loop.verdict.reason == "expired"
    finally:
        loop.close()
        robot.close()
    report = loop.report()
    assert report["rate_hz"] == 100.0 and report["scheduler"] and set(report["stages_us"]) == {"read", "gate", "write"}
    assert not any(thread.name in ("control", "physics") for thread in threading.enumerate())
