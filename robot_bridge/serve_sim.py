"""A simulated robot in its own process, indistinguishable on the wire from a ros2_control arm."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import tan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_bridge.cadence import next_deadline, raise_priority
from robot_bridge.clock import MonotonicClock
from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node, Publisher, Subscription
from robot_bridge.dds.qos import DEFAULT, LATCHED, NEWEST, SENSOR, TF
from robot_bridge.dds.topics import COMMANDS, EPISODE, RESET, STATUS, SUCCESS, RobotTopics
from robot_bridge.dds_robot import gripper_names
from robot_bridge.driver import Arrivals, DriverCheck
from robot_bridge.images import encode_jpeg
from robot_bridge.sim_robot import MAX_CATCH_UP, SimRobot
from sinew.errors import DataError
from sinew.protocols import Command, RobotSpec

if TYPE_CHECKING:
    from robot_bridge.faults.schedule import Schedule

COMMAND_TTL_S = 0.1
"""The robot's own watchdog: it holds when no command has come for this long."""
SUCCESS_HZ = 50.0


class SimServer:
    """Publishes a simulated robot and takes commands, one `tick` per period.

    Args:
        robot: stepped here, never started.
        node: its place in the graph.
        cameras: names with their vertical field of view in radians.
        rate_hz: ticks per second; joint states and transforms are published at every one.
        compressed: send CompressedImage besides Image.
    """

    def __init__(self, robot: SimRobot, node: Node, *, cameras: dict[str, float], rate_hz: float, compressed: bool = False) -> None:
        self.robot, self.node = robot, node
        robot.measure()
        measured = robot.read().values
        spec, topics = robot.spec, RobotTopics()
        grippers = np.atleast_1d(measured["gripper"]).size
        self.driver, self.arrivals = DriverCheck(spec, rate_hz, grippers), Arrivals(COMMAND_TTL_S)
        self._names = (*spec.joint_names, *gripper_names(spec.gripper_name or "gripper", grippers))
        self._objects = [key.removeprefix("pose.") for key in measured if key.startswith("pose.")]
        self._encoder = codec.JointStateEncoder(self._names, effort="joint_effort" in measured)
        self._transforms = node.publisher(topics.transforms, "tf2_msgs/TFMessage", TF)
        self._commands: list[tuple[Subscription, Callable[[bytes], Sequence[float]]]] = []
        self._resets = node.subscription(RESET, "std_msgs/Int64", DEFAULT)
        self._episode = node.publisher(EPISODE, "std_msgs/Int64", DEFAULT)
        self._success = node.publisher(SUCCESS, "std_msgs/Bool", DEFAULT)
        self._status = node.publisher(STATUS, "std_msgs/String", LATCHED)
        self._fovy_rad, self._compressed = cameras, compressed
        self._cameras: dict[str, CameraTopics] = {}
        self._success_every = max(1, round(rate_hz / SUCCESS_HZ))
        self._shown: dict[str, int] = {}
        self._said = ""
        self._ticks = self._seq = 0
        self._open_states(node)
        self._open_controllers(node)
        for camera in cameras:
            self._open_camera(camera, node)

    def tick(self, now_ns: int, wall_ns: int) -> None:
        """Take what has come, advance one period, publish."""
        self._take_reset()
        self._take_commands(now_ns)
        if self.robot.holding and not any(subscription.publishers for subscription, _ in self._commands):
            self.arrivals.forget()
        self.robot.advance()
        self.publish(wall_ns)

    def publish(self, wall_ns: int) -> None:
        """Publish the newest measurement."""
        values = self.robot.read().values
        self._publish_state(values, wall_ns)
        if self._objects:
            poses = [codec.Transform(wall_ns, "world", name, tuple(values[f"pose.{name}"].tolist())) for name in self._objects]
            self._transforms.write(codec.encode_transforms(poses))
        if self._ticks % self._success_every == 0:
            self._success.send(make("std_msgs/Bool", data=self.robot.solved()))
        self._ticks += 1
        status = self._state()
        if status != self._said:
            self._said = status
            self._status.send(make("std_msgs/String", data=status))
        for camera, topics in self._cameras.items():
            image = values.get(f"images.{camera}")
            if image is not None and self._shown.get(camera) != id(image):
                self._shown[camera] = id(image)
                topics.publish(image, wall_ns)

    def close(self) -> None:
        """Leave the network."""
        self.node.close()

    def report(self) -> dict[str, Any]:
        """JSON-able: what came."""
        return {**self.driver.report(), "passed_over": dict(self.arrivals.passed_over)}

    def _state(self) -> str:
        return "holding" if self.robot.holding else "following"

    def _publish_state(self, values: Mapping[str, np.ndarray], wall_ns: int) -> None:
        position = [*values["joint_position"].tolist(), *np.atleast_1d(values["gripper"]).tolist()]
        still = [0.0] * (len(self._names) - len(values["joint_velocity"]))
        effort = [*values["joint_effort"].tolist(), *still] if "joint_effort" in values else ()
        self._states.write(self._encoder.encode(wall_ns, position, [*values["joint_velocity"].tolist(), *still], effort))

    def _open_states(self, node: Node) -> None:
        self._states = node.publisher(RobotTopics().joint_states, "sensor_msgs/JointState", DEFAULT)

    def _open_controllers(self, node: Node) -> None:
        """Subscribe to commands."""
        read = {"position": codec.decode_doubles, "trajectory": self._read_trajectory}
        self._commands = [(node.subscription(*COMMANDS[way], NEWEST), read[way]) for way in read]

    def _open_camera(self, camera: str, node: Node) -> None:
        self._cameras[camera] = CameraTopics(node, camera, self._fovy_rad[camera], self._compressed)

    def _take_reset(self) -> None:
        for sample in self._resets.take():
            try:
                seed = int(codec.decode(sample.data, "std_msgs/Int64").data)
                if seed < 0:
                    raise DataError(f"seed {seed} is negative")
            except DataError:
                self.driver.refused["damaged"] += 1
                continue
            for subscription, _ in self._commands:
                subscription.take()  # what was sent before the reset is of the last episode
            self.driver.restart()
            self.robot.reset(seed)
            self._episode.send(make("std_msgs/Int64", data=seed))

    def _take_commands(self, now_ns: int) -> None:
        for subscription, read in self._commands:
            sample = max(subscription.take(), key=lambda sample: sample.source_ns, default=None)
            age_ns = None if sample is None else self.arrivals.age_ns(sample.source_ns, now_ns)
            if sample is None or age_ns is None:
                continue
            try:
                values = np.array(read(sample.data), dtype=float)
            except DataError:
                self.driver.refused["damaged"] += 1
                continue
            if self.driver.judge(values, sample.source_ns):
                continue
            joints = len(self.robot.spec.joint_names)
            command = {"joint_position": values[:joints]}
            if len(values) > joints:
                command["gripper"] = values[joints:] if len(values) > joints + 1 else values[joints]
            self._seq += 1
            self.robot.write(Command(now_ns - age_ns, self._seq, COMMAND_TTL_S, command))

    def _read_trajectory(self, data: bytes) -> Sequence[float]:
        """The last point of a trajectory in our order of joints."""
        message = codec.decode(data, COMMANDS["trajectory"][1])
        names = list(message.joint_names)
        wanted = self._names if set(self._names) <= set(names) else self.robot.spec.joint_names
        if not message.points or not set(wanted) <= set(names) or len(message.points[-1].positions) != len(names):
            raise DataError("a trajectory without our joints")
        return [float(message.points[-1].positions[names.index(name)]) for name in wanted]


