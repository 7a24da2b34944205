"""Where the points of a reward are, read from observations that tell the poses of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from rewards.files import RewardUnavailable
from rewards.keypoint.settings import TOOL, Place
from sinew.specs import ENVIRONMENT_STATE, STATE, ObservationSpec

ELEMENTS = ("x", "y", "z", "r11", "r21", "r31", "r12", "r22", "r32")
_CROSSED = np.array([4, 5, 3, 8, 6, 7, 5, 3, 4, 7, 8, 6])
"""Elements of a frame whose products are the third column of its rotation."""

Frames = Mapping[str, np.ndarray]
"""Name → (9, n) float32: position in metres, and the first two columns of the rotation, in the world."""


class Poses(Protocol):
    """Tells where things are."""

    names: tuple[str, ...]
    """The frames that it knows, the tool's among them."""

    def frames(self, obs: Mapping[str, Tensor], rows: np.ndarray | None = None) -> Frames:
        """The tool's frame and those of objects, in worlds `rows` (n,), or in all; obs of all worlds."""
        ...

    def begin(self, obs: Mapping[str, Tensor], rows: np.ndarray, followed: Sequence[str]) -> Frames:
        """The same as new episodes begin in worlds `rows`; objects `followed` are those that are asked for after that."""
        ...

    def advance(self, obs: Mapping[str, Tensor], transition: Mapping[str, Tensor]) -> np.ndarray | None:
        """A step later, before `frames`: (N,) in [0, 1] how sure it is; None where that goes without saying."""
        ...


class StatePoses:
    """Frames from named elements of the observation.

    Args:
        spec: of the observation: "<object>.x", …, "<object>.r32" in observation.environment_state, the tool's in observation.state.
        objects: those that are needed.

    Raises:
        RewardUnavailable: an element is missing, as where poses of objects are not observed.
    """

    def __init__(self, spec: ObservationSpec, objects: Sequence[str]) -> None:
        self.names = (TOOL, *objects)
        self._columns = {STATE: {TOOL: _columns(spec, STATE, TOOL)}}
        if objects:
            self._columns[ENVIRONMENT_STATE] = {name: _columns(spec, ENVIRONMENT_STATE, name) for name in objects}

    def frames(self, obs: Mapping[str, Tensor], rows: np.ndarray | None = None) -> Frames:
        """See `Poses`."""
        found: dict[str, np.ndarray] = {}
        for key, columns in self._columns.items():
            values = obs[key].numpy(force=True)
            chosen = values if rows is None else values[rows]
            found |= {name: chosen[:, c].T for name, c in columns.items()}
        return found

    def begin(self, obs: Mapping[str, Tensor], rows: np.ndarray, followed: Sequence[str]) -> Frames:
        """See `Poses`."""
        return self.frames(obs, rows)

    def advance(self, obs: Mapping[str, Tensor], transition: Mapping[str, Tensor]) -> np.ndarray | None:
        """See `Poses`; what is observed is sure."""
        return None


def placed(frame: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """(K, 3, n) where places at offsets (K, 4, 1, n) in frames (9, n) are in the world, metres; the first element of an offset is 1."""
    basis = np.empty((4, 3, frame.shape[1]), np.float32)  # position and the three columns of the rotation
    basis[:3] = frame.reshape(3, 3, -1)
    turned = basis.reshape(12, -1)[_CROSSED].reshape(4, 3, -1)
    np.multiply(turned[0], turned[1], out=basis[3])
    basis[3] -= np.multiply(turned[2], turned[3], out=turned[2])
    return np.add.reduce(offset * basis, axis=1)


def offsets(places: Sequence[Place], count: int = 1) -> np.ndarray:
    """(K, 4, 1, n) float32 as `placed` takes them, the same for n worlds."""
    return np.repeat(np.array([(1.0, *p.offset_m) for p in places], np.float32)[:, :, None, None], count, axis=3)


def _columns(spec: ObservationSpec, key: str, name: str) -> list[int] | slice:
    names = list(spec[key].names) if key in spec else []
    missing = [f"{name}.{e}" for e in ELEMENTS if f"{name}.{e}" not in names]
    if missing:
        raise RewardUnavailable(f"{key} does not tell {missing[0]!r}, and nothing else tells where {name!r} is")
    first = names.index(f"{name}.x")
    if names[first : first + len(ELEMENTS)] == [f"{name}.{e}" for e in ELEMENTS]:
        return slice(first, first + len(ELEMENTS))  # which costs nothing to take out
    return [names.index(f"{name}.{e}") for e in ELEMENTS]
