"""The gate before a simulated arm and before every robot that is known as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robot_bridge.gate import State
from robot_bridge.robots import ROBOTS, load_robot
from robot_bridge.safety.build import gate_for, link_model
from sinew.cli.benchmarks.safety import MARGIN_M, MARGIN_RAD, closed_loop
from sinew.protocols import Command, Observation


@pytest.mark.parametrize("seed", [0, 1])
def test_in_mujoco_no_joint_link_or_tool_is_measured_beyond_its_limits(seed):
    """What the servo overshoots the stream by stays within the margins that the benchmark states."""
    judge, beyond = closed_loop(1000, seed)
    assert not judge.violations, judge.worst
    assert beyond["joints_rad"] <= MARGIN_RAD
    assert max(beyond["workspace_m"], beyond["plane_m"], beyond["links_m"]) <= MARGIN_M
    assert beyond["workspace_m"] > -0.05  # it did go to the walls


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_every_robot_starts_at_home_moves_and_stops_in_time(name):
    robot: Any = load_robot(name)
    gate = gate_for(robot)
    joints, dt_ns = len(robot.spec.joint_names), round(gate.config.dt_s * 1e9)
    at = np.array(robot.spec.home_rad or np.zeros(joints))
    openings = np.full(max(1, robot.arms), robot.spec.gripper_low_m)
    openings = openings if robot.arms > 1 else openings[0]

    def seen(now_ns: int) -> Observation:
        return Observation(now_ns, 0, {"joint_position": at, "joint_velocity": np.zeros(joints), "gripper": openings})

    assert gate.seed(seen(0), 0) == "", gate.events
    assert min(gate.velocity_cap) > 0.1
    way, now_ns = np.zeros(joints), 0
    way[0] = 0.2
    for i in range(1, 30):
        now_ns = i * dt_ns
        verdict: Any = gate.check(Command(now_ns, i, 0.1, {"joint_position": at + way}), seen(now_ns), now_ns)
        at = verdict.joint_position
        assert verdict.outcome in ("pass", "clamp") and verdict.reason in ("", "velocity"), verdict
    assert gate.speed > 0
    gate.stop("test", now_ns)
    ticks = 0
    while gate.state is not State.LATCHED:
        ticks, now_ns = ticks + 1, now_ns + dt_ns
        at = gate.step(None, None, seen(now_ns), now_ns).joint_position
    assert ticks * gate.config.dt_s <= gate.config.stop_time_s + 1e-9


def test_the_links_of_a_robot_are_where_its_frames_say():
    """Ends of capsules by product of exponentials against the poses of their links."""
    from robot_bridge.robots.kinematics import link_poses

    robot = load_robot("ur5e")
    model: Any = link_model(robot)
    q = np.random.default_rng(0).uniform(-2, 2, 6)
    poses = link_poses(robot, q)
    expected = [poses["tool"][:3, 3]]
    for capsule in robot.capsules:
        if capsule.link not in ("base_link_inertia", "shoulder_link"):
            expected += [poses[capsule.link][:3, :3] @ end + poses[capsule.link][:3, 3] for end in (capsule.start_m, capsule.end_m)]
    assert np.allclose(model.points(q[None])[0], expected, atol=1e-9)
