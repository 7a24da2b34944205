"""What controllers do with their messages: how a stand-in robot follows each kind of a contract's sinks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from robot_bridge.contract import Sink
from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank
from robot_bridge.robots.config import RobotConfig
from robot_bridge.robots.kinematics import chain_to, jacobians, link_poses
from robot_bridge.transport import ABORTED, CANCELED, SUCCEEDED, ServedGoal, Subscription, Transport
from sinew.errors import DataError

SERVO_TIMEOUT_S = 0.1
"""MoveIt Servo halts when no twist has come for this long: its incoming_command_timeout."""
GOAL_PERIOD_S = 0.01
DAMPING = 0.02
"""Of the inverse of the Jacobian, as near a singularity it has none."""


class Follower(Protocol):
    """The targets of some joints or grippers, driven by what has come."""

    def advance(self, target: np.ndarray, now_ns: int, step_s: float) -> np.ndarray:
        """The next targets (n,) in SI, from the last ones."""
        ...


def follower(sink: Sink, transport: Transport, config: RobotConfig, tool: int) -> Follower:
    """What a controller of this kind does.

    Args:
        sink: of the contract; several on one topic each take their part.
        transport: where it listens.
        config: the robot.
        tool: index of the arm's tool, for twists.
    """
    if sink.kind in ("position", "gripper_position"):
        return _Positions(sink, transport, config)
    if sink.kind == "velocity":
        return _Velocities(sink, transport, config)
    if sink.kind in ("trajectory", "gripper_trajectory"):
        return _Trajectories(sink, transport)
    if sink.kind == "twist":
        return _Twists(sink, transport, config, tool)
    if sink.kind == "trajectory_action":
        return _TrajectoryAction(sink, transport)
    return _GripperAction(sink, transport)


class _Floats:
    """The numbers of a Float64MultiArray that belong to a sink: all sinks of a topic are sent in one message."""

    def __init__(self, sink: Sink, transport: Transport, config: RobotConfig) -> None:
        shared = [s for s in config.contract.sinks if s.topic == sink.topic and s.kind == sink.kind] or [sink]
        before = 0
        for other in shared:
            if other == sink:
                break
            before += len(other.joints)
        self.sink, self._part = sink, slice(before, before + len(sink.joints))
        self._subscription: Subscription = transport.subscription(sink.topic, "std_msgs/Float64MultiArray")

    def newest(self) -> list[float] | None:
        sample = self._subscription.newest()
        if sample is None:
            return None
        try:
            numbers = list(codec.decode_doubles(sample.data)[self._part])
        except DataError:
            return None
        return numbers if len(numbers) == len(self.sink.joints) and np.isfinite(numbers).all() else None


class _Positions(_Floats):
    def advance(self, target: np.ndarray, now_ns: int, step_s: float) -> np.ndarray:
        numbers = self.newest()
        return target if numbers is None else self.sink.to_si(numbers)


class _Velocities(_Floats):
    """As forward_command_controller does, without any time-out."""

    def __init__(self, sink: Sink, transport: Transport, config: RobotConfig) -> None:
        super().__init__(sink, transport, config)
        self._speed = np.zeros(len(sink.joints))

    def advance(self, target: np.ndarray, now_ns: int, step_s: float) -> np.ndarray:
        numbers = self.newest()
        if numbers is not None:
            self._speed = self.sink.to_si(numbers) - self.sink.to_si(np.zeros(len(numbers)))
        return target + self._speed * step_s


class _Path:
    """A trajectory that is being followed, on straight lines between its points."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._times = np.zeros(0)
        self._points = np.zeros((0, len(sink.joints)))
        self._begun_ns = 0
        self._fresh = False

    def begin(self, message: Any) -> bool:
        """Take a JointTrajectory over; False for one without our joints, without points or without order."""
        names = list(message.joint_names)
        if not message.points or any(name not in names for name in self._sink.joints):
            return False
        order = [names.index(name) for name in self._sink.joints]
        if any(len(point.positions) != len(names) for point in message.points):
            return False
        points = np.array([self._sink.to_si(np.asarray(point.positions)[order]) for point in message.points])
        times = np.array([point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec for point in message.points])
        last = message.points[-1].velocities
        if not np.isfinite(points).all() or (np.diff(times) <= 0).any() or (len(last) and np.abs(last).max() > 1e-3):
            return False
        self._points, self._times, self._begun_ns, self._fresh = points, times, time.monotonic_ns(), True
        return True

    def follow(self, target: np.ndarray, now_ns: int) -> np.ndarray:
        if not len(self._times):
            return target
        if self._fresh:
            self._times, self._points = np.insert(self._times, 0, 0.0), np.concatenate((target[None], self._points))
            self._fresh = False
        at_s = max(0.0, (now_ns - self._begun_ns) / 1e9)
        return np.array([np.interp(at_s, self._times, self._points[:, j]) for j in range(self._points.shape[1])])

    def done(self, now_ns: int) -> bool:
        return not len(self._times) or (now_ns - self._begun_ns) / 1e9 >= self._times[-1]

    def cancel(self) -> None:
        self._times = np.zeros(0)


