"""Hand-eye calibration in closed form: where a camera is, from robot poses and what the camera saw there.

All views obey A_i X C_i = Z with the robot's pose A_i, the wanted X, the board in the camera's frame C_i, and the board's place Z.
For a camera on the hand, A is T_base_hand, X is T_hand_camera and Z is T_base_board; for one that looks at the hand, A is
T_hand_base, X is T_base_camera and Z is T_hand_board. Relative motions of pairs of views give AX = XB, the poses themselves AX = ZB.

These need no first guess and give none of their errors away: `calibration.estimator` starts from them. They stand here because
OpenCV 5.0 lost its own; the results are those of OpenCV 4.14 to 1e-9 where that has the method.
Sources: Tsai and Lenz 1989; Park and Martin 1994; Horaud and Dornaika 1995; Daniilidis 1999; Shah 2013; Li, Wang and Wu 2010.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

from sinew.errors import InputError, unknown
from sinew.se3 import Array, matrix_to_quaternion, quaternion_to_matrix, se3, se3_inverse, so3_hat, so3_log

TSAI_RANGE = (0.15, 0.85)
"""Relative motions that Tsai's method uses, by the sine of half their angle: 17 to 116 degrees."""


def hand_eye(robot: Array, board: Array, method: str = "park") -> Array:
    """X (4, 4) of A_i X C_i = Z.

    Args:
        robot: A (N, 4, 4), see above for which.
        board: C (N, 4, 4), T_camera_board.
        method: "tsai", "park", "horaud", "daniilidis", "shah" or "li".

    Raises:
        InputError: fewer than three views, or an unknown method.
    """
    return hand_eye_and_world(robot, board, method)[0]


def hand_eye_and_world(robot: Array, board: Array, method: str = "park") -> tuple[Array, Array]:
    """X and Z (4, 4) each; see `hand_eye`. Methods on relative motions leave Z to the mean of what every view says."""
    robot, board = np.asarray(robot, dtype=float), np.asarray(board, dtype=float)
    if robot.shape != board.shape or robot.shape[1:] != (4, 4) or len(robot) < 3:
        raise InputError(f"hand-eye calibration takes at least 3 views of poses (N, 4, 4), given {robot.shape} and {board.shape}")
    if method in ABSOLUTE:
        inverse_z, inverse_x = ABSOLUTE[method](board, se3_inverse(robot))
        return se3_inverse(inverse_x), se3_inverse(inverse_z)
    if method not in RELATIVE:
        raise unknown("method", method, (*RELATIVE, *ABSOLUTE))
    first, second = np.array(list(combinations(range(len(robot)), 2))).T
    a = se3_inverse(robot[second]) @ robot[first]
    b = board[second] @ se3_inverse(board[first])
    x = RELATIVE[method](a, b)
    return x, mean_pose(robot @ x @ board)


def mean_pose(poses: Array) -> Array:
    """The pose (4, 4) nearest to all (N, 4, 4): mean translation, chordal mean of the rotations."""
    return se3(nearest_rotation(poses[:, :3, :3].mean(0)), poses[:, :3, 3].mean(0))


def nearest_rotation(matrix: Array) -> Array:
    """The rotation (..., 3, 3) nearest to a matrix in the Frobenius norm."""
    u, _, vt = np.linalg.svd(matrix)
    flip = np.ones(matrix.shape[:-1])
    flip[..., 2] = np.linalg.det(u @ vt)
    rotation: Array = np.empty(np.shape(matrix))
    np.matmul(u * flip[..., None, :], vt, out=rotation)
    return rotation


def translation_of(rotation: Array, a: Array, b: Array) -> Array:
    """t_X (3,) that fits (R_A - I) t_X = R_X t_B - t_A best, given R_X (3, 3)."""
    left = (a[:, :3, :3] - np.eye(3)).reshape(-1, 3)
    right = (b[:, :3, 3] @ rotation.T - a[:, :3, 3]).reshape(-1)
    return np.asarray(np.linalg.lstsq(left, right, rcond=None)[0], dtype=np.float64)


