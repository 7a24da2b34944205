"""A robot in a process of its own that misbehaves on the wire and in the graph: what is said of it, in one line, and that it is held."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import sim
from robot_bridge import DdsRobot, DdsScene, MonotonicClock
from robot_bridge.deploy import deploy
from robot_bridge.faults.trial import Expert
from sinew.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
MOVING = {"after": "motion", "at_s": 0.3}
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path, domain) -> Iterator[Start]:
    """Start `sinew robot` with faults; returns when it is ready."""
    running: list[subprocess.Popen[str]] = []

    def begin(*faults: dict[str, Any]) -> subprocess.Popen[str]:
        path = tmp_path / "faults.json"
        path.write_text(json.dumps({"faults": faults}))
        command = [sys.executable, "-m", "sinew", "robot", "--domain", str(domain), "--faults", str(path), "--json", "--with-parent"]
        pipe = subprocess.PIPE
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, cwd=ROOT)
        running.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "ready" in line, line + process.communicate()[1]
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def robot(domain) -> Iterator[DdsRobot]:
    interface = sim.make_interface("lift")
    robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain=domain)
    yield robot
    robot.close()


def play(robot: DdsRobot, seeds: tuple[int, ...] = (0,)) -> Any:
    interface = sim.make_interface("lift")
    return deploy(cast(Any, Expert(interface, MonotonicClock())), interface, robot, seeds=seeds, scene=DdsScene(robot))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"what": "wrong_message_type"}, "topic /joint_states carries std_msgs/String.*expects sensor_msgs/JointState"),
        ({"what": "joint_names_wrong"}, "joints joint1, .* are not among those .*: .*wrong_joint1"),
        ({"what": "joint_count_wrong"}, "joints joint7 of robot arm are not among those"),
        ({"what": "controller_inactive"}, "nothing took commands on /forward_position_controller/commands.*is the controller active"),
    ],
)
def test_what_is_wrong_from_the_start_is_said_in_one_line(start, robot, fault, told):
    start(fault)
    with pytest.raises(InputError, match=told) as e:
        robot.connect(3.0)
    assert "\n" not in str(e.value)


def test_a_second_publisher_from_the_start_is_refused_as_soon_as_it_is_seen(start, robot, until):
    start({"what": "second_publisher"})
    try:
        robot.connect(5.0)
    except InputError as e:
        told = str(e)
    else:  # it was discovered a moment later
        told = until(lambda: robot.fault)
    assert "1 other publisher on /forward_position_controller/commands" in told and "stop the other one" in told and "\n" not in told


@pytest.mark.parametrize("what", ["controller_inactive", "second_publisher"])
def test_a_graph_that_changes_while_the_arm_moves_latches(start, robot, what):
    start({"what": what, **MOVING})
    report = play(robot, (0, 1))
    assert report.stopped == "robot_fault" and len(report.episodes) == 1
    assert report.gate["events"][-1]["reason"] == "robot_fault"


@pytest.mark.parametrize("offset_s", [3600.0, -3600.0])
def test_a_robot_whose_clock_is_set_while_the_arm_moves_goes_on(start, robot, offset_s):
    """Fault 9 on the wire: stamps jump by an hour and back; control goes by receipt and sees nothing of it."""
    process = start({"what": "clock_offset", **MOVING, "for_s": 0.3, "parameters": {"offset_s": offset_s}}, {"what": "clock_slew"})
    report = play(robot)
    assert report.stopped == "" and report.gate["counts"].get("measurement_order", 0) == 0
    process.send_signal(signal.SIGINT)
    told = json.loads(process.communicate(timeout=60)[0])
    assert {fault["what"] for fault in told["faults"]} == {"clock_offset", "clock_slew"} and told["refused"] == {}


def test_a_robot_that_is_frozen_is_held_and_does_not_go_on_by_itself(start, robot):
    start({"what": "process_stopped", **MOVING, "for_s": 3.0})
    report = play(robot, (0, 1))
    assert report.stopped == "stale_observation" and len(report.episodes) == 1
    measured = robot.read().values["joint_velocity"]
    assert np.isfinite(measured).all()


def test_an_emergency_stop_of_the_robot_itself_is_noticed(start, robot):
    start({"what": "robot_estop", **MOVING})
    report = play(robot, (0, 1))
    assert report.stopped == "not_following" and len(report.episodes) == 1
    assert report.why.endswith("the robot stopped by itself (/sinew/scene/status): clear its stop") and "\n" not in report.why


def test_an_effort_that_no_motion_needs_is_noticed_over_the_network(start, robot):
    start({"what": "effort_spike", **MOVING, "parameters": {"joint": 1}})
    report = play(robot, (0, 1))
    assert report.stopped == "effort" and len(report.episodes) == 1
    assert "joint 1 at" in report.why and report.why.endswith("look for contact or a wrong payload")