class CameraTopics:
    """Image, optionally CompressedImage, and CameraInfo of a pinhole camera."""

    def __init__(self, node: Node, camera: str, fovy_rad: float, compressed: bool) -> None:
        self._frame, self._fovy_rad = f"{camera}_optical_frame", fovy_rad
        self._image = node.publisher(f"/{camera}/image_raw", "sensor_msgs/Image", SENSOR)
        self._info = node.publisher(f"/{camera}/camera_info", "sensor_msgs/CameraInfo", SENSOR)
        self._jpeg: Publisher | None = None
        if compressed:
            self._jpeg = node.publisher(f"/{camera}/image_raw/compressed", "sensor_msgs/CompressedImage", SENSOR)

    def publish(self, image: np.ndarray, wall_ns: int) -> None:
        self._image.write(codec.encode_image(image, wall_ns, self._frame))
        stamp = make("builtin_interfaces/Time", sec=wall_ns // 1_000_000_000, nanosec=wall_ns % 1_000_000_000)
        header = make("std_msgs/Header", stamp=stamp, frame_id=self._frame)
        if self._jpeg is not None:
            data = np.frombuffer(encode_jpeg(image), dtype=np.uint8)
            self._jpeg.send(make("sensor_msgs/CompressedImage", header=header, format="rgb8; jpeg compressed bgr8", data=data))
        self._info.send(camera_info(header, image.shape[0], image.shape[1], self._fovy_rad))


def camera_info(header: Any, height: int, width: int, fovy_rad: float) -> Any:
    """sensor_msgs/CameraInfo of a pinhole without distortion."""
    focal = 0.5 * height / tan(0.5 * fovy_rad)
    k = np.array([focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1], dtype=float)
    p = np.insert(k, (3, 6, 9), 0.0)
    roi = make("sensor_msgs/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return make(
        "sensor_msgs/CameraInfo", header=header, height=height, width=width, distortion_model="plumb_bob", d=np.zeros(5), k=k,
        r=np.eye(3).reshape(9), p=p, binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


def serve(
    task: str,
    seed: int = 0,
    domain: int | None = None,
    *,
    reach: str | None = None,
    rate_hz: float = 100.0,
    cameras: Sequence[str] = (),
    camera_rate_hz: float = 20.0,
    image_size: tuple[int, int] = (84, 84),
    compressed: bool = False,
    realtime: bool = True,
    faults: Schedule | None = None,
    trace: Path | str | None = None,
    board: str = "",
    truth: Path | None = None,
    ready: Callable[[str], None] | None = None,
    quit_event: threading.Event | None = None,
) -> dict[str, Any]:
    """Simulate a task's robot in real time and speak for it on the network until SIGTERM, SIGINT or `quit_event`.

    Args:
        task: registered task.
        seed: first episode.
        domain: DDS domain; None for ROS_DOMAIN_ID.
        reach: "LOCALHOST", "LOOPBACK" or "SUBNET"; None for ROS_AUTOMATIC_DISCOVERY_RANGE, else LOCALHOST.
        rate_hz: rate of physics periods, joint states and transforms.
        cameras: cameras whose images are published.
        camera_rate_hz: images per second.
        image_size: (height, width) in pixels.
        compressed: publish JPEG besides raw images.
        realtime: ask for SCHED_FIFO; not with cameras, whose rendering takes too long for it.
        faults: what goes wrong on purpose.
        trace: file that gets a line of JSON after every tick: monotonic time, commands taken, true joint positions and velocities.
        board: "table" or "hand": the task's arm with a calibration board there, and nothing else.
        truth: file that gets where the camera before the board truly is.
        ready: gets one line when everything is up; None writes it to stderr.
        quit_event: ends it when set.

    Returns:
        What came from the network, and which faults acted.

    Raises:
        InputError: unknown task, or DDS cannot start.
    """
    simulation = _simulation(task, seed, board, truth)
    spec: RobotSpec = simulation.interface.robot_spec
    clock = MonotonicClock()
    seen: dict[str, Any] = {
        "rate_hz": rate_hz, "cameras": cameras, "camera_rate_hz": camera_rate_hz, "image_size": image_size, "clock": clock,
    }  # fmt: skip
    fovy = {camera: float(np.deg2rad(simulation.scene.model.camera(camera).fovy[0])) for camera in cameras}
    node = Node("sinew_sim", domain=domain, reach=reach)
    if faults is None:
        server = SimServer(SimRobot(simulation, spec, **seen), node, cameras=fovy, rate_hz=rate_hz, compressed=compressed)
    else:
        from robot_bridge.faults.robot import FaultyRobot
        from robot_bridge.faults.server import FaultyServer

        robot = FaultyRobot(simulation, spec, faults, served=True, **seen)
        server = FaultyServer(robot, node, cameras=fovy, rate_hz=rate_hz, compressed=compressed)
    quit_event = quit_event or threading.Event()
    with _signals(quit_event), _traced(trace, simulation, server) as after_tick:
        line = f"robot {spec.name}, task {task}, ready on DDS domain {node.domain} ({node.reach}) at {rate_hz:g} Hz"
        (ready or _tell)(line)
        if realtime and not cameras:
            raise_priority()
        _run(server, clock, round(1e9 / rate_hz), quit_event, after_tick)
    server.close()
    simulation.close()
    return server.report()


def _simulation(task: str, seed: int, board: str, truth: Path | None) -> Any:
    """The task's world, or its arm with a board."""
    if not board:
        from sim import RobotSim

        return RobotSim(task, seed)
    from calibration.boards import Board
    from robot_bridge.calibrating.scene import DrawnApart, task_scene

    simulation, known = task_scene(Board(), board, seed)
    if truth is not None:
        known.save(truth)
    return DrawnApart(simulation)


@contextmanager
def _traced(path: Path | str | None, simulation: Any, server: SimServer) -> Iterator[Callable[[int], None]]:
    """A function to call after every tick, which writes what was so then."""
    if path is None:
        yield lambda now_ns: None
        return
    with open(path, "w", buffering=1) as file:

        def write(now_ns: int) -> None:
            joints, speeds, last = simulation.joint_position, simulation.joint_velocity, server.driver.last
            line = {"now_ns": now_ns, "taken": server.driver.taken, "joint_position": joints.tolist(), "joint_velocity": speeds.tolist()}
            line["obeyed"] = None if last is None else last.tolist()
            file.write(json.dumps(line) + "\n")

        yield write


def _run(server: SimServer, clock: MonotonicClock, period_ns: int, quit_event: threading.Event, after_tick: Callable[[int], None]) -> None:
    deadline_ns = clock.now_ns() + period_ns
    while not quit_event.is_set():
        clock.wait_until(deadline_ns)
        now_ns = clock.now_ns()
        server.tick(now_ns, time.time_ns())
        after_tick(now_ns)
        late = (clock.now_ns() - deadline_ns) // period_ns
        for _ in range(min(late, MAX_CATCH_UP)):
            server.robot.advance()
        deadline_ns = next_deadline(deadline_ns, period_ns, clock.now_ns())


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def _signals(quit_event: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set `quit_event`, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, lambda *_: quit_event.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
