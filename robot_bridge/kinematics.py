"""Where every link of a robot is, fast enough for every controller tick: product of exponentials for several poses at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Protocol

import numpy as np

Point = tuple[float, float, float]


class LinkModel(Protocol):
    """Forward kinematics of the points that must stay where they may be; the tools come first."""

    @property
    def tools(self) -> int:
        """How many of the points are tools."""
        ...

    @property
    def radii_m(self) -> np.ndarray:
        """(P,) radius of the ball around each point: a capsule is inside a plane where the balls at its two ends are."""
        ...

    @property
    def levers_m(self) -> np.ndarray:
        """(P, J) the most metres that each point moves per radian of each joint; infinity where unknown."""
        ...

    def points(self, joints: np.ndarray) -> np.ndarray:
        """Points (S, P, 3) in metres, world frame, at joints (S, J) rad."""
        ...

    def jacobians(self, joints: np.ndarray) -> list[np.ndarray]:
        """Jacobian (6, joints of that arm) of every tool at joints (J,): m/rad, then rad/rad; empty where unknown."""
        ...


@dataclass(frozen=True)
class CallableTool:
    """A tool from any forward kinematics (J,) → (3,)."""

    call: Callable[[np.ndarray], Any]
    joints: int
    tools: int = 1

    @property
    def radii_m(self) -> np.ndarray:
        return np.zeros(1)

    @property
    def levers_m(self) -> np.ndarray:
        return np.full((1, self.joints), inf)

    def points(self, joints: np.ndarray) -> np.ndarray:
        return np.array([[[float(v) for v in self.call(row)]] for row in joints])

    def jacobians(self, joints: np.ndarray) -> list[np.ndarray]:
        return []


@dataclass(frozen=True)
class LinkPoint:
    """A ball fixed to a link: one end of a capsule, a corner of a box, or the end of a tool."""

    joint: int
    """The last joint of the arm that moves it, counted from 0."""
    position: Point
    """Metres, world frame, in the arm's zero pose."""
    radius_m: float = 0.0


@dataclass(frozen=True)
class Arm:
    """A serial arm in its zero pose."""

    anchors: tuple[Point, ...]
    """A point on each joint's axis, metres, world frame, from the base on."""
    axes: tuple[Point, ...]
    """Unit axis of each joint."""
    tool: Point
    """The tool."""
    links: tuple[LinkPoint, ...] = ()
    """What else must stay where it may be."""
    slides: tuple[bool, ...] = ()
    """Whether each joint slides along its axis, rad then being metres; empty for none."""

    @property
    def ends(self) -> tuple[LinkPoint, ...]:
        """The tool, then the links."""
        return LinkPoint(len(self.anchors) - 1, self.tool), *self.links

    @property
    def levers_m(self) -> np.ndarray:
        """(P, J) for each of `ends` and joint the length of the chain between them: no pose reaches farther, unless a joint slides."""
        slides = self.slides or (False,) * len(self.anchors)
        anchors = [np.array(p) for p in self.anchors]
        ways = [0.0, *np.cumsum([np.linalg.norm(b - a) for a, b in pairwise(anchors)])]
        levers = np.zeros((len(self.ends), len(anchors)))
        for p, end in enumerate(self.ends):
            beyond = float(np.linalg.norm(np.array(end.position) - anchors[end.joint]))
            for j in range(end.joint + 1):
                grows = any(slides[j + 1 : end.joint + 1])
                levers[p, j] = 1.0 if slides[j] else inf if grows else ways[end.joint] - ways[j] + beyond
        return levers


