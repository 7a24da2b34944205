"""The stream of joint positions: every period within position, velocity, acceleration and jerk limits, and always able to stop.

A period is let through only if the stop that may follow it (`braking`) keeps to every limit too; otherwise the joint does the
next period of the stop that was proved before. So limits hold at every tick by induction, whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, sqrt

import numpy as np

from robot_bridge.safety.braking import Brake, rows, speed_limit
from robot_bridge.safety.config import GateConfig

_SLACK = 1e-9
_REFINEMENTS = 6
"""Of a largest acceleration that is searched for; what is left is a sixtieth of a step at most."""


class JointStream:
    """The state of the stream, and what it may do next.

    Args:
        config: limits; jerk limits are there.
    """

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        self.joints = len(config.position_low_rad)
        step = config.dt_s
        self.periods = floor(config.stop_time_s / step + _SLACK)
        """Within which every joint can stop."""
        limits = list(zip(config.velocity_max_rad_s, config.acceleration_max_rad_s2, config.jerk_max_rad_s3, strict=True))
        self._brakes = [Brake(a, j, step) for _, a, j in limits]
        self.velocity_cap = tuple(speed_limit(b, v, self.periods) for b, (v, _, _) in zip(self._brakes, limits, strict=True))
        """Joint speed that is let through, rad/s: the limit, or less where stopping would take too long."""
        # below this speed a stop is in time whatever the acceleration, which has to end first
        self._calm = [speed_limit(b, v, self.periods, ceil(a / b.change)) for b, (v, a, _) in zip(self._brakes, limits, strict=True)]
        self.position: list[float] = []
        self.velocity = [0.0] * self.joints
        self.acceleration = [0.0] * self.joints
        self._rows: np.ndarray | None = None
        self._row_at = 0

    def seed(self, position: Sequence[float]) -> None:
        """Stand at `position` (J,) rad."""
        c = self.config
        self.position = [min(max(q, lo), hi) for q, lo, hi in zip(position, c.position_low_rad, c.position_high_rad, strict=True)]
        self.velocity, self.acceleration, self._rows = [0.0] * self.joints, [0.0] * self.joints, None

    # ------------------------------------------------------------ braking

    def braking(self) -> list[float]:
        """Accelerations (J,) rad/s² of the next period of the stop."""
        if self._rows is None:
            self._rows, self._row_at = rows(self._brakes, self.velocity, self.acceleration), 0
        return self._rows[self._row_at].tolist() if self._row_at < len(self._rows) else [0.0] * self.joints

    def brake(self) -> None:
        """Do one period of the stop."""
        accelerations, step = self.braking(), self.config.dt_s
        assert self._rows is not None
        left = np.any(self._rows[self._row_at + 1 :] != 0.0, axis=0)
        # what rounding leaves of a full stop is no speed
        velocity = [v + a * step if moves else 0.0 for v, a, moves in zip(self.velocity, accelerations, left, strict=True)]
        self._advance([q + v * step for q, v in zip(self.position, velocity, strict=True)], velocity, accelerations)
        self._row_at += 1

    @property
    def still(self) -> bool:
        """Whether no joint moves."""
        return not any(self.velocity)

    # ------------------------------------------------------------ going on

    def towards(
        self, goal: Sequence[float], goal_before: Sequence[float] | None, speed: Sequence[float] | None = None
    ) -> tuple[list[float], bool]:
        """Accelerations of the next period that bring every joint to its goal, without running past it, within all limits.

        Args:
            goal: (J,) rad, within the position limits.
            goal_before: (J,) rad, that of the last period; the goal is taken to move on as it did. None for a new one.
            speed: (J,) rad/s, lower limits on the speed of this period; None for none.

        Returns:
            (J,) rad/s²; whether any joint cannot be at its goal at the end of this period.
        """
        step, found, limited = self.config.dt_s, [], False
        proved: list[float] | None = None
        for j, target in enumerate(goal):
            wanted = ((target - self.position[j]) / step - self.velocity[j]) / step
            chosen = self._approach(j, target, None if goal_before is None else goal_before[j], wanted)
            if speed is not None:
                chosen = self._slowed(j, chosen, speed[j])
            if not self._fits(j, chosen):
                proved = proved or self.braking()
                chosen = self._largest_fitting(j, proved[j], chosen)
            limited = limited or abs(chosen - wanted) * step > _SLACK
            found.append(chosen)
        return found, limited

    def _approach(self, j: int, goal: float, goal_before: float | None, wanted: float) -> float:
        """The acceleration of joint `j` that leads to its goal soonest, of those that acceleration and jerk limits allow."""
        step, brake = self.config.dt_s, self._brakes[j]
        most, now = self.config.acceleration_max_rad_s2[j], self.acceleration[j]
        low, high = max(now - brake.change, -most), min(now + brake.change, most)
        reached = self.velocity[j] + wanted * step
        cap = self.velocity_cap[j]
        moving = reached if goal_before is None else min(max((goal - goal_before) / step, -cap), cap)
        extra = (moving - reached) / step  # what must be lost again in the period after
        can_lose = abs(extra) <= min(most, brake.change) and abs(extra - wanted) <= brake.change
        if abs(extra) < 1e-6 or (can_lose and low <= wanted <= high):
            return min(max(wanted, low), high)
        side = 1.0 if reached > moving else -1.0

        def room(acceleration: float) -> float:
            """What is left to the goal after a stop in the goal's own motion."""
            velocity = self.velocity[j] + acceleration * step
            stop = brake.stop(velocity - moving, acceleration)
            left = goal - self.position[j] - velocity * step
            return left - stop.high if side > 0 else stop.low - left

        hard, soft = (low, high) if side > 0 else (high, low)
        if room(soft) >= -_SLACK:
            return soft
        if room(hard) > 0.0:
            return _last_positive(room, hard, soft)
        stop = brake.accelerations(self.velocity[j] - moving, now)  # it comes too late, or just in time
        return float(stop[0]) if len(stop) else min(max(0.0, low), high)

    def _slowed(self, j: int, chosen: float, speed: float) -> float:
        """The acceleration nearest to `chosen` with which joint `j` gets no faster than `speed`, or slows down as hard as it may.

        The speed still rises while an acceleration a ends, by a (a + D) / (2 J) with this period's own share of it.
        """
        brake, now, step = self._brakes[j], self.acceleration[j], self.config.dt_s
        most, velocity = self.config.acceleration_max_rad_s2[j], self.velocity[j]

        def up_to(room: float) -> float:
            """Largest acceleration after which the velocity rises by no more than `room` rad/s."""
            return room / step if room <= 0.0 else brake.change * (sqrt(0.25 + 2.0 * room / (step * brake.change)) - 0.5)

        slower = min(max(chosen, -up_to(speed + velocity)), up_to(speed - velocity))
        return min(max(slower, now - brake.change, -most), now + brake.change, most)

    def _fits(self, j: int, acceleration: float) -> bool:
        """Whether joint `j` may do one period with `acceleration` (within its own and the jerk limit) and then stop."""
        c, brake, step = self.config, self._brakes[j], self.config.dt_s
        velocity = self.velocity[j] + acceleration * step
        position = self.position[j] + velocity * step
        low, high, cap = c.position_low_rad[j], c.position_high_rad[j], self.velocity_cap[j]
        fast, far = brake.bound(velocity, acceleration)
        if fast <= self._calm[j] and low + far <= position <= high - far:
            return True
        stop = brake.stop(velocity, acceleration)
        inside = low <= position + stop.low and position + stop.high <= high
        return inside and -cap <= stop.velocity_low and stop.velocity_high <= cap and stop.periods <= self.periods

    def _largest_fitting(self, j: int, proved: float, wanted: float) -> float:
        """The acceleration from `proved`, which may be done, to `wanted`, which may not, that goes as far as may be."""
        c, brake, step, cap = self.config, self._brakes[j], self.config.dt_s, self.velocity_cap[j]
        up, late_share = wanted > proved, cap * step / self.periods

        def room(acceleration: float) -> float:
            velocity = self.velocity[j] + acceleration * step
            position = self.position[j] + velocity * step
            stop = brake.stop(velocity, acceleration)
            late = (self.periods - stop.length) * late_share
            if up:
                return min(late, (cap - stop.velocity_high) * step, c.position_high_rad[j] - position - stop.high)
            return min(late, (cap + stop.velocity_low) * step, position + stop.low - c.position_low_rad[j])

        found = proved if room(proved) <= 0.0 else _last_positive(room, proved, wanted)
        return found if self._fits(j, found) else proved

    def after(self, accelerations: Sequence[float]) -> tuple[list[float], list[float]]:
        """Positions (J,) rad and velocities (J,) rad/s after a period with `accelerations`."""
        step = self.config.dt_s
        velocity = [v + a * step for v, a in zip(self.velocity, accelerations, strict=True)]
        return [q + v * step for q, v in zip(self.position, velocity, strict=True)], velocity

    def peaks(self, accelerations: Sequence[float]) -> list[float]:
        """Velocities (J,) rad/s that the joints reach after a period with `accelerations` while these end."""
        step = self.config.dt_s
        states = zip(self.velocity, accelerations, self._brakes, strict=True)
        return [v + a * step + 0.5 * a * abs(a) * step / brake.change for v, a, brake in states]

    def allows(self, accelerations: Sequence[float]) -> bool:
        """Whether every joint may do a period with these accelerations, of which those of jerk and acceleration are kept."""
        return all(self._fits(j, a) for j, a in enumerate(accelerations))

    def advance(self, accelerations: Sequence[float], exact: Sequence[float] | None = None) -> None:
        """Do one period.

        Args:
            accelerations: (J,) rad/s² that may be done.
            exact: (J,) rad, where it ends, if that is known without rounding.
        """
        position, velocity = self.after(accelerations)
        self._rows = None
        self._advance(position if exact is None else list(exact), velocity, list(accelerations))

    def _advance(self, position: list[float], velocity: list[float], acceleration: list[float]) -> None:
        c = self.config
        self.position = [min(max(q, lo), hi) for q, lo, hi in zip(position, c.position_low_rad, c.position_high_rad, strict=True)]
        self.velocity, self.acceleration = velocity, acceleration

    # ------------------------------------------------------------ where a stop leads

    def stop_reach(self, accelerations: Sequence[float]) -> list[float]:
        """How far (J,) rad every joint can get from its position after this period while it stops, to the safe side."""
        step = self.config.dt_s
        states = zip(self._brakes, self.velocity, accelerations, strict=True)
        return [brake.bound(v + a * step, a)[1] if v or a else 0.0 for brake, v, a in states]

    def stop_path(self, accelerations: Sequence[float]) -> np.ndarray:
        """(K, J) rad: positions at the end of this period and of every one of the stop after it, the last ones alike."""
        position, velocity = self.after(accelerations)
        stop = np.cumsum(rows(self._brakes, velocity, accelerations), axis=0) * self.config.dt_s + velocity
        path = np.concatenate(([position], stop * self.config.dt_s))
        return np.cumsum(path, axis=0)


def _last_positive(function: Callable[[float], float], good: float, bad: float) -> float:
    """Where a falling `function` is still at least 0, near its root between `good` (not negative) and `bad` (negative).

    False position with halving (Dowell & Jarratt 1971); the good side is kept.
    """
    at_good, at_bad = function(good), function(bad)
    for _ in range(_REFINEMENTS):
        if at_bad >= 0.0:
            return bad
        middle = good + (bad - good) * at_good / (at_good - at_bad)
        value = function(middle)
        if value >= 0.0:
            good, at_good, at_bad = middle, value, at_bad / 2.0
        else:
            bad, at_bad, at_good = middle, value, at_good / 2.0
        if abs(value) < 1e-12:
            break
    return good
