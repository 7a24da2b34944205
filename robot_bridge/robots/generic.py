"""Any arm under ros2_control: what is common to all, filled in from a URDF by `sinew robot add`."""

from __future__ import annotations

from math import pi

from robot_bridge.robots.build import ArmWire, build_contract, ros2_control_sinks
from robot_bridge.robots.config import ROBOTS, RobotConfig
from sinew.protocols import RobotSpec

JOINTS = tuple(f"joint{i}" for i in range(1, 7))


@ROBOTS.add("ros2_control")
def ros2_control() -> RobotConfig:
    """Six joints joint1 to joint6 without a gripper, at the pace of a first run: a pattern for `sinew robot add`, and safe to try."""
    arm = ArmWire(joints=JOINTS, sinks=ros2_control_sinks(JOINTS))
    contract, others = build_contract("ros2_control", (arm,), ((-pi,) * 6, (pi,) * 6), (0.0, 0.08), effort=False)
    spec = RobotSpec(
        name="ros2_control",
        joint_names=JOINTS,
        gripper_name=None,
        position_low_rad=(-pi,) * 6,
        position_high_rad=(pi,) * 6,
        velocity_max_rad_s=(0.5,) * 6,
        acceleration_max_rad_s2=(1.0,) * 6,
        gripper_low_m=0.0,
        gripper_high_m=0.08,
        workspace_low_m=(-10.0, -10.0, -10.0),
        workspace_high_m=(10.0, 10.0, 10.0),
        rate_hz=100.0,
    )
    return RobotConfig(
        spec=spec,
        contract=contract,
        jerk_max_rad_s3=(25.0,) * 6,
        effort_max_nm=(10.0,) * 6,
        alternatives=others,
        cited={"controllers": "ros2_controllers documentation: usual names; controller_manager's default rate of 100 Hz"},
        derived=("limits: any arm's are higher; make your own config with 'sinew robot add NAME --urdf FILE'",),
    )
