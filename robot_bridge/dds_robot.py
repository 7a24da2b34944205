"""A robot on the network that speaks ROS 2's wire format: joint states, transforms and images in, commands out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node, Subscription
from robot_bridge.dds.qos import DEFAULT, NEWEST, SENSOR, TF
from robot_bridge.dds.topics import EPISODE, RESET, SUCCESS, RobotTopics
from sinew.errors import DataError, InputError, SafetyStop
from sinew.protocols import Command, Observation, RobotSpec

MONITOR_PERIOD_S = 0.2
POLL_S = 0.005


class DdsRobot:
    """A robot behind ROS 2 topics.

    Args:
        spec: joint names and limits; the robot must publish these joints.
        objects: frames whose pose in the world is wanted from /tf.
        cameras: cameras whose images are wanted.
        topics: names, where they are not the usual ones.
        domain: None for ROS_DOMAIN_ID.
        reach: "LOCALHOST", "LOOPBACK" or "SUBNET"; None for ROS_AUTOMATIC_DISCOVERY_RANGE, else LOCALHOST.
        name: name of the node.
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
    ) -> None:
        self._spec, self.topics = spec, topics or RobotTopics()
        self.node = Node(name, domain=domain, reach=reach)
        self._objects = frozenset(objects)
        self._states = self.node.subscription(self.topics.joint_states, "sensor_msgs/JointState", SENSOR)
        self._transforms = self.node.subscription(self.topics.transforms, "tf2_msgs/TFMessage", TF) if objects else None
        self._commands = self.node.publisher(self.topics.command_name, self.topics.command_message, NEWEST)
        self._message = "sensor_msgs/CompressedImage" if self.topics.compressed else "sensor_msgs/Image"
        self._cameras = {camera: self.node.subscription(self.topics.image(camera), self._message, SENSOR) for camera in cameras}
        self._lock = threading.Lock()  # around taking samples; held for microseconds
        self._values: dict[str, np.ndarray] = {}
        self._images: dict[str, np.ndarray] = {}
        self._observation = Observation(-(1 << 62), 0, {})
        self._order: tuple[tuple[str, ...], list[int], list[int]] = ((), [], [])
        self._header_ns = -1
        self._decoder = codec.JointStateDecoder()
        self._quit = threading.Event()
        self._threads: list[threading.Thread] = []
        self.source_ns = {"joint_states": -1, "transforms": -1}
        """Sender's clock of the newest sample taken, per topic."""
        self.dropped = 0
        """Samples that were damaged, incomplete or older than one before."""
        self.fault = ""
        """Why nothing is sent any more; empty while all is well."""

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    # ------------------------------------------------------------ Robot

    def connect(self, timeout_s: float = 10.0) -> None:
        """Wait for joint states, and for somebody who takes commands.

        Raises:
            InputError: nothing answered in time, joints are missing, or another node commands the robot.
        """
        if self._threads:
            return
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.read().seq and self._commands.subscribers:
                break
            time.sleep(POLL_S)
        else:
            raise InputError(self._nobody(timeout_s))
        # a client that was killed is in the graph for a few seconds yet
        while self._rivals() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if rivals := self._rivals():
            raise InputError(rivals)
        self._start(self._monitor, "monitor")
        for camera, subscription in self._cameras.items():
            self._start(lambda c=camera, s=subscription: self._watch(c, s), f"camera {camera}")

    def read(self) -> Observation:
        with self._lock:
            if self._transforms is not None:
                for sample in self._transforms.take():
                    self._use(self._take_transforms, sample.data, "transforms", sample.source_ns)
            fresh = False
            for sample in self._states.take():
                fresh |= self._use(self._take_state, sample.data, "joint_states", sample.source_ns)
            if fresh:
                values = {**self._values, **self._images}
                self._observation = Observation(time.monotonic_ns(), self._observation.seq + 1, values)
            return self._observation

    def write(self, command: Command) -> None:
        """Send a command.

        Raises:
            SafetyStop: another node commands the robot too.
        """
        if self.fault:
            raise SafetyStop(self.fault)
        joints = np.asarray(command.values["joint_position"], dtype=float)
        values = joints if "gripper" not in command.values else np.concatenate((joints, np.atleast_1d(command.values["gripper"])))
        if len(joints) != len(self._spec.joint_names) or not np.isfinite(values).all():
            raise SafetyStop(f"refused to send {values!r:.200} to robot {self._spec.name}")
        self._send(values)

    def stop(self, reason: str) -> None:
        measured = self._observation.values
        if "joint_position" in measured:
            self._send(np.concatenate((measured["joint_position"], np.atleast_1d(measured.get("gripper", ())))))

    def close(self) -> None:
        """Leave the network."""
        self._quit.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self.node.close()

    # ------------------------------------------------------------ inside

    def _send(self, values: np.ndarray) -> None:
        if self.topics.command == "position":
            self._commands.write(codec.encode_doubles(values.tolist()))
        else:
            self._commands.send(self._trajectory(values))

    def _trajectory(self, values: np.ndarray) -> object:
        """One point, due a controller period from now; the stream of points carries the shape."""
        names = (*self._spec.joint_names, *self._gripper_names(len(values) - len(self._spec.joint_names)))
        empty = np.zeros(0)
        due = make("builtin_interfaces/Duration", sec=0, nanosec=int(1e9 / max(self._spec.rate_hz, 100.0)))
        point = make(
            "trajectory_msgs/JointTrajectoryPoint",
            positions=np.array(values, dtype=float), velocities=empty, accelerations=empty, effort=empty, time_from_start=due,
        )  # fmt: skip
        header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=0, nanosec=0), frame_id="")
        return make("trajectory_msgs/JointTrajectory", header=header, joint_names=list(names), points=[point])

    def _gripper_names(self, count: int) -> list[str]:
        return gripper_names(self._spec.gripper_name or "gripper", count)

    def _use(self, take: Callable[[bytes], bool], data: bytes, topic: str, source_ns: int) -> bool:
        try:
            used = take(data)
        except DataError:
            used = False
        if used:
            self.source_ns[topic] = source_ns
        else:
            self.dropped += 1
        return used

    def _take_state(self, data: bytes) -> bool:
        """Take over a joint state; False when it is incomplete or out of order."""
        state = self._decoder.decode(data)
        if state.stamp_ns and state.stamp_ns <= self._header_ns:
            return False
        if state.names != self._order[0]:
            self._order = self._find(state.names)
        _, joints, grippers = self._order
        if len(joints) != len(self._spec.joint_names) or not state.position:
            return False
        self._header_ns = state.stamp_ns
        velocity = state.velocity or (0.0,) * len(state.names)
        self._values["joint_position"] = np.array([state.position[i] for i in joints])
        self._values["joint_velocity"] = np.array([velocity[i] for i in joints])
        if grippers:
            opening = [state.position[i] for i in grippers]
            self._values["gripper"] = np.array(opening if len(opening) > 1 else opening[0])
        return True

    def _find(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], list[int], list[int]]:
        """Where our joints and grippers stand in a joint state."""
        joints = [names.index(name) for name in self._spec.joint_names if name in names]
        gripper = self._spec.gripper_name
        grippers = [i for i, name in enumerate(names) if gripper and (name == gripper or name.startswith(f"{gripper}_"))]
        return names, joints, grippers

    def _take_transforms(self, data: bytes) -> bool:
        for transform in codec.decode_transforms(data):
            if transform.parent.lstrip("/") == self.topics.world_frame and transform.child.lstrip("/") in self._objects:
                pose = np.array(transform.pose)
                if np.isfinite(pose).all():
                    self._values[f"pose.{transform.child.lstrip('/')}"] = pose
        return True

    def _start(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _monitor(self) -> None:
        while not self._quit.wait(MONITOR_PERIOD_S):
            self.fault = self.fault or self._rivals()

    def _rivals(self) -> str:
        """What is wrong when others command the robot too; empty when none does."""
        others = self.node.other_publishers(self.topics.command_name)
        if not others:
            return ""
        return (
            f"{others} other publisher{'s' * (others > 1)} on {self.topics.command_name} (domain {self.node.domain}): "
            "two would fight over the robot; stop the other one"
        )

    def _watch(self, camera: str, subscription: Subscription) -> None:
        """Decode images as they come, away from the control thread."""
        decode = codec.decode_compressed_image if self.topics.compressed else codec.decode_image
        while not self._quit.is_set():
            if not subscription.wait(0.1):
                continue
            sample = subscription.newest()
            try:
                if sample is not None:
                    self._images = {**self._images, f"images.{camera}": decode(sample.data)[2]}
            except DataError:
                self.dropped += 1

    def _nobody(self, timeout_s: float) -> str:
        node, topics = self.node, self.topics
        where = f"on DDS domain {node.domain}, range {node.reach}"
        seen = ", ".join(sorted(node.topics())) or "none"
        if self._order[0] and len(self._order[1]) != len(self._spec.joint_names):
            missing = [name for name in self._spec.joint_names if name not in self._order[0]]
            return f"joints {', '.join(missing)} of robot {self._spec.name} are not among those {where}: {', '.join(self._order[0])}"
        if self._observation.seq:
            return (
                f"nothing took commands on {topics.command_name} within {timeout_s:g} s {where}; topics seen: {seen}; "
                "is the controller active?"
            )
        return (
            f"no robot answered within {timeout_s:g} s {where}: nothing usable came on {topics.joint_states}; topics seen: {seen}; "
            f"start one with 'sinew robot', or set ROS_DOMAIN_ID and ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET as on the robot"
        )


def gripper_names(name: str, count: int) -> list[str]:
    """Joint names of the grippers: the robot's own for one, numbered for several."""
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]


class DdsScene:
    """A simulated scene on the network, set up over topics; see `robot_bridge.serve_sim`."""

    def __init__(self, robot: DdsRobot) -> None:
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
        topics = ("joint_states", "transforms") if self._robot.source_ns["transforms"] >= 0 else ("joint_states",)
        return all(self._robot.source_ns[topic] > self._started_ns for topic in topics)

    def _wait(self, done: Callable[[], bool], deadline: float, timeout_s: float, problem: str) -> None:
        while not done():
            if time.monotonic() > deadline:
                seen = ", ".join(sorted(self._robot.node.topics())) or "none"
                raise InputError(f"{problem} within {timeout_s:g} s on DDS domain {self._robot.node.domain}; topics seen: {seen}")
            time.sleep(POLL_S)
