"""Robots as data: limits, geometry, controllers and contract of each kind, registered by name."""

from __future__ import annotations

from robot_bridge.robots import fr3, generic, so101, ur5e, vx300s, xarm7  # noqa: F401  # they register themselves
from robot_bridge.robots.config import ROBOTS, Capsule, JointFrame, RobotConfig, load_robot

__all__ = ["ROBOTS", "Capsule", "JointFrame", "RobotConfig", "load_robot"]