class _Motion:
    """An arm's exponentials: constant matrices of which every joint's motion is a sum."""

    def __init__(self, arm: Arm) -> None:
        axes, anchors = np.array(arm.axes, dtype=float), np.array(arm.anchors, dtype=float)
        joints = len(axes)
        slides = np.array(arm.slides or (False,) * joints)
        x, y, z = axes.T
        o = np.zeros(joints)
        cross = np.array([[o, -z, y], [z, o, -x], [-y, x, o]]).transpose(2, 0, 1)
        outer = axes[:, :, None] * axes[:, None, :]
        hinge = np.zeros((3, joints, 4, 4))  # of 1, cos, sin (or the way, for one that slides)
        for part, matrix in enumerate((outer, np.eye(3) - outer, cross)):
            hinge[part, :, :3, :3] = matrix
            hinge[part, :, :3, 3] = -np.einsum("jab,jb->ja", matrix, anchors)
        hinge[0, :, :3, 3] += anchors
        hinge[0, :, 3, 3] = 1.0
        slide = np.zeros((3, joints, 4, 4))
        slide[0] = np.eye(4)
        slide[2, :, :3, 3] = axes
        self._parts = np.where(slides[None, :, None, None], slide, hinge)
        self._slides = slides
        self.axes, self.anchors = axes, anchors
        ends = arm.ends
        self.at = np.array([end.joint for end in ends])
        self.ends = np.array([[*end.position, 1.0] for end in ends])[..., None]
        self.radii = np.array([end.radius_m for end in ends])

    def frames(self, joints: np.ndarray) -> np.ndarray:
        """(S, J) → (S, J, 4, 4): what each joint and those before it do to the zero pose."""
        sines = np.sin(joints)
        if self._slides.any():
            sines = np.where(self._slides, joints, sines)
        one, cosine, sine = self._parts
        motions = one + cosine * np.cos(joints)[..., None, None] + sine * sines[..., None, None]
        for j in range(1, motions.shape[1]):
            motions[:, j] = motions[:, j - 1] @ motions[:, j]
        return motions

    def points(self, joints: np.ndarray) -> np.ndarray:
        return (self.frames(joints)[:, self.at] @ self.ends)[..., :3, 0]

    def jacobian(self, joints: np.ndarray) -> np.ndarray:
        frames = self.frames(joints[None])[0]
        before = np.concatenate((np.eye(4)[None], frames[:-1]))
        axes = np.einsum("jab,jb->ja", before[:, :3, :3], self.axes)
        anchors = np.einsum("jab,jb->ja", before[:, :3, :3], self.anchors) + before[:, :3, 3]
        arm = (frames[-1] @ self.ends[0])[:3, 0] - anchors
        turning = axes[:, [1, 2, 0]] * arm[:, [2, 0, 1]] - axes[:, [2, 0, 1]] * arm[:, [1, 2, 0]]
        slides = self._slides[:, None]
        return np.concatenate((np.where(slides, axes, turning), np.where(slides, 0.0, axes)), axis=1).T


class Arms:
    """One or more arms commanded by one joint vector, arm after arm."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = tuple(arms)
        self._motions = [_Motion(arm) for arm in arms]
        ends = np.cumsum([len(arm.axes) for arm in arms]).tolist()
        self._parts = [slice(end - len(arm.axes), end) for arm, end in zip(arms, ends, strict=True)]
        self.radii_m = self._tools_first([motion.radii for motion in self._motions])
        levers = []
        for arm, part in zip(arms, self._parts, strict=True):
            levers.append(np.zeros((len(arm.ends), ends[-1])))
            levers[-1][:, part] = arm.levers_m
        self.levers_m = self._tools_first(levers)

    @staticmethod
    def _tools_first(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([*(v[:1] for v in values), *(v[1:] for v in values)])

    @property
    def tools(self) -> int:
        return len(self.arms)

    def points(self, joints: np.ndarray) -> np.ndarray:
        """See `LinkModel.points`: the tools, then the links of each arm."""
        found = [motion.points(joints[:, part]) for motion, part in zip(self._motions, self._parts, strict=True)]
        if len(found) == 1:
            return found[0]
        return np.concatenate([*(p[:, :1] for p in found), *(p[:, 1:] for p in found)], axis=1)

    def jacobians(self, joints: np.ndarray) -> list[np.ndarray]:
        """See `LinkModel.jacobians`."""
        return [motion.jacobian(joints[part]) for motion, part in zip(self._motions, self._parts, strict=True)]

    def positions(self, joints: Sequence[float]) -> list[Point]:
        """The tools at joints (J,) rad."""
        x = self.points(np.array([joints], dtype=float))[0, : self.tools]
        return [(float(p[0]), float(p[1]), float(p[2])) for p in x]

    @classmethod
    def of(cls, chains: Sequence[Any], links: Sequence[Sequence[LinkPoint]] = ()) -> Arms:
        """From kinematic chains.

        Args:
            chains: their `forward((1, J))` gives position (3, 1), anchors and axes (J, 3, 1) in the world frame.
            links: for each chain what else moves with it; left out, the joints themselves but for those on the first axis.
        """
        arms = []
        for i, chain in enumerate(chains):
            joints = len(chain.joint_ids)
            frames = chain.forward(np.zeros((1, joints)))
            anchors = [_point(frames.anchors[j, :, 0]) for j in range(joints)]
            axes = [_point(frames.axes[j, :, 0]) for j in range(joints)]
            points = links[i] if links else [LinkPoint(j - 1, anchors[j]) for j in range(1, joints)]
            slides = tuple(bool(s) for s in getattr(chain, "_sliding", ()))
            arms.append(Arm(tuple(anchors), tuple(axes), _point(frames.position[:, 0]), tuple(points), slides))
        return cls(arms)


def _point(vector: np.ndarray) -> Point:
    return float(vector[0]), float(vector[1]), float(vector[2])
