"""Interbotix ViperX-300 6DOF, and ALOHA's two of them, behind interbotix_xsarm_ros_control.

Sources: positions, velocity, joint origins and fingers: interbotix_xsarm_descriptions/urdf/vx300s.urdf.xacro (velocity limit register
131 of the servos = 30 rpm). Torques: the effort limits of that URDF. Home: the arm's sleep pose is no place to work from, so the pose of
ALOHA's episodes (Zhao et al. 2023, the start of the arms in act). Cameras and 50 Hz: ALOHA. Accelerations: the maker's own
interbotix_xsarm_moveit/config/joint_limits/vx300s_joint_limits.yaml, 5 rad/s²; the profile that its modes.yaml sets in the servos, 25 units
of 214.577 rev/min² (DYNAMIXEL XM430 e-manual), would be 9.4. Nobody publishes jerks.
"""

from __future__ import annotations

from math import pi, radians

from robot_bridge.contract import Sink
from robot_bridge.robots.build import ArmWire, Camera, GripperWire, build_contract, first, ros2_control_sinks
from robot_bridge.robots.config import ROBOTS, Capsule, JointFrame, RobotConfig, Vector
from sinew.protocols import RobotSpec

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
FINGER = "left_finger"
FINGER_CLOSED_M, FINGER_OPEN_M = 0.021, 0.057
OPENING_M = (2 * FINGER_CLOSED_M, 2 * FINGER_OPEN_M)
LOW = (-pi + 1e-5, radians(-106), radians(-101), -pi + 1e-5, radians(-107), -pi + 1e-5)
HIGH = (pi - 1e-5, radians(72), radians(92), pi - 1e-5, radians(128), pi - 1e-5)
EFFORT_NM = (10.0, 20.0, 15.0, 2.0, 5.0, 1.0)
HOME = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
ACCELERATION_RAD_S2 = 5.0
JERK_RAD_S3 = 125.0
BETWEEN_M = 0.938
"""Distance of ALOHA's follower bases, facing each other: the scene file of aloha in MuJoCo Menagerie, 2 x 0.469 m."""
DERIVED = ("jerk_max_rad_s3", "capsules", "workspace")
CITED = {
    "position, velocity, effort, frames": "interbotix_xsarm_descriptions/urdf/vx300s.urdf.xacro",
    "acceleration": "interbotix_xsarm_moveit/config/joint_limits/vx300s_joint_limits.yaml; servos' profile: 9.4 rad/s²",
    "jerk": "none published: the full acceleration in 40 ms, as the xArm7's",
    "gripper": "the fingers' slides of the URDF, 21 to 57 mm each",
}


def frames(label: str = "", base_m: Vector = (0.0, 0.0, 0.0), yaw_rad: float = 0.0) -> tuple[JointFrame, ...]:
    """The tree of one arm whose names start with `label`."""
    x, y = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    chain = (
        ("waist", "shoulder_link", (0.0, 0.0, 0.079), (0.0, 0.0, 1.0)),
        ("shoulder", "upper_arm_link", (0.0, 0.0, 0.04805), y),
        ("elbow", "upper_forearm_link", (0.05955, 0.0, 0.3), y),
        ("forearm_roll", "lower_forearm_link", (0.2, 0.0, 0.0), x),
        ("wrist_angle", "wrist_link", (0.1, 0.0, 0.0), y),
        ("wrist_rotate", "gripper_link", (0.069744, 0.0, 0.0), x),
    )
    base = f"{label}base_link"
    made = [JointFrame(name=f"{label}base", kind="fixed", parent="world", child=base, origin_m=base_m, rpy_rad=(0.0, 0.0, yaw_rad))]
    for name, child, origin, axis in chain:
        made.append(JointFrame(name=label + name, parent=made[-1].child, child=label + child, origin_m=origin, axis=axis))
    # ee_arm, ee_bar and ee_gripper in one
    tip = JointFrame(name=f"{label}tool", kind="fixed", parent=made[-1].child, child=f"{label}ee_gripper_link", origin_m=(0.1072, 0.0, 0.0))
    return (*made, tip)


