"""Controllers that are topics: positions, trajectories, velocities, twists."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from robot_bridge.contract import Sink
from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.robots.config import RobotConfig
from robot_bridge.robots.kinematics import chain_to, jacobians, link_poses
from robot_bridge.transport import Publisher
from sinew.errors import InputError
from sinew.protocols import Command

FLOATS = "std_msgs/Float64MultiArray"
TRAJECTORY = "trajectory_msgs/JointTrajectory"
TWIST = "geometry_msgs/TwistStamped"
TRACKING_PER_S = 4.0
"""Velocity per distance that the arm lags behind the stream."""
SILENCE_S = 0.1
"""A velocity or twist controller gets zeros when it has been sent nothing for this long."""
PERIOD_S = (0.002, 0.1)
"""A single trajectory point is due this soon at the earliest and at the latest."""

Part = tuple[Sink, slice]
"""A sink and the elements of its value that it takes."""
Point = tuple[np.ndarray, np.ndarray | None, float]
"""Positions and velocities as they go on the wire, and the time from the start, seconds."""


def part_of(command: Command, sink: Sink, part: slice) -> np.ndarray | None:
    """A sink's elements of a command; None where the command does not speak of them."""
    if sink.value not in command.values:
        return None
    return np.atleast_1d(np.asarray(command.values[sink.value], dtype=np.float64))[part]


def _measured(sink: Sink, part: slice, joints: np.ndarray | None, gripper: np.ndarray | None) -> np.ndarray | None:
    values = joints if sink.value == "joint_position" else gripper
    return None if values is None else np.atleast_1d(values)[part]


# ---------------------------------------------------------------- streams


class _Stream:
    """A controller that is a topic."""

    def __init__(self, publisher: Publisher, parts: Sequence[Part]) -> None:
        self.publisher, self.parts = publisher, tuple(parts)
        self.sinks = tuple(sink for sink, _ in parts)
        self.problem = ""

    @property
    def taken(self) -> bool:
        return bool(self.publisher.subscribers)

    def clear(self) -> None:
        """Nothing waits to be sent."""

    def watch(self, now_ns: int) -> None:
        """Positions are held by the controller itself."""

    def close(self) -> None:
        """The transport closes the topic."""


class PositionStream(_Stream):
    """Kinds position and gripper_position."""

    def write(self, command: Command, measured: np.ndarray | None) -> None:
        self._send([part_of(command, sink, part) for sink, part in self.parts])

    def stop(self, joints: np.ndarray | None, gripper: np.ndarray | None) -> None:
        self._send([_measured(sink, part, joints, gripper) for sink, part in self.parts])

    def _send(self, values: Sequence[np.ndarray | None]) -> None:
        if values[0] is None:
            return
        wire = [v for (sink, _), part in zip(self.parts, values, strict=True) if part is not None for v in sink.from_si(part).tolist()]
        self.publisher.write(codec.encode_doubles(wire))


class TrajectoryStream(_Stream):
    """Kinds trajectory and gripper_trajectory: every message replaces the rest of the one before."""

    def __init__(self, publisher: Publisher, parts: Sequence[Part]) -> None:
        super().__init__(publisher, parts)
        self._names = [joint for sink, _ in parts for joint in sink.joints]
        self._last_ns = 0

    def write(self, command: Command, measured: np.ndarray | None) -> None:
        period_s = min(max((command.stamp_ns - self._last_ns) / 1e9, PERIOD_S[0]), PERIOD_S[1])
        self._last_ns = command.stamp_ns
        points = trajectory_points(self.parts, command, period_s)
        if points:
            self.publisher.send(trajectory(self._names, points))

    def stop(self, joints: np.ndarray | None, gripper: np.ndarray | None) -> None:
        values = [_measured(sink, part, joints, gripper) for sink, part in self.parts]
        wire = [sink.from_si(v) for (sink, _), v in zip(self.parts, values, strict=True) if v is not None]
        if len(wire) == len(self.parts):
            positions = np.concatenate(wire)
            self.publisher.send(trajectory(self._names, [(positions, np.zeros(len(positions)), PERIOD_S[1])]))


def trajectory_points(parts: Sequence[Part], command: Command, period_s: float) -> list[Point]:
    """The points that a command asks for: its path where it has one and the sinks want it, else its target alone.

    A trajectory must end at rest, or joint_trajectory_controller refuses it: a target alone has no velocity.
    """
    sinks = [sink for sink, _ in parts]
    values = command.values
    if "joint_path" in values and all(sink.value == "joint_position" and sink.points > 1 for sink in sinks):
        path, times = values["joint_path"], values["path_times_s"]
        speeds = values.get("joint_path_velocity", np.zeros_like(path))
        rows = np.unique(np.linspace(0, len(path) - 1, min(len(path), *(sink.points for sink in sinks))).round().astype(int))
        return [
            (
                np.concatenate([sink.from_si(path[k][part]) for sink, part in parts]),
                np.concatenate([sink.rate_from_si(speeds[k][part]) for sink, part in parts]),
                float(times[k]),
            )
            for k in rows
        ]
    targets = [part_of(command, sink, part) for sink, part in parts]
    known = [target for target in targets if target is not None]
    if len(known) != len(targets):
        return []
    return [(np.concatenate([sink.from_si(target) for sink, target in zip(sinks, known, strict=True)]), None, period_s)]


