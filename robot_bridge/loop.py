"""The control loop: from policy rate to controller rate, through the gate, on absolute deadlines.

A policy gives a joint target every 50 ms or so; a robot wants a smooth stream at 100 Hz and more, whatever the policy does.
The loop's own thread moves from target to target without a jump in position, velocity or acceleration, sends every point
through the safety gate, and lets the gate hold when the target's time to live has passed. It waits for nothing but its deadline.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from robot_bridge.cadence import Cadence, favoured, next_deadline, quiet_interpreter, raise_priority
from robot_bridge.clock import Clock, MonotonicClock, SteppedClock
from robot_bridge.gate import SafetyGate, Verdict
from robot_bridge.interfaces import Tap
from robot_bridge.interpolation import Interpolator, Motion, MotionLimits, braking_path
from robot_bridge.stop_times import StopTimes
from sinew.errors import SinewError
from sinew.protocols import Command, Observation, Robot

WRITE_TTL_S = 0.1
"""Time to live of what is sent: the robot's own watchdog holds after this."""
LOOP_STUCK_S = 0.03
"""A loop that has not ticked for this long after an emergency stop is not waited for."""


class ControlLoop:
    """Sends interpolated, gated commands to a robot at `rate_hz`.

    Commands to the robot hold "joint_position" (J,) rad, "joint_velocity" (J,) rad/s and "gripper" m. A robot with a
    `path_points` above 1 gets "joint_path" (K, J) rad, "joint_path_velocity" (K, J) rad/s and "path_times_s" (K,) besides: the
    same point, one period from now, and the way to rest from there, so that a trajectory controller stops by itself when nothing
    follows.

    Args:
        robot: connected.
        gate: its `dt_s` is the loop's period.
        blend_s: time over which the stream moves from one target to the next: the policy's period.
        clock: `SteppedClock` runs the loop inside its `wait_until`, without a thread.
        realtime: ask for SCHED_FIFO.
    """

    def __init__(self, robot: Robot, gate: SafetyGate, *, blend_s: float, clock: Clock | None = None, realtime: bool = True) -> None:
        self.robot, self.gate = robot, gate
        self.cadence = Cadence(("read", "gate", "write"), gate.config.dt_s)
        self.stop_times = StopTimes()
        self.scheduler = "stepped"
        self.verdict: Verdict | None = None
        """What the gate said at the newest tick."""
        self.outcomes: Counter[str] = Counter()
        """Ticks per outcome of the gate."""
        self.defect: Exception | None = None
        """What broke in the control thread, which latches the gate."""
        self.held = ""
        """Why the robot is held although targets may come; empty when it is not."""
        self.tap: Tap | None = None
        """Takes what is sent, at the rate at which it is."""
        self._blend_s, self._stretched = blend_s, 0
        self.interpolator = Interpolator(self.limits(), gate.config.dt_s, blend_s)
        self._clock = clock or MonotonicClock()
        self._realtime = realtime
        self._period_ns = round(gate.config.dt_s * 1e9)
        self._submitted: Command | None = None
        self._frame: Command | None = None
        self._sent: list[np.ndarray] = []  # the newest three positions, the newest last
        self._following = False
        self._running = False
        self._resting = False
        self._seq = 0
        self._session = ""
        self._path_points = int(getattr(robot, "path_points", 0))
        self._tick_lock = threading.Lock()  # held for one tick; taken elsewhere only to pause and resume
        self._stack = ExitStack()
        self._end: Callable[[], None] = lambda: None
        self._quit = threading.Event()

    # ------------------------------------------------------------ what the policy side calls

    def start(self) -> None:
        """Start ticking; nothing is sent before `resume`."""
        self.gate.operator.on_press.append(self._pressed)
        self.gate.on_release.append(self._released)
        if isinstance(self._clock, SteppedClock):
            self._end = self._clock.every(self._period_ns, lambda: self._tick(self._clock.now_ns()))
            return
        self._stack.enter_context(quiet_interpreter())
        if self._realtime:
            self._stack.enter_context(favoured())
        thread = threading.Thread(target=self._run, name="control", daemon=True)
        thread.start()

        def end() -> None:
            self._quit.set()
            thread.join()

        self._end = end

    def resume(self, timeout_s: float = 2.0) -> str:
        """Wait until the robot is at rest, seed the gate from what it measures and begin to send that pose, in a new session.

        Returns:
            Empty, or why the gate stays closed.
        """
        deadline_ns = self._clock.now_ns() + int(timeout_s * 1e9)
        while True:
            with self._tick_lock:
                now_ns = self._clock.now_ns()
                observation = self.robot.read()
                if self._ready(observation, now_ns) or now_ns >= deadline_ns:
                    reason = self.gate.seed(observation, now_ns)
                    self._submitted = self._frame = None
                    self._sent, self._following, self.held = [], False, ""
                    self._session = secrets.token_hex(8)
                    self._running, self._resting = not reason, False
                    self.cadence.resume()
                    self.stop_times.resume()
                    return reason
            self._clock.wait_until(now_ns + self._period_ns)

    def _ready(self, observation: Observation, now_ns: int) -> bool:
        """Whether the measurement is fresh and the robot at rest."""
        limits = self.gate.config
        fresh = now_ns - observation.stamp_ns <= limits.observation_ttl_s * 1e9
        speed = np.abs(observation.values.get("joint_velocity", np.zeros(1))).max()
        return fresh and bool(speed <= limits.start_velocity_max_rad_s)

    def pause(self) -> None:
        """Stop sending; the robot holds by its own watchdog. After the return no command of before is on its way out."""
        with self._tick_lock:
            self._running = False
            self._submitted = self._frame = None

    def limits(self, speed: float = 1.0) -> MotionLimits:
        """What the stream keeps to at a share of the speed that the gate lets through."""
        return MotionLimits.of(self.gate.config, speed=[speed * v for v in self.gate.velocity_cap])

    def keep_to(self, limits: MotionLimits) -> None:
        """Interpolate within other limits from the next `resume` on; call it while paused."""
        with self._tick_lock:
            self._stretched += self.interpolator.stretched
            self.interpolator = Interpolator(limits, self.gate.config.dt_s, self._blend_s)

    def submit(self, command: Command) -> None:
        """Hand over the newest target; never blocks. `stamp_ns` is when the observation behind it was read."""
        self._submitted = command

    def hold(self, reason: str) -> None:
        """Come to a standstill and stay there, whatever targets come, until this is called with an empty reason; never blocks."""
        self.held = reason

    def ramp_down(self, timeout_s: float = 1.0) -> None:
        """Forget the target and wait until the stream stands still."""
        self._resting = True
        deadline_ns = self._clock.now_ns() + int(timeout_s * 1e9)
        while self._running and self.gate.speed > 0 and self._clock.now_ns() < deadline_ns:
            self._clock.wait_until(self._clock.now_ns() + self._period_ns)

    def close(self) -> None:
        """Ramp down and end the thread."""
        self.ramp_down()
        self._end()
        self._end = lambda: None
        with suppress(ValueError):
            self.gate.operator.on_press.remove(self._pressed)
        with suppress(ValueError):
            self.gate.on_release.remove(self._released)
        self._stack.close()

    def report(self) -> dict[str, Any]:
        """JSON-able cadence of this loop, with the scheduler it ran under, and how fast it stopped."""
        stretched = self._stretched + self.interpolator.stretched
        told = {"scheduler": self.scheduler, "stretched_targets": stretched, "stops": self.stop_times.report()}
        return {**self.cadence.report(), **told}

    # ------------------------------------------------------------ the operator's side

    def _pressed(self, reason: str) -> None:
        """The emergency stop: the gate sees it at the next tick. Where that does not come in time, the robot is told without it."""
        self.stop_times.asked(self._clock.now_ns())
        if self._running and not isinstance(self._clock, SteppedClock):
            threading.Thread(target=self._stop_without_loop, args=(reason, self.cadence.ticks), name="e-stop", daemon=True).start()

    def _released(self) -> str:
        """An operator releases: a robot that has refused to be commanded is asked whether what was wrong is so still."""
        clear = getattr(self.robot, "clear", None)
        return "" if clear is None else clear()

    def _stop_without_loop(self, reason: str, ticks: int) -> None:
        time.sleep(max(LOOP_STUCK_S, 2 * self._period_ns / 1e9))
        if self._running and self.cadence.ticks == ticks:
            with suppress(Exception):  # nothing more can be done from here
                self.robot.stop(f"e_stop: {reason}")

    # ------------------------------------------------------------ the loop's thread

    def _run(self) -> None:
        self.scheduler = raise_priority() if self._realtime else "SCHED_OTHER (not asked for)"
        deadline_ns = self._clock.now_ns() + self._period_ns
        while not self._quit.is_set():
            self._clock.wait_until(deadline_ns)
            self._tick(deadline_ns)
            deadline_ns = next_deadline(deadline_ns, self._period_ns, self._clock.now_ns())

    def _tick(self, deadline_ns: int) -> None:
        with self._tick_lock:
            if not self._running:
                return
            now_ns = self._clock.now_ns()
            try:
                observation = self.robot.read()
                read_ns = self._clock.now_ns()
                self.verdict = self._judge(observation, now_ns)
                self.outcomes[self.verdict.outcome] += 1
                judged_ns = self._clock.now_ns()
                self._send(self.verdict, now_ns)
            except SinewError as e:
                self._fault("robot_fault", e, now_ns)
                return
            except Exception as e:  # a defect: the thread lives on to keep the gate closed, the policy's side raises it
                self.defect = self.defect or e
                self._fault("defect", e, now_ns)
                return
            sent_ns = self._clock.now_ns()
            self.cadence.add(deadline_ns, (now_ns, read_ns, judged_ns, sent_ns))
            if not self._resting:
                self.stop_times.sent(self.verdict, self.held, self.gate.speed, sent_ns)

    def _judge(self, observation: Observation, now_ns: int) -> Verdict:
        frame, self._submitted = self._submitted, None
        if self._resting or self.held:
            self._frame, self._following = None, False
            return self.gate.rest(now_ns)
        if frame is not None:
            reason = self.gate.admit(frame, now_ns)
            if not reason:
                self._aim(frame)
                self.stop_times.valid(now_ns)
            elif reason != "out_of_order":
                self._frame = None
        # what is sent now is followed until the next tick, which must not be past the target's time to live
        if self._frame is None or self.gate.expired(self._frame, now_ns + self._period_ns):
            self._following = False
            return self.gate.step(None, None, observation, now_ns)
        reference = self.interpolator.advance().position
        return self.gate.step(reference, self._frame.values.get("gripper"), observation, now_ns)

    def _aim(self, frame: Command) -> None:
        """Turn to a new target, from the stream where the gate followed it, else from what the gate made of it."""
        followed = self._following and self.verdict is not None and self.verdict.outcome == "pass"
        if not followed:
            position = self.gate.last_command
            if position is None:  # released meanwhile: nothing is followed before the next seed
                return
            motion = self._emitted(position)
            self.interpolator.start(motion.position, motion.velocity, motion.acceleration)
        self.interpolator.aim(frame.values["joint_position"])
        self._frame, self._following = frame, True

    def _emitted(self, position: np.ndarray) -> Motion:
        """How the robot was told to move at the newest tick, to `position`, by differences of what was sent."""
        step_s = self.gate.config.dt_s
        past = [position] * (3 - len(self._sent)) + self._sent[-3:]
        velocity = (past[2] - past[1]) / step_s
        return Motion(position, velocity, (past[2] - 2.0 * past[1] + past[0]) / step_s**2)

    def _send(self, verdict: Verdict, now_ns: int) -> None:
        if verdict.joint_position is None:
            return
        self._seq += 1
        self._sent = [*self._sent[-2:], verdict.joint_position]
        motion = self.interpolator.now if self._following and verdict.outcome == "pass" else self._emitted(verdict.joint_position)
        values: dict[str, np.ndarray] = {
            "joint_position": verdict.joint_position,
            "joint_velocity": motion.velocity,
            "gripper": openings(verdict.gripper),
        }
        if self._path_points > 1:
            values |= self._path(replace(motion, position=verdict.joint_position))
        self.robot.write(Command(now_ns, self._seq, WRITE_TTL_S, values, self._session))
        if self.tap is not None:
            for name in ("joint_position", "gripper"):
                if values[name].size:
                    self.tap.sample(f"sent.{name}", now_ns, now_ns, values[name], self._seq)

    def _path(self, motion: Motion) -> dict[str, np.ndarray]:
        """The point that is sent, and the way to rest from there."""
        times, positions, velocities = braking_path(motion, self.interpolator.limits, self._path_points - 1)
        step_s = self.gate.config.dt_s
        return {
            "joint_path": np.concatenate((motion.position[None], positions)),
            "joint_path_velocity": np.concatenate((motion.velocity[None], velocities)),
            "path_times_s": np.concatenate(([step_s], step_s + times)),
        }

    def _fault(self, reason: str, error: Exception, now_ns: int) -> None:
        """The robot refused: close the gate and keep ticking, so that a stop is still possible."""
        if not self.gate.latched:
            self.gate.stop(reason, now_ns, f"{type(error).__name__}: {error}")
            with suppress(Exception):  # it may be what is broken
                self.robot.stop(str(error))


def openings(grippers: tuple[float, ...]) -> np.ndarray:
    """Openings as commands carry them: () for one gripper, (G,) for several."""
    return np.array(grippers[0] if len(grippers) == 1 else grippers)
