"""A simulated task's robot, and its scene, in ROS 2's wire format; a robot with a config of its own is a `RosRobot`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from robot_bridge.contract import Contract, Sink, Source
from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.dds.topics import EPISODE, RESET, SUCCESS, RobotTopics
from robot_bridge.robots.config import RobotConfig
from robot_bridge.ros_robot import POLL_S, RosRobot
from robot_bridge.transport import DEFAULT, open_transport
from sinew.errors import InputError
from sinew.protocols import RobotSpec

JERK_PER_ACCELERATION = 10.0
"""A simulated joint reaches its acceleration in 0.1 s."""
EFFORT_MAX_NM = 60.0
"""The simulated arm's servos can do 90 N m at most; the tasks' experts need 15."""


class DdsRobot(RosRobot):
    """The robot of a task, on the topics that `sinew robot` speaks on.

    Args:
        spec: joint names and limits; the robot must publish these joints.
        objects: frames whose pose in the world is wanted from /tf.
        cameras: cameras whose images are wanted.
        topics: names, where they are not the usual ones.
        domain: None for ROS_DOMAIN_ID.
        reach: "LOCALHOST", "LOOPBACK" or "SUBNET"; None for ROS_AUTOMATIC_DISCOVERY_RANGE, else LOCALHOST.
        name: name of the node.
        transport: "dds" or "ros2".
    """

    def __init__(
        self,
        spec: RobotSpec,
        *,
        objects: Sequence[str] = (),
        cameras: Sequence[str] = (),
        topics: RobotTopics | None = None,
        domain: int | None = None,
        reach: str | None = None,
        name: str = "sinew_deploy",
        transport: str = "dds",
    ) -> None:
        self.topics = topics or RobotTopics()
        node = open_transport(transport, name, domain=domain, reach=reach)
        super().__init__(task_robot(spec, cameras, self.topics), node, objects=objects, world_frame=self.topics.world_frame)


def task_robot(spec: RobotSpec, cameras: Sequence[str] = (), topics: RobotTopics | None = None) -> RobotConfig:
    """The config of a task's robot: joints and grippers in one joint state and in one command."""
    topics = topics or RobotTopics()
    grippers = gripper_names(spec.gripper_name, len(spec.name.split("+"))) if spec.gripper_name else []

    def states(key: str, field: str, names: Sequence[str]) -> Source:
        return Source(
            key=key, topic=topics.joint_states, message="sensor_msgs/JointState", field=field, names=tuple(names), stamp="receipt",
            alignment="interpolate", required=key == "joint_position",
        )  # fmt: skip

    fields = (("joint_position", "position"), ("joint_velocity", "velocity"), ("joint_effort", "effort"))
    sources = [states(key, field, spec.joint_names) for key, field in fields]
    if grippers:
        sources.append(states("gripper", "position", grippers))
    message = "sensor_msgs/CompressedImage" if topics.compressed else "sensor_msgs/Image"
    sources += [
        Source(key=f"images.{camera}", topic=topics.image(camera), message=message, field="image", stamp="receipt", required=False)
        for camera in cameras
    ]
    sinks = [Sink(value="joint_position", kind=topics.command, topic=topics.command_name, joints=spec.joint_names)]
    if grippers:
        sinks.append(Sink(value="gripper", kind=topics.command, topic=topics.command_name, joints=tuple(grippers)))
    return RobotConfig(
        spec=spec,
        # a simulation shares this machine's clock, and may be late where the machine is busy
        contract=Contract(robot=spec.name, rate_hz=spec.rate_hz, sources=tuple(sources), sinks=tuple(sinks), clock_tolerance_s=5.0),
        jerk_max_rad_s3=tuple(JERK_PER_ACCELERATION * a for a in spec.acceleration_max_rad_s2),
        effort_max_nm=(EFFORT_MAX_NM,) * len(spec.joint_names),
    )


def gripper_names(name: str, count: int) -> list[str]:
    """Joint names of the grippers: the robot's own for one, numbered for several."""
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]


class DdsScene:
    """A simulated scene on the network, set up over topics; see `robot_bridge.serve_sim`."""

    def __init__(self, robot: RosRobot) -> None:
        self._robot, node = robot, robot.node
        self._reset = node.publisher(RESET, "std_msgs/Int64", DEFAULT)
        self._episode = node.subscription(EPISODE, "std_msgs/Int64", DEFAULT)
        self._success = node.subscription(SUCCESS, "std_msgs/Bool", DEFAULT)
        self._started_ns = 0
        self._solved: bool | None = None

    def reset(self, seed: int, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        self._wait(lambda: bool(self._reset.subscribers and self._episode.publishers), deadline, timeout_s, "nothing takes resets")
        self._episode.take()
        self._reset.send(make("std_msgs/Int64", data=seed))
        self._wait(lambda: self._echoed(seed), deadline, timeout_s, f"the scene did not start episode {seed}")
        self._solved = None
        self._wait(self._fresh, deadline, timeout_s, "no joint state followed the reset")

    def success(self) -> bool | None:
        for sample in self._success.take():
            if sample.source_ns > self._started_ns:
                self._solved = bool(codec.decode(sample.data, "std_msgs/Bool").data)
        return self._solved

    def _echoed(self, seed: int) -> bool:
        for sample in self._episode.take():
            if codec.decode(sample.data, "std_msgs/Int64").data == seed:
                self._started_ns = sample.source_ns
                return True
        return False

    def _fresh(self) -> bool:
        self._robot.read()
        told = self._robot.source_ns
        topics = self._robot.state_topics | ({"/tf"} & told.keys())
        return all(told.get(topic, -1) > self._started_ns for topic in topics)

    def _wait(self, done: Callable[[], bool], deadline: float, timeout_s: float, problem: str) -> None:
        while not done():
            if time.monotonic() > deadline:
                seen = ", ".join(sorted(self._robot.node.topics())) or "none"
                raise InputError(f"{problem} within {timeout_s:g} s on DDS domain {self._robot.node.domain}; topics seen: {seen}")
            time.sleep(POLL_S)
