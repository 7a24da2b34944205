"""Fault 10, what arrives too late: commands that a link held up, sent again or kept from a session before move nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_bridge.faults.link import LinkFaults
from robot_bridge.faults.process import RobotProcess, until
from robot_bridge.faults.rtps_proxy import RtpsProxy

ROOT = Path(__file__).resolve().parents[2]
HELD_UP_S = 2.0
SETTLED_TICKS = 100
SENDER = """
import sys, time
from robot_bridge.dds import codec
from robot_bridge.dds.node import Node
from robot_bridge.transport import NEWEST

node = Node("sender", domain=int(sys.argv[1]))
commands = node.publisher("/forward_position_controller/commands", "std_msgs/Float64MultiArray", NEWEST)
while not commands.subscribers:
    time.sleep(0.01)
print("matched", flush=True)
for line in sys.stdin:  # joints and opening; sent once
    commands.write(codec.encode_doubles([float(number) for number in line.split()]))
    print("sent", flush=True)
"""


class Sender:
    """A process that commands the robot."""

    def __init__(self, domain: int, environment: dict[str, str]) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", SENDER, str(domain)], stdin=pipe, stdout=pipe, text=True, env=env, cwd=ROOT)
        self._hear("matched")

    def send(self, values: np.ndarray) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(repr(float(value)) for value in values) + "\n")
        self.process.stdin.flush()
        self._hear("sent")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _hear(self, word: str) -> None:
        assert self.process.stdout is not None and self.process.stdout.readline().strip() == word


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
def sender(domain, proxy, robot) -> Iterator[Callable[[], Sender]]:
    made: list[Sender] = []

    def start() -> Sender:
        made.append(Sender(domain, proxy.environment("policy")))
        return made[-1]

    yield start
    for one in made:
        one.end()


def taken(robot: RobotProcess) -> int:
    return robot.ticks()[-1]["taken"]


def at(robot: RobotProcess, offset_rad: float) -> np.ndarray:
    """A command that puts the first joint elsewhere."""
    first, *others = robot.ticks()[0]["joint_position"]
    return np.array([first + offset_rad, *others, 0.04])


def obeys(robot: RobotProcess, sender: Sender, values: np.ndarray) -> None:
    """Send a command, again and again, until the driver has taken one."""
    count = taken(robot)

    def again() -> bool:
        sender.send(values)
        return taken(robot) > count

    until(again)


def settled(robot: RobotProcess) -> tuple[int, int]:
    """Wait until nothing more is obeyed and the arm stands: what `taken` says then, and the tick."""

    def still() -> bool:
        ticks = robot.ticks()[-SETTLED_TICKS:]
        moves = np.ptp([tick["joint_position"][0] for tick in ticks])
        return len(ticks) == SETTLED_TICKS and ticks[0]["taken"] == ticks[-1]["taken"] and moves < 1e-4

    until(still)
    return taken(robot), len(robot.ticks())


def farthest(robot: RobotProcess, since: int) -> float:
    """How far the first joint came from where it stood at a tick."""
    path = np.array([tick["joint_position"][0] for tick in robot.ticks(since)])
    return float(np.abs(path - path[0]).max())


def test_a_command_that_the_link_held_up_moves_nothing(proxy, robot, sender):
    until(robot.ticks)
    commander = sender()
    obeys(robot, commander, at(robot, 0.0))
    count, since = settled(robot)
    proxy.set(back=LinkFaults(delay_s=HELD_UP_S))
    commander.send(at(robot, 0.5))
    until(lambda: len(robot.ticks(since)) > 100 * (HELD_UP_S + 2))  # it came, and nothing of it was done
    assert taken(robot) == count and farthest(robot, since) < 1e-3
    proxy.set()
    obeys(robot, commander, at(robot, 0.01))  # a new one is obeyed
    told = robot.end()
    assert told["passed_over"].get("old", 0) >= 1 and told["refused"] == {}


def test_packets_that_are_sent_again_move_nothing(proxy, robot, sender, monkeypatch):
    until(robot.ticks)
    kept: list[Any] = []
    put = proxy.to_robot.put

    def keeping(packet: Any, now_ns: int) -> None:
        kept.append(packet)
        put(packet, now_ns)

    monkeypatch.setattr(proxy.to_robot, "put", keeping)
    commander = sender()
    obeys(robot, commander, at(robot, 0.02))
    monkeypatch.setattr(proxy.to_robot, "put", put)
    obeys(robot, commander, at(robot, 0.0))
    count, since = settled(robot)
    for handle, destination, packet in kept:  # whoever recorded the network plays it back
        handle.sendto(packet, destination)
    until(lambda: len(robot.ticks(since)) > 100)
    assert len(kept) > 10 and taken(robot) == count and farthest(robot, since) < 1e-3


def test_what_is_left_of_a_session_does_not_come_between_the_commands_of_the_next(proxy, robot, sender):
    """The first commander is killed while its last command is on its way; it comes after those of the next one."""
    until(robot.ticks)
    first = sender()
    obeys(robot, first, at(robot, 0.0))
    second = sender()
    proxy.set(back=LinkFaults(delay_s=HELD_UP_S))
    first.send(at(robot, 0.5))
    first.end()
    before = proxy.to_robot.taken
    until(lambda: proxy.to_robot.taken > before)
    proxy.set()
    since = len(robot.ticks())
    for _ in range(3):
        obeys(robot, second, at(robot, 0.0))
    until(lambda: len(robot.ticks(since)) > 100 * (HELD_UP_S + 2))
    assert farthest(robot, since) < 5e-3
