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
        levers_m: (J,) metres that any point of the robot moves per radian of each joint, at most.

    Raises:
        InputError: a joint does not exist, or there are no pairs.
    """

    def __init__(self, model: Any, joints: Sequence[str], pairs: Sequence[tuple[int, int]], levers_m: Sequence[float]) -> None:
        known = [model.joint(i).name for i in range(model.njnt)]
        for name in joints:
            if name not in known:
                raise unknown("joint", name, known)
        if not pairs:
            raise InputError("no pairs of links to keep apart: give the links' capsules, or leave self-collision out")
        self._model, self._data = model, mujoco.MjData(model)
        self._at = np.array([model.joint(name).qposadr[0] for name in joints])
        self._line = np.zeros(6)
        self.pairs, self.levers_m = tuple(pairs), tuple(levers_m)

    def rooms(self, joints: np.ndarray) -> np.ndarray:
        """(S, J) rad → (S,) smallest distance of any pair in metres, negative where they overlap, `FAR_M` at most."""
        return np.array([self.nearest(row)[0] for row in joints])

    def nearest(self, joints: np.ndarray) -> tuple[float, tuple[int, int]]:
        """The pair that is nearest at joints (J,) rad: distance in metres, geom ids."""
        model, data = self._model, self._data
        data.qpos[self._at] = joints
        mujoco.mj_kinematics(model, data)
        least, nearest = FAR_M, self.pairs[0]
        for a, b in self.pairs:
            distance = mujoco.mj_geomDistance(model, data, a, b, least, self._line)
            if distance < least:
                least, nearest = distance, (a, b)
        return least, nearest

    def names(self, pair: tuple[int, int]) -> str:
        """What a pair is called."""
        return " and ".join(self._model.geom(g).name or self._model.body(int(self._model.geom_bodyid[g])).name for g in pair)


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