def capsules(label: str = "") -> tuple[Capsule, ...]:
    """Bodies of one arm."""
    parts = (
        ("base_link", (-0.06, 0.0, 0.04), (0.02, 0.0, 0.04), 0.05),
        ("shoulder_link", (0.0, 0.0, 0.0), (0.0, 0.0, 0.04), 0.045),
        ("upper_arm_link", (0.0, 0.0, 0.04), (0.0, 0.0, 0.3), 0.04),
        ("upper_forearm_link", (0.0, 0.0, 0.0), (0.2, 0.0, 0.0), 0.035),
        ("lower_forearm_link", (0.0, 0.0, 0.0), (0.06, 0.0, 0.0), 0.035),
        ("wrist_link", (0.0, 0.0, 0.0), (0.06, 0.0, 0.0), 0.035),
        ("gripper_link", (0.0, -0.05, 0.05), (0.0, 0.05, 0.05), 0.04),
        ("gripper_link", (0.08, -0.04, 0.0), (0.08, 0.04, 0.0), 0.025),
    )
    return tuple(Capsule(link=label + link, start_m=start, end_m=end, radius_m=radius) for link, start, end, radius in parts)


def arm_wire(namespace: str, label: str = "") -> ArmWire:
    """One arm in a namespace."""
    gripper = GripperWire(
        joint=FINGER,
        states=f"{namespace}/joint_states",
        sinks=(
            Sink(
                value="gripper", kind="gripper_trajectory", topic=f"{namespace}/gripper_controller/joint_trajectory", joints=(FINGER,),
                controller="gripper_controller", manager=f"{namespace}/controller_manager",
                wire_range=(FINGER_CLOSED_M, FINGER_OPEN_M), si_range=OPENING_M,
            ),
        ),
        wire_range=(FINGER_CLOSED_M, FINGER_OPEN_M),
        si_range=OPENING_M,
    )  # fmt: skip
    sinks = ros2_control_sinks(JOINTS, namespace=namespace, trajectory="arm_controller", base=f"{namespace.strip('/')}/base_link")
    return ArmWire(joints=JOINTS, states=f"{namespace}/joint_states", sinks=first("trajectory", sinks), gripper=gripper, label=label)


def _config(name: str, wires: tuple[ArmWire, ...], cameras: tuple[Camera, ...], geometry: tuple[JointFrame, ...]) -> RobotConfig:
    arms = len(wires)
    labels = [wire.label for wire in wires]
    contract, others = build_contract(name, wires, (LOW * arms, HIGH * arms), OPENING_M, cameras=cameras, rate_hz=50.0)
    wide = 0.75 if arms == 1 else 1.0
    spec = RobotSpec(
        name=name,
        joint_names=tuple(label + joint for label in labels for joint in JOINTS),
        gripper_name=FINGER if arms == 1 else "gripper",
        position_low_rad=LOW * arms,
        position_high_rad=HIGH * arms,
        velocity_max_rad_s=(pi,) * 6 * arms,
        acceleration_max_rad_s2=(ACCELERATION_RAD_S2,) * 6 * arms,
        gripper_low_m=OPENING_M[0],
        gripper_high_m=OPENING_M[1],
        workspace_low_m=(-wide, -0.75, 0.0),
        workspace_high_m=(wide, 0.75, 0.9),
        rate_hz=100.0,
        home_rad=HOME * arms,
    )
    return RobotConfig(
        spec=spec,
        contract=contract,
        jerk_max_rad_s3=(JERK_RAD_S3,) * 6 * arms,
        effort_max_nm=EFFORT_NM * arms,
        frames=geometry,
        tools=tuple(f"{label}ee_gripper_link" for label in labels),
        capsules=tuple(capsule for label in labels for capsule in capsules(label)),
        alternatives=others,
        cited=CITED,
        derived=DERIVED,
    )


@ROBOTS.add("vx300s")
def vx300s() -> RobotConfig:
    """One ViperX-300 6DOF."""
    cameras = (Camera(name="front", topic="/front/image_raw"), Camera(name="wrist", topic="/wrist/image_raw"))
    return _config("vx300s", (arm_wire("/vx300s"),), cameras, frames())


@ROBOTS.add("aloha")
def aloha() -> RobotConfig:
    """ALOHA's two follower arms and four cameras, by the names of its ROS 2 launch files."""
    wires = (arm_wire("/follower_left", "left_"), arm_wire("/follower_right", "right_"))
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    cameras = tuple(Camera(name=name, topic=f"/{name}/camera/color/image_rect_raw") for name in names)
    left = frames("left_", (-BETWEEN_M / 2, 0.0, 0.0))
    right = frames("right_", (BETWEEN_M / 2, 0.0, 0.0), pi)
    return _config("aloha", wires, cameras, left + right)
