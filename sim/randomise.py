"""What is drawn anew for every episode, and from which ranges: a file of JSON with units.

    {"parameters": [
      {"what": "mass", "of": ["cube"], "range": [0.5, 2.0], "unit": "factor"},
      {"what": "action_delay", "range": [0, 60], "unit": "ms"},
      {"what": "armature", "of": ["joint1"], "centre": 0.11, "width": 0.02, "unit": "kg m^2"}
    ]}

Nothing here needs a simulator: names are looked up in a scene by `sim.sampling`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, pi
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sinew.config import from_json
from sinew.errors import InputError, unknown

FACTOR = "factor"
"""Unit of what multiplies the scene's own value."""
_LENGTH = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}
_TIME = {"s": 1.0, "ms": 1e-3}
_ANGLE = {"rad": 1.0, "deg": pi / 180}

Scope = Literal["body", "surface", "joint", "servo", "tool", "arm", "camera", "light", "look", "pattern", "all"]
"""What the names in `of` are names of."""


class Kind(NamedTuple):
    """Something that can be drawn."""

    text: str
    scope: Scope
    units: Mapping[str, float]
    """Unit → how many of the unit that is kept make one of it; a factor is kept as it is."""
    low: float = 0.0
    """Least that makes sense, in the unit that is kept."""
    high: float = float("inf")
    parts: tuple[str, ...] = ("",)
    """Elements, each drawn by itself."""
    usual: float = 0.0
    """What a scene has that nobody changed; for a factor 1, and where a scene has a value of its own that one."""