# ---------------------------------------------------------------- AX = XB


def _tsai(a: Array, b: Array) -> Array:
    """Modified Rodrigues vectors 2 sin(angle / 2) axis; linear in the unknown one. As in OpenCV, small and huge turns are left out."""
    pa, pb = (2 * matrix_to_quaternion(m[:, :3, :3])[:, 1:] for m in (a, b))
    size = np.stack([np.linalg.norm(pa, axis=1), np.linalg.norm(pb, axis=1)]) / 2
    useful = ((size > TSAI_RANGE[0]) & (size < TSAI_RANGE[1])).all(0)
    if useful.sum() >= 2:
        a, b, pa, pb = a[useful], b[useful], pa[useful], pb[useful]
    left, right = so3_hat(pa + pb).reshape(-1, 3), (pb - pa).reshape(-1)
    p = np.linalg.lstsq(left, right, rcond=None)[0]
    p = 2 * p / np.sqrt(1 + p @ p)
    rotation = (1 - p @ p / 2) * np.eye(3) + 0.5 * (np.outer(p, p) + np.sqrt(max(4 - p @ p, 0.0)) * so3_hat(p))
    return se3(rotation, translation_of(rotation, a, b))


def _park(a: Array, b: Array) -> Array:
    """Rotation vectors are carried by X: log A = R_X log B."""
    m = so3_log(b[:, :3, :3]).T @ so3_log(a[:, :3, :3])
    rotation = nearest_rotation(m.T)
    return se3(rotation, translation_of(rotation, a, b))


def _horaud(a: Array, b: Array) -> Array:
    """The unit quaternion with the least sum of |q_A q - q q_B|^2."""
    qa, qb = matrix_to_quaternion(a[:, :3, :3]), matrix_to_quaternion(b[:, :3, :3])
    difference = _left(qa) - _right(qb)
    _, vectors = np.linalg.eigh(np.einsum("nij,nik->jk", difference, difference))
    rotation = quaternion_to_matrix(vectors[:, 0])
    return se3(rotation, translation_of(rotation, a, b))


def _daniilidis(a: Array, b: Array) -> Array:
    """Dual quaternions: rotation and translation together, from the null space of one linear system."""
    qa, qb = matrix_to_quaternion(a[:, :3, :3]), matrix_to_quaternion(b[:, :3, :3])
    da, db = _dual(qa, a[:, :3, 3]), _dual(qb, b[:, :3, 3])
    rows = np.zeros((len(a), 6, 8))
    rows[:, :3, 0] = rows[:, 3:, 4] = qa[:, 1:] - qb[:, 1:]
    rows[:, :3, 1:4] = rows[:, 3:, 5:] = so3_hat(qa[:, 1:] + qb[:, 1:])
    rows[:, 3:, 0] = da[:, 1:] - db[:, 1:]
    rows[:, 3:, 1:4] = so3_hat(da[:, 1:] + db[:, 1:])
    v = np.linalg.svd(rows.reshape(-1, 8), full_matrices=False)[2]
    u1, v1, u2, v2 = v[6, :4], v[6, 4:], v[7, :4], v[7, 4:]
    # of the plane that both span, the unit dual quaternion: |q| = 1 and q . q' = 0
    roots = np.roots([u1 @ v1, u1 @ v2 + u2 @ v1, u2 @ v2])
    values = [float((r * r * (u1 @ u1) + 2 * r * (u1 @ u2) + u2 @ u2).real) for r in roots] or [1.0]
    ratio = float(np.real(roots[int(np.argmax(values))])) if len(roots) else 0.0
    second = 1.0 / np.sqrt(max(max(values), 1e-12))
    real, dual = second * (ratio * u1 + u2), second * (ratio * v1 + v2)
    conjugate = real * np.array([1.0, -1, -1, -1])
    translation = 2 * (_left(dual[None])[0] @ conjugate)[1:]
    return se3(quaternion_to_matrix(real), translation)


