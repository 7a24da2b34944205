"""Where one frame was in another at a time: a tree of transforms as tf2 keeps it."""

from __future__ import annotations

import numpy as np

from robot_bridge.contract import Alignment
from robot_bridge.timeline import History, Kept, pose_between
from sinew.se3 import matrix_to_quaternion, quaternion_to_matrix, se3_inverse

MAX_DEPTH = 100


class TransformTree:
    """Transforms by their child frame; a child has one parent.

    Args:
        keep_ns: how far back moving transforms are kept.
    """

    def __init__(self, keep_ns: int) -> None:
        self._keep_ns = keep_ns
        self._parents: dict[str, str] = {}
        self._moving: dict[str, History] = {}
        self._fixed: dict[str, np.ndarray] = {}

    def add(self, parent: str, child: str, pose: np.ndarray, stamp_ns: int, receipt_ns: int, *, fixed: bool = False) -> bool:
        """Enter pose (7,) of `child` in `parent`, xyz and wxyz; False for one that is not finite or no newer than the last."""
        parent, child = parent.strip("/"), child.strip("/")
        if not np.isfinite(pose).all() or parent == child:
            return False
        self._parents[child] = parent
        if fixed:
            self._fixed[child] = pose
            return True
        if child not in self._moving:
            self._moving[child] = History(self._keep_ns)
        return self._moving[child].add(stamp_ns, receipt_ns, pose)

    def lookup(self, frame: str, child: str, at_ns: int, alignment: Alignment, tolerance_ns: int, age_max_ns: int) -> Kept | None:
        """Pose (7,) of `child` in `frame` at a time, over as many transforms as it takes; its stamp is that of the oldest of them."""
        frame, child = frame.strip("/"), child.strip("/")
        if self._parents.get(child) == frame:
            return self._edge(child, at_ns, alignment, tolerance_ns, age_max_ns)
        up, down = self._ancestors(child), self._ancestors(frame)
        common = next((name for name in up if name in down), None)
        if common is None:
            return None
        edges = [
            self._edge(name, at_ns, alignment, tolerance_ns, age_max_ns) for name in (*up[: up.index(common)], *down[: down.index(common)])
        ]
        found = [edge for edge in edges if edge is not None]
        if len(found) != len(edges):
            return None
        climb = up.index(common)
        to_child, to_frame = _chain(found[:climb]), _chain(found[climb:])
        pose = _pose(se3_inverse(to_frame) @ to_child)
        return Kept(min((e.stamp_ns for e in found), default=at_ns), max((e.receipt_ns for e in found), default=at_ns), pose)

    def _edge(self, child: str, at_ns: int, alignment: Alignment, tolerance_ns: int, age_max_ns: int) -> Kept | None:
        if child in self._fixed:
            return Kept(at_ns, at_ns, self._fixed[child])
        return self._moving[child].at(at_ns, alignment, tolerance_ns, age_max_ns, pose_between)

    def _ancestors(self, name: str) -> list[str]:
        """The frame itself, its parent, and so on."""
        names = [name]
        while names[-1] in self._parents and len(names) < MAX_DEPTH:
            names.append(self._parents[names[-1]])
        return names


def _chain(edges: list[Kept]) -> np.ndarray:
    """T_ancestor_frame (4, 4) from the poses between, the frame's own first."""
    matrix = np.eye(4)
    for edge in edges:
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = quaternion_to_matrix(edge.value[3:]), edge.value[:3]
        matrix = step @ matrix
    return matrix


def _pose(matrix: np.ndarray) -> np.ndarray:
    return np.concatenate((matrix[:3, 3], matrix_to_quaternion(matrix[:3, :3])))
