"""Fault 10: a deployment and its robot in processes of their own, with a bad network between them.

What counts is what the robot truly did, told by its trace; nothing here depends on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from robot_bridge.faults.link import LinkFaults
from robot_bridge.faults.process import PolicyProcess, RobotProcess, speeds, travel_rad, until
from robot_bridge.faults.rtps_proxy import RtpsProxy


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
def policy(domain, proxy, robot) -> Iterator[PolicyProcess]:
    policy = PolicyProcess(domain, proxy.environment("policy"))
    yield policy
    policy.kill()


def test_a_partition_of_5_s_stops_the_robot_and_its_end_moves_nothing(proxy, robot, policy):
    policy.wait_for_step(8)
    before = robot.ticks()[-1]["taken"]
    proxy.set(LinkFaults(partition=True))
    lost = proxy.to_robot.lost
    until(lambda: proxy.to_robot.lost > lost)
    begin = len(robot.ticks())
    until(lambda: len(robot.ticks(begin)) > 500)  # 5 s of the robot's own time
    cut = robot.ticks(begin)
    proxy.set()
    assert policy.ended() == "stale_observation"
    until(lambda: len(robot.ticks(begin)) > len(cut) + 200)
    after = robot.ticks(begin + len(cut))
    told = robot.end()
    assert before > 0 and cut[-1]["taken"] == cut[20]["taken"]  # nothing came through
    rest = cut[60:] + after  # well within a second of its own time it stood, and for good
    assert speeds(rest).max() < 0.01 and travel_rad(rest) < 1e-3
    assert told["refused"] == {} and told["sudden"] == 0


def test_loss_delay_duplication_and_reordering_let_nothing_beyond_the_limits_through(proxy, robot, policy):
    policy.wait_for_step(2)
    proxy.set(LinkFaults(loss=0.2, delay_s=0.05, jitter_s=0.03, duplicate=0.2, reorder=0.1))
    how = policy.ended()
    told = robot.end()
    assert how in ("success", "time_limit", "stale_observation", "expired") or how.startswith("no "), how
    assert told["taken"] > 0 and told["refused"] == {}
    assert proxy.to_robot.lost and proxy.to_robot.doubled
