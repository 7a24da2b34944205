"""Where the tool is, fast enough for every controller tick: product of exponentials in plain floats, about 15 µs per arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, inf, sin
from typing import Any, Protocol

import numpy as np

Point = tuple[float, float, float]


class ToolModel(Protocol):
    """Forward kinematics of the points that must stay in the workspace."""

    @property
    def levers_m(self) -> tuple[float, ...]:
        """Per joint, the most metres that any point moves per radian; infinity where unknown."""
        ...

    def positions(self, joints: Sequence[float]) -> list[Point]:
        """Points in metres, world frame, at joints (J,) rad."""
        ...


@dataclass(frozen=True)
class CallableTool:
    """A tool model from any forward kinematics (J,) → (3,)."""

    call: Callable[[np.ndarray], Any]
    joints: int

    @property
    def levers_m(self) -> tuple[float, ...]:
        return (inf,) * self.joints

    def positions(self, joints: Sequence[float]) -> list[Point]:
        x, y, z = (float(v) for v in self.call(np.array(joints)))
        return [(x, y, z)]


@dataclass(frozen=True)
class Arm:
    """A serial arm of hinges in its zero pose."""

    anchors: tuple[Point, ...]
    """A point on each joint's axis, metres, world frame, from the base on."""
    axes: tuple[Point, ...]
    """Unit axis of each joint."""
    tool: Point
    """The tool."""

    @property
    def levers_m(self) -> tuple[float, ...]:
        """For each joint the length of the chain behind it: no pose reaches farther."""
        points = [np.array(p) for p in (*self.anchors, self.tool)]
        links = [float(np.linalg.norm(b - a)) for a, b in pairwise(points)]
        return tuple(float(sum(links[i:])) for i in range(len(links)))

    def position(self, joints: Sequence[float]) -> Point:
        """Tool at joints (J,) rad: exp(ξ1 q1) ⋯ exp(ξJ qJ) applied to the tool of the zero pose (Brockett 1984)."""
        x, y, z = self.tool
        for angle, (ax, ay, az), (ux, uy, uz) in zip(reversed(joints), reversed(self.anchors), reversed(self.axes), strict=True):
            x, y, z = x - ax, y - ay, z - az
            s, c = sin(angle), cos(angle)
            d = (ux * x + uy * y + uz * z) * (1.0 - c)
            x, y, z = (
                x * c + (uy * z - uz * y) * s + ux * d + ax,
                y * c + (uz * x - ux * z) * s + uy * d + ay,
                z * c + (ux * y - uy * x) * s + uz * d + az,
            )
        return x, y, z


class Arms:
    """One or more arms commanded by one joint vector, arm after arm."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = tuple(arms)
        self.levers_m = tuple(lever for arm in arms for lever in arm.levers_m)

    def positions(self, joints: Sequence[float]) -> list[Point]:
        at, points = 0, []
        for arm in self.arms:
            points.append(arm.position(joints[at : at + len(arm.axes)]))
            at += len(arm.axes)
        return points

    @classmethod
    def of(cls, chains: Sequence[Any]) -> Arms:
        """From kinematic chains whose `forward((1, J))` gives position (3, 1), anchors and axes (J, 3, 1) in the world frame."""
        arms = []
        for chain in chains:
            joints = len(chain.joint_ids)
            frames = chain.forward(np.zeros((1, joints)))
            anchors = tuple(tuple(float(v) for v in frames.anchors[j, :, 0]) for j in range(joints))
            axes = tuple(tuple(float(v) for v in frames.axes[j, :, 0]) for j in range(joints))
            x, y, z = (float(v) for v in frames.position[:, 0])
            arms.append(Arm(anchors, axes, (x, y, z)))  # type: ignore[arg-type]  # triples, by construction
        return cls(arms)
