"""Why a robot stands: what its driver says on the wire, its controller manager, the graph; one line with the remedy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from robot_bridge.dds.messages import blank, make
from robot_bridge.faults.schedule import Fault, Schedule
from robot_bridge.faults.trial import Driver, Trial
from robot_bridge.gate import GateConfig, SafetyGate
from robot_bridge.robots import load_robot
from robot_bridge.ros_robot import RosRobot
from robot_bridge.standing import why_stopped
from robot_bridge.transport import LATCHED, Profile, open_transport
from sinew.protocols import Observation

CONFIG = load_robot("ur5e").with_controller("position", "gripper_position")
VOLATILE = Profile(depth=1)


def until(done: Any, timeout_s: float = 30.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.01)
    raise AssertionError("did not happen in time")


class Cell:
    """A driver that sends joint states and takes commands, and a robot connected to it."""

    def __init__(self, domain: int) -> None:
        self.node = open_transport("dds", "driver", domain=domain)
        self.states = {"forward_position_controller": "active", "forward_gripper_position_controller": "active"}
        self.node.server("/controller_manager/list_controllers", "controller_manager_msgs/ListControllers", self._list)
        for sink in CONFIG.contract.sinks:
            self.node.subscription(sink.topic, "std_msgs/Float64MultiArray")
        self._joints = self.node.publisher("/joint_states", "sensor_msgs/JointState")
        self.robot = RosRobot(CONFIG, open_transport("dds", "tester", domain=domain), cameras=())
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._play)
        self._thread.start()
        self.robot.connect(60.0)

    def close(self) -> None:
        self._quit.set()
        self._thread.join()
        self.robot.close()
        self.node.close()

    def _list(self, request: Any) -> Any:
        controllers = [blank("controller_manager_msgs/ControllerState", name=n, state=s) for n, s in self.states.items()]
        return make("controller_manager_msgs/ListControllers_Response", controller=controllers)

    def _play(self) -> None:
        names = [*CONFIG.spec.joint_names, str(CONFIG.spec.gripper_name)]
        while not self._quit.wait(0.01):
            wall_ns = time.time_ns()
            stamp = make("builtin_interfaces/Time", sec=wall_ns // 1_000_000_000, nanosec=wall_ns % 1_000_000_000)
            header = make("std_msgs/Header", stamp=stamp, frame_id="")
            zeros = np.zeros(len(names))
            self._joints.send(make("sensor_msgs/JointState", header=header, name=names, position=zeros, velocity=zeros, effort=zeros))


@pytest.fixture
def cell(domain) -> Iterator[Cell]:
    cell = Cell(domain)
    yield cell
    cell.close()


def latched(reason: str, detail: str = "") -> SafetyGate:
    gate = SafetyGate(GateConfig.of(CONFIG))
    gate.stop(reason, 1, detail)
    return gate


def test_drivers_tell_of_stops_programs_speeds_and_errors_whenever_their_topics_appear(cell):
    robot = cell.robot
    assert "look for a protective stop" in robot.why_still()  # nobody says anything: what to look for
    mode = cell.node.publisher("/io_and_status_controller/safety_mode", "ur_dashboard_msgs/SafetyMode", VOLATILE)
    running = cell.node.publisher("/io_and_status_controller/robot_program_running", "std_msgs/Bool", LATCHED)
    speed = cell.node.publisher("/speed_scaling_state_broadcaster/speed_scaling", "std_msgs/Float64", VOLATILE)
    errors = cell.node.publisher("/diagnostics", "diagnostic_msgs/DiagnosticArray", VOLATILE)
    running.send(make("std_msgs/Bool", data=False))  # before anybody listens, as drivers do
    until(lambda: "the robot's program is not running (/io_and_status_controller/robot_program_running): play" in robot.why_still())
    running.send(make("std_msgs/Bool", data=True))
    until(lambda: "program is not running (" not in robot.why_still())
    until(lambda: mode.subscribers and speed.subscribers and errors.subscribers)
    mode.send(make("ur_dashboard_msgs/SafetyMode", mode=3))
    until(lambda: "the robot is in a protective stop (/io_and_status_controller/safety_mode): clear its cause" in robot.why_still())
    mode.send(make("ur_dashboard_msgs/SafetyMode", mode=1))
    speed.send(make("std_msgs/Float64", data=0.0))
    until(lambda: "scaled to 0 (/speed_scaling_state_broadcaster/speed_scaling): raise the speed slider" in robot.why_still())
    speed.send(make("std_msgs/Float64", data=1.0))
    status = blank("diagnostic_msgs/DiagnosticStatus", level=2, name="arm", message="joint 3 overheated")
    errors.send(blank("diagnostic_msgs/DiagnosticArray", status=[status]))
    told = until(lambda: (line := robot.why_still()).startswith("/diagnostics reports arm: joint 3 overheated") and line)
    assert "\n" not in told


def test_a_stop_names_the_controller_that_was_deactivated_or_the_other_publisher(cell, domain):
    gate = latched("not_following", "joint 2 moved 0.0000 rad where 0.120 rad were commanded")
    cell.states["forward_position_controller"] = "inactive"
    told = why_stopped(gate, cell.robot)
    assert told.startswith("not_following: joint 2 moved 0.0000 rad where 0.120 rad were commanded; controller forward_position_controller")
    assert "is inactive in /controller_manager" in told and "--activate forward_position_controller" in told and "\n" not in told
    rival = open_transport("dds", "rival", domain=domain)
    rival.publisher(CONFIG.contract.sinks[0].topic, "std_msgs/Float64MultiArray")
    until(lambda: "1 other publisher on /forward_position_controller/commands" in why_stopped(gate, cell.robot))
    rival.close()


def test_other_stops_have_their_remedy_and_ask_nobody():
    class Robot:
        def why_still(self) -> str:
            raise AssertionError("asked")

    robot: Any = Robot()
    assert why_stopped(SafetyGate(GateConfig.of(CONFIG)), robot) == ""
    assert why_stopped(latched("effort", "joint 1 at 200.0 N m, 90 are allowed"), robot) == (
        "effort: joint 1 at 200.0 N m, 90 are allowed; look for contact or a wrong payload"
    )
    assert why_stopped(latched("non_finite"), robot).startswith("non_finite: a command holds NaN or infinity; look at the policy")


def test_a_deployment_asks_where_it_runs_and_when_the_robot_is_held(monkeypatch):
    """The thread that moves the robot is never the one that asks."""
    asked: list[tuple[str, float]] = []

    def why_still(self: Driver) -> str:
        asked.append((threading.current_thread().name, abs(self.read().values["joint_velocity"]).max()))
        return "the brake is shut: open it"

    monkeypatch.setattr(Driver, "why_still", why_still, raising=False)
    made = Trial(schedule=Schedule(faults=(Fault(what="commands_ignored", after="motion", at_s=0.3),))).run()
    assert made.report.stopped == "not_following" and made.report.why.endswith("; the brake is shut: open it")
    assert len(asked) == 1 and asked[0][0] == threading.current_thread().name and asked[0][1] < 0.05
    assert Trial().run(max_steps=5).report.why == "" and len(asked) == 1


def test_a_measurement_frozen_to_the_bit_is_a_robot_that_stands_too(cell):
    gate = SafetyGate(GateConfig.of(CONFIG, 100.0))
    home = np.zeros(6)
    gate.seed(Observation(0, 0, {"joint_position": home, "joint_velocity": home, "gripper": np.array(0.0)}), 0)
    for tick in range(1, 200):
        now_ns = tick * 10_000_000
        gate.step(home + 0.02 * tick, 0.0, Observation(now_ns, tick, {"joint_position": home, "gripper": np.array(0.0)}), now_ns)
    cell.states["forward_position_controller"] = "inactive"
    assert gate.latched == "frozen" and "--activate forward_position_controller" in why_stopped(gate, cell.robot)
