"""Controllers that are actions: trajectories and grippers. Goals are sent by a thread, so that control never waits for an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robot_bridge.dds.messages import blank, make
from robot_bridge.robots.config import RobotConfig
from robot_bridge.streams import Part, Point, part_of, trajectory, trajectory_points
from robot_bridge.transport import ActionClient, Goal
from sinew.errors import InputError
from sinew.protocols import Command

GOAL_PERIOD_S = 0.1
"""Trajectory goals follow each other no faster; each begins with a point that is due after this long."""
GRIPPER_STEP = 0.02
"""Share of a gripper's range that makes a new goal."""


class _Goals:
    """A controller that is an action: a thread sends the newest goal, what comes meanwhile waits in its only slot."""

    period_s = 0.0

    def __init__(self, client: ActionClient, parts: Sequence[Part]) -> None:
        self.parts, self.sinks, self.problem = tuple(parts), tuple(sink for sink, _ in parts), ""
        self._client = client
        self._next: Callable[[], Any] | None = None
        self._asked: Any = None  # what the newest goal was for
        self._cancel = self._quit = False
        self._goal: Goal | None = None
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def taken(self) -> bool:
        return self._client.ready

    def clear(self) -> None:
        self._next, self._asked, self.problem = None, None, ""

    def watch(self, now_ns: int) -> None:
        """An action ends by itself."""

    def close(self) -> None:
        self._quit = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _ask(self, goal: Callable[[], Any]) -> None:
        """Send a goal soon; the newest one wins."""
        self._next = goal
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"goals {self._client.action}", daemon=True)
            self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while not self._quit:
            self._wake.wait()
            self._wake.clear()
            try:
                if self._cancel:
                    self._cancel, self._next, goal = False, None, self._goal
                    if goal is not None and not goal.done:
                        goal.cancel()
                    continue
                make_goal, self._next = self._next, None
                if make_goal is not None and not self._quit:
                    self._goal = self._client.send_goal(make_goal())
                    time.sleep(self.period_s)
            except InputError as e:
                self.problem = str(e)


class TrajectoryGoals(_Goals):
    """Kind trajectory_action: one goal after the other, each with the newest path; a new goal replaces the one before."""

    period_s = GOAL_PERIOD_S

    def __init__(self, client: ActionClient, parts: Sequence[Part]) -> None:
        super().__init__(client, parts)
        self._names = [joint for sink, _ in parts for joint in sink.joints]

    def write(self, command: Command, measured: np.ndarray | None) -> None:
        points = trajectory_points(self.parts, command, GOAL_PERIOD_S)
        if not points or (self._asked is not None and np.array_equal(points[-1][0], self._asked)):
            return
        self._asked = points[-1][0]
        late_s = GOAL_PERIOD_S - points[0][2]
        self._ask(lambda: self._goal_of([(q, v, at_s + late_s) for q, v, at_s in points]))

    def stop(self, joints: np.ndarray | None, gripper: np.ndarray | None) -> None:
        self._asked, self._cancel = None, True
        self._wake.set()

    def _goal_of(self, points: Sequence[Point]) -> Any:
        return blank("control_msgs/FollowJointTrajectory_Goal", trajectory=trajectory(self._names, points))


class GripperGoals(_Goals):
    """Kinds gripper_action and parallel_gripper_action: a goal when the opening that is wanted has changed."""

    def __init__(self, client: ActionClient, parts: Sequence[Part], config: RobotConfig) -> None:
        super().__init__(client, parts)
        if len(parts) != 1 or len(parts[0][0].joints) != 1:
            raise InputError(f"action {client.action} drives one gripper joint; the contract gives it {[s.joints for s in self.sinks]}")
        self._sink, self._part = self.parts[0]
        self._step = GRIPPER_STEP * (config.spec.gripper_high_m - config.spec.gripper_low_m)
        self._ends = (config.spec.gripper_low_m, config.spec.gripper_high_m)

    def write(self, command: Command, measured: np.ndarray | None) -> None:
        wanted = part_of(command, self._sink, self._part)
        if wanted is None:
            return
        opening = float(wanted[0])
        known = self._asked
        if known is None or abs(opening - known) > self._step or (opening != known and opening in self._ends):
            self._asked = opening
            self._ask(lambda: self._goal_of(opening))

    def stop(self, joints: np.ndarray | None, gripper: np.ndarray | None) -> None:
        """What is held stays held."""

    def _goal_of(self, opening: float) -> Any:
        sink = self._sink
        position = float(sink.from_si([opening])[0])
        if sink.kind == "gripper_action":
            command = make("control_msgs/GripperCommand", position=position, max_effort=sink.effort_n)
            return make("control_msgs/GripperCommand_Goal", command=command)
        header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=0, nanosec=0), frame_id="")
        effort = np.array([sink.effort_n] if sink.effort_n else [], dtype=np.float64)
        state = make(
            "sensor_msgs/JointState",
            header=header,
            name=list(sink.joints),
            position=np.array([position]),
            velocity=np.zeros(0),
            effort=effort,
        )
        return make("control_msgs/ParallelGripperCommand_Goal", command=state)