class _Trajectories:
    def __init__(self, sink: Sink, transport: Transport) -> None:
        self._path = _Path(sink)
        self._subscription = transport.subscription(sink.topic, "trajectory_msgs/JointTrajectory")

    def advance(self, target: np.ndarray, now_ns: int, step_s: float) -> np.ndarray:
        sample = self._subscription.newest()
        if sample is not None:
            try:
                self._path.begin(codec.decode(sample.data, "trajectory_msgs/JointTrajectory"))
            except DataError:
                return target
        return self._path.follow(target, now_ns)


class _TrajectoryAction:
    """A goal replaces the one before, as joint_trajectory_controller does."""

    def __init__(self, sink: Sink, transport: Transport) -> None:
        self._path, self._lock = _Path(sink), threading.Lock()
        self._newest = b""
        self._server = transport.action_server(sink.topic, "control_msgs/FollowJointTrajectory", self._execute)

    def advance(self, target: np.ndarray, now_ns: int, step_s: float) -> np.ndarray:
        with self._lock:
            return self._path.follow(target, now_ns)

    def _execute(self, goal: ServedGoal) -> tuple[int, Any]:
        result = blank("control_msgs/FollowJointTrajectory_Result")
        with self._lock:
            self._newest = goal.goal_id
            if not self._path.begin(goal.request.trajectory):
                result.error_code, result.error_string = -1, "not a trajectory of these joints that ends at rest"
                return ABORTED, result
        while self._newest == goal.goal_id:
            with self._lock:
                if goal.cancel_requested:
                    self._path.cancel()
                    return CANCELED, result
                if self._path.done(time.monotonic_ns()):
                    return SUCCEEDED, result
            time.sleep(GOAL_PERIOD_S)
        return ABORTED, result


class _GripperAction:
    """GripperCommand and ParallelGripperCommand: the newest goal is the target at once, and ends at once."""

    def __init__(self, sink: Sink, transport: Transport) -> None:
        kind = "GripperCommand" if sink.kind == "gripper_action" else "ParallelGripperCommand"
        self._sink, self._kind, self._target = sink, kind, None
        self._server = transport.action_server(sink.topic, f"control_msgs/{kind}", self._execute)
        self.goals = 0

    def advance(self, target: np.ndarray, now_ns: int, step_s: float) -> np.ndarray:
        return target if self._target is None else self._target

    def _execute(self, goal: ServedGoal) -> tuple[int, Any]:
        command = goal.request.command
        position = command.position if self._kind == "GripperCommand" else command.position[0]
        self._target = self._sink.to_si([position])
        self.goals += 1
        return SUCCEEDED, blank(f"control_msgs/{self._kind}_Result", reached_goal=True)


class _Twists:
    """As MoveIt Servo does: joint velocities that make the twist, until none has come for a while."""

    def __init__(self, sink: Sink, transport: Transport, config: RobotConfig, tool: int) -> None:
        self._sink, self._config, self._tool = sink, config, tool
        base = chain_to(config, config.tools[tool])[0].child
        names = {f.name for f in chain_to(config, config.tools[tool])}
        self._columns = [j for j, name in enumerate(config.spec.joint_names) if name in names]
        self._frame: Callable[[dict[str, np.ndarray]], np.ndarray] = lambda poses: poses.get(sink.frame, poses[base])[:3, :3]
        self._subscription = transport.subscription(sink.topic, "geometry_msgs/TwistStamped")
        self._twist, self._came_ns = np.zeros(6), 0

    def advance(self, target: np.ndarray, now_ns: int, step_s: float) -> np.ndarray:
        sample = self._subscription.newest()
        if sample is not None:
            try:
                twist = codec.decode(sample.data, "geometry_msgs/TwistStamped").twist
            except DataError:
                return target
            self._twist = np.array([getattr(v, a) for v in (twist.linear, twist.angular) for a in "xyz"])
            self._came_ns = now_ns
        if now_ns - self._came_ns > SERVO_TIMEOUT_S * 1e9 or not self._twist.any():
            return target
        joints = np.zeros(len(self._config.spec.joint_names))
        joints[self._columns] = target
        turn = self._frame(link_poses(self._config, joints.tolist()))
        jacobian = jacobians(self._config, joints.tolist())[self._tool][:, self._columns]
        wanted = np.concatenate((turn @ self._twist[:3], turn @ self._twist[3:]))
        damped = jacobian @ jacobian.T + DAMPING**2 * np.eye(6)
        return target + jacobian.T @ np.linalg.solve(damped, wanted) * step_s


def controller_states(active: Sequence[Sink], others: Sequence[Sink]) -> dict[str, dict[str, str]]:
    """Manager → controller → state, as list_controllers tells it: those of the contract are active."""
    states: dict[str, dict[str, str]] = {}
    for sinks, state in ((others, "inactive"), (active, "active")):
        for sink in sinks:
            if sink.controller:
                states.setdefault(sink.manager, {})[sink.controller] = state
    return states
