"""Forward kinematics and Jacobians of many copies of one arm at once, in NumPy or, on any device, in PyTorch.

Arrays are laid out with the worlds last and every product is written element by element, so that a row's result does not
depend, to the bit, on how many rows are computed together: batched BLAS calls give no such promise.
"""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mujoco
import numpy as np

from sim.arrays import constant, namespace
from sim.robots.config import find
from sinew.errors import InputError


def matmul3(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(3, 3, N) times (3, 3, N), element by element."""
    return a[:, 0, None] * b[None, 0] + a[:, 1, None] * b[None, 1] + a[:, 2, None] * b[None, 2]


def rotate(rotation: np.ndarray, vector: Sequence[float]) -> np.ndarray:
    """(3, 3, N) times one constant vector of three Python floats → (3, N); zeros and ones cost nothing."""
    total = None
    for k, element in enumerate(vector):
        if element != 0.0:
            term = rotation[:, k] if element == 1.0 else rotation[:, k] * element
            total = term if total is None else total + term
    return namespace(rotation).zeros_like(rotation[:, 0]) if total is None else total


@dataclass(frozen=True)
class Frames:
    """World frames along an arm in N worlds."""

    position: np.ndarray
    """(3, N) tool position, metres."""
    rotation: np.ndarray
    """(3, 3, N) tool rotation, tool to world."""
    anchors: np.ndarray
    """(J, 3, N) a point on each joint axis."""
    axes: np.ndarray
    """(J, 3, N) unit joint axes."""

    def columns(self, part: slice) -> Frames:
        """The frames of some of the worlds."""
        return Frames(self.position[..., part], self.rotation[..., part], self.anchors[..., part], self.axes[..., part])


class Chain:
    """The joints between the world and a tool frame.

    Args:
        model: compiled model.
        joints: names of the joints that are commanded, in command order.
        tool: name of a site, or else of a body.

    Raises:
        InputError: a name does not exist, or a joint does not move the tool.
    """

    def __init__(self, model: mujoco.MjModel, joints: Sequence[str], tool: str) -> None:
        self.joint_ids = [find(model, "joint", name) for name in joints]
        site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, tool)
        body = int(model.site_bodyid[site]) if site >= 0 else find(model, "body", tool)
        tool_frame = (model.site_pos[site], _matrix(model.site_quat[site])) if site >= 0 else (np.zeros(3), np.eye(3))
        self._links = _links(model, body, self.joint_ids, tool_frame)
        order = [link.joint for link in self._links if link.joint >= 0]
        missing = [name for name, j in zip(joints, self.joint_ids, strict=True) if j not in order]
        if missing:
            moving = ", ".join(model.joint(j).name for j in order)
            raise InputError(f"joint {missing[0]!r} does not move tool {tool!r}; joints that do: {moving}")
        self._constants = _rotation_constants(self._links)
        self._offsets = [np.array(link.offset)[:, None] for link in self._links]
        self._order = [self.joint_ids.index(j) for j in order]
        self._columns = np.array(self._order)
        slides = {link.joint: link.slides for link in self._links}
        self._sliding = np.array([[slides[j]] for j in self.joint_ids])
        self._slides = bool(self._sliding.any())
        self._last: tuple[np.ndarray, Frames] | None = None
        self._reference = model.qpos0[model.jnt_qposadr[self.joint_ids]][:, None]

    def to(self, device: Any) -> Chain:
        """The same chain for tensors of single precision on a torch device."""
        there = copy.copy(self)
        there._last = None
        there._constants = tuple(constant(part, device) for part in self._constants)
        there._offsets = [constant(offset, device) for offset in self._offsets]
        there._reference, there._sliding = constant(self._reference, device), constant(self._sliding, device)
        there._columns = constant(self._columns, device)
        there._links = [replace(link, rotation=constant(link.rotation, device)) for link in self._links]
        return there

    def forward(self, q: np.ndarray) -> Frames:
        """Frames at joint positions q (N, J), rad or m; asked again for the same array of NumPy, it answers from memory."""
        if not isinstance(q, np.ndarray):
            return self._forward(q)
        last = self._last  # read once: another thread may replace it
        if last is not None and np.array_equal(last[0], q):
            return last[1]
        frames = self._forward(q)
        self._last = (q.copy(), frames)
        return frames

    def _forward(self, q: np.ndarray) -> Frames:
        xp = namespace(q)
        moved = q.T - self._reference
        angle = xp.where(self._sliding, 0.0, moved) if self._slides else moved
        angle = angle[self._columns]
        sine, cosine = xp.sin(angle), xp.cos(angle)
        fixed, of_sine, of_cosine = self._constants
        local = fixed + of_sine * sine[:, None, None] + of_cosine * cosine[:, None, None]
        rotation, position = None, xp.zeros_like(local[0, 0])
        anchors: list[Any] = [None] * len(self._order)
        axes: list[Any] = [None] * len(self._order)
        for row, (link, offset) in enumerate(zip(self._links, self._offsets, strict=True)):
            position = position + (offset if rotation is None else rotate(rotation, link.offset))
            if link.joint < 0:
                last = xp.broadcast_to(link.rotation[:, :, None], (3, 3, len(q)))
                rotation = last if rotation is None else matmul3(rotation, last)
                continue
            column = self._order[row]
            rotation = local[row] if rotation is None else matmul3(rotation, local[row])
            axes[column] = rotate(rotation, link.axis)
            if link.slides:
                position = position + axes[column] * moved[column]
            anchors[column] = position
        assert rotation is not None
        return Frames(position, rotation, xp.stack(anchors), xp.stack(axes))

    def jacobian(self, frames: Frames) -> np.ndarray:
        """(6, J, N): linear over angular velocity of the tool per joint velocity, world axes."""
        xp = namespace(frames.position)
        axes = xp.moveaxis(frames.axes, 1, 0)
        arm = frames.position[:, None] - xp.moveaxis(frames.anchors, 1, 0)
        linear = xp.stack([axes[j] * arm[k] - axes[k] * arm[j] for j, k in ((1, 2), (2, 0), (0, 1))])
        if self._slides:
            linear, axes = xp.where(self._sliding, axes, linear), xp.where(self._sliding, 0.0, axes)
        return xp.concatenate((linear, axes))


@dataclass(frozen=True)
class _Link:
    joint: int
    """Id of the joint after the fixed transform, -1 for none."""
    offset: tuple[float, ...]
    rotation: np.ndarray
    axis: tuple[float, ...]
    slides: bool


def _links(model: mujoco.MjModel, body: int, commanded: Sequence[int], tool: tuple[np.ndarray, np.ndarray]) -> list[_Link]:
    """Fixed transforms and joints from the world to the tool; joints that are not commanded stay at their reference."""
    bodies = []
    while body > 0:
        bodies.append(body)
        body = int(model.body_parentid[body])
    links: list[_Link] = []
    offset, rotation = np.zeros(3), np.eye(3)
    for b in reversed(bodies):
        offset, rotation = offset + rotation @ model.body_pos[b], rotation @ _matrix(model.body_quat[b])
        for j in range(model.body_jntadr[b], model.body_jntadr[b] + model.body_jntnum[b]):
            if j not in commanded:
                continue
            kind = int(model.jnt_type[j])
            if kind not in (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)):
                raise InputError(f"joint {model.joint(j).name!r} is neither a hinge nor a slide and cannot be commanded")
            anchor = model.jnt_pos[j]
            place, axis = (offset + rotation @ anchor).tolist(), model.jnt_axis[j].tolist()
            links.append(_Link(j, tuple(place), rotation, tuple(axis), kind == int(mujoco.mjtJoint.mjJNT_SLIDE)))
            offset, rotation = -anchor.copy(), np.eye(3)
    links.append(_Link(-1, tuple((offset + rotation @ tool[0]).tolist()), rotation @ tool[1], (0.0, 0.0, 0.0), False))
    return links


def _rotation_constants(links: Sequence[_Link]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation of each joint frame as C + S sin(q) + K cos(q): Rodrigues' formula, (J, 3, 3, 1) each."""
    parts = []
    for link in links:
        if link.joint < 0:
            continue
        x, y, z = link.axis
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        parts.append((link.rotation @ (np.eye(3) + cross @ cross), link.rotation @ cross, -link.rotation @ cross @ cross))
    constant, sine, cosine = (np.array(p)[..., None] for p in zip(*parts, strict=True))
    return constant, sine, cosine


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def quaternion_columns(quaternion: np.ndarray) -> np.ndarray:
    """First two columns of the rotation matrices of wxyz quaternions (N, 4), as (N, 6); arrays or tensors."""
    w, x, y, z = quaternion.T
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    second = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    return namespace(quaternion).stack((*first, *second), axis=1)
