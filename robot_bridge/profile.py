"""The fastest way of one joint to a position and velocity within limits of velocity, acceleration and jerk.

A way is a list of pieces of constant jerk. It goes from the velocity that the joint has to a cruising velocity, keeps it, and
goes from there to the final velocity; either change is the fastest one, whose acceleration rises, stays and falls (a trapezoid,
or a triangle). The cruising velocity is the one root that is looked for: the way must end where it shall.

Source: the double-S profile of Biagiotti & Melchiorri 2008, "Trajectory Planning for Automatic Machines and Robots", section 3.4,
from any velocity and acceleration. Where the joint already brakes and must brake less, the fastest way would not pass through
zero acceleration as this one does, so it is slower there (compared with Ruckig, Berscheid & Kroeger 2021, arXiv:2105.04830).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf, sqrt

Piece = tuple[float, float]
"""(duration in s, jerk in rad/s³)."""
State = tuple[float, float, float]
"""(position in rad, velocity in rad/s, acceleration in rad/s²)."""
TOLERANCE_RAD = 1e-11
ITERATIONS = 60


def moved(state: State, jerk: float, duration_s: float) -> State:
    """A state after a time of constant jerk."""
    position, velocity, acceleration = state
    t = duration_s
    return (
        position + t * (velocity + t * (acceleration / 2.0 + t * jerk / 6.0)),
        velocity + t * (acceleration + t * jerk / 2.0),
        acceleration + t * jerk,
    )


def velocity_change(velocity: float, acceleration: float, final: float, most: float, jerk: float) -> tuple[Piece, Piece, Piece]:
    """The fastest change from a velocity and acceleration to `final`, where the acceleration is zero.

    Args:
        velocity: rad/s.
        acceleration: rad/s², at most `most`.
        final: rad/s.
        most: largest acceleration, rad/s².
        jerk: largest jerk, rad/s³.
    """
    # letting go of the acceleration would lead to this velocity; beyond it the acceleration must first rise
    sign = 1.0 if final >= velocity + acceleration * abs(acceleration) / (2.0 * jerk) else -1.0
    peak = sign * sqrt(max(sign * jerk * (final - velocity) + acceleration * acceleration / 2.0, 0.0))
    flat_s = 0.0
    if abs(peak) > most:
        peak = sign * most
        rise = jerk if peak >= acceleration else -jerk
        gained = (peak * peak - acceleration * acceleration) / (2.0 * rise) + sign * peak * peak / (2.0 * jerk)
        flat_s = max((final - velocity - gained) / peak, 0.0)
    rise = jerk if peak >= acceleration else -jerk
    return (abs(peak - acceleration) / jerk, rise), (flat_s, 0.0), (abs(peak) / jerk, -sign * jerk)


class JointWay:
    """How one joint gets to a position and velocity.

    Args:
        state: where it begins.
        position: where it shall end, rad.
        velocity: with which velocity, rad/s.
        limits: (velocity rad/s, acceleration rad/s², jerk rad/s³), all above 0.
        duration_s: it takes at least this long, where there is a way that does.
    """

    def __init__(self, state: State, position: float, velocity: float, limits: tuple[float, float, float], duration_s: float = 0.0) -> None:
        self.state, self.position, self.velocity, self.limits = state, position, velocity, limits
        self._least_s = duration_s
        self.pieces = self._solve()
        self.duration_s = sum(duration for duration, _ in self.pieces)

    def at(self, time_s: float) -> State:
        """The state at a time from the beginning on; after the end it goes on with its final velocity."""
        state = self.state
        for duration, jerk in self.pieces:
            if time_s <= duration:
                return moved(state, jerk, time_s)
            state, time_s = moved(state, jerk, duration), time_s - duration
        return self.position + self.velocity * time_s, self.velocity, 0.0

    # ------------------------------------------------------------ inside

    def _solve(self) -> list[Piece]:
        fastest, best_s = None, inf
        for cruise, extra_s in self._cruises():
            pieces = self._way(cruise, extra_s)
            duration_s = sum(duration for duration, _ in pieces)
            if fastest is None or duration_s < best_s:
                fastest, best_s = pieces, duration_s
        assert fastest is not None
        return [piece for piece in fastest if piece[0] > 0.0]

    def _cruises(self) -> Iterator[tuple[float, float]]:
        """Cruising velocities that lead to the end, with the seconds that each is kept longer than for `duration_s`."""
        top = self.limits[0]
        _, velocity, acceleration = self.state
        let_go = velocity + acceleration * abs(acceleration) / (2.0 * self.limits[2])
        tried = sorted({-top, top, *(min(max(v, -top), top) for v in (0.0, let_go, self.velocity))})
        missed = [self._missed(v) for v in tried]
        if missed[-1] < 0.0:  # even the fastest way falls short
            yield top, -missed[-1] / top
        if missed[0] > 0.0:
            yield -top, missed[0] / top
        for (low, short), (high, far) in pairwise(zip(tried, missed, strict=True)):
            if short == 0.0:
                yield low, 0.0
            elif (short < 0.0) != (far < 0.0):
                yield self._root(low, short, high, far), 0.0
        if missed[-1] == 0.0:
            yield top, 0.0

    def _way(self, cruise: float, extra_s: float) -> tuple[Piece, ...]:
        _, velocity, acceleration = self.state
        _, most, jerk = self.limits
        first = velocity_change(velocity, acceleration, cruise, most, jerk)
        last = velocity_change(cruise, 0.0, self.velocity, most, jerk)
        changing_s = sum(duration for duration, _ in (*first, *last))
        return (*first, (max(self._least_s - changing_s, 0.0) + extra_s, 0.0), *last)

    def _missed(self, cruise: float) -> float:
        """How far beyond its end the way with this cruising velocity goes, rad."""
        state = self.state
        for duration, jerk in self._way(cruise, 0.0):
            state = moved(state, jerk, duration)
        return state[0] - self.position

    def _root(self, low: float, short: float, high: float, far: float) -> float:
        """Where `_missed` is zero between two velocities: inverse quadratic steps, or halving (Chandrupatla 1997)."""
        a, fa, b, fb, c, fc = high, far, low, short, high, far
        part = 0.5
        for _ in range(ITERATIONS):
            x = a + part * (b - a)
            missed = self._missed(x)
            if abs(missed) < TOLERANCE_RAD:
                return x
            if (missed < 0.0) == (fa < 0.0):
                c, fc = a, fa
            else:
                c, fc, b, fb = b, fb, a, fa
            a, fa = x, missed
            if abs(b - a) < TOLERANCE_RAD:
                break
            xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
            if phi * phi < xi and (1.0 - phi) ** 2 < 1.0 - xi:
                part = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
                part = min(max(part, 1e-9), 1.0 - 1e-9)
            else:
                part = 0.5
        return a


def ways(
    states: Sequence[State],
    positions: Sequence[float],
    velocities: Sequence[float],
    limits: Sequence[tuple[float, float, float]],
    duration_s: float = 0.0,
) -> list[JointWay]:
    """Ways of several joints that end together, as far as that can be: as late as the slowest, and not before `duration_s`."""
    joints = list(zip(states, positions, velocities, limits, strict=True))
    first = [JointWay(*joint, duration_s) for joint in joints]
    slowest_s = max(way.duration_s for way in first)
    return [way if way.duration_s > slowest_s - 1e-6 else JointWay(*joint, slowest_s) for way, joint in zip(first, joints, strict=True)]
