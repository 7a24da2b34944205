"""Fault 12: the operator's switches. Times are of the stepped clock; the same through threads and topics is measured by the bench."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from robot_bridge.clock import MonotonicClock
from robot_bridge.faults.trial import Trial
from robot_bridge.gate import GateConfig, Operator, SafetyGate
from robot_bridge.loop import ControlLoop
from robot_bridge.sim_robot import SimRobot
from sinew.protocols import Command


def test_a_pressed_stop_is_a_braking_command_within_50_ms_and_a_standstill_within_250_after_it():
    operator = Operator()
    pressed: list[int] = []

    def press(made: Trial, frame: Any) -> None:
        if frame.step == 12:
            pressed.append(made.clock.now_ns())
            operator.press("key")

    made = Trial(operator=operator, on_frame=press).run(max_steps=40)
    assert made.report.stopped == "e_stop" and len(made.report.episodes) == 1
    stops = made.report.controller["stops"]
    assert stops["e_stop_to_command_ms"] <= 50.0 and made.stop_s(pressed[0]) <= 0.05 + 0.25
    assert made.gate.release("test") != "" and made.gate.latched  # still pressed
    operator.release("test")
    assert made.gate.latched  # letting the button go moves nothing
    assert made.gate.release("test") == "" and not made.gate.latched


def test_a_pressed_stop_keeps_a_deployment_from_starting():
    operator = Operator()
    operator.press("before")
    made = Trial(operator=operator).run(max_steps=5)
    assert made.report.stopped == "e_stop" and made.robot.commands == []


def test_a_dead_man_switch_that_is_let_go_holds_within_200_ms():
    operator = Operator(dead_man_s=0.19)  # a tick sees it afterwards
    last: list[int] = []

    def beat(made: Trial, frame: Any) -> None:
        if frame.step < 12:
            last.append(made.clock.now_ns())
            operator.beat(made.clock.now_ns())

    made = Trial(operator=operator, on_frame=beat)
    made.run(max_steps=40)
    stamp_ns, why = made.first(("hold", "latched"), last[-1])
    assert why == "dead_man" and 0 < (stamp_ns - last[-1]) / 1e9 <= 0.2
    assert made.stop_s(stamp_ns) <= 0.25 and made.report.stopped == "dead_man"


def test_a_stop_waits_for_nobody(spec, physics, until):
    """Pressed while the control thread is inside a tick that does not end: the press returns, and the robot is told past the loop."""
    robot: Any = SimRobot(physics, spec)
    robot.connect()
    stuck, go_on = threading.Event(), threading.Event()
    write = robot.write

    def blocking(command: Command) -> None:
        stuck.set()
        go_on.wait()
        write(command)

    robot.write = blocking
    operator = Operator()
    gate = SafetyGate(GateConfig.of(spec, 100.0), operator=operator)
    loop = ControlLoop(robot, gate, blend_s=0.05, clock=MonotonicClock())
    loop.start()
    try:
        assert loop.resume() == ""
        assert stuck.wait(30.0)
        pressing = threading.Thread(target=operator.press, args=("key",))
        pressing.start()
        pressing.join(30.0)
        assert not pressing.is_alive() and operator.pressed == "key"
        until(lambda: robot.stopped)
        assert "e_stop" in robot.stopped and not go_on.is_set()
        go_on.set()
        until(lambda: gate.latched)
    finally:
        go_on.set()
        loop.close()
        robot.close()
    assert gate.latched == "e_stop"
    sent = np.array(physics.targets)
    assert np.isfinite(sent).all()
