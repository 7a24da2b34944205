"""A deployment with faults at exact times: the real runner, loop and gate on a simulated robot, moved by a stepped clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import numpy as np

import sim
from robot_bridge.clock import SteppedClock, sleep
from robot_bridge.dds_robot import task_robot
from robot_bridge.deploy import DeployConfig, DeployReport, deploy, make_gate
from robot_bridge.driver import DriverCheck
from robot_bridge.faults.robot import FaultyRobot
from robot_bridge.faults.schedule import Schedule
from robot_bridge.gate import Operator, SafetyGate
from robot_bridge.sim_robot import SimRobot, SimScene
from sinew.protocols import Command, Observation
from sinew.specs import PolicySpec

STILL_RAD = 1e-9
"""Commands that differ by less stand still."""


@contextmanager
def wall_clock_off(offset_s: float) -> Iterator[None]:
    """This process's wall clock is off by so many seconds."""
    real, real_ns = time.time, time.time_ns
    changed = {"time": lambda: real() + offset_s, "time_ns": lambda: real_ns() + int(offset_s * 1e9)}
    with mock.patch.multiple(time, **changed):
        yield


class Checked(SimRobot):
    """A robot whose driver looks at every command before it obeys."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.check = DriverCheck(self.spec, 1e9 / self._period_ns, np.atleast_1d(self._physics.gripper).size)

    def write(self, command: Command) -> None:
        joints = np.asarray(command.values["joint_position"], dtype=float)
        openings = np.atleast_1d(command.values.get("gripper", ()))
        if not self.check.judge(np.concatenate((joints, openings)), self._clock.now_ns()):
            super().write(command)

    def reset(self, seed: int) -> None:
        self.check.restart()
        super().reset(seed)


class Driver(Checked, FaultyRobot):
    """A faulty robot that remembers every command which reached it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.times_ns: list[int] = []
        self.commands: list[np.ndarray] = []
        self.true: list[tuple[int, np.ndarray, np.ndarray]] = []

    def write(self, command: Command) -> None:
        self.times_ns.append(self._clock.now_ns())
        self.commands.append(np.array(command.values["joint_position"], dtype=float))
        super().write(command)

    def measure(self) -> None:
        super().measure()
        physics = self._physics
        self.true.append((self._clock.now_ns(), np.array(physics.joint_position), np.array(physics.joint_velocity)))


class Expert:
    """The scripted expert behind the executor protocol.

    Args:
        interface: of a task.
        clock: passes while it decides.
        spoil: (tick, action (1, A)) → what is given instead; may let time pass, or give None.
        think_s: seconds that a decision takes at each tick.
    """

    def __init__(
        self,
        interface: Any,
        clock: SteppedClock,
        spoil: Callable[[int, Any], Any] = lambda tick, action: action,
        think_s: Callable[[int], float] = lambda tick: 0.0,
        task: str = "lift",
    ) -> None:
        self.expert, self.interface, self.clock, self.spoil, self.think_s = (
            sim.make_expert(task, "clean", 1),
            interface,
            clock,
            spoil,
            think_s,
        )
        self.spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=1)
        self.ticks = 0

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        self.expert.reset(seeds=seeds)

    def act(self, obs: Mapping[str, Any]) -> Any:
        import torch

        self.ticks += 1
        action = self.interface.action_spec.normalize(torch.as_tensor(np.asarray(self.expert.act(obs)), dtype=torch.float32))
        sleep(self.clock, self.think_s(self.ticks))
        return self.spoil(self.ticks, action)


@dataclass
class Trial:
    """What a deployment with faults was like, seen from the robot."""

    schedule: Schedule = field(default_factory=Schedule)
    task: str = "lift"
    cameras: tuple[str, ...] = ()
    image_size: tuple[int, int] = (24, 32)
    operator: Operator | None = None
    spoil: Callable[[int, Any], Any] = lambda tick, action: action
    think_s: Callable[[int], float] = lambda tick: 0.0
    on_frame: Callable[[Trial, Any], None] | None = None
    record: Any = None
    look: Callable[[Any], Callable[[Observation], str]] | None = None
    """Given the world, what looks at the cameras before each episode."""

    def run(self, seeds: Sequence[int] = (0,), max_steps: int = 60, config: DeployConfig | None = None) -> Trial:
        """Deploy; gives itself."""
        self.clock = SteppedClock()
        interface = sim.make_interface(self.task, cameras=self.cameras)
        config = config or DeployConfig(max_steps=max_steps)
        limits = task_robot(interface.robot_spec, self.cameras)
        self.gate: SafetyGate = make_gate(interface, config, limits, self.operator)
        world = sim.RobotSim(self.task)
        self.robot = Driver(world, interface.robot_spec, self.schedule, clock=self.clock, cameras=self.cameras, image_size=self.image_size)
        self.expert = Expert(interface, self.clock, self.spoil, self.think_s, self.task)
        watch = self.on_frame
        try:
            self.report: DeployReport = deploy(
                cast(Any, self.expert), interface, self.robot, seeds=seeds, scene=SimScene(self.robot), gate=self.gate, config=config,
                clock=self.clock, on_frame=None if watch is None else lambda frame: watch(self, frame), record=self.record,
                look=None if self.look is None else self.look(world),
            )  # fmt: skip
        finally:
            self.robot.close()
            world.close()
        return self

    # ------------------------------------------------------------ what it was like

    @property
    def onset_ns(self) -> int:
        """When the first fault acted."""
        return self.robot.injector.acted[0].stamp_ns

    @property
    def moving_at_onset(self) -> bool:
        """Whether the robot was commanded to move when the first fault acted: else a stop shows nothing."""
        return self.speed_at(self.onset_ns) > 0.02

    def speed_at(self, at_ns: int) -> float:
        """Largest commanded joint speed at a time, rad/s."""
        sent = [i for i, t in enumerate(self.robot.times_ns) if t <= at_ns]
        if len(sent) < 2:
            return 0.0
        i = sent[-1]
        elapsed_s = (self.robot.times_ns[i] - self.robot.times_ns[i - 1]) / 1e9
        return float(np.abs(self.robot.commands[i] - self.robot.commands[i - 1]).max() / elapsed_s)

    def first(self, outcomes: Sequence[str], after_ns: int = 0) -> tuple[int, str] | None:
        """Time and reason of the gate's first event of these outcomes from a time on."""
        events = [(e.stamp_ns, e.reason) for e in self.gate.events if e.outcome in outcomes and e.stamp_ns >= after_ns]
        return events[0] if events else None

    def last_motion_ns(self, until_ns: int | None = None) -> int:
        """When the last command that differed from the one before was sent."""
        robot, last = self.robot, 0
        for i in range(1, len(robot.commands)):
            if (until_ns is None or robot.times_ns[i] <= until_ns) and np.abs(robot.commands[i] - robot.commands[i - 1]).max() > STILL_RAD:
                last = robot.times_ns[i]
        return last

    def stop_s(self, from_ns: int, until_ns: int | None = None) -> float:
        """Seconds from a time to the last command that moved."""
        return (self.last_motion_ns(until_ns) - from_ns) / 1e9

    def travel_rad(self, from_ns: int) -> float:
        """How far the farthest joint truly moved from a time on."""
        path = np.array([q for t, q, _ in self.robot.true if t >= from_ns])
        return float(np.ptp(path, axis=0).max()) if len(path) else 0.0
