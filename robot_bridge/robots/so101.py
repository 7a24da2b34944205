"""SO-101 follower arm (TheRobotStudio, LeRobot), five joints and a jaw, behind a ros2_control driver of its Feetech servos.

Sources: positions and joint origins: SO-ARM100 repository, Simulation/SO101/so101_new_calib.urdf (joints at 0 in the middle of
their range). Speed and torque: Feetech STS3215 datasheet, 45 rpm (0.222 s per 60°) without load and 30 kg·cm stalled at 12 V, as
checked in issue 134 of that repository; the 7.4 V version has about half of that torque. The URDF's own limits of effort and
velocity are place holders of 10. Accelerations of the arm nobody publishes; the servos' own profile ends at 254 units of 100 steps/s²
(39 rad/s²), which LeRobot sets, and what is taken here is a quarter of that.
"""

from __future__ import annotations

from math import pi

from robot_bridge.robots.build import ArmWire, Camera, GripperWire, build_contract, gripper_sinks, ros2_control_sinks
from robot_bridge.robots.config import ROBOTS, Capsule, JointFrame, RobotConfig
from sinew.protocols import RobotSpec

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
JAW = "gripper"
JAW_CLOSED_RAD, JAW_OPEN_RAD, OPENING_M = -0.174533, 1.74533, 0.1
LOW = (-1.91986, -1.74533, -1.69, -1.65806, -2.74385)
HIGH = (1.91986, 1.74533, 1.69, 1.65806, 2.84121)
SPEED_RAD_S = 45.0 / 60.0 * 2 * pi
TORQUE_NM = 2.94

_FRAMES = (
    JointFrame(name="base", kind="fixed", parent="world", child="base_link"),
    JointFrame(name=JOINTS[0], parent="base_link", child="shoulder_link", origin_m=(0.0388353, 0.0, 0.0624), rpy_rad=(pi, 0.0, -pi)),
    JointFrame(
        name=JOINTS[1], parent="shoulder_link", child="upper_arm_link", origin_m=(-0.0303992, -0.0182778, -0.0542),
        rpy_rad=(-pi / 2, -pi / 2, 0.0),
    ),
    JointFrame(
        name=JOINTS[2], parent="upper_arm_link", child="lower_arm_link", origin_m=(-0.11257, -0.028, 0.0), rpy_rad=(0.0, 0.0, pi / 2)
    ),
    JointFrame(name=JOINTS[3], parent="lower_arm_link", child="wrist_link", origin_m=(-0.1349, 0.0052, 0.0), rpy_rad=(0.0, 0.0, -pi / 2)),
    JointFrame(
        name=JOINTS[4], parent="wrist_link", child="gripper_link", origin_m=(0.0, -0.0611, 0.0181), rpy_rad=(pi / 2, 0.0486795, pi)
    ),
    JointFrame(
        name="tool", kind="fixed", parent="gripper_link", child="gripper_frame_link", origin_m=(-0.0079, -0.000218121, -0.0981274),
        rpy_rad=(0.0, pi, 0.0),
    ),
)  # fmt: skip
_CAPSULES = (
    Capsule(link="base_link", start_m=(0.0, 0.0, 0.03), end_m=(0.03, 0.0, 0.03), radius_m=0.035),
    Capsule(link="shoulder_link", start_m=(-0.01, 0.0, -0.04), end_m=(-0.03, 0.0, -0.04), radius_m=0.025),
    Capsule(link="upper_arm_link", start_m=(0.0, 0.0, 0.0), end_m=(-0.11257, -0.028, 0.0), radius_m=0.022),
    Capsule(link="lower_arm_link", start_m=(0.0, 0.0, 0.0), end_m=(-0.1349, 0.0052, 0.0), radius_m=0.02),
    Capsule(link="wrist_link", start_m=(0.0, 0.0, 0.0), end_m=(0.0, -0.045, 0.01), radius_m=0.02),
    Capsule(link="gripper_link", start_m=(0.0, 0.0, -0.02), end_m=(0.0, 0.0, -0.09), radius_m=0.025),
)


@ROBOTS.add("so101")
def so101() -> RobotConfig:
    """SO-101 follower arm."""
    wire = ((JAW_CLOSED_RAD, JAW_OPEN_RAD), (0.0, OPENING_M))
    sinks = gripper_sinks(JAW, "gripper_controller", wire=wire)
    gripper = GripperWire(joint=JAW, states="/joint_states", sinks=(sinks[2], *sinks[:2], sinks[3]), wire_range=wire[0], si_range=wire[1])
    arm = ArmWire(joints=JOINTS, sinks=ros2_control_sinks(JOINTS), gripper=gripper)
    cameras = (
        Camera(name="front", topic="/front/image_raw"),
        Camera(name="wrist", topic="/wrist/image_raw"),
    )
    contract, others = build_contract("so101", (arm,), (LOW, HIGH), (0.0, OPENING_M), cameras=cameras, rate_hz=30.0, effort=False)
    spec = RobotSpec(
        name="so101",
        joint_names=JOINTS,
        gripper_name=JAW,
        position_low_rad=LOW,
        position_high_rad=HIGH,
        velocity_max_rad_s=(SPEED_RAD_S,) * 5,
        acceleration_max_rad_s2=(2 * SPEED_RAD_S,) * 5,
        gripper_low_m=0.0,
        gripper_high_m=OPENING_M,
        workspace_low_m=(-0.45, -0.45, 0.0),
        workspace_high_m=(0.45, 0.45, 0.5),
        rate_hz=50.0,
        home_rad=(0.0, -1.2, 1.2, 0.7, 0.0),
    )
    return RobotConfig(
        spec=spec,
        contract=contract,
        jerk_max_rad_s3=(50 * SPEED_RAD_S,) * 5,
        effort_max_nm=(TORQUE_NM,) * 5,
        frames=_FRAMES,
        tools=("gripper_frame_link",),
        capsules=_CAPSULES,
        alternatives=others,
        cited={
            "position, frames": "SO-ARM100 Simulation/SO101/so101_new_calib.urdf",
            "velocity, effort": "Feetech STS3215: 45 rpm without load, 30 kg·cm stalled at 12 V (7.4 V servos: half of it)",
            "acceleration": "none published for the arm: the full speed in 0.5 s; LeRobot lets the servos do 39 rad/s²",
            "jerk": "none published: the full acceleration in 40 ms, as the xArm7's",
            "gripper": "jaw angles of the URDF; 0.1 m is the fingertips' distance at the widest, taken as proportional to the angle",
        },
        derived=("acceleration_max_rad_s2", "jerk_max_rad_s3", "gripper", "capsules", "workspace", "home_rad"),
    )