_ROTARY_OR_LINEAR = "a hinge takes the first, a slide the second"
KINDS: Mapping[str, Kind] = {
    "mass": Kind("mass of bodies, their inertia with it", "body", {FACTOR: 1, "kg": 1, "g": 1e-3}, 1e-6),
    "friction": Kind("friction of surfaces; of two that touch the larger counts", "surface", {FACTOR: 1, "1": 1}),
    "damping": Kind(f"viscous friction of joints; {_ROTARY_OR_LINEAR}", "joint", {FACTOR: 1, "N m s/rad": 1, "N s/m": 1}),
    "friction_loss": Kind(f"dry friction of joints; {_ROTARY_OR_LINEAR}", "joint", {FACTOR: 1, "N m": 1, "N": 1}),
    "armature": Kind(f"inertia of joints' drives; {_ROTARY_OR_LINEAR}", "joint", {FACTOR: 1, "kg m^2": 1, "kg": 1}),
    "servo_stiffness": Kind(f"gain of position servos; {_ROTARY_OR_LINEAR}", "servo", {FACTOR: 1, "N m/rad": 1, "N/m": 1}, 1e-6),
    "servo_damping": Kind(f"damping of position servos; {_ROTARY_OR_LINEAR}", "servo", {FACTOR: 1, "N m s/rad": 1, "N s/m": 1}),
    "payload": Kind("mass at the tool that nothing holds up against gravity", "tool", {"kg": 1, "g": 1e-3}),
    "action_delay": Kind("time until a command reaches the servos, any fraction of a step", "all", {**_TIME, "steps": 1}),
    "observation_delay": Kind("age of what is observed, in whole steps: what is late by a part of one is seen at the next", "all",
                              {**_TIME, "steps": 1}),
    "servo_lag": Kind("time constant of the first-order lag between a command and the servos", "all", _TIME),
    "backlash": Kind("play between servo and joint of the arm", "arm", _ANGLE, high=0.5),
    "camera_position": Kind("shift of cameras along the axes of what carries them", "camera", _LENGTH, -1, 1, ("x", "y", "z")),
    "camera_rotation": Kind("turn of cameras about their own axes", "camera", _ANGLE, -pi, pi, ("x", "y", "z")),
    "field_of_view": Kind("vertical field of view of cameras", "camera", {FACTOR: 1, **_ANGLE}, 0.02, 2.9),
    "light_position": Kind("shift of lamps", "light", _LENGTH, -5, 5, ("x", "y", "z")),
    "light_brightness": Kind("brightness of lamps", "light", {FACTOR: 1}),
    "colour": Kind("added to red, green and blue, each from 0 to 1", "look", {"1": 1}, -1, 1, ("r", "g", "b")),
    "texture": Kind("number of a pattern made by rule, both ends included; 0 keeps what the scene has", "pattern", {"number": 1}),
    "exposure": Kind("brightness of pictures", "camera", {"stops": 1}, -4, 4),
    "white_balance": Kind("gain of red and blue in pictures", "camera", {FACTOR: 1}, 0.05, 20, ("r", "b")),
    "image_noise": Kind("standard deviation of pixels, of 255 levels", "camera", {"levels": 1}, 0, 128),
    "image_jitter": Kind("how far every picture is shifted at most, in whole pixels", "camera", {"px": 1}, 0, 64),
    "motion_blur": Kind("share of the picture before in every picture", "camera", {"share": 1}, 0, 0.95),
}  # fmt: skip
"""Everything that a file may name."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One line of the file."""

    what: str
    """A name of `KINDS`."""
    of: tuple[str, ...] = ()
    """Names, `*` for any letters, of what it is drawn for, each by itself; the usual ones if left out (`sim.sampling`)."""
    unit: str
    """Unit of the numbers; factor multiplies the scene's own value."""
    range: tuple[float, float] | None = None
    """Least and most."""
    centre: float | None = None
    """In place of a range: its middle."""
    width: float | None = None
    """And how far it reaches to either side, cut off where it makes no sense any more."""
    spacing: Literal["even", "log"] = "even"
    """log: the logarithm is drawn evenly, for what varies by orders of magnitude."""
    together: bool = False
    """Whether all names share one draw."""

    def __post_init__(self) -> None:
        if self.what not in KINDS:
            raise unknown("parameter", self.what, KINDS)
        kind = KINDS[self.what]
        if self.unit not in kind.units:
            raise InputError(f"{self.what} has unit {self.unit!r}; it takes {', '.join(map(repr, kind.units))}")
        if (self.range is None) == (self.centre is None) or (self.centre is None) != (self.width is None):
            raise InputError(f"{self.what}: give either a range [least, most], or centre and width")
        if self.of and kind.scope == "all":
            raise InputError(f"{self.what} is of a whole world: leave out 'of': {', '.join(self.of)}")
        low, high = self.bounds
        if not (isfinite(low) and isfinite(high)):
            raise InputError(f"{self.what}: {self._given()} must be finite")
        if low > high:
            raise InputError(f"{self.what}: the range {self._given()} is reversed; give the least first")
        least = 1e-6 if self.unit == FACTOR and kind.low > 0 else kind.low
        if low < least or high > (kind.high if self.unit != FACTOR else float("inf")):
            raise InputError(f"{self.what}: {self._given()} is out of what makes sense, {self._sensible(least)}")
        if self.spacing == "log" and low <= 0:
            raise InputError(f"{self.what}: a logarithm needs a range above 0, not {self._given()}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and most in the unit that is kept (SI, factors, levels, pixels, …); `steps` are kept as they are."""
        kind = KINDS[self.what]
        scale = kind.units[self.unit]
        if self.range is not None:
            return self.range[0] * scale, self.range[1] * scale
        centre, width = (self.centre or 0.0) * scale, (self.width or 0.0) * scale
        return (max(centre - width, kind.low) if centre >= kind.low and width >= 0 else centre - width), centre + width

    def _given(self) -> str:
        return f"{list(self.range)} {self.unit}" if self.range else f"{self.centre:g} ± {self.width:g} {self.unit}"

    def _sensible(self, least: float) -> str:
        kind = KINDS[self.what]
        scale = kind.units[self.unit]
        most = "" if kind.high == float("inf") or self.unit == FACTOR else f" to {kind.high / scale:.4g}"
        return f"{least / scale:.4g}{most or ' or more'} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class Widening:
    """How ranges grow from what the scene has to what the file says, while success holds: `sim.curriculum`."""

    episodes: int = 50
    """Episodes at a boundary after which it is decided about."""
    widen_at: float = 0.8
    """Success rate from which a boundary moves outwards."""
    narrow_at: float = 0.5
    """Success rate up to which it moves inwards."""
    step: float = 0.1
    """How far it moves, as a share of the whole way."""
    share: float = 0.5
    """Share of the episodes that are played at a boundary."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or not 0 <= self.narrow_at < self.widen_at <= 1 or not 0 < self.step <= 1 or not 0 < self.share <= 1:
            rates = f"narrow_at {self.narrow_at} below widen_at {self.widen_at}, both from 0 to 1"
            raise InputError(
                f"curriculum: episodes {self.episodes} from 1, {rates}, step {self.step} and share {self.share} above 0 up to 1 are wanted"
            )


@dataclass(frozen=True, kw_only=True)
class Randomisation:
    """What a file says."""

    parameters: tuple[Parameter, ...]
    """What is drawn."""
    curriculum: Widening | None = None
    """Whether ranges begin at what the scene has and grow; at once as they are if left out."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where the numbers come from; for readers."""

    def __post_init__(self) -> None:
        if not self.parameters:
            raise InputError(f"no parameters: a randomisation names at least one of {', '.join(KINDS)}")

    def has(self, *what: str) -> bool:
        """Whether any of these kinds is drawn."""
        return any(parameter.what in what for parameter in self.parameters)


def load_randomisation(path: str | Path) -> Randomisation:
    """Read a file.

    Raises:
        InputError: there is no such file, a name is unknown (near ones are offered), a range is reversed or makes no sense, a unit is
            missing or wrong; the file and the entry are named.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text())
    except OSError as e:
        raise InputError(f"randomisation {path}: {e.strerror}") from None
    except ValueError as e:
        raise InputError(f"randomisation {path} is not JSON: {e}") from None
    entries = data.get("parameters") if isinstance(data, Mapping) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and entry.get("what") in KINDS and "unit" not in entry:
            units = ", ".join(map(repr, KINDS[entry["what"]].units))
            raise InputError(f"randomisation {path}: {entry['what']} has no unit; it takes {units}")
    return from_json(Randomisation, data, f"randomisation {path}")
