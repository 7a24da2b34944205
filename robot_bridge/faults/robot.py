"""A simulated robot that measures wrongly and does not do as it is told, on schedule."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from robot_bridge.faults.injector import Injector
from robot_bridge.faults.schedule import Fault, Schedule
from robot_bridge.sim_robot import Physics, SimRobot
from sinew.protocols import Command, Observation, RobotSpec

MOTION_RAD_S = 0.05
"""Joint speed that counts as motion."""
JOINT_STATE = ("joint_position", "joint_velocity", "joint_effort", "gripper")


class FaultyRobot(SimRobot):
    """A `SimRobot` with faults; with a `SteppedClock` they act at exact times.

    Args:
        physics: the world.
        spec: what it can be commanded.
        schedule: what goes wrong.
        served: whether a `FaultyServer` speaks for it, which does what a process alone can do.
        options: as for `SimRobot`.

    Raises:
        InputError: the schedule holds faults that only a process can have.
    """

    def __init__(self, physics: Physics, spec: RobotSpec, schedule: Schedule, *, served: bool = False, **options: Any) -> None:
        super().__init__(physics, spec, **options)
        if not served:
            schedule.check_in_process()
        self.injector = Injector(schedule, self._clock.now_ns())
        self._late: deque[tuple[int, Command]] = deque()
        self._before: Observation | None = None

    def write(self, command: Command) -> None:
        now_ns = self._clock.now_ns()
        self.injector.tell("command", now_ns)
        if self._acts("commands_ignored") or self._acts("robot_estop"):
            return
        if delayed := self._acts("commands_delayed"):
            self._late.append((now_ns + int(delayed["delay_s"] * 1e9), command))
            return
        super().write(command)

    def reset(self, seed: int) -> None:
        self._late.clear()
        self._before = None
        self.injector.tell("reset", self._clock.now_ns())
        super().reset(seed)

    def advance(self) -> None:
        now_ns = self._clock.now_ns()
        while self._late and self._late[0][0] <= now_ns:
            # a controller does not know how old a command is: for it this one begins now
            super().write(replace(self._late.popleft()[1], stamp_ns=now_ns))
        if self._acts("robot_estop"):
            self.stop("robot_estop")
        super().advance()

    def measure(self) -> None:
        previous = self._observation
        super().measure()
        true, now_ns = self._observation, self._clock.now_ns()
        if np.abs(true.values["joint_velocity"]).max() > MOTION_RAD_S:
            self.injector.tell("motion", now_ns)
        dropped = self._acts("joint_states_dropped")
        if dropped and previous.seq and self.injector.random.random() < dropped["part"]:
            self._observation = previous
            return
        values = self._shown(self._stated(dict(true.values)), previous)
        stamps_ns, stamp_ns = self._stamps(values, previous, true), true.stamp_ns
        if reversing := self._acts("joint_states_reversed"):
            stamp_ns -= int(2e9 * self.injector.elapsed_s(reversing, now_ns))
        self._observation = replace(true, stamp_ns=stamp_ns, values=values, stamps_ns=stamps_ns)

    # ------------------------------------------------------------ inside

    def _acts(self, what: str) -> Fault | None:
        return self.injector.active(what, self._clock.now_ns())

    def _stated(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What joint states say."""
        if not self._acts("joint_states_frozen"):
            self._before = replace(self._observation, values={key: values[key] for key in JOINT_STATE if key in values})
        elif self._before is not None:
            values.update(self._before.values)
        if jump := self._acts("joint_states_jump"):
            values["joint_position"] = self._changed(values["joint_position"], jump, jump["size_rad"])
        if broken := self._acts("joint_states_nan"):
            values["joint_position"] = self._changed(values["joint_position"], broken, np.nan)
        if spike := self._acts("effort_spike"):
            effort = values.get("joint_effort", np.zeros(len(self._spec.joint_names)))
            values["joint_effort"] = self._changed(effort, spike, spike["size_nm"])
        if self._acts("joint_count_wrong"):
            values.update({key: values[key][:-1] for key in JOINT_STATE[:3] if key in values})
        return values

    @staticmethod
    def _changed(values: np.ndarray, fault: Fault, size: float) -> np.ndarray:
        changed = values.copy()
        changed[int(fault["joint"]) % len(changed)] += size
        return changed

    def _shown(self, values: dict[str, np.ndarray], previous: Observation) -> dict[str, np.ndarray]:
        """What cameras show."""
        names = [f"images.{camera}" for camera in self._cameras]
        if self._acts("cameras_swapped") and len(names) > 1:
            values[names[0]], values[names[1]] = values[names[1]], values[names[0]]
        for name in names:
            if self._hits("camera_black", name):
                values[name] = np.zeros_like(values[name])
            if self._standing(name):
                values.pop(name)
                values.update({k: v for k, v in previous.values.items() if k == name})
        return values

    def _standing(self, name: str) -> bool:
        """Whether no new images of a camera come."""
        return self._hits("camera_stall", name) or self._hits("camera_unplugged", name)

    def _hits(self, what: str, name: str) -> bool:
        acting = self.injector.acting(what, self._clock.now_ns())
        return any(fault["camera"] in ("", name.removeprefix("images.")) for fault in acting)

    def _stamps(self, values: Mapping[str, np.ndarray], previous: Observation, true: Observation) -> dict[str, int]:
        """When each value came: what stands keeps the time it came."""
        kept = {key: previous.stamps_ns[key] for key in values if key in previous.stamps_ns and self._standing(key)}
        return {**true.stamps_ns, **kept}
