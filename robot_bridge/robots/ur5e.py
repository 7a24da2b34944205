"""Universal Robots UR5e with a Robotiq 2F-85 gripper, as the UR ROS 2 driver and the Robotiq description name things.

Sources: positions, velocities, torques: UR5e user manual 5.8 and the article "Max. joint torques" of Universal Robots, as kept in
Universal_Robots_ROS2_Description, config/ur5e/joint_limits.yaml. Accelerations: the maker's ur_moveit_config/config/joint_limits.yaml,
5 rad/s², which says that the arm limits torques only and that the value is a conservative one. Joint origins: nominal calibration, the DH
parameters of Universal Robots, config/ur5e/default_kinematics.yaml. Radii: physical_parameters.yaml, "manually measured".
Gripper: Robotiq 2F-85 instruction manual: stroke 85 mm, 20 to 235 N, 20 to 150 mm/s; joint 0 (open) to 0.8 rad (closed).
"""

from __future__ import annotations

from math import pi

from robot_bridge.robots.build import ArmWire, Camera, GripperWire, build_contract, gripper_sinks, ros2_control_sinks
from robot_bridge.robots.config import ROBOTS, Capsule, JointFrame, RobotConfig
from sinew.protocols import RobotSpec

JOINTS = ("shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint")
OPENING_M = 0.085
KNUCKLE = "robotiq_85_left_knuckle_joint"
KNUCKLE_CLOSED_RAD = 0.8
GRIPPER_LENGTH_M = 0.1628
"""Flange to closed fingertips, Robotiq 2F-85 manual; measure yours where a coupling or other fingers are mounted."""

_FRAMES = (
    JointFrame(name="base", kind="fixed", parent="world", child="base_link"),
    JointFrame(name="turned", kind="fixed", parent="base_link", child="base_link_inertia", rpy_rad=(0.0, 0.0, pi)),
    JointFrame(name=JOINTS[0], parent="base_link_inertia", child="shoulder_link", origin_m=(0.0, 0.0, 0.1625)),
    JointFrame(name=JOINTS[1], parent="shoulder_link", child="upper_arm_link", rpy_rad=(pi / 2, 0.0, 0.0)),
    JointFrame(name=JOINTS[2], parent="upper_arm_link", child="forearm_link", origin_m=(-0.425, 0.0, 0.0)),
    JointFrame(name=JOINTS[3], parent="forearm_link", child="wrist_1_link", origin_m=(-0.3922, 0.0, 0.1333)),
    JointFrame(name=JOINTS[4], parent="wrist_1_link", child="wrist_2_link", origin_m=(0.0, -0.0997, 0.0), rpy_rad=(pi / 2, 0.0, 0.0)),
    JointFrame(name=JOINTS[5], parent="wrist_2_link", child="wrist_3_link", origin_m=(0.0, 0.0996, 0.0), rpy_rad=(pi / 2, pi, pi)),
    JointFrame(name="tool", kind="fixed", parent="wrist_3_link", child="tool", origin_m=(0.0, 0.0, GRIPPER_LENGTH_M)),
)
_CAPSULES = (
    Capsule(link="base_link_inertia", start_m=(0.0, 0.0, 0.02), end_m=(0.0, 0.0, 0.05), radius_m=0.075),
    Capsule(link="shoulder_link", start_m=(0.0, 0.0, -0.04), end_m=(0.0, 0.0, 0.0), radius_m=0.06),
    Capsule(link="upper_arm_link", start_m=(0.0, 0.0, 0.138), end_m=(-0.425, 0.0, 0.138), radius_m=0.054),
    Capsule(link="forearm_link", start_m=(0.0, 0.0, 0.02), end_m=(-0.3922, 0.0, 0.02), radius_m=0.048),
    Capsule(link="wrist_1_link", start_m=(0.0, 0.0, -0.08), end_m=(0.0, 0.0, 0.0), radius_m=0.045),
    Capsule(link="wrist_2_link", start_m=(0.0, 0.0, -0.06), end_m=(0.0, 0.0, 0.0), radius_m=0.045),
    Capsule(link="wrist_3_link", start_m=(0.0, 0.0, -0.03), end_m=(0.0, 0.0, -0.02), radius_m=0.0375),
    Capsule(link="wrist_3_link", start_m=(0.0, 0.0, 0.04), end_m=(0.0, 0.0, 0.11), radius_m=0.045),
)


@ROBOTS.add("ur5e")
def ur5e() -> RobotConfig:
    """UR5e with Robotiq 2F-85."""
    low, high = (-2 * pi, -2 * pi, -pi, -2 * pi, -2 * pi, -2 * pi), (2 * pi, 2 * pi, pi, 2 * pi, 2 * pi, 2 * pi)
    wire = ((KNUCKLE_CLOSED_RAD, 0.0), (0.0, OPENING_M))
    gripper = GripperWire(
        joint=KNUCKLE,
        states="/joint_states",
        sinks=gripper_sinks(KNUCKLE, "robotiq_gripper_controller", effort_n=50.0, wire=wire),
        wire_range=wire[0],
        si_range=wire[1],
    )
    arm = ArmWire(joints=JOINTS, sinks=ros2_control_sinks(JOINTS, trajectory="scaled_joint_trajectory_controller"), gripper=gripper)
    cameras = (
        Camera(name="front", topic="/front/image_raw"),
        Camera(name="wrist", topic="/wrist/image_raw"),
    )
    contract, others = build_contract("ur5e", (arm,), (low, high), (0.0, OPENING_M), cameras=cameras)
    spec = RobotSpec(
        name="ur5e",
        joint_names=JOINTS,
        gripper_name=KNUCKLE,
        position_low_rad=low,
        position_high_rad=high,
        velocity_max_rad_s=(pi,) * 6,
        acceleration_max_rad_s2=(5.0,) * 6,
        gripper_low_m=0.0,
        gripper_high_m=OPENING_M,
        workspace_low_m=(-0.85, -0.85, 0.0),
        workspace_high_m=(0.85, 0.85, 1.2),
        rate_hz=500.0,
        home_rad=(0.0, -pi / 2, pi / 2, -pi / 2, -pi / 2, 0.0),
    )
    return RobotConfig(
        spec=spec,
        contract=contract,
        jerk_max_rad_s3=(125.0,) * 6,
        effort_max_nm=(150.0, 150.0, 150.0, 28.0, 28.0, 28.0),
        gripper_velocity_max_m_s=0.15,
        gripper_force_max_n=235.0,
        frames=_FRAMES,
        tools=("tool",),
        capsules=_CAPSULES,
        alternatives=others,
        cited={
            "position, velocity": "UR5e user manual 5.8 (the elbow within ±180°, where the arm cannot turn farther)",
            "effort": "Universal Robots, Max. joint torques",
            "acceleration": "ur_moveit_config/config/joint_limits.yaml: 5 rad/s², conservative; the arm itself limits torques only",
            "jerk": "none published: the full acceleration in 40 ms, as the xArm7's datasheet has it",
            "rate": "e-series controller, 500 Hz; workspace: reach 850 mm, UR5e datasheet",
            "frames": "Universal Robots DH parameters (nominal; your arm's own calibration differs by millimetres)",
            "gripper": "Robotiq 2F-85 instruction manual: 85 mm, 235 N, 150 mm/s",
        },
        derived=("jerk_max_rad_s3", "capsules"),
    )
