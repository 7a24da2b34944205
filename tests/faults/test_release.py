"""After a partition longer than the lease an operator releases the robot, and it can be used again: the same objects, nothing replayed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robot_bridge.faults.link import LinkFaults
from robot_bridge.faults.process import RobotProcess, travel_rad, until
from robot_bridge.faults.rtps_proxy import RtpsProxy

ROOT = Path(__file__).resolve().parents[2]
COMMANDER = """
import sys, time
import numpy as np
import sim
from robot_bridge import DdsRobot
from robot_bridge.deploy import make_gate
from robot_bridge.loop import ControlLoop
from sinew.protocols import Command

interface = sim.make_interface("lift")
robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain=int(sys.argv[1]))
robot.connect(60.0)
gate = make_gate(interface)
loop = ControlLoop(robot, gate, blend_s=0.05)
loop.start()
seq = 0

def drive(goal):
    # the first joint towards `goal`, until it is there or the gate closed
    global seq
    while not gate.latched:
        seen = robot.read()
        target = seen.values["joint_position"].copy()
        if abs(target[0] - goal) < 0.01:
            return "there"
        target[0] += np.clip(goal - target[0], -0.03, 0.03)
        seq += 1
        loop.submit(Command(seen.stamp_ns, seq, 0.1, {"joint_position": target, "gripper": 0.04}))
        time.sleep(0.04)
    return gate.latched

acts = {
    "resume": lambda: loop.resume(),
    "drive": lambda goal: drive(float(goal)),
    "fault": lambda: robot.fault,
    "release": lambda: gate.release("operator"),
    "hold": lambda: loop.pause(),
}
print("connected", flush=True)
for line in sys.stdin:
    what, *given = line.split()
    print(acts[what](*given), flush=True)
loop.close()
robot.close()
"""


@pytest.fixture
def proxy() -> Iterator[RtpsProxy]:
    with RtpsProxy(seed=1) as proxy:
        yield proxy


@pytest.fixture
def robot(tmp_path, domain, proxy) -> Iterator[RobotProcess]:
    robot = RobotProcess(tmp_path, domain, proxy.environment("robot"))
    yield robot
    robot.kill()


@pytest.fixture
def say(domain, proxy, robot) -> Iterator[Callable[[str], str]]:
    """Have the commanding process do something; gives what it answers."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **proxy.environment("policy")}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", COMMANDER, str(domain)], stdin=pipe, stdout=pipe, text=True, env=env, cwd=ROOT)
    assert process.stdin is not None and process.stdout is not None
    told, given = process.stdout, process.stdin
    assert told.readline().strip() == "connected"

    def act(line: str) -> str:
        given.write(line + "\n")
        given.flush()
        return told.readline().strip()

    yield act
    process.kill()
    process.communicate()


def test_a_released_robot_goes_on_after_a_long_partition_and_not_before(proxy, robot, say):
    def opened() -> None:
        until(lambda: say("release") == "" and say("resume") == "")

    def driven(goal: float) -> str:
        """Go there; on a busy machine the gate may close for another reason first, and an operator lets it go on."""
        for _ in range(20):
            if (how := say(f"drive {goal}")) == "there":
                return how
            opened()
        raise AssertionError(how)

    opened()
    assert driven(0.1) == "there"
    proxy.set(LinkFaults(partition=True))
    assert say("drive 0.4") != "there"  # the gate closes: nothing is measured any more
    fault = until(lambda: say("fault"))  # longer than the lease: nobody is there
    assert "any more" in fault
    assert "any more" in say("release")  # while it is so, no release opens the gate
    begin = len(robot.ticks())
    proxy.set()
    # the link heals, nobody releases: the robot is commanded by nobody, and what was on its way is not sent again
    until(lambda: len(robot.ticks(begin)) > 300)
    assert travel_rad(robot.ticks(begin)) < 1e-3
    opened()
    count = len(robot.ticks())
    until(lambda: len(robot.ticks(count)) > 100)
    assert travel_rad(robot.ticks(begin)) < 5e-3  # released, and no target: it stays where it is
    assert driven(0.2) == "there" and say("fault") == ""
    assert robot.end()["refused"] == {}
