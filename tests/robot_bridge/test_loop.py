"""The controller-rate loop between a policy and a robot."""

from __future__ import annotations

import threading
import time
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


def test_streams_evenly_from_target_to_target_within_all_limits(stepped, physics, spec):
    loop, robot, clock = stepped
    sent, write = [], robot.write
    robot.write = lambda command: (sent.append(command), write(command))[1]
    start = loop.gate.last_command
    policy = Policy(loop, clock)
    for i in range(12):
        policy(start + A * 0.005 * (i + 1))
    path = np.array([command.values["joint_position"] for command in sent])[:, 0]
    assert np.allclose(np.diff(path)[-20:], 0.001, atol=1e-9)  # 0.1 rad/s throughout, no stop between the targets
    assert np.allclose([command.values["joint_velocity"][0] for command in sent[-20:]], 0.1, atol=1e-6)
    for order, most in ((1, spec.velocity_max_rad_s[0]), (2, spec.acceleration_max_rad_s2[0]), (3, 500.0)):
        assert np.abs(np.diff(path, order)).max() / 0.01**order <= most
    assert physics.gripper == 0.02 and set(loop.outcomes) == {"pass"}
    assert len({command.session for command in sent}) == 1 and sent[0].session


def test_a_session_ends_with_a_pause(stepped):
    loop, robot, clock = stepped
    sent, write = [], robot.write
    robot.write = lambda command: (sent.append(command), write(command))[1]
    policy = Policy(loop, clock)
    policy(loop.gate.last_command + A * 0.005)
    policy.seq += 1
    late = Command(clock.now_ns(), policy.seq, 0.1, {"joint_position": loop.gate.last_command + A * 0.2})
    loop.submit(late)
    loop.pause()
    loop.resume()
    here = loop.gate.last_command
    sleep(clock, 0.1)
    assert np.array_equal(sent[-1].values["joint_position"], here)  # what was asked for before the pause is forgotten
    assert sent[0].session != sent[-1].session


def test_a_hold_stands_whatever_comes_and_ends_when_it_is_lifted(stepped):
    loop, _, clock = stepped
    policy = Policy(loop, clock)
    for _ in range(6):
        policy(loop.gate.last_command + A * 0.02)
    loop.hold("images.front")
    before = loop.gate.counts.total()
    for _ in range(40):
        policy(loop.gate.last_command + A * 0.02)
    assert loop.gate.speed == 0.0 and not loop.gate.latched and loop.gate.counts.total() == before
    stop = loop.stop_times.stops[-1]
    assert stop.reason == "images.front" and stop.still_ns - stop.sent_ns <= 250_000_000
    here = loop.gate.last_command
    loop.hold("")
    policy(here + A * 0.02, seconds=0.2)
    assert loop.gate.last_command[0] > here[0] + 0.01


def test_stops_are_timed(stepped):
    loop, _, clock = stepped
    policy = Policy(loop, clock)
    for _ in range(6):
        policy(loop.gate.last_command + A * 0.02)
    sleep(clock, 0.4)
    told = loop.report()["stops"]
    assert told["count"] == 1 and 50.0 <= told["last_target_to_hold_ms"] <= 110.0 and told["command_to_standstill_ms"] <= 250.0
    assert told["e_stop_to_command_ms"] is None


def test_a_trajectory_controller_gets_the_way_to_rest_too(spec, physics):
    clock = SteppedClock()
    robot: Any = SimRobot(physics, spec, clock=clock)
    robot.path_points = 6
    robot.connect()
    sent, write = [], robot.write
    robot.write = lambda command: (sent.append(command.values), write(command))[1]
    loop: Any = ControlLoop(robot, SafetyGate(GateConfig.of(spec, 100.0)), blend_s=0.05, clock=clock)
    loop.start()
    loop.resume()
    policy = Policy(loop, clock)
    for _ in range(10):
        policy(loop.gate.last_command + A * 0.02)
    values = sent[-1]
    assert values["joint_path"].shape == values["joint_path_velocity"].shape == (6, 3) and values["path_times_s"].shape == (6,)
    assert np.array_equal(values["joint_path"][0], values["joint_position"]) and values["path_times_s"][0] == pytest.approx(0.01)
    assert values["joint_path_velocity"][0, 0] > 0.2 and not values["joint_path_velocity"][-1].any()
    assert (np.diff(values["path_times_s"]) > 0).all() and (np.diff(values["joint_path"][:, 0]) > 0).all()


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


def test_an_emergency_stop_does_not_wait_for_a_loop_that_is_stuck(spec, physics):
    """The control thread hangs in the robot's driver, with its lock held: the robot is told without it."""
    robot: Any = SimRobot(physics, spec)
    robot.connect()
    gate = SafetyGate(GateConfig.of(spec, 100.0))
    loop: Any = ControlLoop(robot, gate, blend_s=0.05)
    loop.start()
    stuck, free, stopped = threading.Event(), threading.Event(), threading.Event()
    try:
        assert loop.resume() == ""
        write, stop = robot.write, robot.stop
        robot.write = lambda command: (stuck.set(), free.wait(), write(command))
        robot.stop = lambda reason: (stop(reason), stopped.set())
        assert stuck.wait(30.0)
        gate.operator.press("topic")
        assert stopped.wait(30.0) and robot.stopped == "e_stop: topic"
        free.set()
        deadline = time.monotonic() + 30.0
        while not gate.latched and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gate.latched == "e_stop"
    finally:
        free.set()
        loop.close()
        robot.close()
    assert not gate.operator.on_press


def test_a_target_is_not_followed_past_its_time_to_live(stepped):
    loop, robot, clock = stepped
    sent, write = [], robot.write
    robot.write = lambda command: (sent.append((clock.now_ns(), loop.verdict.outcome)), write(command))[1]
    begun_ns = clock.now_ns()
    Policy(loop, clock)(loop.gate.last_command + A * 0.005, seconds=0.2)
    following = [time_ns for time_ns, outcome in sent if outcome == "pass" and time_ns > begun_ns]
    # a command that is sent at 90 ms is followed until 100 ms, which is all the time that the target has
    assert max(following) - begun_ns == 90_000_000


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