def trajectory(names: Sequence[str], points: Sequence[Point]) -> Any:
    """trajectory_msgs/JointTrajectory that begins when it arrives."""
    empty = np.zeros(0)
    made = [
        make(
            "trajectory_msgs/JointTrajectoryPoint", positions=np.asarray(position, dtype=np.float64),
            velocities=empty if velocity is None else np.asarray(velocity, dtype=np.float64), accelerations=empty, effort=empty,
            time_from_start=_duration(time_s),
        )
        for position, velocity, time_s in points
    ]  # fmt: skip
    header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=0, nanosec=0), frame_id="")
    return make("trajectory_msgs/JointTrajectory", header=header, joint_names=list(names), points=made)


def _duration(seconds: float) -> Any:
    nanoseconds = round(seconds * 1e9)
    return make("builtin_interfaces/Duration", sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)


class _Moving(_Stream):
    """A controller that goes on moving while it is told nothing new, so that silence must be broken by zeros."""

    def __init__(self, publisher: Publisher, parts: Sequence[Part], config: RobotConfig) -> None:
        super().__init__(publisher, parts)
        self.config = config
        self._limits = np.array(config.spec.velocity_max_rad_s)
        self._lock = threading.Lock()  # so that zeros are never overtaken by an older speed; held for one send
        self._last: tuple[int, np.ndarray] | None = None
        self._sent_ns: int | None = None

    def write(self, command: Command, measured: np.ndarray | None) -> None:
        target = np.asarray(command.values["joint_position"], dtype=np.float64)
        speed = command.values.get("joint_velocity")
        if speed is None:
            last = self._last
            elapsed_s = 0.0 if last is None else (command.stamp_ns - last[0]) / 1e9
            speed = (target - last[1]) / elapsed_s if last is not None and 0.0 < elapsed_s < SILENCE_S else np.zeros(len(target))
        self._last = (command.stamp_ns, target)
        lag = np.zeros(len(target)) if measured is None else TRACKING_PER_S * (target - measured)
        wanted = np.clip(np.asarray(speed, dtype=np.float64) + lag, -self._limits, self._limits)
        with self._lock:
            self._sent_ns = time.monotonic_ns()
            self._send(wanted, measured)

    def stop(self, joints: np.ndarray | None, gripper: np.ndarray | None) -> None:
        with self._lock:
            self._last = self._sent_ns = None
            self._send(np.zeros(len(self._limits)), joints)

    def clear(self) -> None:
        with self._lock:
            self._last = None

    def watch(self, now_ns: int) -> None:
        with self._lock:
            if self._sent_ns is not None and now_ns - self._sent_ns > SILENCE_S * 1e9:
                self._last = self._sent_ns = None
                self._send(np.zeros(len(self._limits)), None)

    def close(self) -> None:
        if self._sent_ns is not None:
            self.stop(None, None)

    def _send(self, speed: np.ndarray, measured: np.ndarray | None) -> None:
        raise NotImplementedError


class VelocityStream(_Moving):
    """Kind velocity."""

    def _send(self, speed: np.ndarray, measured: np.ndarray | None) -> None:
        self.publisher.write(codec.encode_doubles([v for sink, part in self.parts for v in sink.rate_from_si(speed[part]).tolist()]))


class TwistStream(_Moving):
    """Kind twist: the tool's velocity that the joints' velocities make, in the sink's frame. One arm per topic."""

    def __init__(self, publisher: Publisher, parts: Sequence[Part], config: RobotConfig) -> None:
        super().__init__(publisher, parts, config)
        if not config.tools:
            raise InputError(
                f"robot {config.spec.name!r} has no tool and no frames, which twists need; make a config with 'sinew robot add'"
            )
        self._sink, part = self.parts[0]
        names = config.spec.joint_names[part]
        moved = [[f.name for f in chain_to(config, tool) if f.name in config.spec.joint_names] for tool in config.tools]
        self._tool = next((i for i, joints in enumerate(moved) if set(joints) == set(names)), 0)

    def _send(self, speed: np.ndarray, measured: np.ndarray | None) -> None:
        twist = np.zeros(6)
        if measured is not None and speed.any():
            turn = self._rotation(measured)
            world = jacobians(self.config, measured.tolist())[self._tool] @ speed
            twist = np.concatenate((turn.T @ world[:3], turn.T @ world[3:]))
        linear, angular = (make("geometry_msgs/Vector3", x=float(v[0]), y=float(v[1]), z=float(v[2])) for v in (twist[:3], twist[3:]))
        wall_ns = time.time_ns()  # Servo compares the stamp with its own clock
        stamp = make("builtin_interfaces/Time", sec=wall_ns // 1_000_000_000, nanosec=wall_ns % 1_000_000_000)
        header = make("std_msgs/Header", stamp=stamp, frame_id=self._sink.frame)
        self.publisher.send(make(TWIST, header=header, twist=make("geometry_msgs/Twist", linear=linear, angular=angular)))

    def _rotation(self, measured: np.ndarray) -> np.ndarray:
        """Rotation of the sink's frame in the world; the arm's base where no link has that name."""
        poses = link_poses(self.config, measured.tolist())
        base = chain_to(self.config, self.config.tools[self._tool])[0].child
        return poses.get(self._sink.frame, poses[base])[:3, :3]
