"""What tensors mean: shape, dtype, bounds, unit and names, and the check that two parts agree on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from sinew.errors import SpecError

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
IMAGES = "observation.images."
ACTION = "action"
TASK = "task"

ActionKind = Literal["joint_position", "joint_delta", "ee_delta", "ee_pose"]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of an observation, without batch or time axes."""

    shape: tuple[int, ...]
    """Axis lengths; images are (height, width, 3)."""
    dtype: str = "float32"
    """NumPy name of the element type; images are uint8."""
    low: float | tuple[float, ...] | None = None
    """Smallest value, one for all elements or one for each; None for unbounded."""
    high: float | tuple[float, ...] | None = None
    """Largest value, like `low`."""
    unit: str = ""
    """Unit of all elements, or a comma-separated list where they differ: "rad", "m", "m/s"."""
    names: tuple[str, ...] = ()
    """Names of the elements of a vector, in order; empty for images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "names", tuple(self.names))
        for bound in ("low", "high"):
            value = getattr(self, bound)
            if value is not None and not np.isscalar(value):
                object.__setattr__(self, bound, tuple(float(v) for v in value))
        if self.names and (len(self.shape) != 1 or len(self.names) != self.shape[0]):
            raise SpecError(f"{len(self.names)} names given for a tensor of shape {self.shape}")


@dataclass(frozen=True)
class ObservationSpec:
    """Every tensor of an observation by its LeRobot key."""

    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)

    def __getitem__(self, key: str) -> TensorSpec:
        return self.tensors[key]

    def __iter__(self):
        return iter(self.tensors)

    @property
    def images(self) -> tuple[str, ...]:
        """Keys of the cameras."""
        return tuple(k for k in self.tensors if k.startswith(IMAGES))

    @property
    def vectors(self) -> tuple[str, ...]:
        """Keys of everything that is not a camera."""
        return tuple(k for k in self.tensors if not k.startswith(IMAGES))


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What an action vector commands."""

    kind: ActionKind
    """joint_position (rad or m), joint_delta, ee_delta (m and rad per step, world axes) or ee_pose; a trailing
    element named "gripper" is always the absolute opening in metres."""
    low: tuple[float, ...]
    """Smallest command per element, in the element's unit."""
    high: tuple[float, ...]
    """Largest command per element."""
    rate_hz: float
    """Commands per second."""
    names: tuple[str, ...]
    """Name of each element."""

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        object.__setattr__(self, "names", tuple(self.names))
        if not len(self.low) == len(self.high) == len(self.names):
            raise SpecError(f"action bounds and names differ in length: {len(self.low)}, {len(self.high)}, {self.names}")
        if any(not lo < hi for lo, hi in zip(self.low, self.high, strict=True)):
            raise SpecError(f"action low {self.low} is not below high {self.high}")

    @property
    def dim(self) -> int:
        """Number of elements A."""
        return len(self.low)

    def normalize(self, action: Any) -> Any:
        """Physical units (..., A) → [-1, 1]; NumPy in, NumPy out, torch in, torch out."""
        low, high = _like(self.low, action), _like(self.high, action)
        return (action - low) / (high - low) * 2 - 1

    def denormalize(self, action: Any) -> Any:
        """[-1, 1] (..., A) → physical units, clipped to the bounds."""
        low, high = _like(self.low, action), _like(self.high, action)
        return low + (action.clip(-1, 1) + 1) / 2 * (high - low)


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What a policy takes and gives."""

    observation: ObservationSpec
    action: ActionSpec
    horizon: int
    """Actions in a chunk, H."""
    n_obs_steps: int = 1
    """Observations that are looked at together, To."""
    noise_shape: tuple[int, ...] = ()
    """Shape of the noise behind one chunk; N(0, I)."""
    feature_dim: int = 0
    """Length F of the feature vector of a sample; 0 for none."""
    capabilities: tuple[str, ...] = ()
    """Names of the capability protocols that are implemented, for example "denoise", "energy", "correct"."""

    @property
    def action_dim(self) -> int:
        """Elements of an action, A."""
        return self.action.dim

    @property
    def rate_hz(self) -> float:
        """Actions per second."""
        return self.action.rate_hz


def _like(values: tuple[float, ...], x: Any) -> Any:
    """`values` as an array of the library, dtype and device of `x`."""
    if isinstance(x, np.ndarray):
        return np.asarray(values, dtype=x.dtype)
    return x.new_tensor(values)


def check_observation_join(giver: str, given: ObservationSpec, taker: str, wanted: ObservationSpec) -> None:
    """Check that everything `wanted` is in `given`, alike in shape, dtype, unit and names.

    Args:
        giver: what gives the observations, for the message: "task lift".
        given: its spec; it may hold more than is wanted.
        taker: what uses them: "policy runs/a".
        wanted: its spec.

    Raises:
        SpecError: names the first key and field that differ.
    """
    for key, want in wanted.tensors.items():
        if key not in given.tensors:
            raise SpecError(f"{taker} needs {key!r}, which {giver} does not give: it gives {', '.join(given.tensors)}")
        have = given.tensors[key]
        for name in ("shape", "dtype", "unit", "names"):
            a, b = getattr(have, name), getattr(want, name)
            if a != b and not (name in ("unit", "names") and (not a or not b)):
                raise SpecError(f"{giver} and {taker} disagree on {key!r}: {_difference(name, a, b)}")


def check_action_join(giver: str, given: ActionSpec, taker: str, wanted: ActionSpec) -> None:
    """Check that the actions of `giver` can be executed by `taker`: same kind, rate, names and bounds.

    Raises:
        SpecError: names the first field that differs.
    """
    for f in fields(ActionSpec):
        a, b = getattr(given, f.name), getattr(wanted, f.name)
        same = np.allclose(a, b, rtol=1e-6, atol=1e-9) if f.name in ("low", "high") and len(a) == len(b) else a == b
        if not same:
            raise SpecError(f"{giver} and {taker} disagree on the action: {_difference(f.name, a, b)}")


def _difference(field_name: str, a: Any, b: Any) -> str:
    """What differs between two values of a field: of two long lists the first element that does."""
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) > 3:
        i = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        return f"{field_name} of element {i}, {a[i]!r} against {b[i]!r}"
    return f"{field_name} {a!r} against {b!r}"
