"""Stopping in time: closed forms of a joint that loses at most a fixed speed per period."""

from __future__ import annotations

from math import ceil, floor, sqrt


def braking_speed(room: float, acceleration: float, step: float) -> float:
    """Largest speed for one period after which braking ends within `room`.

    Moving `step` at speed v and then losing `acceleration * step` each period covers, for n full periods,
    v * step * (n + 1) - acceleration * step**2 * n * (n + 1) / 2; this is solved for v.

    Args:
        room: distance to the limit, rad; negative counts as none.
        acceleration: rad/s², above 0.
        step: period, s.
    """
    if room <= 0.0:
        return 0.0
    quantum = acceleration * step * step
    n = floor((sqrt(1.0 + 8.0 * room / quantum) - 1.0) / 2.0)
    return room / ((n + 1) * step) + acceleration * step * n / 2.0


def braking_distance(speed: float, acceleration: float, step: float) -> float:
    """Signed distance covered after this period when braking from `speed`, rad."""
    change = acceleration * step
    n = max(ceil(abs(speed) / change) - 1, 0)
    way = step * (n * abs(speed) - change * n * (n + 1) / 2.0)
    return way if speed > 0 else -way
