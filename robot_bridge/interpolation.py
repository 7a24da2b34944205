"""From policy rate to controller rate: a stream whose position, velocity and acceleration never jump.

Every target is to be reached when the next one is due, with the speed at which the targets move on, so a policy that moves
evenly is followed evenly. The way there is a polynomial of fifth degree, which is the smoothest. Where that would break a limit
the stream catches up with the moving target a little later, and where that would too it goes to rest at the target on the fastest
way within all limits (`robot_bridge.profile`), the joints together as far as that can be. When no target comes in time the
stream goes on for a moment, then comes to rest at the last one.

All derivatives of what is emitted at the ticks are means of those of the way, so differences of first, second and third order
over ticks keep the limits as well: a gate that takes them has nothing to clamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_bridge.profile import JointWay, State, moved, velocity_change, ways
from sinew.errors import InputError

JERK_TIME_S = 0.02
"""Where a robot's jerk limit is not known, its acceleration limit is reached in this time. Data sheets that tell it allow more:
Franka's FR3 reaches its in 2 ms."""
SHARE = 0.95
"""Of each limit is used, so that rounding never makes a gate clamp."""
COAST = 0.25
"""Of a policy's period, for which the stream goes on when the next target is late."""
PURSUED = (0.0, 0.25, 0.5, 1.0)
"""Policy's periods after which a target that is ahead is caught up with; beyond the last the stream comes to rest at it."""
PEAKED = 2.5
"""Where the polynomial goes beyond a limit by no more than this factor, the fastest way may still be within it."""
CHECKED = np.linspace(0.0, 1.0, 13)
"""Shares of a way at which its limits are checked."""
_POWERS = CHECKED[:, None] ** np.arange(6)
_DIFFERENTIATE = np.diag(np.arange(1.0, 6.0), 1)
"""Coefficients (6,) of a polynomial → those of its derivative."""


@dataclass(frozen=True, kw_only=True)
class MotionLimits:
    """What a stream keeps to."""

    position_low_rad: tuple[float, ...]
    position_high_rad: tuple[float, ...]
    velocity_max_rad_s: tuple[float, ...]
    acceleration_max_rad_s2: tuple[float, ...]
    jerk_max_rad_s3: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in self.__dataclass_fields__}
        if len(lengths) != 1:
            raise InputError(f"motion limits differ in length: {sorted(lengths)}; give one value per joint everywhere")
        tops = (*self.velocity_max_rad_s, *self.acceleration_max_rad_s2, *self.jerk_max_rad_s3)
        if not all(0.0 < top < np.inf for top in tops):
            raise InputError(f"motion limits of velocity, acceleration and jerk must be finite and above 0, given {tops}")

    @classmethod
    def of(cls, limits: Any, *, speed: Sequence[float] | None = None, share: float = SHARE) -> MotionLimits:
        """Those of a gate's configuration or a robot's description, as far as `share` of them is used.

        Args:
            limits: has the fields of this class; jerk may be missing or empty, see `JERK_TIME_S`.
            speed: (J,) rad/s instead of the limit of velocity.
            share: of velocity, acceleration and jerk.
        """
        acceleration = tuple(limits.acceleration_max_rad_s2)
        jerk = tuple(getattr(limits, "jerk_max_rad_s3", None) or ()) or tuple(a / JERK_TIME_S for a in acceleration)
        return cls(
            position_low_rad=tuple(limits.position_low_rad),
            position_high_rad=tuple(limits.position_high_rad),
            velocity_max_rad_s=tuple(share * v for v in (limits.velocity_max_rad_s if speed is None else speed)),
            acceleration_max_rad_s2=tuple(share * a for a in acceleration),
            jerk_max_rad_s3=tuple(share * j for j in jerk),
        )


@dataclass(frozen=True)
class Motion:
    """Position, velocity and acceleration of every joint at one time."""

    position: np.ndarray
    """(J,) rad."""
    velocity: np.ndarray
    """(J,) rad/s."""
    acceleration: np.ndarray
    """(J,) rad/s²."""


