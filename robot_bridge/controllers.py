"""From a gated command to what ros2_control and its neighbours understand: one controller per kind of a contract's sinks.

| kind                    | what is sent                                            | when nothing comes any more       | `stop`        |
|-------------------------|---------------------------------------------------------|-----------------------------------|---------------|
| position                | Float64MultiArray: positions                            | stays at the last one             | measured pose |
| trajectory              | JointTrajectory: the next point, then the way to rest   | comes to rest on what was sent    | measured pose |
| trajectory_action       | FollowJointTrajectory goals, ten a second at most       | comes to rest on what was sent    | goal canceled |
| velocity                | Float64MultiArray: velocities                           | GOES ON; `watch` sends zeros      | zeros         |
| twist                   | TwistStamped to MoveIt Servo                            | Servo's time-out; `watch` zeros   | zeros         |
| gripper_action          | GripperCommand goals, when the opening changes          | ends its goal                     | stays         |
| parallel_gripper_action | ParallelGripperCommand goals, when the opening changes  | ends its goal                     | stays         |
| gripper_position        | Float64MultiArray: positions                            | stays at the last one             | measured      |
| gripper_trajectory      | JointTrajectory of one point                            | stays at the last one             | measured      |

`write` never blocks: goals are sent by a thread of their own. Streams are in `robot_bridge.streams`, actions in `robot_bridge.goals`.
forward_command_controller has no time-out of its own, so a velocity controller keeps moving when this process dies: give the driver
one, or prefer positions.

Sources: ros2_controllers documentation (forward_command_controller, joint_trajectory_controller, gripper controllers), MoveIt
Servo, control_msgs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from robot_bridge.contract import Sink
from robot_bridge.dds.messages import make
from robot_bridge.goals import GripperGoals, TrajectoryGoals
from robot_bridge.robots.config import RobotConfig
from robot_bridge.streams import FLOATS, TRAJECTORY, TWIST, Part, PositionStream, TrajectoryStream, TwistStream, VelocityStream
from robot_bridge.transport import NEWEST, Transport
from sinew.errors import InputError
from sinew.protocols import Command


class Controller(Protocol):
    """Takes a part of every command."""

    sinks: tuple[Sink, ...]
    problem: str
    """Why it cannot do its work any more; empty while it can."""

    @property
    def taken(self) -> bool:
        """Whether somebody takes what it sends."""
        ...

    def write(self, command: Command, measured: np.ndarray | None) -> None:
        """Send a command's part; never blocks.

        Args:
            command: gated.
            measured: (J,) joint positions now; None where they are not known.
        """
        ...

    def stop(self, joints: np.ndarray | None, gripper: np.ndarray | None) -> None:
        """Stand still, where the robot is measured to be."""
        ...

    def clear(self) -> None:
        """Forget a problem, and what was to be sent before it."""
        ...

    def watch(self, now_ns: int) -> None:
        """Called every few milliseconds by a thread that is not the control thread."""
        ...

    def close(self) -> None: ...


def make_controllers(config: RobotConfig, transport: Transport, sinks: Sequence[Sink] | None = None) -> list[Controller]:
    """A controller for every sink; sinks of one kind on one topic are sent in one message.

    Raises:
        InputError: twists for a robot whose frames are not known.
    """
    at = {"joint_position": 0, "gripper": 0}
    groups: dict[tuple[str, str], list[Part]] = {}
    for sink in config.contract.sinks if sinks is None else sinks:
        start = at[sink.value]
        at[sink.value] = start + len(sink.joints)
        groups.setdefault((sink.kind, sink.topic), []).append((sink, slice(start, at[sink.value])))
    made: list[Controller] = []
    for (kind, topic), parts in groups.items():
        if kind in ("position", "gripper_position"):
            made.append(PositionStream(transport.publisher(topic, FLOATS, NEWEST), parts))
        elif kind in ("trajectory", "gripper_trajectory"):
            made.append(TrajectoryStream(transport.publisher(topic, TRAJECTORY, NEWEST), parts))
        elif kind == "velocity":
            made.append(VelocityStream(transport.publisher(topic, FLOATS, NEWEST), parts, config))
        elif kind == "twist":
            made.append(TwistStream(transport.publisher(topic, TWIST, NEWEST), parts, config))
        elif kind == "trajectory_action":
            made.append(TrajectoryGoals(transport.action_client(topic, "control_msgs/FollowJointTrajectory"), parts))
        else:
            action = "control_msgs/GripperCommand" if kind == "gripper_action" else "control_msgs/ParallelGripperCommand"
            made.append(GripperGoals(transport.action_client(topic, action), parts, config))
    return made


def inactive(transport: Transport, sinks: Sequence[Sink], timeout_s: float = 2.0) -> str:
    """What the controller managers say about a contract's controllers; empty where all are active or nobody can be asked.

    Asked is list_controllers, where it is served by somebody whose services can be reached; else the absence of a subscriber
    must tell.
    """
    told = []
    services = transport.services()
    for manager in dict.fromkeys(sink.manager for sink in sinks if sink.controller):
        service = f"{manager}/list_controllers"
        if service not in services:
            continue
        try:
            client = transport.client(service, "controller_manager_msgs/ListControllers")
            states = {c.name: c.state for c in client.call(make("controller_manager_msgs/ListControllers_Request"), timeout_s).controller}
        except InputError:  # a Fast DDS peer, or a manager that is busy
            continue
        for name in dict.fromkeys(sink.controller for sink in sinks if sink.manager == manager and sink.controller):
            if states.get(name) == "active":
                continue
            active = ", ".join(n for n, s in states.items() if s == "active") or "none"
            state = f"is {states[name]}" if name in states else "is not loaded"
            told.append(
                f"controller {name} {state} in {manager} (active: {active}): "
                f"'ros2 control switch_controllers --activate {name}', with --deactivate for the one that holds the same joints"
            )
    return "; ".join(told)
