"""Dense potentials for learning a task from nothing: how far is what has to happen still away, from -1 to 0.

Every one reads named elements of the observation, for all worlds at once and where they are. Distances count twice, over half a metre and,
saturating, over a few centimetres: from far away there is a slope, and close to the goal there is a steep one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.shaping import columns
from sinew.errors import InputError
from sinew.specs import ENVIRONMENT_STATE, STATE, ObservationSpec

FAR_M, NEAR_M = 0.5, 0.05
"""Lengths over which distances count."""
IN_HAND_M = 0.02
"""An object is between the fingers about as near as this."""


def closeness(distance_m: Tensor) -> Tensor:
    """Distances (N,) in metres → from 0, far away, to 1, there."""
    return 1 - 0.5 * (distance_m / FAR_M).clamp(max=1.0) - 0.5 * torch.tanh(distance_m / NEAR_M)


class ReachPotential:
    """How far the tool is from an object.

    Args:
        spec: observation; names the elements "tool.x" and "<object>.x" and so on.
        object: name of the object.
        above_m: the tool belongs this far over its centre.

    Raises:
        InputError: a named element is missing.
    """

    low, high = -1.0, 0.0

    def __init__(self, spec: ObservationSpec, object: str, above_m: float = 0.0) -> None:
        self.tool, self.object = columns(spec, STATE, "tool"), columns(spec, ENVIRONMENT_STATE, object)
        self.above_m = above_m

    def apart(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Metres (N,) between the tool and where it belongs."""
        between = obs[ENVIRONMENT_STATE][:, self.object] - obs[STATE][:, self.tool]
        return torch.linalg.vector_norm(between + between.new_tensor((0.0, 0.0, self.above_m)), dim=1)

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32 in [-1, 0]."""
        return closeness(self.apart(obs)) - 1


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """How an object is taken."""

    object: str
    """Its name."""
    width_m: float
    """Opening of the fingers that hold it."""
    open_m: float = 0.08
    """Opening of open fingers."""
    above_m: float = 0.0
    """The tool takes it this far over its centre."""


class GraspPotential:
    """How far a tool is from having closed its fingers around an object: two thirds for being there, one for closing there.

    Raises:
        InputError: a named element is missing, or the robot has no gripper.
    """

    low, high = -1.0, 0.0

    def __init__(self, spec: ObservationSpec, grasp: Grasp) -> None:
        names = spec[STATE].names
        if "gripper" not in names:
            raise InputError(f"{STATE} has no element 'gripper', so nothing can be grasped; it has {', '.join(names)}")
        self.reach, self.grasp, self.gripper = ReachPotential(spec, grasp.object, grasp.above_m), grasp, names.index("gripper")

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32 in [-1, 0]."""
        apart, grasp = self.reach.apart(obs), self.grasp
        closed = ((grasp.open_m - obs[STATE][:, self.gripper]) / (grasp.open_m - grasp.width_m)).clamp(0, 1)
        between = torch.exp(-(apart / IN_HAND_M).square())
        return (2 * closeness(apart) + between * closed) / 3 - 1


class LiftPotential:
    """Half for the grasp, half for how high the object is.

    Args:
        spec: see `ReachPotential`.
        grasp: how it is taken.
        rest_m: height of its centre where it lies.
        height_m: how much higher it has to be.
    """

    low, high = -1.0, 0.0

    def __init__(self, spec: ObservationSpec, grasp: Grasp, rest_m: float, height_m: float) -> None:
        self.grasp, self.rest_m, self.height_m = GraspPotential(spec, grasp), rest_m, height_m

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32 in [-1, 0]."""
        height = obs[ENVIRONMENT_STATE][:, self.grasp.reach.object[2]]
        raised = ((height - self.rest_m) / self.height_m).clamp(0, 1)
        return 0.5 * self.grasp(obs) + 0.5 * (raised - 1)


class InsertPotential:
    """A third for the grasp, the rest for the way of an upright object into a hole: up, over it, down.

    Args:
        spec: see `ReachPotential`.
        grasp: how the object is taken.
        hole: name of what has the hole; its origin is on the table, in the middle of the hole.
        half_m: half the object's height.
        rim_m: height of the hole's rim.
        within_m: how far from the middle the object still fits.
        depth_m: height of the object's foot at the end.
    """

    low, high = -1.0, 0.0
    CLEAR_M, WAY_M = 0.015, 0.4
    """The foot goes this far over the rim; a way that counts as far."""

    def __init__(
        self, spec: ObservationSpec, grasp: Grasp, hole: str, *, half_m: float, rim_m: float, within_m: float, depth_m: float
    ) -> None:
        self.grasp, self.hole = GraspPotential(spec, grasp), columns(spec, ENVIRONMENT_STATE, hole)
        self.half_m, self.over_m, self.within_m, self.depth_m = half_m, rim_m + self.CLEAR_M, within_m, depth_m

    def way(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Metres (N,) that the object's foot still has to go."""
        seen = obs[ENVIRONMENT_STATE]
        offset = seen[:, self.grasp.reach.object] - seen[:, self.hole]
        foot, aside = offset[:, 2] - self.half_m, torch.linalg.vector_norm(offset[:, :2], dim=1)
        descent = self.over_m - self.depth_m
        around = (self.over_m - foot).clamp(min=0) + aside + descent
        return torch.where(aside < self.within_m, aside + (foot - self.depth_m).clamp(min=0), around)

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32 in [-1, 0]."""
        return self.grasp(obs) / 3 - 2 / 3 * (self.way(obs) / self.WAY_M).clamp(max=1.0)
