"""Contract and spec of a robot from what its arms say on the wire: what every ros2_control arm has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robot_bridge.contract import COMMANDED, Contract, Feature, Sink, Source
from sinew.errors import InputError
from sinew.specs import IMAGES, STATE, ActionSpec

JOINT_STATE = "sensor_msgs/JointState"
FLOATS = "std_msgs/Float64MultiArray"
TRAJECTORY = "trajectory_msgs/JointTrajectory"


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera of a robot."""

    name: str
    topic: str
    compressed: bool = False
    height: int = 480
    width: int = 640


@dataclass(frozen=True, kw_only=True)
class GripperWire:
    """How a gripper is measured and commanded."""

    joint: str
    """Joint in the joint states that tells the opening."""
    states: str
    """Topic of these."""
    sinks: tuple[Sink, ...]
    """Ways to command it, the usual one first."""
    wire_range: tuple[float, ...] = ()
    """Joint positions that stand for the openings of `si_range`."""
    si_range: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ArmWire:
    """How an arm is measured and commanded."""

    joints: tuple[str, ...]
    """Names on the wire, base to tool."""
    states: str = "/joint_states"
    sinks: tuple[Sink, ...]
    """Ways to command it, the usual one first."""
    gripper: GripperWire | None = None
    label: str = ""
    """Goes before the names where two arms have the same: "left_"."""


def ros2_control_sinks(
    joints: Sequence[str], *, namespace: str = "", trajectory: str = "joint_trajectory_controller", base: str = "base_link"
) -> tuple[Sink, ...]:
    """The controllers of ros2_controllers that an arm usually has, and MoveIt Servo, which is told twists in frame `base`.

    Names of topics and actions: forward_command_controller, joint_trajectory_controller and moveit_servo documentation.
    """
    names, manager = tuple(joints), f"{namespace}/controller_manager"

    def sink(kind: str, topic: str, controller: str, **more: str | int) -> Sink:
        values = {"value": "joint_position", "kind": kind, "topic": f"{namespace}/{topic}", "joints": names, **more}
        return Sink(controller=controller, manager=manager, **values)  # type: ignore[arg-type]  # literals, by construction

    return (
        sink("position", "forward_position_controller/commands", "forward_position_controller"),
        sink("trajectory", f"{trajectory}/joint_trajectory", trajectory, points=20),
        sink("trajectory_action", f"{trajectory}/follow_joint_trajectory", trajectory, points=20),
        sink("velocity", "forward_velocity_controller/commands", "forward_velocity_controller"),
        sink("twist", "servo_node/delta_twist_cmds", "", frame=base),
    )


def gripper_sinks(
    joint: str,
    controller: str,
    *,
    namespace: str = "",
    effort_n: float = 0.0,
    wire: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
) -> tuple[Sink, ...]:
    """The ways to command a gripper that ros2_controllers has: actions of its gripper controllers, or a stream of positions.

    Args:
        joint: the joint that is commanded.
        controller: name of its controller.
        namespace: of the robot, "/left".
        effort_n: largest force that is asked for.
        wire: `wire_range` and `si_range` of the joint's positions.
    """

    def sink(kind: str, topic: str, name: str) -> Sink:
        return Sink(
            value="gripper", kind=kind, topic=f"{namespace}/{topic}", joints=(joint,), controller=name,  # type: ignore[arg-type]
            manager=f"{namespace}/controller_manager", effort_n=effort_n, wire_range=wire[0], si_range=wire[1],
        )  # fmt: skip

    return (
        sink("gripper_action", f"{controller}/gripper_cmd", controller),
        sink("parallel_gripper_action", f"{controller}/gripper_cmd", controller),
        sink("gripper_position", "forward_gripper_position_controller/commands", "forward_gripper_position_controller"),
        sink("gripper_trajectory", f"{controller}/joint_trajectory", controller),
    )


