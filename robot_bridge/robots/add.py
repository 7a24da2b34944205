"""A config for a robot that nobody has described yet: from its URDF, and from what it says on the network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import pi

import numpy as np

from robot_bridge.contract import Sink
from robot_bridge.dds import codec
from robot_bridge.robots.build import ArmWire, GripperWire, build_contract, gripper_sinks, ros2_control_sinks
from robot_bridge.robots.config import Capsule, JointFrame, RobotConfig
from robot_bridge.robots.urdf import Urdf, UrdfJoint, read_urdf
from robot_bridge.transport import LATCHED, SENSOR, Transport
from sinew.errors import InputError
from sinew.protocols import RobotSpec

DESCRIPTION = "/robot_description"
FULL_SPEED_S = 0.5
"""Time to the full speed, where no acceleration is known."""
FULL_ACCELERATION_S = 0.04
"""Time to the full acceleration, where no jerk is known: the longest that a datasheet of our robots gives."""
EFFORT_NM = 10.0
RADIUS_M = 0.05
"""Of the links' capsules."""
TURNS_RAD = 2 * pi
"""Either way, for joints that turn without end."""
GRIPPING = ("finger", "gripper", "knuckle", "jaw", "drive")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a URDF does not tell."""

    joints: tuple[str, ...] = ()
    """Arm joints, base to tool; those on the way to the tool if left out."""
    tool: str = ""
    """Link between the fingers; the end of the longest chain of joints if left out."""
    gripper: str = ""
    """Joint that drives the gripper; found by its name if left out."""
    opening_m: tuple[float, ...] = ()
    """Openings at the gripper joint's lower and upper limit."""
    velocity: tuple[float, ...] = ()
    """Largest joint speeds, rad/s: one, or one for each; the URDF's if left out."""
    acceleration: tuple[float, ...] = ()
    """Largest accelerations, rad/s², likewise; derived from the speeds if left out."""
    home: tuple[float, ...] = ()
    """Home pose, rad."""
    namespace: str = ""
    """Of topics and controllers, "/left"."""
    rate_hz: float = 100.0
    """Commands per second that the controller expects."""


def from_urdf(name: str, urdf: Urdf, choice: Choice, *, states: str = "", sinks: Sequence[Sink] = ()) -> RobotConfig:
    """A robot's config.

    Args:
        name: what it shall be called.
        urdf: its tree and limits.
        choice: what the URDF does not tell.
        states: topic of its joint states; /joint_states in the namespace if left out.
        sinks: controllers that it has, the usual ones if left out.

    Raises:
        InputError: a joint or link does not exist, or a limit is missing.
    """
    derived = ["jerk_max_rad_s3", "capsules", "workspace"]
    tool = choice.tool or _end(urdf)
    arm = [urdf.joint(j) for j in choice.joints] if choice.joints else [j for j in urdf.chain(tool) if j in urdf.moving]
    gripper = _gripper(urdf, arm, choice)
    arm = [joint for joint in arm if gripper is None or joint.frame.name != gripper.frame.name]
    if not arm:
        raise InputError(f"no joint moves link {tool!r} of {urdf.name!r}; name the arm's joints with --joints or the tool with --tool")
    names = tuple(joint.frame.name for joint in arm)
    low, high = _positions(arm, derived)
    velocity = _speeds(arm, choice.velocity)
    acceleration = _each(choice.acceleration, len(arm), "--acceleration")
    if not acceleration:
        acceleration = tuple(v / FULL_SPEED_S for v in velocity)
        derived.append("acceleration_max_rad_s2")
    if any(joint.effort is None for joint in arm):
        derived.append("effort_max_nm")
    space, opening = choice.namespace.rstrip("/"), _opening(urdf, gripper, choice)
    states = states or f"{space}/joint_states"
    wires = ArmWire(
        joints=names,
        states=states,
        sinks=tuple(sinks) or ros2_control_sinks(names, namespace=space),
        gripper=None if gripper is None else _gripper_wire(gripper, opening, states, space),
    )
    smallest, largest = min(opening), max(opening)
    contract, others = build_contract(name, (wires,), (low, high), (smallest, largest), effort=False)
    frames = _frames(urdf)
    reach = float(sum(np.linalg.norm(joint.frame.origin_m) for joint in urdf.chain(tool)))
    spec = RobotSpec(
        name=name,
        joint_names=names,
        gripper_name=None if gripper is None else gripper.frame.name,
        position_low_rad=low,
        position_high_rad=high,
        velocity_max_rad_s=velocity,
        acceleration_max_rad_s2=acceleration,
        gripper_low_m=smallest,
        gripper_high_m=largest,
        workspace_low_m=(-reach, -reach, 0.0),
        workspace_high_m=(reach, reach, reach),
        rate_hz=choice.rate_hz,
        home_rad=_each(choice.home, len(arm), "--home", whole=True),
    )
    return RobotConfig(
        spec=spec,
        contract=contract,
        jerk_max_rad_s3=tuple(a / FULL_ACCELERATION_S for a in acceleration),
        effort_max_nm=tuple(joint.effort or EFFORT_NM for joint in arm),
        frames=frames,
        tools=(tool,),
        capsules=_capsules(urdf, tool),
        alternatives=others,
        cited={"joints, limits, frames": f"URDF of {urdf.name!r}"},
        derived=tuple(derived),
    )


