"""How near the links of a robot are to one another, from a MuJoCo model."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from robot_bridge.kinematics import LinkPoint
from sinew.errors import InputError, unknown

FAR_M = 0.3
"""Distances are told up to this; beyond it only that they are larger."""


class SelfCollision:
    """Distances between pairs of geoms.

    Args:
        model: `mujoco.MjModel` that has the robot; what it does not command stays where the model puts it.
        joints: names of the joints that are commanded, in command order.
        pairs: of geom ids whose distance counts.

    Raises:
        InputError: a joint does not exist, or there are no pairs.
    """

    def __init__(self, model: Any, joints: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
        known = [model.joint(i).name for i in range(model.njnt)]
        for name in joints:
            if name not in known:
                raise unknown("joint", name, known)
        if not pairs:
            raise InputError("no pairs of links to keep apart: give the links' capsules, or leave self-collision out")
        self._model, self._data = model, mujoco.MjData(model)
        self._at = np.array([model.joint(name).qposadr[0] for name in joints])
        self._line = np.zeros(6)
        self.pairs = tuple(pairs)
        ids = [int(model.joint(name).id) for name in joints]
        self.levers_m = np.array([_pair_levers(model, self._data, ids, a, b) for a, b in pairs])
        """(P, J) the most metres by which the links of each pair come nearer per radian of each joint."""

    def distances(self, joints: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(S, J) rad → (S, n) metres between the links of these pairs, negative where they overlap, `FAR_M` at most."""
        model, data, found = self._model, self._data, np.empty((len(joints), len(which)))
        chosen = [self.pairs[p] for p in which]
        for row, q in zip(found, joints, strict=True):
            data.qpos[self._at] = q
            mujoco.mj_kinematics(model, data)
            row[:] = [mujoco.mj_geomDistance(model, data, a, b, FAR_M, self._line) for a, b in chosen]
        return found

    def name(self, pair: int) -> str:
        """What a pair is called."""
        return " and ".join(self._model.geom(g).name or self._model.body(int(self._model.geom_bodyid[g])).name for g in self.pairs[pair])


def _pair_levers(model: Any, data: Any, joints: Sequence[int], a: int, b: int) -> np.ndarray:
    """(J,) the most metres by which geoms `a` and `b` come nearer per radian: only joints that move one of them alone count."""
    mujoco.mj_kinematics(model, data)
    levers = [_geom_levers(model, data, joints, geom) for geom in (a, b)]
    alone = (levers[0] > 0.0) != (levers[1] > 0.0)
    return np.where(alone, levers[0] + levers[1], 0.0)


def _geom_levers(model: Any, data: Any, joints: Sequence[int], geom: int) -> np.ndarray:
    """(J,) how far any point of a geom can be from each joint's axis, 0 for joints that do not move it: the length of the chain."""
    place, way = data.geom_xpos[geom], float(model.geom_rbound[geom])
    levers, body, grows = np.zeros(len(joints)), int(model.geom_bodyid[geom]), False
    while body > 0:
        first = int(model.body_jntadr[body])
        for joint in reversed(range(first, first + int(model.body_jntnum[body]))):
            way, place = way + float(np.linalg.norm(place - data.xanchor[joint])), data.xanchor[joint]
            slides = model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE
            if joint in joints:
                levers[joints.index(joint)] = 1.0 if slides else np.inf if grows else max(way, 1e-9)
            grows = grows or (slides and joint in joints)
        body = int(model.body_parentid[body])
    return levers


def link_points(model: Any, joints: Sequence[str]) -> list[LinkPoint]:
    """The ends of every capsule, and corners of every box, that the joints of one arm move, in the arm's zero pose.

    Geoms of other shapes count as their bounding balls. The first joint's own link is left out: a turn of the base takes it nowhere.

    Args:
        model: `mujoco.MjModel` with the arm.
        joints: names of its joints from the base on.
    """
    data = mujoco.MjData(model)
    bodies = [int(model.joint(name).bodyid[0]) for name in joints]
    data.qpos[[model.joint(name).qposadr[0] for name in joints]] = 0.0
    mujoco.mj_kinematics(model, data)
    points = []
    for geom in range(model.ngeom):
        joint = _mover(model, int(model.geom_bodyid[geom]), bodies)
        if joint < 1:
            continue
        size, place, turn = model.geom_size[geom], data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3)
        for offset, radius in _balls(int(model.geom_type[geom]), size, float(model.geom_rbound[geom])):
            x, y, z = (float(v) for v in place + turn @ offset)
            points.append(LinkPoint(joint, (x, y, z), radius))
    return points


def _mover(model: Any, body: int, bodies: Sequence[int]) -> int:
    """Index of the last of `bodies` between the world and `body`, -1 for none."""
    while body > 0:
        if body in bodies:
            return bodies.index(body)
        body = int(model.body_parentid[body])
    return -1


def _balls(kind: int, size: np.ndarray, bound: float) -> list[tuple[np.ndarray, float]]:
    """Balls (centre in the geom's frame, radius) of which the geom is the hull, or that contain it."""
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return [(np.array([0.0, 0.0, end]), float(size[0])) for end in (-size[1], size[1])]
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return [(np.array([x, y, z]) * size, 0.0) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return [(np.zeros(3), float(size[0]))]
    return [(np.zeros(3), bound)]
