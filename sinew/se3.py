"""Rotations and rigid motions as plain arrays: exponential, logarithm, adjoint, Jacobians, quaternions, 6-D rotations.

Every function broadcasts over leading axes `...` and computes in float64. A rotation is a matrix R (..., 3, 3), a rigid
motion a matrix T (..., 4, 4) whose name tells its frames: `T_world_camera` maps camera coordinates to world. A twist is
(..., 6), translation first: (rho m, phi rad), so that T = exp(hat(twist)). Quaternions are wxyz.

Sources: Barfoot, State Estimation for Robotics, 2017, ch. 7 (SE(3) Jacobians); Sola et al. 2018, arXiv 1812.01537
(conventions); Zhou et al. 2019, arXiv 1812.07035 (6-D rotations).
"""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sinew.errors import SpecError

Array = np.ndarray[Any, np.dtype[np.float64]]

_SERIES_BELOW_RAD = 1.0
_SERIES_TERMS = 10  # the first term left out is below 1e-19 for angles under 1 rad


# ---------------------------------------------------------------- SO(3)


def so3_hat(phi: ArrayLike) -> Array:
    """Skew matrix (..., 3, 3) of a vector (..., 3): hat(a) @ b is the cross product a x b."""
    x, y, z = np.moveaxis(_array(phi, 3), -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)


def so3_vee(skew: ArrayLike) -> Array:
    """Vector (..., 3) of a skew matrix (..., 3, 3); the inverse of `so3_hat`."""
    m = _array(skew, 3, 3)
    return np.stack([m[..., 2, 1], m[..., 0, 2], m[..., 1, 0]], -1)


def so3_exp(phi: ArrayLike) -> Array:
    """Rotation matrix (..., 3, 3) of a rotation vector (..., 3) rad. Source: Rodrigues' formula."""
    phi = _array(phi, 3)
    theta, hat = _norm(phi), so3_hat(phi)
    return np.eye(3) + _expand(_sin_over(theta)) * hat + _expand(_one_minus_cos_over(theta)) * hat @ hat


def so3_log(rotation: ArrayLike) -> Array:
    """Rotation vector (..., 3) rad of a rotation matrix (..., 3, 3), of length 0 to pi.

    Goes through the quaternion, which stays accurate at 0 and at pi, where the trace does not.
    """
    quaternion = matrix_to_quaternion(rotation)
    w, v = quaternion[..., 0], quaternion[..., 1:]
    sine = _norm(v)
    safe = np.where(sine > 0, sine, 1.0)
    factor = np.where(sine > 1e-12, 2 * np.arctan2(sine, w) / safe, 2.0)
    return factor[..., None] * v


def so3_left_jacobian(phi: ArrayLike) -> Array:
    """J (..., 3, 3) with exp(phi + d) = exp(J d) exp(phi) to first order in d (..., 3) rad."""
    phi = _array(phi, 3)
    theta, hat = _norm(phi), so3_hat(phi)
    return np.eye(3) + _expand(_one_minus_cos_over(theta)) * hat + _expand(_c1(theta)) * hat @ hat


def so3_left_jacobian_inverse(phi: ArrayLike) -> Array:
    """Inverse (..., 3, 3) of `so3_left_jacobian`; phi (..., 3) rad is shorter than 2 pi."""
    phi = _array(phi, 3)
    theta, hat = _norm(phi), so3_hat(phi)
    safe = np.where(theta > 0.2, theta, 1.0)
    exact = (1 - safe / 2 / np.tan(safe / 2)) / safe**2
    square = theta**2
    near_zero = 1 / 12 + square * (1 / 720 + square * (1 / 30240 + square * (1 / 1209600 + square / 47900160)))
    return np.eye(3) - hat / 2 + _expand(np.where(theta > 0.2, exact, near_zero)) * hat @ hat


def so3_right_jacobian(phi: ArrayLike) -> Array:
    """J (..., 3, 3) with exp(phi + d) = exp(phi) exp(J d) to first order in d (..., 3) rad."""
    return so3_left_jacobian(-_array(phi, 3))


def so3_right_jacobian_inverse(phi: ArrayLike) -> Array:
    """Inverse (..., 3, 3) of `so3_right_jacobian`; phi (..., 3) rad is shorter than 2 pi."""
    return so3_left_jacobian_inverse(-_array(phi, 3))


