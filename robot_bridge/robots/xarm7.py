"""UFACTORY xArm7 with the xArm Gripper, as xarm_ros2 names things.

Sources: positions and speed: UFACTORY technical specifications and xarm_description/urdf/xarm7 (180°/s). Accelerations and jerks:
technical specifications, joint motion: 1146°/s² and 28647°/s³. Torques: the effort limits of xarm_description. Joint origins:
xarm_description/urdf/xarm7/xarm7.urdf.xacro, the modified DH parameters of UFACTORY. Gripper: xarm_description/urdf/gripper: drive
joint 0 (open) to 0.85 rad (closed), tool 0.172 m; stroke 84 mm and 30 N, xArm Gripper user manual.
"""

from __future__ import annotations

from math import pi, radians

from robot_bridge.contract import Sink
from robot_bridge.robots.build import ArmWire, Camera, GripperWire, build_contract, first, ros2_control_sinks
from robot_bridge.robots.config import ROBOTS, Capsule, JointFrame, RobotConfig
from sinew.protocols import RobotSpec

JOINTS = tuple(f"joint{i}" for i in range(1, 8))
DRIVE = "drive_joint"
DRIVE_CLOSED_RAD, OPENING_M = 0.85, 0.084
LOW = (-2 * pi, -2.059, -2 * pi, -0.19198, -2 * pi, -1.69297, -2 * pi)
HIGH = (2 * pi, 2.0944, 2 * pi, 3.927, 2 * pi, pi, 2 * pi)

_ORIGINS = (
    ((0.0, 0.0, 0.267), 0.0),
    ((0.0, 0.0, 0.0), -pi / 2),
    ((0.0, -0.293, 0.0), pi / 2),
    ((0.0525, 0.0, 0.0), pi / 2),
    ((0.0775, -0.3425, 0.0), pi / 2),
    ((0.0, 0.0, 0.0), pi / 2),
    ((0.076, 0.097, 0.0), -pi / 2),
)
_LINKS = ("link_base", *(f"link{i}" for i in range(1, 8)))
_FRAMES = (
    JointFrame(name="base", kind="fixed", parent="world", child="link_base"),
    *(
        JointFrame(name=name, parent=_LINKS[i], child=_LINKS[i + 1], origin_m=origin, rpy_rad=(roll, 0.0, 0.0))
        for i, (name, (origin, roll)) in enumerate(zip(JOINTS, _ORIGINS, strict=True))
    ),
    JointFrame(name="tool", kind="fixed", parent="link7", child="link_tcp", origin_m=(0.0, 0.0, 0.172)),
)
_CAPSULES = (
    Capsule(link="link_base", start_m=(0.0, 0.0, 0.05), end_m=(0.0, 0.0, 0.15), radius_m=0.063),
    Capsule(link="link1", start_m=(0.0, 0.0, -0.06), end_m=(0.0, 0.0, 0.0), radius_m=0.06),
    Capsule(link="link2", start_m=(0.0, -0.05, 0.0), end_m=(0.0, -0.2, 0.0), radius_m=0.055),
    Capsule(link="link3", start_m=(0.0, 0.0, -0.04), end_m=(0.0525, 0.0, 0.0), radius_m=0.055),
    Capsule(link="link4", start_m=(0.02, -0.08, 0.0), end_m=(0.0775, -0.2, 0.0), radius_m=0.05),
    Capsule(link="link5", start_m=(0.0, 0.0, -0.1), end_m=(0.0, 0.0, 0.0), radius_m=0.045),
    Capsule(link="link6", start_m=(0.0, 0.0, 0.0), end_m=(0.076, 0.03, 0.0), radius_m=0.045),
    Capsule(link="link7", start_m=(0.0, 0.0, -0.04), end_m=(0.0, 0.0, 0.02), radius_m=0.04),
    Capsule(link="link7", start_m=(0.0, -0.04, 0.09), end_m=(0.0, 0.04, 0.09), radius_m=0.05),
)


@ROBOTS.add("xarm7")
def xarm7() -> RobotConfig:
    """xArm7 with xArm Gripper."""
    wire = ((DRIVE_CLOSED_RAD, 0.0), (0.0, OPENING_M))
    grip = Sink(
        value="gripper", kind="gripper_action", topic="/xarm_gripper/gripper_action", joints=(DRIVE,), wire_range=wire[0], si_range=wire[1]
    )
    trajectory = Sink(
        value="gripper", kind="gripper_trajectory", topic="/xarm_gripper_traj_controller/joint_trajectory", joints=(DRIVE,),
        controller="xarm_gripper_traj_controller", wire_range=wire[0], si_range=wire[1],
    )  # fmt: skip
    gripper = GripperWire(joint=DRIVE, states="/joint_states", sinks=(grip, trajectory), wire_range=wire[0], si_range=wire[1])
    sinks = first("trajectory", ros2_control_sinks(JOINTS, trajectory="xarm7_traj_controller", base="link_base"))
    arm = ArmWire(joints=JOINTS, sinks=sinks, gripper=gripper)
    cameras = (
        Camera(name="front", topic="/front/image_raw"),
        Camera(name="wrist", topic="/wrist/image_raw"),
    )
    contract, others = build_contract("xarm7", (arm,), (LOW, HIGH), (0.0, OPENING_M), cameras=cameras)
    spec = RobotSpec(
        name="xarm7",
        joint_names=JOINTS,
        gripper_name=DRIVE,
        position_low_rad=LOW,
        position_high_rad=HIGH,
        velocity_max_rad_s=(pi,) * 7,
        acceleration_max_rad_s2=(radians(1146.0),) * 7,
        gripper_low_m=0.0,
        gripper_high_m=OPENING_M,
        workspace_low_m=(-0.7, -0.7, 0.0),
        workspace_high_m=(0.7, 0.7, 0.95),
        rate_hz=50.0,
        home_rad=(0.0, -0.247, 0.0, 0.909, 0.0, 1.156, 0.0),
    )
    return RobotConfig(
        spec=spec,
        contract=contract,
        jerk_max_rad_s3=(radians(28647.0),) * 7,
        effort_max_nm=(50.0, 50.0, 30.0, 30.0, 30.0, 20.0, 20.0),
        gripper_force_max_n=30.0,
        frames=_FRAMES,
        tools=("link_tcp",),
        capsules=_CAPSULES,
        alternatives=others,
        cited={
            "position, velocity": "UFACTORY technical specifications and xarm_description",
            "acceleration, jerk": "UFACTORY technical specifications, joint motion: 1146°/s², 28647°/s³",
            "effort": "xarm_description/urdf/xarm7/xarm7.urdf.xacro",
            "rate": "xarm_controller/config/xarm7_controllers.yaml, 50 Hz (servo mode of the controller box: at most 250 Hz)",
            "frames": "xarm_description; the all-zero pose is the manual's X 206, Y 0, Z 120.5 mm",
            "gripper": "xarm_description/urdf/gripper; xArm Gripper user manual: 84 mm, 30 N",
        },
        derived=("capsules", "home_rad"),
    )
