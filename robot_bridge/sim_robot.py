"""A simulated robot in this process, on its own thread in real time or stepped by a test's clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from robot_bridge.cadence import next_deadline
from robot_bridge.clock import Clock, MonotonicClock, SteppedClock
from robot_bridge.interfaces import Tap
from sinew.errors import InputError
from sinew.protocols import Command, Observation, RobotSpec

MAX_CATCH_UP = 5
"""Periods of physics made up for at once after a delay; more is lost time, not a jump."""


class Physics(Protocol):
    """One simulated world; `sim.RobotSim` is one."""

    @property
    def joint_position(self) -> np.ndarray: ...

    @property
    def joint_velocity(self) -> np.ndarray: ...

    @property
    def gripper(self) -> float | np.ndarray: ...

    @property
    def poses(self) -> Mapping[str, np.ndarray]: ...

    @property
    def success(self) -> bool: ...

    def reset(self, seed: int) -> None: ...

    def step(self, joint_target: np.ndarray, gripper_target: float | np.ndarray, duration_s: float) -> None: ...

    def image(self, camera: str, height: int = ..., width: int = ...) -> np.ndarray: ...


class SimRobot:
    """A simulated arm behind the `Robot` protocol.

    It keeps its own watchdog, as a real controller should: when the newest command is past its time to live, the targets
    stay where they are, so the arm comes to rest at the last commanded position.

    Args:
        physics: the world.
        spec: what it can be commanded.
        rate_hz: controller rate: how often commands are taken up and measurements made.
        cameras: cameras that are rendered.
        camera_rate_hz: images per second.
        image_size: (height, width) of the images in pixels.
        clock: `SteppedClock` steps the physics inside its `wait_until`, without a thread.
    """

    def __init__(
        self,
        physics: Physics,
        spec: RobotSpec,
        *,
        rate_hz: float = 100.0,
        cameras: Sequence[str] = (),
        camera_rate_hz: float = 20.0,
        image_size: tuple[int, int] = (84, 84),
        clock: Clock | None = None,
    ) -> None:
        self._physics, self._spec = physics, spec
        self._clock = clock or MonotonicClock()
        self._period_ns = round(1e9 / rate_hz)
        self._cameras, self._image_every = tuple(cameras), max(1, round(rate_hz / camera_rate_hz))
        self._image_size = image_size
        self._lock = threading.Lock()  # around the physics; reading and writing do not take it
        self._command: Command | None = None
        self._target: tuple[np.ndarray, np.ndarray] | None = None
        self._observation = Observation(-(1 << 62), 0, {})
        self._images: dict[str, np.ndarray] = {}
        self._stamps_ns: dict[str, int] = {}
        self._solved = False
        self._ticks = 0
        self._end: Callable[[], None] | None = None
        self._quit = threading.Event()
        self._broken: Exception | None = None
        self.holding = True
        """Whether the watchdog holds: no command is within its time to live."""
        self.stopped = ""
        """Reason of the last `stop`."""
        self.tap: Tap | None = None
        """Takes every measurement."""

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def connect(self, timeout_s: float = 10.0) -> None:
        """Begin to simulate."""
        if self._end is not None:
            return
        self.measure()
        if isinstance(self._clock, SteppedClock):
            self._end = self._clock.every(self._period_ns, self.advance)
            return
        thread = threading.Thread(target=self._run, name="physics", daemon=True)
        thread.start()

        def end() -> None:
            self._quit.set()
            thread.join()

        self._end = end

    def read(self) -> Observation:
        if self._broken is not None:
            raise self._broken
        return self._observation

    def write(self, command: Command) -> None:
        joints = np.asarray(command.values["joint_position"], dtype=float)
        if joints.shape != (len(self._spec.joint_names),) or not np.isfinite(joints).all():
            raise InputError(f"robot {self._spec.name} takes {len(self._spec.joint_names)} finite joint targets, given {joints!r:.120}")
        self._command = command

    def stop(self, reason: str) -> None:
        self.stopped = reason
        self._command = None
        self._target = None

    def close(self) -> None:
        if self._end is not None:
            self._end()
            self._end = None

    def reset(self, seed: int) -> None:
        """Start the episode of `seed`; commands of before are forgotten."""
        with self._lock:
            self._physics.reset(seed)
            self._command = self._target = None
            self._ticks = 0
            self.measure()

    def solved(self) -> bool:
        """Whether the task was solved at the newest measurement."""
        return self._solved

    def advance(self) -> None:
        """One controller period: take up the command, step the physics, measure."""
        with self._lock:
            joints, gripper = self._take_up(self._clock.now_ns())
            self._physics.step(joints, gripper, self._period_ns / 1e9)
            self._ticks += 1
            self.measure()

    def _take_up(self, now_ns: int) -> tuple[np.ndarray, np.ndarray]:
        command = self._command
        self.holding = command is None or now_ns - command.stamp_ns > command.ttl_s * 1e9
        if command is not None and not self.holding:
            gripper = command.values.get("gripper")
            kept = self._target[1] if self._target else np.asarray(self._physics.gripper, dtype=float)
            self._target = (np.asarray(command.values["joint_position"], dtype=float), kept if gripper is None else np.asarray(gripper))
        if self._target is None:
            self._target = (np.array(self._physics.joint_position, dtype=float), np.array(self._physics.gripper, dtype=float))
        return self._target

    def measure(self) -> None:
        """Take a measurement of the world as it is."""
        physics, now_ns = self._physics, self._clock.now_ns()
        if self._ticks % self._image_every == 0:
            self._images = {f"images.{camera}": physics.image(camera, *self._image_size) for camera in self._cameras}
            self._stamps_ns = dict.fromkeys(self._images, now_ns)
        values = {
            "joint_position": np.array(physics.joint_position, dtype=float),
            "joint_velocity": np.array(physics.joint_velocity, dtype=float),
            "gripper": np.array(physics.gripper, dtype=float),
            **{f"pose.{name}": np.array(pose, dtype=float) for name, pose in physics.poses.items()},
            **self._images,
        }
        effort = getattr(physics, "joint_effort", None)
        if effort is not None:
            values["joint_effort"] = np.array(effort, dtype=float)
        self._solved = bool(physics.success)
        self._observation = Observation(now_ns, self._observation.seq + 1, values, self._stamps_ns)
        if self.tap is not None:
            for key, value in values.items():
                if key not in self._images:
                    self.tap.sample(key, now_ns, now_ns, value, self._observation.seq)
                elif self._stamps_ns[key] == now_ns:
                    self.tap.sample(key, now_ns, now_ns, None, self._ticks // self._image_every)

    def _run(self) -> None:
        try:
            self._keep_time()
        except Exception as e:  # whoever reads next hears of it
            self._broken = e

    def _keep_time(self) -> None:
        deadline_ns = self._clock.now_ns() + self._period_ns
        while not self._quit.is_set():
            self._clock.wait_until(deadline_ns)
            self.advance()
            late = max(0, self._clock.now_ns() - deadline_ns) // self._period_ns
            for _ in range(min(late, MAX_CATCH_UP)):
                self.advance()
            deadline_ns = next_deadline(deadline_ns, self._period_ns, self._clock.now_ns())


class SimScene:
    """The scene of a `SimRobot`."""

    def __init__(self, robot: SimRobot) -> None:
        self._robot = robot

    def reset(self, seed: int, timeout_s: float = 10.0) -> None:
        self._robot.reset(seed)

    def success(self) -> bool | None:
        return self._robot.solved()
