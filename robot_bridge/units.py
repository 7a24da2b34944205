"""Numbers on the wire and numbers inside: inside everything is SI and radians, outside it is what a driver happens to send."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, pi
from typing import Any

import numpy as np

from sinew.errors import InputError

UNITS: dict[str, tuple[str, float]] = {
    "rad": ("rad", 1.0),
    "deg": ("rad", pi / 180.0),
    "m": ("m", 1.0),
    "cm": ("m", 1e-2),
    "mm": ("m", 1e-3),
    "rad/s": ("rad/s", 1.0),
    "deg/s": ("rad/s", pi / 180.0),
    "m/s": ("m/s", 1.0),
    "mm/s": ("m/s", 1e-3),
    "N": ("N", 1.0),
    "Nm": ("Nm", 1.0),
    "1": ("1", 1.0),
}
"""Unit on the wire → unit inside and factor."""
SPANS: dict[str, tuple[float, float]] = {"fraction": (0.0, 1.0), "percent": (0.0, 100.0), "signed_percent": (-100.0, 100.0)}
"""Normalised units → the numbers that stand for the ends of `si_range`."""


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How numbers are written on the wire."""

    unit: str = ""
    """One of `UNITS` or `SPANS`; empty for SI."""
    wire_range: tuple[float, ...] = ()
    """Two numbers on the wire that stand for the two of `si_range`, a straight line between: a finger's angle for an opening."""
    si_range: tuple[float, ...] = ()
    """Two numbers inside, in SI."""

    def __post_init__(self) -> None:
        if self.unit and self.unit not in UNITS and self.unit not in SPANS:
            raise InputError(f"unknown unit {self.unit!r}; known are {', '.join((*UNITS, *SPANS))}")
        if self.unit in SPANS and not self.wire_range:
            object.__setattr__(self, "wire_range", SPANS[self.unit])
        if bool(self.wire_range) != bool(self.si_range):
            missing = "si_range" if self.wire_range else "wire_range"
            raise InputError(f"unit {self.unit or 'SI'!r} with a range needs {missing} as well: two numbers on the wire, two inside")
        for name in ("wire_range", "si_range"):
            ends = getattr(self, name)
            object.__setattr__(self, name, tuple(float(end) for end in ends))
            if ends and (len(ends) != 2 or not all(map(isfinite, ends)) or ends[0] == ends[1]):
                raise InputError(f"{name} {ends} must be two different finite numbers")

    def to_si(self, values: Any) -> np.ndarray:
        """Numbers from the wire, in SI."""
        numbers = np.asarray(values, dtype=np.float64)
        if self.wire_range:
            (a, b), (low, high) = self.wire_range, self.si_range
            return low + (numbers - a) / (b - a) * (high - low)
        return numbers if not self.unit else numbers * UNITS[self.unit][1]

    def from_si(self, values: Any) -> np.ndarray:
        """SI numbers as they go on the wire."""
        numbers = np.asarray(values, dtype=np.float64)
        if self.wire_range:
            (a, b), (low, high) = self.wire_range, self.si_range
            return a + (numbers - low) / (high - low) * (b - a)
        return numbers if not self.unit else numbers / UNITS[self.unit][1]

    def rate_from_si(self, values: Any) -> np.ndarray:
        """Changes per second in SI as changes per second on the wire: the factor without the offset."""
        return self.from_si(values) - self.from_si(np.zeros_like(np.asarray(values, dtype=np.float64)))
