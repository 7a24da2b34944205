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
    """Places in the world, from named elements of the observation.

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

    def points(self, obs: Mapping[str, Tensor], places: Sequence[Place]) -> Tensor:
        """(K, N, 3) world positions in metres of places.

        Raises:
            InputError: one is not finite; its world is named.
        """
        found = torch.stack([self._point(obs, place) for place in places])
        if not bool(torch.isfinite(found).all()):
            place, world = (int(i) for i in (~torch.isfinite(found)).any(2).nonzero()[0])
            raise InputError(f"where {places[place].object or 'the world'!r} is in world {world} is not finite")
        return found

    def _point(self, obs: Mapping[str, Tensor], place: Place) -> Tensor:
        key, columns = self._columns[place.object or TOOL]
        pose, (x, y, z) = obs[key][:, columns].cpu(), place.offset_m
        if place.object == WORLD:
            return pose.new_tensor(place.offset_m).expand(len(pose), 3)
        position, first, second = pose[:, :3], pose[:, 3:6], pose[:, 6:]
        if x or y:
            position = position + x * first + y * second
        return position + z * torch.linalg.cross(first, second) if z else position


def _columns(spec: ObservationSpec, key: str, name: str) -> list[int] | slice:
    names = list(spec[key].names) if key in spec else []
    missing = [f"{name}.{e}" for e in ELEMENTS if f"{name}.{e}" not in names]
    if missing:
        raise RewardUnavailable(f"{key} does not tell {missing[0]!r}, and nothing else tells where {name!r} is")
    first = names.index(f"{name}.x")
    if names[first : first + len(ELEMENTS)] == [f"{name}.{e}" for e in ELEMENTS]:
        return slice(first, first + len(ELEMENTS))  # which costs nothing to take out
    return [names.index(f"{name}.{e}") for e in ELEMENTS]