def build_contract(
    robot: str,
    arms: Sequence[ArmWire],
    limits: tuple[Sequence[float], Sequence[float]],
    opening_m: tuple[float, float],
    *,
    cameras: Sequence[Camera] = (),
    rate_hz: float = 20.0,
    effort: bool = True,
) -> tuple[Contract, tuple[Sink, ...]]:
    """The contract of arms whose policies command joint positions and openings, and their other controllers.

    Args:
        robot: its name.
        arms: in command order.
        limits: lowest and highest joint positions of all arms, rad.
        opening_m: smallest and largest opening of the grippers.
        cameras: theirs; none is required of a living robot.
        rate_hz: frames per second.
        effort: whether the joint states hold efforts.
    """
    sources = [source for arm in arms for source in _joint_sources(arm, effort)]
    sources += [_gripper_source(arm) for arm in arms if arm.gripper]
    sinks = [arm.sinks[0] for arm in arms] + [arm.gripper.sinks[0] for arm in arms if arm.gripper]
    labels = [arm.label for arm in arms for _ in arm.sinks[:1]] + [arm.label for arm in arms if arm.gripper]
    spare = [s for arm in arms for s in arm.sinks[1:]] + [s for arm in arms if arm.gripper for s in arm.gripper.sinks[1:]]
    commands, recorded = read_back(sinks, labels)
    sources += commands
    state = ("joint_position", "joint_velocity") + (("gripper",) if any(arm.gripper for arm in arms) else ())
    features = [Feature(key=STATE, values=state)]
    for camera in cameras:
        message = "sensor_msgs/CompressedImage" if camera.compressed else "sensor_msgs/Image"
        key = f"images.{camera.name}"
        sources.append(Source(key=key, topic=camera.topic, message=message, field="image", alignment="nearest", required=False))
        features.append(Feature(key=IMAGES + camera.name, values=(key,), height=camera.height, width=camera.width))
    names = [arm.label + joint for arm in arms for joint in arm.joints]
    grippers = [f"{arm.label}gripper" for arm in arms if arm.gripper]
    action = ActionSpec(
        kind="joint_position",
        low=(*limits[0], *[opening_m[0]] * len(grippers)),
        high=(*limits[1], *[opening_m[1]] * len(grippers)),
        rate_hz=rate_hz,
        names=(*names, *grippers),
    )
    contract = Contract(
        robot=robot, rate_hz=rate_hz, sources=tuple(sources), features=tuple(features), sinks=tuple(sinks), action=action,
        action_values=tuple(recorded),
    )  # fmt: skip
    return contract, tuple(spare)


def _joint_sources(arm: ArmWire, effort: bool) -> list[Source]:
    fields = {"joint_position": "position", "joint_velocity": "velocity"} | ({"joint_effort": "effort"} if effort else {})
    return [
        Source(
            key=key, topic=arm.states, message=JOINT_STATE, field=field, names=arm.joints, label=arm.label,
            alignment="interpolate", required=key == "joint_position",
        )
        for key, field in fields.items()
    ]  # fmt: skip


def _gripper_source(arm: ArmWire) -> Source:
    gripper = arm.gripper
    if gripper is None:
        raise InputError("an arm without a gripper measures none")
    return Source(
        key="gripper", topic=gripper.states, message=JOINT_STATE, field="position", names=(gripper.joint,), label=arm.label,
        alignment="interpolate", wire_range=gripper.wire_range, si_range=gripper.si_range,
    )  # fmt: skip


def read_back(sinks: Sequence[Sink], labels: Sequence[str]) -> tuple[list[Source], list[str]]:
    """How a recording tells what sinks were sent.

    Args:
        sinks: joints before grippers.
        labels: of the arm that each is of.

    Returns:
        Sources of what was commanded, and the values that hold the action. What is told by goals, velocities or twists is on no
        topic as positions: there what the robot did stands for what it was told.
    """
    sources: list[Source] = []
    values: list[str] = []
    for value in dict.fromkeys(sink.value for sink in sinks):
        own = [_commanded(sink, label, sinks) for sink, label in zip(sinks, labels, strict=True) if sink.value == value]
        sources += [source for source in own if source] if all(own) else []
        values.append(COMMANDED + value if all(own) else value)
    return sources, values


def _commanded(sink: Sink, label: str, sinks: Sequence[Sink]) -> Source | None:
    """The source that reads back from a recording what one of the sinks was sent; None where that is on no topic."""
    start = 0
    if sink.kind in ("position", "gripper_position"):
        message, field = FLOATS, "data"
        before = sinks[: sinks.index(sink)]
        start = sum(len(other.joints) for other in before if (other.kind, other.topic) == (sink.kind, sink.topic))
    elif sink.kind in ("trajectory", "gripper_trajectory"):
        message, field = TRAJECTORY, "position"
    else:
        return None
    return Source(
        key=COMMANDED + sink.value, topic=sink.topic, message=message, field=field, names=sink.joints, label=label, start=start,
        unit=sink.unit, wire_range=sink.wire_range, si_range=sink.si_range, stamp="receipt", required=False,
    )  # fmt: skip


def first(kind: str, sinks: Sequence[Sink]) -> tuple[Sink, ...]:
    """Sinks with those of a kind before the others."""
    return tuple(sorted(sinks, key=lambda sink: sink.kind != kind))
