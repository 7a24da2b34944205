"""The safety gate: the last code before a command leaves for the robot.

It is NOT a certified safety function. It guards against what learned policies and their plumbing do wrong (NaN, jumps,
late or stale data, limits); a real cell needs a rated emergency stop, the robot's own limits and a risk assessment besides.

What is checked, in this order, and what follows:

| check                                   | reason              | answer                                  |
|-----------------------------------------|---------------------|-----------------------------------------|
| not seeded from a measured state        | not_seeded          | nothing is emitted                      |
| measurement not finite                  | bad_measurement     | ramp down, latched                      |
| measurement older than its limit        | stale_observation   | hold; latched after `latch_after_s`     |
| wrong number of joints                  | shape               | ramp down, latched                      |
| NaN or infinity anywhere in the frame   | non_finite          | whole frame dropped, ramp down, latched |
| sequence number not newer               | out_of_order        | frame dropped, hold                     |
| command older than its time to live     | expired             | hold; latched after `latch_after_s`     |
| no command yet since `seed`             | no_command          | hold; latched after `latch_after_s`     |
| first command far from where it stands  | first_step          | ramp down, latched                      |
| target far from the last command        | jump                | hold                                    |
| target outside position limits          | position            | clamp, or hold                          |
| velocity or acceleration beyond limits  | velocity            | clamp, or hold                          |
| tool would leave the workspace box      | workspace           | slow down towards the wall, or hold     |
| tool pose not computable                | bad_measurement     | ramp down, latched                      |
| no tick for longer than `latch_after_s` | stalled             | ramp down, latched                      |
| start: measured pose is not acceptable  | start_pose          | latched before anything is emitted      |

"Hold" and "ramp down" move alike: every joint decelerates with at most its acceleration limit and stands within
`stop_time_s`; a hold ends with the next good command, a latch ends only with `release` and a new `seed`. Limits are taken
against the last command, never against the measurement (whose tracking error would be fed back), at the controller's period.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite
from typing import Any, Literal, NamedTuple

import numpy as np

from robot_bridge.braking import braking_distance, braking_speed
from robot_bridge.gate_config import GateConfig
from robot_bridge.kinematics import Point, ToolModel
from sinew.protocols import Command, Observation

__all__ = ["GateConfig", "GateEvent", "SafetyGate", "Verdict"]

Outcome = Literal["pass", "clamp", "hold", "latched", "closed"]


class Verdict(NamedTuple):
    """What the gate makes of one controller tick."""

    joint_position: np.ndarray | None
    """(J,) float64 rad to send; None when the gate is closed and nothing may be sent."""
    gripper: tuple[float, ...]
    """Metres, one opening per gripper."""
    outcome: Outcome
    reason: str
    """Empty for "pass", else the reason of the module's table."""


@dataclass(frozen=True)
class GateEvent:
    """The beginning of a hold or latch, kept for the report; what is clamped is only counted."""

    stamp_ns: int
    outcome: Outcome
    reason: str
    detail: str


class _Frame(NamedTuple):
    joints: list[float]
    grippers: tuple[float, ...]