RELATIVE: dict[str, Callable[[Array, Array], Array]] = {"tsai": _tsai, "park": _park, "horaud": _horaud, "daniilidis": _daniilidis}
"""Methods on relative motions, (A, B) (K, 4, 4) each → X."""


def _left(q: Array) -> Array:
    """L (N, 4, 4) with q p = L p."""
    w, x, y, z = q.T
    return np.stack([w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w], -1).reshape(-1, 4, 4)


def _right(q: Array) -> Array:
    """R (N, 4, 4) with p q = R p."""
    w, x, y, z = q.T
    return np.stack([w, -x, -y, -z, x, w, z, -y, y, -z, w, x, z, y, -x, w], -1).reshape(-1, 4, 4)


def _dual(q: Array, t: Array) -> Array:
    """Dual part (N, 4) of the dual quaternion of a motion: t q / 2."""
    return 0.5 * np.einsum("nij,nj->ni", _left(np.concatenate([np.zeros((len(t), 1)), t], 1)), q)


# ---------------------------------------------------------------- AX = ZB


def _shah(a: Array, b: Array) -> tuple[Array, Array]:
    """Rotations from the leading singular vectors of sum(R_B kron R_A), translations from least squares."""
    k = np.einsum("nij,nkl->ikjl", b[:, :3, :3], a[:, :3, :3]).reshape(9, 9)
    u, _, vt = np.linalg.svd(k)
    x, z = (_unscaled(vector.reshape(3, 3).T) for vector in (vt[0], u[:, 0]))
    x, z = nearest_rotation(x), nearest_rotation(z)
    return _with_translations(x, z, a, b)


def _li(a: Array, b: Array) -> tuple[Array, Array]:
    """All of X and Z from one linear system, made rotations afterwards."""
    n = len(a)
    rows = np.zeros((n, 12, 24))
    eye = np.eye(3)
    ra, rb = a[:, :3, :3], b[:, :3, :3]
    rows[:, :9, :9] = np.einsum("nij,kl->nikjl", ra, eye).reshape(n, 9, 9)
    rows[:, :9, 9:18] = -np.einsum("ij,nlk->nikjl", eye, rb).reshape(n, 9, 9)
    rows[:, 9:, 9:18] = np.einsum("ij,nk->nijk", eye, b[:, :3, 3]).reshape(n, 3, 9)
    rows[:, 9:, 18:21], rows[:, 9:, 21:] = -ra, eye
    right = np.zeros((n, 12))
    right[:, 9:] = a[:, :3, 3]
    solution = np.linalg.lstsq(rows.reshape(-1, 24), right.reshape(-1), rcond=None)[0]
    x, z = (nearest_rotation(np.asarray(part, dtype=np.float64).reshape(3, 3)) for part in (solution[:9], solution[9:18]))
    return se3(x, solution[18:21]), se3(z, solution[21:])


ABSOLUTE: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {"shah": _shah, "li": _li}
"""Methods on poses, (A, B) (N, 4, 4) each of AX = ZB → X and Z."""


def _unscaled(matrix: Array) -> Array:
    """A multiple of a rotation, brought to determinant 1."""
    determinant = np.linalg.det(matrix)
    return matrix * np.sign(determinant) / max(abs(determinant), 1e-300) ** (1 / 3)


def _with_translations(x: Array, z: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Translations of X and Z that fit R_A t_X + t_A = R_Z t_B + t_Z best."""
    n = len(a)
    left = np.concatenate([a[:, :3, :3], np.broadcast_to(-np.eye(3), (n, 3, 3))], 2).reshape(-1, 6)
    right = (b[:, :3, 3] @ z.T - a[:, :3, 3]).reshape(-1)
    t = np.linalg.lstsq(left, right, rcond=None)[0]
    return se3(x, t[:3]), se3(z, t[3:])
