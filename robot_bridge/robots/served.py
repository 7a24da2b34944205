"""A stand-in robot on the network: the arm of a config in its own process, speaking as its contract says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_bridge.cadence import next_deadline
from robot_bridge.clock import MonotonicClock
from robot_bridge.contract import Source
from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, make
from robot_bridge.images import encode_jpeg, info_topic
from robot_bridge.robots.config import RobotConfig
from robot_bridge.robots.followers import Follower, controller_states, follower
from robot_bridge.robots.stand_in import ArmPhysics
from robot_bridge.robots.urdf import to_urdf
from robot_bridge.serve_sim import camera_info
from robot_bridge.transport import DEFAULT, LATCHED, SENSOR, Publisher, Transport, open_transport

JOINT_STATE = "sensor_msgs/JointState"
MAX_CATCH_UP = 5


class StandIn:
    """Publishes what a contract's sources are fed from and follows its sinks, one `tick` per period.

    Args:
        config: the robot.
        transport: where it speaks.
        physics: what moves.
        rate_hz: ticks and joint states per second.
        cameras: cameras of the contract whose pictures are published.
        camera_rate_hz: pictures per second.
    """

    def __init__(
        self,
        config: RobotConfig,
        transport: Transport,
        physics: ArmPhysics,
        *,
        rate_hz: float = 100.0,
        cameras: Sequence[str] = (),
        camera_rate_hz: float = 20.0,
    ) -> None:
        self.config, self.physics, self.node = config, physics, transport
        self._step_s = 1.0 / rate_hz
        self._states = [_States(topic, config, transport) for topic in dict.fromkeys(s.topic for s in _joint_sources(config))]
        self._followers: dict[str, list[tuple[slice, Follower]]] = {"joint_position": [], "gripper": []}
        at = {"joint_position": 0, "gripper": 0}
        for sink in config.contract.sinks:
            part = slice(at[sink.value], at[sink.value] + len(sink.joints))
            tool = sum(1 for other, _ in self._followers["joint_position"] if other.start < part.start)
            self._followers[sink.value].append((part, follower(sink, transport, config, tool)))
            at[sink.value] = part.stop
        self._target = physics.joint_position
        self._opening = np.atleast_1d(np.asarray(physics.gripper, dtype=float))
        wanted = [s for s in config.contract.sources if s.image and s.key.removeprefix("images.") in cameras]
        self._cameras = [_Camera(source, config, transport) for source in wanted]
        self._camera_every = max(1, round(rate_hz / camera_rate_hz))
        self._ticks = 0
        description = transport.publisher("/robot_description", "std_msgs/String", LATCHED)
        description.send(make("std_msgs/String", data=to_urdf(config)))
        states = controller_states(config.contract.sinks, config.alternatives)
        self._managers = [_manager(transport, manager, told) for manager, told in states.items()]

    def tick(self, now_ns: int, wall_ns: int) -> None:
        """Take what has come, move for a period, publish."""
        self._advance(self._followers["joint_position"], self._target, now_ns)
        self._advance(self._followers["gripper"], self._opening, now_ns)
        spec = self.config.spec
        self._target = np.clip(self._target, spec.position_low_rad, spec.position_high_rad)
        self.physics.step(self._target, self._opening, self._step_s)
        values = {
            "joint_position": self.physics.joint_position,
            "joint_velocity": self.physics.joint_velocity,
            "joint_effort": self.physics.joint_effort,
            "gripper": np.atleast_1d(np.asarray(self.physics.gripper, dtype=float)),
        }
        for states in self._states:
            states.publish(values, wall_ns)
        if self._ticks % self._camera_every == 0:
            for camera in self._cameras:
                camera.publish(self.physics, wall_ns)
        self._ticks += 1

    def _advance(self, followers: Sequence[tuple[slice, Follower]], target: np.ndarray, now_ns: int) -> None:
        for part, one in followers:
            if len(target[part]):
                target[part] = one.advance(target[part].copy(), now_ns, self._step_s)


def _joint_sources(config: RobotConfig) -> list[Source]:
    return [s for s in config.contract.live if s.message == JOINT_STATE]


class _States:
    """One topic of joint states."""

    def __init__(self, topic: str, config: RobotConfig, transport: Transport) -> None:
        self._publisher: Publisher = transport.publisher(topic, JOINT_STATE, DEFAULT)
        at: dict[str, int] = {}
        self._parts: list[tuple[Source, slice]] = []
        for source in _joint_sources(config):
            start = at.get(source.key, 0)
            at[source.key] = start + len(source.names)
            if source.topic == topic:
                self._parts.append((source, slice(start, at[source.key])))
        self._names = list(dict.fromkeys(name for source, _ in self._parts for name in source.names))

    def publish(self, values: dict[str, np.ndarray], wall_ns: int) -> None:
        fields = {field: np.zeros(len(self._names)) for field in ("position", "velocity", "effort")}
        for source, part in self._parts:
            wire = source.from_si(values[source.key][part])
            fields[source.field][[self._names.index(name) for name in source.names]] = wire
        stamp = make("builtin_interfaces/Time", sec=wall_ns // 1_000_000_000, nanosec=wall_ns % 1_000_000_000)
        header = make("std_msgs/Header", stamp=stamp, frame_id="")
        self._publisher.send(make(JOINT_STATE, header=header, name=self._names, **fields))


class _Camera:
    """One camera's pictures, of the size that its feature has."""

    def __init__(self, source: Source, config: RobotConfig, transport: Transport) -> None:
        self._name, self._compressed = source.key.removeprefix("images."), source.message.endswith("CompressedImage")
        feature = next((f for f in config.contract.features if source.key in f.values and f.height), None)
        self._size = (feature.height, feature.width) if feature else (240, 320)
        self._publisher: Publisher = transport.publisher(source.topic, source.message, SENSOR)
        self._shown: np.ndarray | None = None
        self._info: Publisher = transport.publisher(info_topic(source.topic), "sensor_msgs/CameraInfo", SENSOR)

    def publish(self, physics: ArmPhysics, wall_ns: int) -> None:
        image = physics.image(self._name, *self._size)
        if image is self._shown:
            return
        self._shown = image
        stamp = make("builtin_interfaces/Time", sec=wall_ns // 1_000_000_000, nanosec=wall_ns % 1_000_000_000)
        header = make("std_msgs/Header", stamp=stamp, frame_id=f"{self._name}_optical_frame")
        self._info.send(camera_info(header, *self._size, physics.fovy_rad(self._name)))
        if not self._compressed:
            self._publisher.write(codec.encode_image(image, wall_ns, f"{self._name}_optical_frame"))
            return
        data = np.frombuffer(encode_jpeg(image), dtype=np.uint8)
        self._publisher.send(make("sensor_msgs/CompressedImage", header=header, format="jpeg", data=data))


def _manager(transport: Transport, manager: str, states: dict[str, str]) -> Any:
    """Serves list_controllers of a controller manager."""

    def answer(request: Any) -> Any:
        controllers = [blank("controller_manager_msgs/ControllerState", name=n, state=s) for n, s in states.items()]
        return make("controller_manager_msgs/ListControllers_Response", controller=controllers)

    return transport.server(f"{manager}/list_controllers", "controller_manager_msgs/ListControllers", answer)


def _physics(config: RobotConfig, seed: int, board: str, truth: Path | None) -> Any:
    """The arm, with a board where one is wanted."""
    if not board:
        return ArmPhysics(config, seed)
    from calibration.boards import Board
    from robot_bridge.calibrating.scene import DrawnApart, robot_scene

    physics, known = robot_scene(config, Board(), board, seed)
    if truth is not None:
        known.save(truth)
    return DrawnApart(physics)


def serve_robot(
    config: RobotConfig,
    *,
    transport: str = "dds",
    domain: int | None = None,
    reach: str | None = None,
    rate_hz: float = 100.0,
    cameras: Sequence[str] = (),
    camera_rate_hz: float = 20.0,
    seed: int = 0,
    board: str = "",
    truth: Path | None = None,
    ready: Callable[[str], None] = lambda line: None,
    quit_event: threading.Event | None = None,
) -> None:
    """Let a stand-in of a robot speak on the network until `quit_event`.

    Args:
        config: the robot.
        transport: "dds" or "ros2".
        domain: DDS domain.
        reach: how far discovery reaches.
        rate_hz: joint states per second.
        cameras: those whose pictures are published.
        camera_rate_hz: pictures per second.
        seed: where it starts.
        board: "table" or "hand": with a calibration board there.
        truth: file that gets where the camera before that board truly is.
        ready: gets a line when it speaks.
        quit_event: ends it.

    Raises:
        InputError: the robot's frames are not known, or the transport cannot start.
    """
    physics = _physics(config, seed, board, truth)
    node = open_transport(transport, "sinew_robot", domain=domain, reach=reach)
    server = StandIn(config, node, physics, rate_hz=rate_hz, cameras=cameras, camera_rate_hz=camera_rate_hz)
    quit_event = quit_event or threading.Event()
    clock, period_ns = MonotonicClock(), round(1e9 / rate_hz)
    kinds = ", ".join(sink.kind for sink in config.contract.sinks)
    ready(f"robot {config.spec.name} ({kinds}) ready on DDS domain {node.domain} ({node.reach}) at {rate_hz:g} Hz")
    deadline_ns = clock.now_ns() + period_ns
    while not quit_event.is_set():
        clock.wait_until(deadline_ns)
        server.tick(clock.now_ns(), time.time_ns())
        for _ in range(min((clock.now_ns() - deadline_ns) // period_ns, MAX_CATCH_UP)):
            server.tick(clock.now_ns(), time.time_ns())
        deadline_ns = next_deadline(deadline_ns, period_ns, clock.now_ns())
    node.close()
    physics.close()