class SafetyGate:
    """Turns requested joint targets into a stream that respects every limit, or stops.

    Args:
        config: the limits.
        tool: forward kinematics of the points that must stay in the workspace; None leaves it unchecked.
    """

    def __init__(self, config: GateConfig, tool: ToolModel | None = None) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        self.events: deque[GateEvent] = deque(maxlen=1000)
        self.latched = ""
        """Reason of the latch, empty when open."""
        self._tool = tool
        self._joints = len(config.position_low_rad)
        step = config.dt_s
        # a stop from this speed takes at most stop_time_s at the acceleration limit
        stoppable = [a * step * floor(config.stop_time_s / step + 1e-9) for a in config.acceleration_max_rad_s2]
        self.velocity_cap = tuple(min(v, s) for v, s in zip(config.velocity_max_rad_s, stoppable, strict=True))
        """Joint speed that is let through, rad/s: the limit, or less where stopping would take too long."""
        self._box = [(lo + config.workspace_margin_m, hi - config.workspace_margin_m)
                     for lo, hi in zip(config.workspace_low_m, config.workspace_high_m, strict=True)]
        self._position: list[float] = []
        self._velocity = [0.0] * self._joints
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
        self._position = []
        measured = self._measured(observation)
        if measured is None:
            return self._latch("bad_measurement", "measured joints are missing, of another number or not finite", now_ns)
        problem = self._start_problem(measured, observation, now_ns)
        if problem:
            return self._latch("start_pose", problem, now_ns)
        c = self.config
        self._velocity = [0.0] * self._joints
        self._target = None
        openings = _floats(observation.values.get("gripper", c.gripper_low_m)) or (c.gripper_low_m,)
        self._gripper = tuple(min(max(g, c.gripper_low_m), c.gripper_high_m) if isfinite(g) else c.gripper_low_m for g in openings)
        self._first, self._last_seq, self._waiting_since_ns, self._ticked_ns = True, -1, None, now_ns
        self._position = [min(max(q, lo), hi) for q, lo, hi in zip(measured, c.position_low_rad, c.position_high_rad, strict=True)]
        return ""

    def stop(self, reason: str, now_ns: int, detail: str = "") -> None:
        """Close the gate: the stream ramps down and stays until `release`. Callable from any thread."""
        self._latch(reason, detail, now_ns)

    def release(self) -> None:
        """Open a latched gate again; an operator's decision. Nothing moves before the next `seed`."""
        self.latched = ""
        self._position = []

    @property
    def last_command(self) -> np.ndarray | None:
        """(J,) rad emitted last, None before `seed`."""
        return np.array(self._position) if self._position else None

    @property
    def speed(self) -> float:
        """Largest commanded joint speed now, rad/s."""
        return max(abs(v) for v in self._velocity)

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
        if not self._position:
            return Verdict(None, self._gripper, "closed", self.latched or "not_seeded")
        stalled_s, self._ticked_ns = (now_ns - self._ticked_ns) / 1e9, now_ns
        if stalled_s > self.config.latch_after_s:  # a process that was stopped does not go on as if nothing had been
            self._latch("stalled", f"{stalled_s:.3f} s since the last tick", now_ns)
        if self.latched:
            return self._brake("latched", self.latched, "", now_ns)
        if self._measured(observation) is None:
            return self._brake("latched", self._latch("bad_measurement", "measured joints are not finite", now_ns), "", now_ns)
        if now_ns - observation.stamp_ns > self.config.observation_ttl_s * 1e9:
            return self._wait("stale_observation", f"measured {(now_ns - observation.stamp_ns) / 1e9:.3f} s ago", now_ns)
        if joint_position is None:
            return self._wait("no_command" if self._first else "expired", "no command within its time to live", now_ns)
        self._waiting_since_ns = None
        target, reason = self._frame(joint_position, gripper)
        if target is None:
            return self._brake("latched", self._latch(reason, f"in {joint_position!r:.120}", now_ns), "", now_ns)
        return self._towards(target, now_ns)

    def rest(self, now_ns: int) -> Verdict:
        """Advance one controller period to a standstill, on purpose: nothing is counted."""
        return self._brake("hold", "", "", now_ns)

    # ------------------------------------------------------------ inside

    def _towards(self, target: _Frame, now_ns: int) -> Verdict:
        c = self.config
        reason, detail = self._too_far(target)
        if reason == "first_step":
            return self._brake("latched", self._latch(reason, detail, now_ns), "", now_ns)
        if reason:
            return self._brake("hold", reason, detail, now_ns)
        self._first = False
        reason = ""
        joints = [min(max(t, lo), hi) for t, lo, hi in zip(target.joints, c.position_low_rad, c.position_high_rad, strict=True)]
        if joints != target.joints:
            reason = "position"
            if c.on_position == "reject":
                return self._brake("hold", reason, f"target {target.joints}", now_ns)
        velocity, limited = self._limited(joints)
        if limited:
            reason = reason or "velocity"
            if c.on_velocity == "reject":
                return self._brake("hold", reason, "", now_ns)
        inside = self._kept_inside(velocity)
        if inside is None:
            return self._brake("latched", self._latch("bad_measurement", "tool position cannot be computed", now_ns), "", now_ns)
        if inside is not velocity:
            reason = "workspace"
            if not inside or c.on_workspace == "reject":
                return self._brake("hold", reason, f"target {joints}", now_ns)
            velocity = inside
        self._target = joints
        self._move_grippers(target.grippers)
        outcome: Outcome = "clamp" if reason else "pass"
        # what passes in full is emitted as it came, without the rounding of position + velocity * dt
        self._advance(velocity, None if reason else joints)
        self._note(outcome, reason, "", now_ns)
        return self._verdict(outcome, reason)

    def _too_far(self, target: _Frame) -> tuple[str, str]:
        if not self._position:
            return "", ""
        far = max(abs(t - q) for t, q in zip(target.joints, self._position, strict=True))
        if self._first and far > self.config.first_step_max_rad:
            return "first_step", f"first target is {far:.3f} rad from the robot, {self.config.first_step_max_rad} are allowed"
        if far > self.config.jump_max_rad:
            return "jump", f"target is {far:.3f} rad from the last command, {self.config.jump_max_rad} are allowed"
        return "", ""

    def _limited(self, target: list[float]) -> tuple[list[float], bool]:
        """Velocities (rad/s) for this period that approach `target` within all limits; whether any had to be limited."""
        c = self.config
        step = c.dt_s
        velocities, limited = [], False
        for j, goal in enumerate(target):
            position, velocity, gain = self._position[j], self._velocity[j], c.acceleration_max_rad_s2[j]
            cap, change = self.velocity_cap[j], gain * step
            low = max(velocity - change, -cap, -braking_speed(position - c.position_low_rad[j], gain, step))
            high = min(velocity + change, cap, braking_speed(c.position_high_rad[j] - position, gain, step))
            wanted = (goal - position) / step
            # come to the target, which may be moving, without running past it
            moving = wanted if self._target is None else min(max((goal - self._target[j]) / step, -cap), cap)
            approach = braking_speed(abs(goal - position), gain, step)
            kept = min(wanted, moving + approach, high) if goal > position else max(wanted, moving - approach, low)
            kept = min(max(kept, low), high)
            limited = limited or abs(kept - wanted) > 1e-9
            velocities.append(kept)
        return velocities, limited

    def _kept_inside(self, velocity: list[float]) -> list[float] | None:
        """The largest part of `velocity` after which the tool can still stop inside the box.

        Returns:
            `velocity` itself where it may be; else half or a quarter of the way from braking to it; an empty list where
            only braking is left; None when the tool position is not finite.
        """
        if self._tool is None:
            return velocity
        for part in (1.0, 0.5, 0.25):
            tried = velocity if part == 1.0 else [b + part * (v - b) for v, b in zip(velocity, self._braking(), strict=True)]
            inside = self._stops_inside(tried)
            if inside is None:
                return None
            if inside:
                return tried
        return []

    def _stops_inside(self, velocity: list[float]) -> bool | None:
        """Whether the tool stays in the box this period and while braking after it; None when it cannot be told."""
        step = self.config.dt_s
        after = [q + v * step for q, v in zip(self._position, velocity, strict=True)]
        way = [braking_distance(v, a, step) for v, a in zip(velocity, self.config.acceleration_max_rad_s2, strict=True)]
        room = self._room(after)
        if room is None or room < 0.0:
            return None if room is None else False
        assert self._tool is not None
        reach = sum(abs(w) * lever for w, lever in zip(way, self._tool.levers_m, strict=True) if w)
        if reach <= room:
            return True
        for part in (1.0, 0.6):
            room = self._room([q + part * w for q, w in zip(after, way, strict=True)])
            if room is None or room < 0.0:
                return None if room is None else False
        return True

    def _room(self, joints: Sequence[float]) -> float | None:
        """Distance in metres of the nearest tool to the nearest wall, negative outside; None when not finite."""
        assert self._tool is not None
        points: list[Point] = self._tool.positions(joints)
        if not all(isfinite(x) for point in points for x in point):
            return None
        return min(min(x - lo, hi - x) for point in points for x, (lo, hi) in zip(point, self._box, strict=True))

    def _braking(self) -> list[float]:
        """Velocities of the next period when every joint decelerates as fast as it may."""
        velocities = []
        for velocity, gain in zip(self._velocity, self.config.acceleration_max_rad_s2, strict=True):
            change = gain * self.config.dt_s
            left = abs(velocity) - change
            # what rounding leaves of a full stop is no speed
            velocities.append(0.0 if left < 1e-9 * change else left if velocity > 0 else -left)
        return velocities

    def _brake(self, outcome: Outcome, reason: str, detail: str, now_ns: int) -> Verdict:
        if not self._position:
            return Verdict(None, self._gripper, "closed", self.latched or "not_seeded")
        self._advance(self._braking(), None)
        self._target = None
        outcome = "latched" if self.latched else outcome
        self._note(outcome, reason, detail, now_ns)
        return self._verdict(outcome, reason)

    def _wait(self, reason: str, detail: str, now_ns: int) -> Verdict:
        """Hold for what is missing; latch when it stays away."""
        if self._waiting_since_ns is None:
            self._waiting_since_ns = now_ns
        elif now_ns - self._waiting_since_ns > self.config.latch_after_s * 1e9:
            self._latch(reason, detail, now_ns)
        return self._brake("hold", reason, detail, now_ns)

    def _advance(self, velocity: list[float], exact: list[float] | None) -> None:
        c = self.config
        moved = exact or [q + v * c.dt_s for q, v in zip(self._position, velocity, strict=True)]
        self._position = [min(max(q, lo), hi) for q, lo, hi in zip(moved, c.position_low_rad, c.position_high_rad, strict=True)]
        self._velocity = velocity

    def _move_grippers(self, targets: tuple[float, ...]) -> None:
        c = self.config
        most = np.inf if c.gripper_velocity_max_m_s is None else c.gripper_velocity_max_m_s * c.dt_s
        wanted = [min(max(t, c.gripper_low_m), c.gripper_high_m) for t in targets]
        self._gripper = tuple(min(max(w, g - most), g + most) for w, g in zip(wanted, self._gripper, strict=True))

    def _verdict(self, outcome: Outcome, reason: str) -> Verdict:
        return Verdict(np.array(self._position), self._gripper, outcome, reason)

    def _frame(self, joint_position: Any, gripper: Any) -> tuple[_Frame | None, str]:
        """A frame as floats, or None and what is wrong with it."""
        joints = _floats(joint_position)
        grippers = self._gripper if gripper is None else _floats(gripper)
        if joints is None or grippers is None or len(joints) != self._joints or len(grippers) != len(self._gripper):
            return None, "shape"
        if not all(map(isfinite, joints)) or not all(map(isfinite, grippers)):
            return None, "non_finite"
        return _Frame(list(joints), grippers), ""

    def _measured(self, observation: Observation) -> tuple[float, ...] | None:
        values = _floats(observation.values.get("joint_position"))
        return values if values is not None and len(values) == self._joints and all(map(isfinite, values)) else None

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
        if self._tool is not None:
            room = self._room(measured)
            if room is None or room < 0.0:
                return f"the tool is at {self._tool.positions(measured)}, outside the workspace {c.workspace_low_m} to {c.workspace_high_m}"
        return ""

    def _latch(self, reason: str, detail: str, now_ns: int) -> str:
        if not self.latched:
            self.latched = reason
            self._note("latched", reason, detail, now_ns)
        return self.latched

    def _note(self, outcome: Outcome, reason: str, detail: str, now_ns: int) -> str:
        if reason:
            self.counts[reason] += 1
        if (outcome, reason) != self._last_event:
            self._last_event = (outcome, reason)
            if outcome in ("hold", "latched") and reason:
                self.events.append(GateEvent(now_ns, outcome, reason, detail))
        return reason


def _floats(values: Any) -> tuple[float, ...] | None:
    """A number or a flat sequence of numbers as floats; None for anything else."""
    try:
        if isinstance(values, np.ndarray):
            numbers = values.ndim <= 1 and values.dtype.kind in "fiu"
            return tuple(np.atleast_1d(values).tolist()) if numbers else None
        return (float(values),) if isinstance(values, (int, float)) else tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        return None