# ---------------------------------------------------------------- the network


def from_network(name: str, transport: Transport, choice: Choice, timeout_s: float = 10.0) -> RobotConfig:
    """A config from /robot_description, the joint states and the command topics that a living robot shows.

    Raises:
        InputError: no description came, or as `from_urdf`.
    """
    space = choice.namespace.rstrip("/")
    description = transport.subscription(space + DESCRIPTION, "std_msgs/String", LATCHED)
    deadline = time.monotonic() + timeout_s
    sample = None
    while sample is None:
        if time.monotonic() > deadline:
            seen = ", ".join(sorted(transport.topics())) or "none"
            raise InputError(
                f"nothing came on {space}{DESCRIPTION} within {timeout_s:g} s on DDS domain {transport.domain} ({transport.reach}); topics "
                f"seen: {seen}; start robot_state_publisher, or give the file with --urdf"
            )
        description.wait(0.1)
        sample = description.newest()
    urdf = read_urdf(codec.decode(sample.data, "std_msgs/String").data, space + DESCRIPTION)
    draft = from_urdf(name, urdf, choice)
    names = draft.spec.joint_names
    states = _states_with(transport, names, min(deadline, time.monotonic() + 2.0)) or f"{space}/joint_states"
    return from_urdf(name, urdf, choice, states=states, sinks=_controllers(transport.topics(), names, space))


def _states_with(transport: Transport, names: Sequence[str], deadline: float) -> str:
    """The topic whose joint states name all of these joints; empty when none was seen in time."""
    topics = [topic for topic, message in transport.topics().items() if message == "sensor_msgs/JointState"]
    heard = {topic: transport.subscription(topic, "sensor_msgs/JointState", SENSOR) for topic in topics}
    while heard and time.monotonic() < deadline:
        for topic, subscription in heard.items():
            sample = subscription.newest()
            if sample is not None and set(names) <= set(codec.decode_joint_state(sample.data).names):
                return topic
        time.sleep(0.02)
    return ""


def _controllers(topics: Mapping[str, str], names: Sequence[str], namespace: str) -> tuple[Sink, ...]:
    """The usual controllers, those first whose command topic somebody takes."""
    trajectory = [t for t, m in topics.items() if m == "trajectory_msgs/JointTrajectory" and t.endswith("/joint_trajectory")]
    arm = [t for t in trajectory if not any(word in t for word in (*GRIPPING, "hand"))]
    controller = arm[0].split("/")[-2] if arm else "joint_trajectory_controller"
    sinks = ros2_control_sinks(names, namespace=namespace, trajectory=controller)
    return tuple(sorted(sinks, key=lambda sink: sink.topic not in topics))


# ---------------------------------------------------------------- pieces


def _end(urdf: Urdf) -> str:
    """The link with the most moving joints before it; of several the first."""
    best, most = urdf.root, 0
    for joint in urdf.joints:
        chain = [j for j in urdf.chain(joint.frame.child) if j in urdf.moving and not _grips(j)]
        farther = len(chain) == most and joint.frame.parent == best and joint.kind == "fixed"
        if len(chain) > most or farther:
            best, most = joint.frame.child, len(chain)
    return best


