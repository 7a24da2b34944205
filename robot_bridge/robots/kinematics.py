"""Where the links of a robot are: forward kinematics of its joint frames, and the same as the gate's fast tool model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from robot_bridge.kinematics import Arm, Arms
from robot_bridge.robots.config import JointFrame, RobotConfig
from sinew.errors import InputError


def rotation_rpy(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """(3, 3) rotation of URDF's roll, pitch, yaw about fixed axes: Rz(yaw) Ry(pitch) Rx(roll)."""
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(a), np.sin(a)) for a in (roll, pitch, yaw))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def rotation_about(axis: Sequence[float], angle: float) -> np.ndarray:
    """(3, 3) rotation by `angle` rad about a unit axis, Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def frame_matrix(frame: JointFrame, value: float = 0.0) -> np.ndarray:
    """T_parent_child (4, 4) of a joint at `value` rad or m."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_rpy(*frame.rpy_rad), frame.origin_m
    motion = np.eye(4)
    if frame.kind == "revolute":
        motion[:3, :3] = rotation_about(frame.axis, value)
    elif frame.kind == "prismatic":
        motion[:3, 3] = value * np.array(frame.axis)
    return matrix @ motion


def link_poses(config: RobotConfig, joints: Sequence[float]) -> dict[str, np.ndarray]:
    """T_world_link (4, 4) of every link at joints (J,) in the robot's order; joints that are not commanded stay at 0.

    Raises:
        InputError: the robot's frames are not known.
    """
    values: Mapping[str, float] = dict(zip(config.spec.joint_names, joints, strict=True))
    if not config.frames:
        raise InputError(f"robot {config.spec.name!r} has no joint frames; make a config with them: 'sinew robot add NAME --urdf FILE'")
    poses = {config.frames[0].parent: np.eye(4)}
    for frame in config.frames:
        poses[frame.child] = poses[frame.parent] @ frame_matrix(frame, values.get(frame.name, 0.0))
    return poses


def tool_poses(config: RobotConfig, joints: Sequence[float]) -> list[np.ndarray]:
    """T_world_tool (4, 4) of each arm."""
    poses = link_poses(config, joints)
    return [poses[tool] for tool in config.tools]


def chain_to(config: RobotConfig, link: str) -> list[JointFrame]:
    """The frames from the world to a link."""
    by_child = {frame.child: frame for frame in config.frames}
    chain = []
    while link in by_child:
        chain.append(by_child[link])
        link = by_child[link].parent
    return chain[::-1]


def tool_model(config: RobotConfig) -> Arms | None:
    """The gate's model of where each tool is; None where the frames are not known or a joint slides."""
    if not config.tools:
        return None
    zero = link_poses(config, [0.0] * len(config.spec.joint_names))
    arms, named = [], []
    for tool in config.tools:
        moving = [f for f in chain_to(config, tool) if f.name in config.spec.joint_names]
        if any(frame.kind != "revolute" for frame in moving):
            return None
        anchors = tuple(_triple(zero[frame.child][:3, 3]) for frame in moving)
        axes = tuple(_triple(zero[frame.child][:3, :3] @ np.array(frame.axis)) for frame in moving)
        arms.append(Arm(anchors, axes, _triple(zero[tool][:3, 3])))
        named += [frame.name for frame in moving]
    return Arms(arms) if tuple(named) == config.spec.joint_names else None


def jacobians(config: RobotConfig, joints: Sequence[float]) -> list[np.ndarray]:
    """(6, J) of each tool: linear over angular velocity in the world per velocity of all of the robot's joints."""
    poses = link_poses(config, joints)
    made = []
    for tool in config.tools:
        jacobian = np.zeros((6, len(joints)))
        for frame in chain_to(config, tool):
            if frame.name not in config.spec.joint_names:
                continue
            column = config.spec.joint_names.index(frame.name)
            axis = poses[frame.child][:3, :3] @ np.array(frame.axis)
            if frame.kind == "prismatic":
                jacobian[:3, column] = axis
            else:
                jacobian[:3, column] = np.cross(axis, poses[tool][:3, 3] - poses[frame.child][:3, 3])
                jacobian[3:, column] = axis
        made.append(jacobian)
    return made


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
