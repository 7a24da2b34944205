"""Franka Research 3 with the Franka Hand, as franka_ros2 names things.

Sources: positions, velocities, torques: franka_description, robots/fr3/joint_limits.yaml (the FCI documentation's table; the velocity
limits shrink near the position limits, which the robot itself enforces). Accelerations and jerks: FCI documentation and libfranka,
rate_limiting.h: 10 rad/s² and 5000 rad/s³. Joint origins: franka_description, robots/fr3/kinematics.yaml, the Denavit-Hartenberg
parameters of the FCI documentation. Hand: franka_description, end_effectors/franka_hand: fingers 0 to 0.04 m each at 0.2 m/s at most
(0.1 m/s by default), hand_tcp 0.1034 m; 70 N continuous force, Franka Hand product manual. Capsules: the self-collision
capsules of franka_description, slightly simplified.
"""

from __future__ import annotations

from math import pi

from robot_bridge.contract import Sink
from robot_bridge.robots.build import ArmWire, Camera, GripperWire, build_contract, first, ros2_control_sinks
from robot_bridge.robots.config import ROBOTS, Capsule, JointFrame, RobotConfig
from sinew.protocols import RobotSpec

JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
FINGER = "fr3_finger_joint1"
FINGER_OPEN_M, OPENING_M = 0.04, 0.08
LOW = (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159)
HIGH = (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159)

_ORIGINS = (
    ((0.0, 0.0, 0.333), 0.0),
    ((0.0, 0.0, 0.0), -pi / 2),
    ((0.0, -0.316, 0.0), pi / 2),
    ((0.0825, 0.0, 0.0), pi / 2),
    ((-0.0825, 0.384, 0.0), -pi / 2),
    ((0.0, 0.0, 0.0), pi / 2),
    ((0.088, 0.0, 0.0), pi / 2),
)
_FRAMES = (
    JointFrame(name="base", kind="fixed", parent="world", child="fr3_link0"),
    *(
        JointFrame(name=name, parent=f"fr3_link{i}", child=f"fr3_link{i + 1}", origin_m=origin, rpy_rad=(roll, 0.0, 0.0))
        for i, (name, (origin, roll)) in enumerate(zip(JOINTS, _ORIGINS, strict=True))
    ),
    JointFrame(name="hand", kind="fixed", parent="fr3_link7", child="fr3_hand", origin_m=(0.0, 0.0, 0.107), rpy_rad=(0.0, 0.0, -pi / 4)),
    JointFrame(name="tool", kind="fixed", parent="fr3_hand", child="fr3_hand_tcp", origin_m=(0.0, 0.0, 0.1034)),
)
_CAPSULES = (
    Capsule(link="fr3_link0", start_m=(-0.09, 0.0, 0.06), end_m=(-0.06, 0.0, 0.06), radius_m=0.06),
    Capsule(link="fr3_link1", start_m=(0.0, 0.0, -0.333), end_m=(0.0, 0.0, -0.05), radius_m=0.06),
    Capsule(link="fr3_link2", start_m=(0.0, 0.0, -0.06), end_m=(0.0, 0.0, 0.06), radius_m=0.06),
    Capsule(link="fr3_link3", start_m=(0.0, 0.0, -0.22), end_m=(0.0, 0.0, -0.07), radius_m=0.06),
    Capsule(link="fr3_link4", start_m=(0.0, 0.0, -0.06), end_m=(0.0, 0.0, 0.06), radius_m=0.06),
    Capsule(link="fr3_link5", start_m=(0.0, 0.0, -0.31), end_m=(0.0, 0.0, -0.21), radius_m=0.06),
    Capsule(link="fr3_link5", start_m=(0.0, 0.08, -0.2), end_m=(0.0, 0.08, -0.06), radius_m=0.025),
    Capsule(link="fr3_link6", start_m=(0.0, 0.0, -0.07), end_m=(0.0, 0.0, 0.01), radius_m=0.05),
    Capsule(link="fr3_link7", start_m=(0.0, 0.0, -0.06), end_m=(0.0, 0.0, 0.08), radius_m=0.04),
    Capsule(link="fr3_hand", start_m=(0.0, -0.05, 0.04), end_m=(0.0, 0.05, 0.04), radius_m=0.04),
    Capsule(link="fr3_hand", start_m=(0.0, -0.05, 0.1), end_m=(0.0, 0.05, 0.1), radius_m=0.02),
)


@ROBOTS.add("fr3")
def fr3() -> RobotConfig:
    """Franka Research 3 with Franka Hand."""
    # the position of a GripperCommand is that of one finger; franka_gripper doubles it
    grip = Sink(
        value="gripper", kind="gripper_action", topic="/franka_gripper/gripper_action", joints=(FINGER,), effort_n=40.0,
        wire_range=(0.0, FINGER_OPEN_M), si_range=(0.0, OPENING_M),
    )  # fmt: skip
    gripper = GripperWire(
        joint=FINGER,
        states="/franka_gripper/joint_states",
        sinks=(grip,),
        wire_range=(0.0, FINGER_OPEN_M),
        si_range=(0.0, OPENING_M),
    )
    sinks = first("trajectory", ros2_control_sinks(JOINTS, trajectory="fr3_arm_controller", base="fr3_link0"))
    # franka.launch publishes the arm's states at the controller's rate here; /joint_states is merged at 30 Hz
    arm = ArmWire(joints=JOINTS, states="/franka/joint_states", sinks=sinks, gripper=gripper)
    cameras = (
        Camera(name="front", topic="/front/image_raw"),
        Camera(name="wrist", topic="/wrist/image_raw"),
    )
    contract, others = build_contract("fr3", (arm,), (LOW, HIGH), (0.0, OPENING_M), cameras=cameras)
    spec = RobotSpec(
        name="fr3",
        joint_names=JOINTS,
        gripper_name=FINGER,
        position_low_rad=LOW,
        position_high_rad=HIGH,
        velocity_max_rad_s=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
        acceleration_max_rad_s2=(10.0,) * 7,
        gripper_low_m=0.0,
        gripper_high_m=OPENING_M,
        workspace_low_m=(-0.855, -0.855, 0.0),
        workspace_high_m=(0.855, 0.855, 1.2),
        rate_hz=1000.0,
        home_rad=(0.0, -pi / 4, 0.0, -3 * pi / 4, 0.0, pi / 2, pi / 4),
    )
    return RobotConfig(
        spec=spec,
        contract=contract,
        jerk_max_rad_s3=(5000.0,) * 7,
        effort_max_nm=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
        gripper_velocity_max_m_s=0.2,
        gripper_force_max_n=70.0,
        frames=_FRAMES,
        tools=("fr3_hand_tcp",),
        capsules=_CAPSULES,
        alternatives=others,
        cited={
            "position, velocity, effort": "franka_description robots/fr3/joint_limits.yaml; velocities shrink near position limits",
            "acceleration, jerk": "FCI documentation and libfranka rate_limiting.h: 10 rad/s², 5000 rad/s³",
            "rate": "FCI, 1 kHz; workspace: reach 855 mm, FR3 datasheet",
            "home": "the ready pose of libfranka's examples",
            "frames": "FCI documentation, Denavit-Hartenberg parameters; hand_tcp 0.1034 m",
            "gripper": "Franka Hand: 80 mm, 70 N continuous; 0.2 m/s of franka_description",
        },
    )
