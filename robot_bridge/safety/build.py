"""The gate of a robot that is known as data: its limits, all of its links and the distances between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robot_bridge.kinematics import Arms, LinkPoint
from robot_bridge.robots.config import RobotConfig
from robot_bridge.robots.kinematics import chain_to, link_poses, tool_model
from robot_bridge.robots.mjcf import collision_pairs, mjcf
from robot_bridge.safety.collision import SelfCollision
from robot_bridge.safety.config import GateConfig
from robot_bridge.safety.gate import SafetyGate
from robot_bridge.safety.operator import Operator


def gate_for(
    robot: RobotConfig, rate_hz: float | None = None, *, operator: Operator | None = None, self_collision: bool = True, **changes: Any
) -> SafetyGate:
    """The gate of a robot.

    Args:
        robot: its limits, frames and capsules; a robot without frames has its joints checked only.
        rate_hz: controller rate; the robot's own if left out.
        operator: switches to read.
        self_collision: keep the links apart, where the robot has capsules.
        changes: fields of `GateConfig`, for example first_run=True.

    Raises:
        InputError: the limits cannot be, or ask for kinematics that are not known.
    """
    config = GateConfig.of(robot, rate_hz, **changes)
    links = link_model(robot)
    collision = self_collision_of(robot) if self_collision and links is not None and robot.capsules else None
    return SafetyGate(config, links, collision=collision, operator=operator)


def link_model(robot: RobotConfig) -> Arms | None:
    """Tools and the ends of all capsules that two joints or more move; None where the frames are not known."""
    tools = tool_model(robot)
    if tools is None:
        return None
    zero = link_poses(robot, [0.0] * len(robot.spec.joint_names))
    arms = []
    for arm, tool in zip(tools.arms, robot.tools, strict=True):
        moving = [f.name for f in chain_to(robot, tool) if f.name in robot.spec.joint_names]
        points = []
        for capsule in robot.capsules:
            carriers = [f.name for f in chain_to(robot, capsule.link) if f.name in robot.spec.joint_names]
            if len(carriers) < 2 or carriers != moving[: len(carriers)]:
                continue
            pose = zero[capsule.link]
            for end in (capsule.start_m, capsule.end_m):
                x, y, z = (float(v) for v in pose[:3, :3] @ end + pose[:3, 3])
                points.append(LinkPoint(len(carriers) - 1, (x, y, z), capsule.radius_m))
        arms.append(replace(arm, links=tuple(points)))
    return Arms(arms)


def self_collision_of(robot: RobotConfig) -> SelfCollision | None:
    """Distances between the capsules of a robot, and to the floor; None where none can ever meet."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(mjcf(robot))  # pyright: ignore[reportAttributeAccessIssue]  # mujoco ships no type stubs
    pairs = collision_pairs(robot, model)
    return SelfCollision(model, robot.spec.joint_names, pairs) if pairs else None
