"""Devices as a user has them: a leader arm on a serial port and topics of the network, in a terminal of their own."""

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import demos
import sim
from robot_bridge.dds.messages import make
from robot_bridge.transport import open_transport

DEADLINE_S = 240.0
SPEC = importlib.util.spec_from_file_location("servo_bus", Path(__file__).parents[1] / "robot_bridge" / "teleop" / "servo_bus.py")
SERVO_BUS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SERVO_BUS)


@pytest.fixture
def arm():
    """A leader arm of seven joints and a handle, for the arm of the tasks."""
    pytest.importorskip("scservo_sdk")
    bus = SERVO_BUS.ServoBus("feetech", dict.fromkeys(range(1, 9), 777))
    yield bus
    bus.close()


@pytest.fixture
def domain():
    """Of this process alone, nearly."""
    return 1 + os.getpid() % 99


def nothing():
    pass


def test_a_leader_arm_is_calibrated_and_then_leads(arm, in_a_terminal, until_not_stopped, tmp_path):
    file = tmp_path / "leader.json"
    # what was turned to tell a joint's sign stays turned: the zeros were taken before
    signs = [1, -1, 1, 1, -1, 1, 1]
    arm.angles |= {i: 0.3 * i - 1.0 for i in range(1, 9)}

    def turn(servo, by):
        return lambda: arm.angles.update({servo: arm.angles[servo] + by})

    def swing():
        """Every joint there and back, further than where it is held."""
        home = dict(arm.angles)
        for way in (-0.8, 0.8, 0.0):
            arm.angles |= {i: home[i] + way for i in range(1, 8)}
            asked, end = arm.asked, time.monotonic() + DEADLINE_S
            while arm.asked < asked + 5 and time.monotonic() < end:  # it is being read meanwhile
                time.sleep(0.005)

    steps = [("home pose", nothing, "\n")]
    steps += [(f"turn {name} a little", turn(i + 1, 0.2 * signs[i]), "\n") for i, name in enumerate(joint_names())]
    steps += [("whole range", swing, "\n"), ("close the gripper", nothing, "\n"), ("open the gripper", turn(8, 0.9), "\n")]
    argv = ["calibrate", "leader", "--maker", "feetech", "--port", arm.port, "--task", "lift", "--out", file]
    assert in_a_terminal(argv, [*steps, ("leads", nothing, "")]) == 0
    told = json.loads(file.read_text())
    assert [joint["sign"] for joint in told["joints"]] == signs and told["grip"]["id"] == 8

    def lead():
        """One joint slowly there and back, as a hand would."""
        arm.angles[1] = began + 0.2 * math.sin(0.01 * next(looked))

    began, looked = arm.angles[1], itertools.count()
    argv = ["collect", "--task", "lift", "--teleop", "leader", "--teleop-config", file, "--robot", "sim", "--episodes", 1, "--out"]
    steps = [("recording begins", nothing, "c"), ("the robot follows", nothing, ""), ("recording", nothing, "y")]
    out = until_not_stopped(lambda out: in_a_terminal([*argv, out], steps, lead))
    data = demos.Dataset(out)
    assert data.action_spec.kind == "joint_position" and data.num_episodes == 1 and data.episode(0).success is True
    targets = data.column("action")[:, :7]
    assert (np.abs(np.diff(targets, axis=0)).max(axis=0, initial=0.0)[1:] < 0.01).all()  # joints that were not led stay where they were


def test_topics_move_a_robot_and_their_words_end_episodes_without_a_terminal(domain, until_not_stopped):
    """As under ros2 launch: standard input is none."""
    other = open_transport("dds", "person", domain=domain)
    twists, words = other.publisher("/sinew/teleop/twist", "geometry_msgs/Twist"), other.publisher("/event", "std_msgs/String")
    argv = ["collect", "--task", "lift", "--teleop", "topic", "--teleop-events", "/event", "--robot", "sim", "--episodes", "1"]
    up, still = (make("geometry_msgs/Vector3", x=0.0, y=0.0, z=z) for z in (0.5, 0.0))

    def once(out):
        command = [sys.executable, "-m", "sinew", *argv, "--out", str(out), "--domain", str(domain)]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert child.stderr is not None
        os.set_blocking(child.stderr.fileno(), False)
        seen, end = b"", time.monotonic() + DEADLINE_S
        while child.poll() is None and time.monotonic() < end:
            twists.send(make("geometry_msgs/Twist", linear=up, angular=still))
            seen += child.stderr.read() or b""
            if b"recording\n" in seen:
                words.send(make("std_msgs/String", data="success"))
            time.sleep(0.05)
        child.kill()
        return child.wait()

    try:
        out = until_not_stopped(once)
    finally:
        other.close()
    data = demos.Dataset(out)
    assert data.num_episodes == 1 and data.episode(0).success is True
    assert (data.column("action")[:, 2] > 0).any()


WRONG = [
    (["--teleop", "gamepat"], "unknown device 'gamepat': did you mean 'gamepad'"),
    (["--teleop", "leader"], "sinew calibrate leader"),
    (["--teleop", "leader", "--teleop-config", "nowhere.json"], "No such file"),
    (["--teleop", "keyboard", "--teleop-config", "a.json"], "a keyboard takes none"),
    (["--teleop", "topic", "--teleop-config", "a.json", "b.json"], "only leader arms take several"),
    (["--teleop-events", "/e"], "give --teleop"),
    (["--action", "joint_position"], "give --teleop"),
    (["--teleop", "topic", "--teleop-events", "e"], "a topic begins with /"),
]


@pytest.mark.parametrize(("argv", "said"), WRONG)
def test_what_cannot_be_is_said_in_one_line(argv, said, refused, tmp_path):
    assert said in refused(["collect", "--task", "lift", "--out", tmp_path / "x", *argv])
    assert not (tmp_path / "x").exists()


def test_a_leader_arm_that_nobody_could_take_hold_of_is_refused(arm, refused, tmp_path):
    joints = [
        {"name": n, "id": i + 1, "model": "sts3215", "sign": 1, "zero_rad": 0.0, "low_rad": -3.0, "high_rad": 3.0}
        for i, n in enumerate(joint_names())
    ]
    file = tmp_path / "leader.json"
    argv = ["collect", "--task", "lift", "--teleop", "leader", "--teleop-config", file, "--out", tmp_path / "x"]
    for changes, said in (
        ({}, "nobody can say when leader is held"),
        ({"arm": 1}, "leader arms lead arms [1]; the robot has 1"),
        ({"joints": joints[:3]}, "calibrate it for this one"),
    ):
        file.write_text(json.dumps({"robot": "task", "maker": "feetech", "port": arm.port, "joints": joints, **changes}))
        assert said in refused(argv)


def joint_names():
    return sim.make_interface("lift").robot_spec.joint_names