def so3_interpolate(rotation_a: ArrayLike, rotation_b: ArrayLike, fraction: ArrayLike) -> Array:
    """Rotation (..., 3, 3) on the shortest path from a (fraction 0) to b (fraction 1), at constant angular speed."""
    a, b = _array(rotation_a, 3, 3), _array(rotation_b, 3, 3)
    return a @ so3_exp(np.asarray(fraction, float)[..., None] * so3_log(_transpose(a) @ b))


# ---------------------------------------------------------------- SE(3)


def se3(rotation: ArrayLike, translation: ArrayLike) -> Array:
    """Rigid motion (..., 4, 4) from a rotation matrix (..., 3, 3) and a translation (..., 3) m."""
    r, t = _array(rotation, 3, 3), _array(translation, 3)
    shape = np.broadcast_shapes(r.shape[:-2], t.shape[:-1])
    motion = np.zeros((*shape, 4, 4))
    motion[..., :3, :3], motion[..., :3, 3], motion[..., 3, 3] = r, t, 1.0
    return motion


def se3_hat(twist: ArrayLike) -> Array:
    """Matrix (..., 4, 4) of a twist (..., 6)."""
    twist = _array(twist, 6)
    matrix = np.zeros((*twist.shape[:-1], 4, 4))
    matrix[..., :3, :3], matrix[..., :3, 3] = so3_hat(twist[..., 3:]), twist[..., :3]
    return matrix


def se3_vee(matrix: ArrayLike) -> Array:
    """Twist (..., 6) of a matrix (..., 4, 4); the inverse of `se3_hat`."""
    m = _array(matrix, 4, 4)
    return np.concatenate([m[..., :3, 3], so3_vee(m[..., :3, :3])], -1)


def se3_exp(twist: ArrayLike) -> Array:
    """Rigid motion (..., 4, 4) reached by following a twist (..., 6; m, rad) for one unit of time."""
    twist = _array(twist, 6)
    rho, phi = twist[..., :3], twist[..., 3:]
    return se3(so3_exp(phi), _apply(so3_left_jacobian(phi), rho))


def se3_log(motion: ArrayLike) -> Array:
    """Twist (..., 6; m, rad) of a rigid motion (..., 4, 4), its angle 0 to pi."""
    m = _array(motion, 4, 4)
    phi = so3_log(m[..., :3, :3])
    return np.concatenate([_apply(so3_left_jacobian_inverse(phi), m[..., :3, 3]), phi], -1)


def se3_inverse(motion: ArrayLike) -> Array:
    """The motion (..., 4, 4) that undoes `motion`: `se3_inverse(T_world_camera)` is T_camera_world."""
    m = _array(motion, 4, 4)
    r = _transpose(m[..., :3, :3])
    return se3(r, -_apply(r, m[..., :3, 3]))


def se3_compose(*motions: ArrayLike) -> Array:
    """Product (..., 4, 4) from left to right: `se3_compose(T_a_b, T_b_c)` is T_a_c."""
    product: Array = np.eye(4)
    for motion in motions:
        product = product @ _array(motion, 4, 4)
    return product


def se3_act(motion: ArrayLike, points: ArrayLike) -> Array:
    """Points (..., 3) m carried by a motion (..., 4, 4), leading axes broadcast: `se3_act(T_world_camera, p_camera)`."""
    m = _array(motion, 4, 4)
    return _apply(m[..., :3, :3], _array(points, 3)) + m[..., :3, 3]


def se3_adjoint(motion: ArrayLike) -> Array:
    """Ad (..., 6, 6) that carries twists between frames: T exp(x) T^-1 = exp(Ad(T) x)."""
    m = _array(motion, 4, 4)
    r = m[..., :3, :3]
    return _blocks(r, so3_hat(m[..., :3, 3]) @ r)


def se3_left_jacobian(twist: ArrayLike) -> Array:
    """J (..., 6, 6) with exp(x + d) = exp(J d) exp(x) to first order in d (..., 6; m, rad)."""
    twist = _array(twist, 6)
    return _blocks(so3_left_jacobian(twist[..., 3:]), _coupling(twist))


