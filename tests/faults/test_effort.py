"""Fault 8, torque: what joint states on the network say of efforts stops the robot, whether it is made up or of a real contact."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

import sim
from robot_bridge import DdsRobot
from robot_bridge.deploy import make_gate
from robot_bridge.gate import GateConfig, SafetyGate
from robot_bridge.loop import ControlLoop
from robot_bridge.standing import why_stopped
from sinew.protocols import Command

SHOULDER = 1


@pytest.fixture
def robot(domain):
    robot = DdsRobot(sim.make_interface("lift").robot_spec, domain=domain)
    yield robot
    robot.close()


def press(robot: DdsRobot, gate: SafetyGate) -> None:
    """Lean forward, farther and farther, until the gate closes: the hand comes to lie on the table."""
    loop = ControlLoop(robot, gate, blend_s=0.05)
    loop.start()
    try:
        assert loop.resume() == ""
        target, seq = np.array(robot.read().values["joint_position"]), 0
        while not gate.latched:
            seq += 1
            target[SHOULDER] = min(target[SHOULDER] + 0.02, 1.6)
            loop.submit(Command(time.monotonic_ns(), seq, 0.1, {"joint_position": target, "gripper": 0.0}))
            time.sleep(0.04)
    finally:
        loop.close()


def test_an_arm_that_presses_on_the_table_is_stopped_by_the_torques_that_it_measures(serve, robot):
    serve()
    robot.connect(60.0)
    spec = sim.make_interface("lift").robot_spec
    limits = make_gate(sim.make_interface("lift")).config
    free = replace(limits, workspace_low_m=GateConfig.workspace_low_m, workspace_high_m=GateConfig.workspace_high_m)
    for _ in range(10):  # a machine that is too busy for the loop closes the gate for another reason
        gate = SafetyGate(free)  # of a table that nobody told it of
        press(robot, gate)
        if gate.latched == "effort":
            break
    assert gate.latched == "effort", gate.latched
    told = why_stopped(gate, robot)
    assert "joint 1 at" in told and "60 are allowed" in told and told.endswith("look for contact or a wrong payload")
    stood = robot.read().values["joint_position"][SHOULDER]
    assert stood < spec.position_high_rad[SHOULDER] - 0.1 and gate.last_command is not None
    assert abs(gate.last_command[SHOULDER] - stood) < 0.5  # and was not pushed on


def test_tasks_on_the_network_have_the_limits_of_the_simulated_servos():
    config = make_gate(sim.make_interface("handover")).config
    assert len(config.effort_max_nm) == 14 and max(config.effort_max_nm) < 90.0
