"""Where the points of a reward are, read from observations that tell the poses of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rewards.files import RewardUnavailable
from rewards.keypoint.settings import TOOL, WORLD, Place
from sinew.errors import InputError
from sinew.specs import ENVIRONMENT_STATE, STATE, ObservationSpec

ELEMENTS = ("x", "y", "z", "r11", "r21", "r31", "r12", "r22", "r32")


class StatePoses:
    """Frames by name, from named elements of the observation.

    Args:
        spec: of the observation: "<object>.x", …, "<object>.r32" in observation.environment_state, the tool's in observation.state.
        objects: those that are needed.

    Raises:
        RewardUnavailable: an element is missing, as where poses of objects are not observed.
    """

    def __init__(self, spec: ObservationSpec, objects: Sequence[str]) -> None:
        self._columns = {TOOL: (STATE, _columns(spec, STATE, TOOL))}
        for name in objects:
            self._columns[name] = (ENVIRONMENT_STATE, _columns(spec, ENVIRONMENT_STATE, name))

    def frames(self, obs: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """{name: position (N, 3) and rotation (N, 3, 3)}.

        Raises:
            InputError: a value is not finite; its world is named.
        """
        found = {}
        for name, (key, columns) in self._columns.items():
            values = obs[key][:, columns]
            if not bool(torch.isfinite(values).all()):
                world = int((~torch.isfinite(values)).any(1).nonzero()[0])
                raise InputError(f"where {name!r} is in world {world} is not finite")
            first, second = values[:, 3:6], values[:, 6:9]
            found[name] = (values[:, :3], torch.stack((first, second, torch.linalg.cross(first, second)), 2))
        return found


def place(frames: Mapping[str, tuple[Tensor, Tensor]], point: Place) -> Tensor:
    """(N, 3) world position in metres of a place."""
    position, rotation = frames[point.object or TOOL]
    offset = position.new_tensor(point.offset_m)
    return offset.expand_as(position) if point.object == WORLD else position + rotation @ offset


def _columns(spec: ObservationSpec, key: str, name: str) -> list[int]:
    names = list(spec[key].names) if key in spec else []
    missing = [f"{name}.{e}" for e in ELEMENTS if f"{name}.{e}" not in names]
    if missing:
        raise RewardUnavailable(f"{key} does not tell {missing[0]!r}, and nothing else tells where {name!r} is")
    return [names.index(f"{name}.{e}") for e in ELEMENTS]
