"""The simulated robot's process with the faults that only a process can have: on the wire, in the graph, by signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node
from robot_bridge.dds.qos import DEFAULT, NEWEST
from robot_bridge.dds.topics import COMMANDS, RobotTopics
from robot_bridge.faults.injector import Injector
from robot_bridge.faults.robot import FaultyRobot
from robot_bridge.faults.schedule import Fault
from robot_bridge.serve_sim import SimServer


class FaultyServer(SimServer):
    """A `SimServer` whose parts may fail; each part is a node of its own, so that it can leave the graph and come back.

    Args:
        robot: made with `served=True`.
        node: place of what never fails.
        options: as for `SimServer`.
    """

    def __init__(self, robot: FaultyRobot, node: Node, **options: Any) -> None:
        self.injector: Injector = robot.injector
        self._domain: dict[str, Any] = {"domain": node.domain, "reach": node.reach}
        self._parts: dict[str, tuple[str, Node]] = {}
        self._last_seq = -1
        self._slewed_ns = 0.0
        self._clocked_ns = 0
        self._now_ns = time.monotonic_ns()
        super().__init__(robot, node, **options)

    def tick(self, now_ns: int, wall_ns: int) -> None:
        self._now_ns = now_ns
        self._signal_self()
        wrong = self._acts("wrong_message_type")
        topic = wrong["topic"] if wrong else ""
        self._arrange("joint_state_broadcaster", "wrong" if topic == "joint_states" else "right", self._make_states)
        controllers = "" if self._acts("controller_inactive") else "wrong" if topic == "commands" else "right"
        self._arrange("controller_manager", controllers, self._make_controllers)
        for camera in self._fovy_rad:
            gone = any(fault["camera"] in ("", camera) for fault in self.injector.acting("camera_unplugged", now_ns))
            self._arrange(f"{camera}_driver", "" if gone else "right", self._make_camera(camera))
        self._arrange("rival", "right" if self._acts("second_publisher") else "", self._make_rival)
        super().tick(now_ns, self._clock_ns(wall_ns))

    def close(self) -> None:
        for _, node in self._parts.values():
            node.close()
        super().close()

    def report(self) -> dict[str, Any]:
        acted = [{"stamp_ns": a.stamp_ns, "what": a.what} for a in self.injector.acted]
        return {**super().report(), "faults": acted}

    # ------------------------------------------------------------ parts of the graph

    def _open_states(self, node: Node) -> None:
        self._arrange("joint_state_broadcaster", "right", self._make_states)

    def _open_controllers(self, node: Node) -> None:
        self._arrange("controller_manager", "right", self._make_controllers)

    def _open_camera(self, camera: str, node: Node) -> None:
        self._arrange(f"{camera}_driver", "right", self._make_camera(camera))

    def _arrange(self, part: str, how: str, make_part: Callable[[Node, str], None]) -> None:
        """See that a part of the robot is in the graph as `how` says, or not at all."""
        now = self._parts.get(part, ("", None))
        if now[0] == how:
            return
        if now[1] is not None:
            del self._parts[part]
            if part == "controller_manager":
                self._commands = []
            now[1].close()
        if how:
            node = Node(part, **self._domain)
            self._parts[part] = how, node
            make_part(node, how)

    def _make_states(self, node: Node, how: str) -> None:
        if how == "right":
            super()._open_states(node)
        else:
            self._states = node.publisher(RobotTopics().joint_states, "std_msgs/String", DEFAULT)

    def _make_controllers(self, node: Node, how: str) -> None:
        if how == "right":
            super()._open_controllers(node)
        else:
            for topic, _ in COMMANDS.values():
                node.subscription(topic, "std_msgs/String", NEWEST)

    def _make_camera(self, camera: str) -> Callable[[Node, str], None]:
        return lambda node, how: SimServer._open_camera(self, camera, node)

    def _make_rival(self, node: Node, how: str) -> None:
        node.publisher(*COMMANDS["position"], NEWEST)

    # ------------------------------------------------------------ what is said

    def _acts(self, what: str) -> Fault | None:
        return self.injector.active(what, self._now_ns)

    def _state(self) -> str:
        return "stopped" if self._acts("robot_estop") else super()._state()

    def _clock_ns(self, wall_ns: int) -> int:
        """The robot's own clock, which may be set and run wrongly."""
        elapsed_ns, self._clocked_ns = wall_ns - (self._clocked_ns or wall_ns), wall_ns
        if slew := self._acts("clock_slew"):
            self._slewed_ns += slew["rate"] * elapsed_ns
        offset = self._acts("clock_offset")
        return wall_ns + int(self._slewed_ns) + int(offset["offset_s"] * 1e9 if offset else 0)

    def _publish_state(self, values: Mapping[str, np.ndarray], wall_ns: int) -> None:
        seq, self._last_seq = self._last_seq, self.robot.read().seq
        if seq == self._last_seq:
            return  # dropped
        broken = self._acts("wrong_message_type")
        if broken and broken["topic"] == "joint_states":
            self._states.send(make("std_msgs/String", data="joint states"))
            return
        if reversing := self._acts("joint_states_reversed"):
            wall_ns -= int(2e9 * self.injector.elapsed_s(reversing, self._now_ns))
        names = list(self.robot.spec.joint_names)[: len(values["joint_position"])] + list(self._names[len(self.robot.spec.joint_names) :])
        if self._acts("joint_names_wrong"):
            names = [f"wrong_{name}" for name in names]
        openings = np.atleast_1d(values["gripper"])
        still = np.zeros(len(openings))
        stamp = make("builtin_interfaces/Time", sec=wall_ns // 1_000_000_000, nanosec=wall_ns % 1_000_000_000)
        state = {
            "position": np.concatenate((values["joint_position"], openings)),
            "velocity": np.concatenate((values["joint_velocity"], still)),
            "effort": np.concatenate((values["joint_effort"], still)) if "joint_effort" in values else np.zeros(0),
        }
        self._states.send(make("sensor_msgs/JointState", header=make("std_msgs/Header", stamp=stamp, frame_id=""), name=names, **state))

    # ------------------------------------------------------------ the process

    def _signal_self(self) -> None:
        if self._acts("process_killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        stopped = self._acts("process_stopped")
        if stopped:
            if stopped.for_s is not None:
                left_s = max(0.0, stopped.for_s - self.injector.elapsed_s(stopped, self._now_ns))
                subprocess.Popen(["/bin/sh", "-c", f"sleep {left_s:.3f}; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