class Interpolator:
    """The stream from target to target, one controller period at a time.

    Args:
        limits: of every joint.
        step_s: controller period.
        blend_s: time from one target to the next: the policy's period.
    """

    def __init__(self, limits: MotionLimits, step_s: float, blend_s: float) -> None:
        self.limits, self.step_s, self.blend_s = limits, step_s, max(blend_s, step_s)
        self.stretched = 0
        """Targets that could not be reached in time within the limits."""
        self._low, self._high = np.array(limits.position_low_rad), np.array(limits.position_high_rad)
        self._triples = list(zip(limits.velocity_max_rad_s, limits.acceleration_max_rad_s2, limits.jerk_max_rad_s3, strict=True))
        self._tops = np.array(self._triples).T
        self._joints = len(self._low)
        self.start(np.clip(np.zeros(self._joints), self._low, self._high))

    def start(self, position: np.ndarray, velocity: np.ndarray | None = None, acceleration: np.ndarray | None = None) -> None:
        """Go on from somewhere, at rest if nothing else is said: (J,) rad, rad/s, rad/s². Earlier targets are forgotten."""
        still = np.zeros(self._joints)
        top, most, _ = self._tops
        velocity = still if velocity is None else np.clip(velocity, -top, top)
        self.now = Motion(np.array(position, dtype=float), velocity, still if acceleration is None else np.clip(acceleration, -most, most))
        self._target, self._slope, self._bend = self.now.position, velocity, still
        self._plan: _Plan = _Rest(self.now.position)
        self._time_s = 0.0
        self._settling = True

    def aim(self, target: np.ndarray) -> None:
        """Begin to move to joints (J,) rad, which are reached in `blend_s` where the limits let them be."""
        target = np.clip(np.asarray(target, dtype=float), self._low, self._high)
        velocity, acceleration = self._final(target)
        self._plan, self._time_s = self._way(target, velocity, acceleration), 0.0

    def advance(self) -> Motion:
        """The motion one controller period later."""
        self._time_s += self.step_s
        if not self._settling and self._time_s > self._plan.duration_s:
            self._late()
        self.now = self._plan.at(self._time_s)
        return self.now

    # ------------------------------------------------------------ inside

    def _final(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Velocity and acceleration (J,) at a target, from how the targets move; they never go further than what was seen twice."""
        slope = (target - self._target) / self.blend_s
        bend = (slope - self._slope) / self.blend_s
        steady = np.where(bend * self._bend > 0.0, np.sign(bend) * np.minimum(np.abs(bend), np.abs(self._bend)), 0.0)
        slowing = slope * bend < 0.0
        going = slope + 0.5 * self.blend_s * np.where(slowing, bend, steady)
        # a motion that begins is not taken for one that goes on; three times is what keeps cubics monotone (Fritsch & Carlson 1980)
        seen = np.where(slope * self._slope > 0.0, 3.0 * np.abs(self._slope), 1.5 * self.blend_s * np.abs(steady))
        going = np.where(slope * going > 0.0, np.clip(going, -seen, seen), 0.0)
        self._target, self._slope, self._bend = target, slope, bend
        top, most, jerk = self._tops
        room = np.where(going > 0.0, self._high - target, target - self._low)
        # a stop from here must fit before the limit: v²/(2a) while braking, and v a/(2j) until the braking is at its full
        cap = np.minimum(top, np.sqrt(np.maximum(room, 0.0) * most + (0.5 * most * most / jerk) ** 2) - 0.5 * most * most / jerk)
        velocity = np.clip(going, -cap, cap)
        return velocity, np.where(velocity == going, np.clip(steady, -most, most) * (going != 0.0), 0.0)

    def _way(self, target: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> _Plan:
        """The way to the target, or to where it will have moved on to a little later, or else to rest at it."""
        self._settling = not velocity.any()
        excess = np.inf
        for later in PURSUED:
            later_s = later * self.blend_s
            gained = later_s * acceleration
            end = Motion(target + later_s * (velocity + 0.5 * gained), velocity + gained, acceleration)
            plan = _Quintic(self.now, end, self.blend_s + later_s)
            excess = plan.excess(self._low, self._high, self._tops)
            if excess <= 1.0:
                self.stretched += later > 0.0
                return plan
        self.stretched += 1
        ahead, last_s = target + PURSUED[-1] * self.blend_s * velocity, self.blend_s * (1.0 + PURSUED[-1])
        if excess <= PEAKED and not self._settling and (ahead > self._low).all() and (ahead < self._high).all():
            each = ways(_states(self.now), ahead.tolist(), velocity.tolist(), self._triples, last_s)
            if max(way.duration_s for way in each) <= last_s + 1e-6:
                return _Ways(each)
        self._settling = True
        return _Ways(ways(_states(self.now), target.tolist(), [0.0] * self._joints, self._triples, self.blend_s))

    def _late(self) -> None:
        """No target came in time: go on without acceleration for a moment, then come to rest at the last target."""
        over_s = self._time_s - self._plan.duration_s
        self._settling = isinstance(self._plan, _Coast) or self._plan.duration_s > self.blend_s
        self._time_s = over_s if over_s < self.step_s else self.step_s
        begin = self._plan.at(self._plan.duration_s) if over_s < self.step_s else self.now
        if not self._settling:
            self._plan = _Coast(_states(begin), self._tops[2].tolist(), COAST * self.blend_s)
            return
        self._slope = self._bend = np.zeros(self._joints)
        still = [0.0] * self._joints
        self._plan = _Ways([JointWay(*joint) for joint in zip(_states(begin), self._target.tolist(), still, self._triples, strict=True)])


def _states(motion: Motion) -> list[State]:
    """One state for each joint."""
    return list(zip(motion.position.tolist(), motion.velocity.tolist(), motion.acceleration.tolist(), strict=True))


def braking_path(now: Motion, limits: MotionLimits, points: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How the joints come to rest from a motion, as fast as the limits let them: what a trajectory controller is given beyond the
    next point, so that it stops by itself when nothing more comes.

    Args:
        now: where the braking begins.
        limits: of acceleration and jerk.
        points: K points, evenly in time.

    Returns:
        Times (K,) s from `now` on, positions (K, J) rad, velocities (K, J) rad/s; the last velocity is 0. Empty at rest.
    """
    joints = _states(now)
    each = list(zip(limits.acceleration_max_rad_s2, limits.jerk_max_rad_s3, strict=True))
    changes = [velocity_change(v, a, 0.0, most, jerk) for (_, v, a), (most, jerk) in zip(joints, each, strict=True)]
    longest_s = max(sum(duration for duration, _ in change) for change in changes)
    if longest_s <= 0.0:
        return np.zeros(0), np.zeros((0, len(joints))), np.zeros((0, len(joints)))
    times = longest_s * np.arange(1, points + 1) / points
    path = np.array([[_along(state, change, t) for state, change in zip(joints, changes, strict=True)] for t in times])
    path[-1, :, 1] = 0.0
    return times, path[..., 0], path[..., 1]


def _along(state: State, pieces: Sequence[tuple[float, float]], time_s: float) -> State:
    """The state at a time along pieces of constant jerk that end at rest."""
    for duration, jerk in pieces:
        state = moved(state, jerk, min(time_s, duration))
        time_s -= duration
        if time_s <= 0.0:
            return state
    return state[0], 0.0, 0.0


class _Plan:
    """A way of all joints."""

    duration_s = 0.0

    def at(self, time_s: float) -> Motion:
        """The motion at a time within the way; at its end from then on."""
        raise NotImplementedError


class _Rest(_Plan):
    def __init__(self, position: np.ndarray) -> None:
        still = np.zeros(len(position))
        self._motion = Motion(position, still, still)

    def at(self, time_s: float) -> Motion:
        return self._motion


class _Quintic(_Plan):
    """The polynomial of fifth degree between two motions."""

    def __init__(self, begin: Motion, end: Motion, duration_s: float) -> None:
        self.duration_s = t = duration_s
        c0, c1, c2 = begin.position, t * begin.velocity, 0.5 * t * t * begin.acceleration
        way, change, bend = end.position - c0 - c1 - c2, t * end.velocity - c1 - 2.0 * c2, t * t * end.acceleration - 2.0 * c2
        rows = [c0, c1, c2, 10 * way - 4 * change + 0.5 * bend, -15 * way + 7 * change - bend, 6 * way - 3 * change + 0.5 * bend]
        self._coefficients = np.array(rows)  # (6, J) over the share of the time that has passed

    def at(self, time_s: float) -> Motion:
        powers = min(time_s / self.duration_s, 1.0) ** np.arange(6)
        p, v, a = (powers @ c for c in self._derivatives(2))
        return Motion(p, v / self.duration_s, a / self.duration_s**2)

    def excess(self, low: np.ndarray, high: np.ndarray, tops: np.ndarray) -> float:
        """The largest share of the limits of velocity, acceleration and jerk (3, J) that it takes, and infinity beyond positions (J,)."""
        p, *changes = (_POWERS @ c for c in self._derivatives(3))
        if (p < low - 1e-9).any() or (p > high + 1e-9).any():
            return np.inf
        scales = self.duration_s ** np.arange(1, 4)
        return max(float((np.abs(c) / (top * scale)).max()) for c, top, scale in zip(changes, tops, scales, strict=True)) - 1e-9

    def _derivatives(self, order: int) -> list[np.ndarray]:
        found = [self._coefficients]
        for _ in range(order):
            found.append(_DIFFERENTIATE @ found[-1])
        return found


class _Ways(_Plan):
    """One fastest way for each joint."""

    def __init__(self, each: Sequence[JointWay]) -> None:
        self._each, self.duration_s = each, max(way.duration_s for way in each)

    def at(self, time_s: float) -> Motion:
        p, v, a = np.array([way.at(time_s) for way in self._each]).T
        return Motion(p, v, a)


class _Coast(_Plan):
    """Every joint lets go of its acceleration and goes on with the velocity that it has then."""

    def __init__(self, states: Sequence[State], jerks: Sequence[float], duration_s: float) -> None:
        self._each = [(state, -jerk if state[2] > 0.0 else jerk, abs(state[2]) / jerk) for state, jerk in zip(states, jerks, strict=True)]
        self.duration_s = duration_s

    def at(self, time_s: float) -> Motion:
        joints = []
        for state, jerk, duration_s in self._each:
            position, velocity, acceleration = moved(state, jerk, min(time_s, duration_s))
            rest_s = max(time_s - duration_s, 0.0)
            joints.append((position + rest_s * velocity, velocity, 0.0 if rest_s else acceleration))
        p, v, a = np.array(joints).T
        return Motion(p, v, a)
