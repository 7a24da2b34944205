"""Stopping one joint in whole controller periods, with acceleration and jerk limited: exact, in closed form.

The stream of a joint is a row of positions; its velocity, acceleration and jerk are the differences of that row over the
period. So a stop from velocity v and acceleration a is a row of accelerations a_1 … a_n with a_0 = a, a_(n+1) = 0, each within
±A, neighbours no more than D = J * dt apart, that add up to -v / dt. Of those rows the one that brakes hardest is

    L_k(n) = max(a - k D, -(n + 1 - k) D, -A),

down as steeply as may be, along the limit, and up again to end at 0. All conditions are convex, so any mixture of L(n) and
L(n - 1) meets them too; n is the smallest number of periods that is enough, and the mixture makes the sum come out exactly.
Way and duration follow from sums of arithmetic series. This is time-optimal to the period (cf. Kröger & Wahl 2010 for
continuous time).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, sqrt
from typing import NamedTuple

import numpy as np

_SLACK = 1e-9
"""Of a step of the acceleration: what rounding may cost."""


class Stop(NamedTuple):
    """How a joint stops."""

    periods: int
    """Until the velocity is 0."""
    low: float
    """Least displacement on the way, rad, at most 0."""
    high: float
    """Largest displacement on the way, rad, at least 0."""
    velocity_low: float
    """Least velocity on the way, rad/s."""
    velocity_high: float
    """Largest velocity on the way, rad/s."""
    mirrored: bool
    """Whether velocity and acceleration were turned round for the rows below."""
    other: bool
    """Whether L(n) is mixed with the row that brakes least instead of with L(n - 1)."""
    share: float
    """Of L(n) in the mixture."""

    @property
    def length(self) -> float:
        """Periods as a number that changes smoothly with velocity and acceleration; never above `periods`, never a period less."""
        return float(self.periods) if self.other else self.periods - 1.0 + self.share


class Brake:
    """Stops of one joint.

    Args:
        acceleration: limit A, rad/s².
        jerk: limit J, rad/s³.
        step: controller period, s.
    """

    def __init__(self, acceleration: float, jerk: float, step: float) -> None:
        self.step = step
        self.change = jerk * step
        """D: how much the acceleration may change from one period to the next, rad/s²."""
        self.most = acceleration / self.change
        """A in units of D."""
        self._slope = 0.5 / acceleration
        self._lag = 2.0 * (acceleration / jerk + step)

    def stop(self, velocity: float, acceleration: float) -> Stop:
        """The shortest stop from `velocity` rad/s and `acceleration` rad/s²."""
        step, change = self.step, self.change
        alpha = acceleration / change
        need = -velocity / (step * change)
        least = max(ceil(abs(alpha) - _SLACK) - 1, 0)  # periods in which the acceleration alone can end
        low, high = self._sum(alpha, least), -self._sum(-alpha, least)
        mirrored = need > high + _SLACK
        if mirrored:
            velocity, alpha, need, low = -velocity, -alpha, -need, -high
        if need >= low - _SLACK:
            return self._ending(velocity, alpha, need, least, mirrored)
        n = self._periods(alpha, need, least)
        most, before = self._sum(alpha, n), self._sum(alpha, n - 1)
        share = min(max((need - before) / (most - before), 0.0), 1.0)
        moment = share * self._moment(alpha, n) + (1.0 - share) * (self._moment(alpha, n - 1) + before)
        way = step * (n * velocity + step * change * moment)
        m = floor(alpha) if alpha > 0.0 else 0
        peak = velocity + step * change * (m * alpha - m * (m + 1) / 2)
        # a velocity below 0 turns round while the acceleration ends, which takes `least` periods
        back = min(0.0, velocity * step * least)
        return self._stop(n, min(back, way), max(0.0, way), min(velocity, 0.0), max(peak, velocity, 0.0), mirrored, False, share)

    def _ending(self, velocity: float, alpha: float, need: float, least: int, mirrored: bool) -> Stop:
        """A stop in as many periods as the acceleration needs to end: the velocity falls all the way."""
        low, high = self._sum(alpha, least), -self._sum(-alpha, least)
        share = 1.0 if high - low < _SLACK else min(max((high - need) / (high - low), 0.0), 1.0)
        moment = share * self._moment(alpha, least) - (1.0 - share) * self._moment(-alpha, least)
        way = self.step * (least * velocity + self.step * self.change * moment)
        return self._stop(least, min(way, 0.0), max(way, 0.0), min(velocity, 0.0), max(velocity, 0.0), mirrored, True, share)

    @staticmethod
    def _stop(n: int, low: float, high: float, slow: float, fast: float, mirrored: bool, other: bool, share: float) -> Stop:
        if mirrored:
            return Stop(n, -high, -low, -fast, -slow, True, other, share)
        return Stop(n, low, high, slow, fast, False, other, share)

    def bound(self, velocity: float, acceleration: float) -> tuple[float, float]:
        """Largest speed and displacement of a stop, to the safe side and without working it out: (rad/s, rad)."""
        peak = abs(velocity) + abs(acceleration) * (0.5 * abs(acceleration) / self.change * self.step + self.step)
        return peak, peak * (peak * self._slope + self._lag)

    def accelerations(self, velocity: float, acceleration: float) -> np.ndarray:
        """(periods,) rad/s²: the row of `stop`; the next is 0."""
        return rows([self], [velocity], [acceleration])[:, 0]

    # ------------------------------------------------------------ sums of the row L(n), in units of D

    def _parts(self, alpha: float, n: int) -> tuple[int, int]:
        """How many periods go down, and how many up again."""
        down, up = floor(alpha + self.most + _SLACK), floor(self.most + _SLACK)
        if down + up <= n:
            return down, up
        down = min(max(floor((n + 1 + alpha) / 2.0), 0), n)
        return down, n - down

    def _sum(self, alpha: float, n: int) -> float:
        m, p = self._parts(alpha, n)
        return m * alpha - (m * (m + 1) + p * (p + 1)) / 2 - self.most * (n - m - p)

    def _moment(self, alpha: float, n: int) -> float:
        """Sum of (n + 1 - k) L_k: what the row adds to the way."""
        m, p = self._parts(alpha, n)
        down = m * (n + 1) * alpha - (n + 1 + alpha) * m * (m + 1) / 2 + m * (m + 1) * (2 * m + 1) / 6
        r = n - m
        return down - p * (p + 1) * (2 * p + 1) / 6 - self.most * (r * (r + 1) - p * (p + 1)) / 2

    def _periods(self, alpha: float, need: float, least: int) -> int:
        """The smallest n whose row adds up to `need` or less."""
        m, p = floor(alpha + self.most + _SLACK), floor(self.most + _SLACK)
        corner = m * alpha - (m * (m + 1) + p * (p + 1)) / 2
        if corner >= need:
            n = m + p + (corner - need) / self.most
        else:  # the row is a wedge: its sum is nearly (alpha² - alpha) / 2 - h² with h = (n + 1 - alpha) / 2
            n = 2.0 * sqrt(max((alpha * alpha - alpha) / 2 - need, 0.0)) + alpha - 1.0
        n = max(ceil(n - _SLACK), least + 1)
        while self._sum(alpha, n) > need + _SLACK:
            n += 1
        while n > least + 1 and self._sum(alpha, n - 1) <= need + _SLACK:
            n -= 1
        return n


def rows(brakes: Sequence[Brake], velocity: Sequence[float], acceleration: Sequence[float]) -> np.ndarray:
    """Stops of several joints, one beside the other: accelerations (K, J) rad/s², 0 where a joint stands already."""
    stops = [brake.stop(v, a) for brake, v, a in zip(brakes, velocity, acceleration, strict=True)]
    unit = np.array([-brake.change if stop.mirrored else brake.change for brake, stop in zip(brakes, stops, strict=True)])
    alpha, most = np.array(acceleration) / unit, np.array([-brake.most for brake in brakes])
    n, share = np.array([stop.periods for stop in stops]), np.array([stop.share for stop in stops])
    k = np.arange(1, n.max() + 1)[:, None]

    def row(alpha: np.ndarray, n: np.ndarray) -> np.ndarray:
        return np.where(k <= n, np.maximum(np.maximum(alpha - k, k - (n + 1.0)), most), 0.0)

    second = row(alpha, n - 1)
    if any(stop.other for stop in stops):
        second = np.where([stop.other for stop in stops], -row(-alpha, n), second)
    return (second + share * (row(alpha, n) - second)) * unit


def speed_limit(brake: Brake, velocity: float, periods: int, reserve: int = 0) -> float:
    """Largest speed up to `velocity` rad/s from which a stop takes at most `periods` less `reserve`."""
    left = periods - reserve
    if left < 1:
        return 0.0
    if brake.stop(velocity, 0.0).periods <= left:
        return velocity
    low, high = 0.0, velocity
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if brake.stop(middle, 0.0).periods <= left else (low, middle)
    return low