def se3_left_jacobian_inverse(twist: ArrayLike) -> Array:
    """Inverse (..., 6, 6) of `se3_left_jacobian`; the rotation is shorter than 2 pi."""
    twist = _array(twist, 6)
    inverse = so3_left_jacobian_inverse(twist[..., 3:])
    return _blocks(inverse, -inverse @ _coupling(twist) @ inverse)


def se3_right_jacobian(twist: ArrayLike) -> Array:
    """J (..., 6, 6) with exp(x + d) = exp(x) exp(J d) to first order in d (..., 6; m, rad)."""
    return se3_left_jacobian(-_array(twist, 6))


def se3_right_jacobian_inverse(twist: ArrayLike) -> Array:
    """Inverse (..., 6, 6) of `se3_right_jacobian`; the rotation is shorter than 2 pi."""
    return se3_left_jacobian_inverse(-_array(twist, 6))


def se3_interpolate(motion_a: ArrayLike, motion_b: ArrayLike, fraction: ArrayLike) -> Array:
    """Motion (..., 4, 4) on the screw path from a (fraction 0) to b (fraction 1), at constant twist."""
    a, b = _array(motion_a, 4, 4), _array(motion_b, 4, 4)
    return a @ se3_exp(np.asarray(fraction, float)[..., None] * se3_log(se3_inverse(a) @ b))


# ---------------------------------------------------------------- other names of a rotation


def quaternion_to_matrix(quaternion: ArrayLike) -> Array:
    """Rotation matrix (..., 3, 3) of a quaternion wxyz (..., 4) of any length but zero.

    Raises:
        SpecError: a quaternion is zero or not finite.
    """
    q = _array(quaternion, 4)
    length = _norm(q)
    if not np.all(np.isfinite(length) & (length > 0)):
        raise SpecError("a quaternion of zero or non-finite length is no rotation; give w, x, y, z with a positive norm")
    w, x, y, z = np.moveaxis(q / length[..., None], -1, 0)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]  # fmt: skip
    return np.stack(rows, -1).reshape(*w.shape, 3, 3)


def matrix_to_quaternion(rotation: ArrayLike) -> Array:
    """Unit quaternion wxyz (..., 4) with w >= 0 of a rotation matrix (..., 3, 3).

    Builds 4 q q^T and keeps its longest row, so that nothing is divided by a small number.
    """
    m = _array(rotation, 3, 3)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    outer = np.stack([1 + xx + yy + zz, wx, wy, wz,
                      wx, 1 + xx - yy - zz, xy, xz,
                      wy, xy, 1 - xx + yy - zz, yz,
                      wz, xz, yz, 1 - xx - yy + zz], -1).reshape(*xx.shape, 4, 4)  # fmt: skip
    largest = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    q = q / _norm(q)[..., None]
    return np.where(q[..., :1] < 0, -q, q)


def wxyz_to_xyzw(quaternion: ArrayLike) -> Array:
    """Quaternion (..., 4) in the order of ROS and SciPy."""
    return np.roll(_array(quaternion, 4), -1, axis=-1)


def xyzw_to_wxyz(quaternion: ArrayLike) -> Array:
    """Quaternion (..., 4) in our order, from that of ROS and SciPy."""
    return np.roll(_array(quaternion, 4), 1, axis=-1)


def quaternion_multiply(a: ArrayLike, b: ArrayLike) -> Array:
    """Product (..., 4) of quaternions wxyz: the rotation b followed by a, as R(a) @ R(b)."""
    a, b = np.broadcast_arrays(_array(a, 4), _array(b, 4))
    w = a[..., :1] * b[..., :1] - np.sum(a[..., 1:] * b[..., 1:], -1, keepdims=True)
    return np.concatenate([w, a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + np.cross(a[..., 1:], b[..., 1:])], -1)


def matrix_to_rotation6d(rotation: ArrayLike) -> Array:
    """First column then second column (..., 6) of a rotation matrix (..., 3, 3): continuous, unlike angles."""
    m = _array(rotation, 3, 3)
    return np.concatenate([m[..., :, 0], m[..., :, 1]], -1)


