"""The safety gate: the last code before a command leaves for the robot.

It is NOT a certified safety function. It guards against what learned policies and their plumbing do wrong (NaN, jumps,
late or stale data, limits); a real cell needs a rated emergency stop, the robot's own limits and a risk assessment besides.

`robot_bridge.safety.states.REASONS` lists what is checked and where it leads: NOMINAL → HOLD → RAMP_DOWN → LATCHED, only ever
upwards within an incident. "Hold" and "ramp down" move alike: every joint stops as fast as its acceleration and jerk limits allow
and stands within `stop_time_s`; a hold ends with the next good command, a latch ends only with `release` by an operator and a
new `seed`. Limits are taken against the last command, never against the measurement (whose tracking error would be fed back), at
the controller's period.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from robot_bridge.kinematics import LinkModel
from robot_bridge.safety.config import GateConfig
from robot_bridge.safety.motion import JointStream
from robot_bridge.safety.operator import Operator
from robot_bridge.safety.space import Distances, Space
from robot_bridge.safety.states import REASONS, GateEvent, Incident, Outcome, State, Verdict
from robot_bridge.safety.watch import Watch, floats, joints_of
from sinew.errors import InputError
from sinew.protocols import Command, Observation

PARTS = (1.0, 0.5, 0.25)
"""Of the way from braking to what is wanted that are tried near a wall."""


class _Frame(NamedTuple):
    joints: list[float]
    grippers: tuple[float, ...]


class SafetyGate:
    """Turns requested joint targets into a stream that respects every limit, or stops.

    Args:
        config: the limits.
        tool: where tools and links are; None leaves boxes, planes, singular poses and tool speed unchecked.
        collision: distances between the links; None leaves self-collision unchecked.
        operator: switches that are read at every tick.

    Raises:
        InputError: the tools' speed, boxes or planes for links shall be kept, and nobody says where they are.
    """

    def __init__(
        self, config: GateConfig, tool: LinkModel | None = None, *, collision: Distances | None = None, operator: Operator | None = None
    ) -> None:
        if tool is None and (config.tcp_speed_m_s is not None or config.keep_out):
            raise InputError("first_run, tcp_speed_max_m_s and keep_out need the robot's kinematics: give its joint frames in its config")
        if tool is not None and tool.levers_m.shape[1] != len(config.position_low_rad):
            raise InputError(f"the kinematics are of {tool.levers_m.shape[1]} joints, the gate's limits of {len(config.position_low_rad)}")
        self.config = config
        self.operator = operator or Operator()
        self.counts: Counter[str] = Counter()
        self.events: deque[GateEvent] = deque(maxlen=1000)
        self.incidents: deque[Incident] = deque(maxlen=1000)
        """Newest last; one that has not ended is going on."""
        self.on_release: list[Callable[[], str]] = []
        """Asked when an operator releases; each gives why the gate must stay closed, or nothing once what it stands for is ready."""
        self.latched = ""
        """Reason of the latch, empty when open."""
        self._state = State.NOMINAL
        self._released = False  # by an operator, and not seeded since; another thread may set it in the middle of a tick
        self._tool = tool
        self._stream = JointStream(config)
        self._space = Space(config, tool, collision)
        self._watch = Watch(config)
        self._target: list[float] | None = None
        self._gripper: tuple[float, ...] = (config.gripper_low_m,)
        self._first = True
        self._last_seq = -1
        self._waiting_since_ns: int | None = None
        self._ticked_ns = 0
        self._last_event = ("", "")

    # ------------------------------------------------------------ opening and closing

    def seed(self, observation: Observation, now_ns: int) -> str:
        """Start from a measured state; forgets every earlier command.

        Returns:
            Empty, or the reason for which the gate stays closed.
        """
        if self.latched:
            return self.latched
        self._stream.position = []
        if self.operator.pressed:
            return self._latch("e_stop", self.operator.pressed, now_ns)
        measured = joints_of(observation, self._stream.joints)
        if measured is None:
            return self._latch("bad_measurement", "measured joints are missing, of another number or not finite", now_ns)
        problem = self._start_problem(measured, observation, now_ns)
        if problem:
            return self._latch("start_pose", problem, now_ns)
        c = self.config
        openings = floats(observation.values.get("gripper", c.gripper_low_m)) or (c.gripper_low_m,)
        self._gripper = tuple(min(max(g, c.gripper_low_m), c.gripper_high_m) if isfinite(g) else c.gripper_low_m for g in openings)
        self._target = None
        self._first, self._last_seq, self._waiting_since_ns, self._ticked_ns = True, -1, None, now_ns
        self._watch.seed(measured, observation.stamp_ns, now_ns)
        self._stream.seed(measured)
        self._released = False
        self._end_incident(now_ns)
        return ""

    def stop(self, reason: str, now_ns: int, detail: str = "") -> None:
        """Close the gate: the stream ramps down and stays until `release`. Callable from any thread."""
        self._latch(reason, detail, now_ns)

    def release(self, by: str = "operator", now_ns: int | None = None) -> str:
        """Open a latched gate again; an operator's decision. Nothing moves before the next `seed`. Callable from any thread.

        Returns:
            Empty, or why it stays closed: the robot still slows down, the emergency stop is still pressed, or what is wrong with the
            robot is so still.
        """
        if not self._stream.still:
            return "the robot still moves"
        if self.operator.pressed:
            return f"the emergency stop is still pressed ({self.operator.pressed})"
        for ask in tuple(self.on_release) if self.latched else ():
            if problem := ask():
                return problem
        self._released = True  # before the latch goes: a tick looks at them the other way round
        if self.latched:
            stamp_ns = self._ticked_ns if now_ns is None else now_ns
            self.events.append(GateEvent(stamp_ns, "released", self.latched, f"by {by}"))
            self._end_incident(stamp_ns, by)
        self.latched, self._last_event = "", ("", "")
        return ""

    @property
    def state(self) -> State:
        """What the gate does now."""
        return State.LATCHED if self._state is State.RAMP_DOWN and self._stream.still else self._state

    @property
    def last_command(self) -> np.ndarray | None:
        """(J,) rad emitted last, None before `seed`."""
        return None if self._closed else np.array(self._stream.position)

    @property
    def _closed(self) -> bool:
        """Whether there is no seed that counts."""
        return self._released or not self._stream.position

    @property
    def speed(self) -> float:
        """Largest commanded joint speed now, rad/s."""
        return max(abs(v) for v in self._stream.velocity)

    @property
    def velocity(self) -> np.ndarray:
        """(J,) rad/s of the last period."""
        return np.array(self._stream.velocity)

    @property
    def velocity_cap(self) -> tuple[float, ...]:
        """Joint speed that is let through, rad/s: the limit, or less where stopping would take longer than `stop_time_s`."""
        return self._stream.velocity_cap

    # ------------------------------------------------------------ checking

    def check(self, command: Command, observation: Observation, now_ns: int) -> Verdict:
        """Judge one command and advance one controller period: `admit`, then `step`."""
        reason = self.admit(command, now_ns)
        if reason:
            return self._brake("hold", reason, "", now_ns)
        return self.step(command.values["joint_position"], command.values.get("gripper"), observation, now_ns)

    def admit(self, command: Command, now_ns: int) -> str:
        """Judge a command as it arrives: shape, finiteness, order and age; latches on the serious ones.

        Returns:
            Empty, or the reason for which the frame is dropped.
        """
        target, reason = self._frame(command.values.get("joint_position"), command.values.get("gripper"))
        if target is None:
            return self._latch(reason, f"in {command.values!r:.200}", now_ns)
        if command.seq <= self._last_seq:
            return self._note("hold", "out_of_order", f"sequence {command.seq} after {self._last_seq}", now_ns)
        if self.expired(command, now_ns):
            return self._note("hold", "expired", f"{(now_ns - command.stamp_ns) / 1e9:.3f} s old", now_ns)
        self._last_seq = command.seq
        reason, detail = self._too_far(target)
        if reason == "first_step":
            return self._latch(reason, detail, now_ns)
        return self._note("hold", reason, detail, now_ns) if reason else ""

    def expired(self, command: Command, now_ns: int) -> bool:
        """Whether a command is past its time to live, or stamped in the future."""
        age_s = (now_ns - command.stamp_ns) / 1e9
        return not -0.001 <= age_s <= min(command.ttl_s, self.config.command_ttl_max_s)

    def step(self, joint_position: Any, gripper: Any, observation: Observation, now_ns: int) -> Verdict:
        """Advance one controller period towards a target.

        Args:
            joint_position: (J,) rad, or None when there is no valid command: the robot holds.
            gripper: m, or None to keep it.
            observation: newest measurement.
            now_ns: monotonic time.
        """
        latched = self.latched
        if self._closed:
            return Verdict(None, self._gripper, "closed", latched or "not_seeded")
        stalled_s, self._ticked_ns = (now_ns - self._ticked_ns) / 1e9, now_ns
        if self.operator.pressed:
            self._latch("e_stop", self.operator.pressed, now_ns)
        if stalled_s > self.config.latch_after_s:  # a process that was stopped does not go on as if nothing had been
            self._latch("stalled", f"{stalled_s:.3f} s since the last tick", now_ns)
        if latched := latched or self.latched:
            return self._brake("latched", latched, "", now_ns)
        reason, detail = self._watch.check(observation, self._stream.position, now_ns)
        if reason:
            return self._answer(reason, detail, now_ns)
        if not self.operator.alive(now_ns):
            return self._answer("dead_man", "no beat within its time", now_ns)
        if joint_position is None:
            return self._answer("no_command" if self._first else "expired", "no command within its time to live", now_ns)
        self._waiting_since_ns = None
        target, reason = self._frame(joint_position, gripper)
        if target is None:
            return self._answer(reason, f"in {joint_position!r:.120}", now_ns)
        return self._towards(target, now_ns)

    def rest(self, now_ns: int) -> Verdict:
        """Advance one controller period to a standstill, on purpose: nothing is counted."""
        if self.operator.pressed and not self._closed:
            self._latch("e_stop", self.operator.pressed, now_ns)
        self._ticked_ns = now_ns
        return self._brake("hold", "", "", now_ns)

    # ------------------------------------------------------------ inside

    def _answer(self, reason: str, detail: str, now_ns: int) -> Verdict:
        """Hold and wait for what is missing, latching when it stays away; or ramp down at once."""
        if REASONS[reason].answer >= State.RAMP_DOWN:
            self._latch(reason, detail, now_ns)
            return self._brake("latched", reason, detail, now_ns)
        if self._waiting_since_ns is None:
            self._waiting_since_ns = now_ns
        elif now_ns - self._waiting_since_ns > self.config.latch_after_s * 1e9:
            self._latch(reason, detail, now_ns)
        return self._brake("hold", reason, detail, now_ns)

    def _towards(self, target: _Frame, now_ns: int) -> Verdict:
        c, stream = self.config, self._stream
        reason, detail = self._too_far(target)
        if reason == "first_step":
            return self._answer(reason, detail, now_ns)
        if reason:
            return self._brake("hold", reason, detail, now_ns)
        self._first = False
        joints = [min(max(t, lo), hi) for t, lo, hi in zip(target.joints, c.position_low_rad, c.position_high_rad, strict=True)]
        if joints != target.joints:
            reason = "position"
            if c.on_position == "reject":
                return self._brake("hold", reason, f"target {target.joints}", now_ns)
        wanted, limited = stream.towards(joints, self._target)
        if limited:
            reason = reason or "velocity"
            if c.on_velocity == "reject":
                return self._brake("hold", reason, "", now_ns)
        speeds, slower = self._space.slowed(stream, wanted)
        if speeds is not None:
            wanted, limited = stream.towards(joints, self._target, speeds)
            reason = slower
            if not any(speeds):
                return self._brake("hold", reason, f"target {joints}", now_ns)
        allowed, problem = self._kept_inside(wanted)
        if problem == "bad_measurement":
            return self._answer(problem, "tool position cannot be computed", now_ns)
        if problem:
            reason = problem
            if allowed is None or c.on_workspace == "reject":
                return self._brake("hold", reason, f"target {joints}", now_ns)
        self._target = joints
        reason = self._move_grippers(target.grippers) or reason
        stream.advance(wanted if allowed is None else allowed, None if limited or problem else joints)
        outcome: Outcome = "clamp" if reason else "pass"
        self._note(outcome, reason, "", now_ns)
        self._end_incident(now_ns)
        return Verdict(np.array(stream.position), self._gripper, outcome, reason)

    def _kept_inside(self, wanted: list[float]) -> tuple[list[float] | None, str]:
        """The largest part of `wanted` after which the robot can still stop where it may be, and what made it a part.

        Returns:
            `wanted` itself where it may be; else half or a quarter of the way from braking to it; None where only braking is left.
        """
        stream, problem, braking = self._stream, "", None
        for part in PARTS:
            tried = wanted
            if part < 1.0:
                braking = braking or stream.braking()
                tried = [b + part * (a - b) for a, b in zip(wanted, braking, strict=True)]
                if not stream.allows(tried):
                    continue
            found = self._space.problem(stream, tried)
            if not found:
                return tried, problem
            problem = found
            if problem == "bad_measurement":
                break
        return None, problem

    def _too_far(self, target: _Frame) -> tuple[str, str]:
        if self._closed:
            return "", ""
        far = max(abs(t - q) for t, q in zip(target.joints, self._stream.position, strict=True))
        if self._first and far > self.config.first_step_max_rad:
            return "first_step", f"first target is {far:.3f} rad from the robot, {self.config.first_step_max_rad} are allowed"
        if far > self.config.jump_max_rad:
            return "jump", f"target is {far:.3f} rad from the last command, {self.config.jump_max_rad} are allowed"
        return "", ""

    def _brake(self, outcome: Outcome, reason: str, detail: str, now_ns: int) -> Verdict:
        if not self._stream.position or (self._released and outcome != "latched"):
            return Verdict(None, self._gripper, "closed", self.latched or "not_seeded")
        self._stream.brake()
        self._target = None
        outcome = "latched" if self.latched else outcome
        self._note(outcome, reason, detail, now_ns)
        return Verdict(np.array(self._stream.position), self._gripper, outcome, reason)

    def _move_grippers(self, targets: tuple[float, ...]) -> str:
        c = self.config
        most = np.inf if c.gripper_velocity_max_m_s is None else c.gripper_velocity_max_m_s * c.dt_s
        wanted = [min(max(t, c.gripper_low_m), c.gripper_high_m) for t in targets]
        full = self._watch.gripper_full and any(w < g for w, g in zip(wanted, self._gripper, strict=True))
        if full:
            wanted = [max(w, g) for w, g in zip(wanted, self._gripper, strict=True)]
        self._gripper = tuple(min(max(w, g - most), g + most) for w, g in zip(wanted, self._gripper, strict=True))
        return "gripper_force" if full else ""

    def _frame(self, joint_position: Any, gripper: Any) -> tuple[_Frame | None, str]:
        """A frame as floats, or None and what is wrong with it."""
        joints = floats(joint_position)
        grippers = self._gripper if gripper is None else floats(gripper)
        if joints is None or grippers is None or len(joints) != self._stream.joints or len(grippers) != len(self._gripper):
            return None, "shape"
        if not all(map(isfinite, joints)) or not all(map(isfinite, grippers)):
            return None, "non_finite"
        return _Frame(list(joints), grippers), ""

    def _start_problem(self, measured: tuple[float, ...], observation: Observation, now_ns: int) -> str:
        c = self.config
        if now_ns - observation.stamp_ns > c.observation_ttl_s * 1e9:
            return f"the measurement is {(now_ns - observation.stamp_ns) / 1e9:.3f} s old"
        for j, (q, lo, hi) in enumerate(zip(measured, c.position_low_rad, c.position_high_rad, strict=True)):
            if not lo - 0.01 <= q <= hi + 0.01:
                return f"joint {j} stands at {q:.3f} rad, outside {lo:.3f} to {hi:.3f}"
        for j, (q, want) in enumerate(zip(measured, c.start_pose_rad, strict=False)):
            if abs(q - want) > c.start_pose_tolerance_rad:
                return f"joint {j} stands at {q:.3f} rad, the start pose is {want:.3f} +- {c.start_pose_tolerance_rad}"
        speed = max((abs(float(v)) for v in observation.values.get("joint_velocity", ())), default=0.0)
        if not speed <= c.start_velocity_max_rad_s:
            return f"the robot moves at {speed:.3f} rad/s"
        return self._space.start_problem(measured)

    # ------------------------------------------------------------ keeping the record

    def _latch(self, reason: str, detail: str, now_ns: int) -> str:
        if not self.latched:
            self.latched = reason
            self._note("latched", reason, detail, now_ns)
        return self.latched

    def _note(self, outcome: Outcome, reason: str, detail: str, now_ns: int) -> str:
        if reason:
            self.counts[reason] += 1
        if outcome in ("hold", "latched") and reason:
            self._escalate(State.RAMP_DOWN if outcome == "latched" else State.HOLD, reason, now_ns)
        if (outcome, reason) != self._last_event:
            self._last_event = (outcome, reason)
            if outcome in ("hold", "latched") and reason:
                self.events.append(GateEvent(now_ns, outcome, reason, detail))
        return reason

    def _escalate(self, state: State, reason: str, now_ns: int) -> None:
        if self._state is State.NOMINAL:
            self.incidents.append(Incident(now_ns, state))
        self._state = max(self._state, state)
        incident = self.incidents[-1]
        incident.state = max(incident.state, self.state)
        if reason not in incident.reasons:
            incident.reasons.append(reason)

    def _end_incident(self, now_ns: int, by: str = "") -> None:
        if self._state is not State.NOMINAL:
            self.incidents[-1].ended_ns, self.incidents[-1].released_by = now_ns, by
            self._state = State.NOMINAL