def _grips(joint: UrdfJoint) -> bool:
    return any(word in joint.frame.name.lower() for word in GRIPPING)


def _gripper(urdf: Urdf, arm: Sequence[UrdfJoint], choice: Choice) -> UrdfJoint | None:
    if choice.gripper:
        return urdf.joint(choice.gripper)
    named = [joint for joint in urdf.moving if _grips(joint) and joint not in arm]
    return named[0] if named else None


def _positions(arm: Sequence[UrdfJoint], derived: list[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = [], []
    for joint in arm:
        if joint.kind == "continuous":
            derived.append(f"position limits of {joint.frame.name} (it turns without end)")
            low.append(-TURNS_RAD)
            high.append(TURNS_RAD)
        elif joint.low is None or joint.high is None or not joint.low < joint.high:
            raise InputError(
                f"joint {joint.frame.name!r} has position limits {joint.low} to {joint.high} in the URDF: give it <limit lower upper>"
            )
        else:
            low.append(joint.low)
            high.append(joint.high)
    return tuple(low), tuple(high)


def _speeds(arm: Sequence[UrdfJoint], given: tuple[float, ...]) -> tuple[float, ...]:
    chosen = _each(given, len(arm), "--velocity")
    if chosen:
        return chosen
    missing = [joint.frame.name for joint in arm if not joint.velocity or joint.velocity <= 0]
    if missing:
        raise InputError(f"joints {', '.join(missing)} have no velocity limit in the URDF: give the datasheet's with --velocity, rad/s")
    return tuple(float(joint.velocity or 0.0) for joint in arm)


def _each(values: tuple[float, ...], count: int, option: str, *, whole: bool = False) -> tuple[float, ...]:
    """One value for every joint."""
    if not values:
        return ()
    if len(values) == 1 and not whole:
        values = values * count
    if len(values) != count or (not whole and min(values) <= 0):
        raise InputError(f"{option} {values}: give one value, or one above 0 for each of the {count} joints")
    return values


def _opening(urdf: Urdf, gripper: UrdfJoint | None, choice: Choice) -> tuple[float, float]:
    """Openings in metres at the gripper joint's lower and upper limit."""
    if gripper is None:
        return 0.0, 0.1
    if choice.opening_m:
        if len(choice.opening_m) != 2 or choice.opening_m[0] == choice.opening_m[1]:
            raise InputError(f"--opening {choice.opening_m}: give the openings in metres at the gripper joint's lower and upper limit")
        return choice.opening_m[0], choice.opening_m[1]
    if gripper.kind != "prismatic" or gripper.low is None or gripper.high is None:
        raise InputError(
            f"gripper joint {gripper.frame.name!r} turns: give the openings in metres at its lower and upper limit, as --opening 0.085 0"
        )
    fingers = 1 + sum(joint.mimics == gripper.frame.name for joint in urdf.joints)
    return fingers * max(gripper.low, 0.0), fingers * gripper.high


def _gripper_wire(gripper: UrdfJoint, opening: tuple[float, float], states: str, space: str) -> GripperWire:
    ends = (gripper.low if gripper.low is not None else 0.0, gripper.high if gripper.high is not None else 1.0)
    sinks = gripper_sinks(gripper.frame.name, "gripper_controller", namespace=space, wire=(ends, opening))
    return GripperWire(joint=gripper.frame.name, states=states, sinks=sinks, wire_range=ends, si_range=opening)


def _frames(urdf: Urdf) -> tuple[JointFrame, ...]:
    """The URDF's joints, under a world that is its root where it has none of that name."""
    frames = tuple(joint.frame for joint in urdf.joints)
    if urdf.root == "world":
        return frames
    return (JointFrame(name="world_to_root", kind="fixed", parent="world", child=urdf.root), *frames)


def _capsules(urdf: Urdf, tool: str) -> tuple[Capsule, ...]:
    """A rod from each link's frame to the next joint on the way to the tool."""
    chain = urdf.chain(tool)
    made = []
    for joint, following in pairwise(chain):
        if np.linalg.norm(following.frame.origin_m) > RADIUS_M:
            made.append(Capsule(link=joint.frame.child, start_m=(0.0, 0.0, 0.0), end_m=following.frame.origin_m, radius_m=RADIUS_M))
    return tuple(made)