def rotation6d_to_matrix(rotation6d: ArrayLike) -> Array:
    """Nearest frame by Gram-Schmidt: rotation matrix (..., 3, 3) of any six numbers (..., 6) with independent halves.

    Raises:
        SpecError: the two halves are zero or parallel, or not finite.
    """
    v = _array(rotation6d, 6)
    first, second = v[..., :3], v[..., 3:]
    x = first / np.where((n := _norm(first)) > 0, n, 1.0)[..., None]
    rest = second - np.sum(x * second, -1, keepdims=True) * x
    size = _norm(rest)
    if not np.all(np.isfinite(size) & (n > 0) & (size > 1e-9 * _norm(second))):
        raise SpecError("a 6-D rotation needs two finite, independent column vectors; these are zero, parallel or not finite")
    y = rest / size[..., None]
    return np.stack([x, y, _apply(so3_hat(x), y)], -1)


# ---------------------------------------------------------------- parts


def _array(value: ArrayLike, *tail: int) -> Array:
    """`value` as float64, its last axes checked."""
    array = np.asarray(value, dtype=np.float64)
    if array.shape[-len(tail) :] != tail:
        raise SpecError(f"expected an array of shape (..., {', '.join(map(str, tail))}), got {array.shape}")
    return array


def _norm(v: Array) -> Array:
    return np.sqrt(np.sum(v * v, axis=-1))


def _expand(scalar: Array) -> Array:
    return scalar[..., None, None]


def _transpose(m: Array) -> Array:
    return np.swapaxes(m, -1, -2)


def _apply(matrix: Array, vector: Array) -> Array:
    return (matrix @ vector[..., None])[..., 0]


def _blocks(diagonal: Array, upper: Array) -> Array:
    """(..., 6, 6) of [[diagonal, upper], [0, diagonal]]."""
    matrix = np.zeros((*diagonal.shape[:-2], 6, 6))
    matrix[..., :3, :3] = matrix[..., 3:, 3:] = diagonal
    matrix[..., :3, 3:] = upper
    return matrix


def _coupling(twist: Array) -> Array:
    """Upper right block Q (..., 3, 3) of the left Jacobian of SE(3). Source: Barfoot 2017, eq. 7.86."""
    theta, p, f = _norm(twist[..., 3:]), so3_hat(twist[..., :3]), so3_hat(twist[..., 3:])
    fp, pf = f @ p, p @ f
    fpf = fp @ f
    return (
        p / 2
        + _expand(_c1(theta)) * (fp + pf + fpf)
        + _expand(_c2(theta)) * (f @ fp + pf @ f - 3 * fpf)
        + _expand(_c3(theta)) * (fpf @ f + f @ fpf)
    )


def _sin_over(theta: Array) -> Array:
    """sin(t) / t."""
    return np.asarray(np.sinc(theta / np.pi), dtype=np.float64)


def _one_minus_cos_over(theta: Array) -> Array:
    """(1 - cos t) / t^2, without cancellation."""
    return _sin_over(theta / 2) ** 2 / 2


def _series(theta: Array, exact: Any, coefficients: list[float]) -> Array:
    """exact(t) from one radian on, the power series in t^2 below, where the closed form cancels."""
    small = theta < _SERIES_BELOW_RAD
    power = np.zeros_like(theta)
    for c in reversed(coefficients):
        power = power * theta**2 + c
    return np.where(small, power, exact(np.where(small, _SERIES_BELOW_RAD, theta)))


def _c1(theta: Array) -> Array:
    """(t - sin t) / t^3."""
    return _series(theta, lambda t: (t - np.sin(t)) / t**3, [(-1) ** k / factorial(2 * k + 3) for k in range(_SERIES_TERMS)])


def _c2(theta: Array) -> Array:
    """(t^2 / 2 + cos t - 1) / t^4."""
    return _series(theta, lambda t: (t**2 / 2 + np.cos(t) - 1) / t**4, [(-1) ** k / factorial(2 * k + 4) for k in range(_SERIES_TERMS)])


def _c3(theta: Array) -> Array:
    """(2 t - 3 sin t + t cos t) / (2 t^5)."""
    return _series(
        theta,
        lambda t: (2 * t - 3 * np.sin(t) + t * np.cos(t)) / (2 * t**5),
        [(-1) ** k * (k + 1) / factorial(2 * k + 5) for k in range(_SERIES_TERMS)],
    )
