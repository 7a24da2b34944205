"""SE(3): group axioms, exp/log round trips, Jacobians against finite differences, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from sinew import se3
from sinew.errors import SpecError

number = st.floats(-3, 3, allow_nan=False)
vector = st.tuples(number, number, number).map(np.array)
twist = st.tuples(*[number] * 6).map(np.array)
motion = twist.map(se3.se3_exp)
direction = vector.filter(lambda v: np.linalg.norm(v) > 0.1).map(lambda v: v / np.linalg.norm(v))
angle = st.one_of(
    st.floats(0, math.pi),
    st.sampled_from([0.0, 1e-300, 1e-160, 1e-12, 1e-8, 1e-5, 1e-3, 0.19999, 0.20001, 0.99999, 1.00001]),
    st.sampled_from([1e-12, 1e-9, 1e-7, 1e-4, 1e-2]).map(lambda d: math.pi - d),
)
rotation_vector = st.tuples(direction, angle).map(lambda p: p[0] * p[1])
pose_twist = st.tuples(vector, rotation_vector).map(np.concatenate)

settings.register_profile("sinew", max_examples=150, deadline=None, derandomize=True)
settings.load_profile("sinew")


def assert_close(a, b, atol: float = 1e-12) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# ---------------------------------------------------------------- the group


@given(motion, motion, motion)
def test_group_axioms(a, b, c) -> None:
    assert_close(se3.se3_compose(se3.se3_compose(a, b), c), se3.se3_compose(a, se3.se3_compose(b, c)), 1e-9)
    assert_close(se3.se3_compose(a, np.eye(4)), a)
    assert_close(se3.se3_compose(np.eye(4), a), a)
    assert_close(se3.se3_compose(a, se3.se3_inverse(a)), np.eye(4), 1e-9)
    assert_close(se3.se3_compose(se3.se3_inverse(a), a), np.eye(4), 1e-9)


@given(motion, motion)
def test_products_stay_in_the_group(a, b) -> None:
    product = se3.se3_compose(a, b)
    assert_close(product[:3, :3] @ product[:3, :3].T, np.eye(3), 1e-12)
    assert np.linalg.det(product[:3, :3]) == pytest.approx(1, abs=1e-12)
    assert_close(product[3], [0, 0, 0, 1])


@given(motion, motion, vector)
def test_action_is_compatible_with_composition(a, b, point) -> None:
    assert_close(se3.se3_act(se3.se3_compose(a, b), point), se3.se3_act(a, se3.se3_act(b, point)), 1e-9)


@given(motion, motion, twist)
def test_adjoint_is_a_homomorphism_and_carries_twists(a, b, x) -> None:
    assert_close(se3.se3_adjoint(se3.se3_compose(a, b)), se3.se3_adjoint(a) @ se3.se3_adjoint(b), 1e-9)
    assert_close(se3.se3_exp(se3.se3_adjoint(a) @ x), se3.se3_compose(a, se3.se3_exp(x), se3.se3_inverse(a)), 1e-8)


# ---------------------------------------------------------------- exponential and logarithm


@given(rotation_vector)
def test_so3_log_undoes_exp_from_zero_to_pi(phi) -> None:
    assert_close(se3.so3_log(se3.so3_exp(phi)), phi, 1e-9)


@given(rotation_vector)
def test_so3_exp_undoes_log_at_every_angle(phi) -> None:
    rotation = se3.so3_exp(phi)
    assert_close(se3.so3_exp(se3.so3_log(rotation)), rotation, 1e-14)


@given(rotation_vector)
def test_small_angles_keep_their_relative_precision(phi) -> None:
    tiny = phi * 1e-9
    np.testing.assert_allclose(se3.so3_log(se3.so3_exp(tiny)), tiny, rtol=1e-9, atol=1e-25)


@given(direction)
def test_half_a_turn(axis) -> None:
    assert_close(se3.so3_exp(math.pi * axis), 2 * np.outer(axis, axis) - np.eye(3), 1e-14)
    back = se3.so3_log(2 * np.outer(axis, axis) - np.eye(3))
    assert_close(abs(back @ axis), math.pi, 1e-12)  # axis and -axis are the same half turn


@given(pose_twist)
def test_se3_log_undoes_exp(x) -> None:
    assert_close(se3.se3_log(se3.se3_exp(x)), x, 1e-8)


@given(twist)
def test_exponentials_equal_the_matrix_exponential(x) -> None:
    assert_close(se3.so3_exp(x[3:]), expm(se3.so3_hat(x[3:])), 1e-12)
    assert_close(se3.se3_exp(x), expm(se3.se3_hat(x)), 1e-11)


@given(twist, st.floats(-1, 1), st.floats(-1, 1))
def test_one_parameter_subgroup(x, s, t) -> None:
    assert_close(se3.se3_compose(se3.se3_exp(s * x), se3.se3_exp(t * x)), se3.se3_exp((s + t) * x), 1e-10)


def test_closed_forms() -> None:
    assert_close(se3.so3_exp([0, 0, math.pi / 2]), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], 1e-15)
    # a quarter turn about z while moving at pi/2 m/s along x walks a quarter of the unit circle: ends at (1, 1)
    assert_close(se3.se3_exp([math.pi / 2, 0, 0, 0, 0, math.pi / 2])[:3, 3], [1, 1, 0], 1e-15)
    assert_close(se3.so3_hat([1, 2, 3]) @ [4, 5, 6], np.cross([1, 2, 3], [4, 5, 6]))


@given(twist)
def test_vee_undoes_hat(x) -> None:
    assert_close(se3.se3_vee(se3.se3_hat(x)), x)
    assert_close(se3.so3_vee(se3.so3_hat(x[:3])), x[:3])


# ---------------------------------------------------------------- Jacobians


def finite_difference(x, log, exp, inverse, left: bool):
    """Columns log of the displacement that a step along each axis makes, by central differences."""
    columns = []
    for i in range(len(x)):
        step = np.zeros(len(x))
        step[i] = 1e-6
        ahead, behind, here = exp(x + step), exp(x - step), inverse(exp(x))
        up, down = (ahead @ here, behind @ here) if left else (here @ ahead, here @ behind)
        columns.append((log(up) - log(down)) / 2e-6)
    return np.stack(columns, -1)


@given(rotation_vector)
def test_so3_jacobians_against_finite_differences(phi) -> None:
    for function, left in ((se3.so3_left_jacobian, True), (se3.so3_right_jacobian, False)):
        assert_close(function(phi), finite_difference(phi, se3.so3_log, se3.so3_exp, np.transpose, left), 1e-8)


@given(pose_twist)
def test_se3_jacobians_against_finite_differences(x) -> None:
    for function, left in ((se3.se3_left_jacobian, True), (se3.se3_right_jacobian, False)):
        assert_close(function(x), finite_difference(x, se3.se3_log, se3.se3_exp, se3.se3_inverse, left), 1e-7)


@given(pose_twist)
def test_jacobian_inverses(x) -> None:
    for name in ("so3_left_jacobian", "so3_right_jacobian", "se3_left_jacobian", "se3_right_jacobian"):
        argument = x[3:] if name.startswith("so3") else x
        product = getattr(se3, name)(argument) @ getattr(se3, f"{name}_inverse")(argument)
        assert_close(product, np.eye(len(argument)), 1e-10)


@given(pose_twist)
def test_left_jacobian_is_the_adjoint_times_the_right(x) -> None:
    assert_close(se3.se3_left_jacobian(x), se3.se3_adjoint(se3.se3_exp(x)) @ se3.se3_right_jacobian(x), 1e-9)


@given(direction)
def test_series_and_closed_forms_meet(axis) -> None:
    for function in (se3.so3_left_jacobian, se3.so3_left_jacobian_inverse, se3.so3_exp):
        for border in (0.2, 1.0):
            assert_close(function(axis * (border - 1e-9)), function(axis * (border + 1e-9)), 3e-9)


# ---------------------------------------------------------------- quaternions and 6-D rotations


@given(rotation_vector)
def test_quaternions_against_scipy(phi) -> None:
    rotation = se3.so3_exp(phi)
    reference = Rotation.from_rotvec(phi)
    assert_close(rotation, reference.as_matrix(), 1e-12)
    quaternion = se3.matrix_to_quaternion(rotation)
    assert quaternion[0] >= 0
    assert abs(abs(quaternion @ se3.xyzw_to_wxyz(reference.as_quat())) - 1) < 1e-12
    assert_close(se3.quaternion_to_matrix(quaternion), rotation, 1e-12)


@given(rotation_vector, rotation_vector)
def test_quaternion_product_is_the_matrix_product(a, b) -> None:
    qa, qb = se3.matrix_to_quaternion(se3.so3_exp(a)), se3.matrix_to_quaternion(se3.so3_exp(b))
    assert_close(se3.quaternion_to_matrix(se3.quaternion_multiply(qa, qb)), se3.so3_exp(a) @ se3.so3_exp(b), 1e-12)


def test_quaternion_orders() -> None:
    assert_close(se3.wxyz_to_xyzw([1, 2, 3, 4]), [2, 3, 4, 1])
    assert_close(se3.xyzw_to_wxyz([2, 3, 4, 1]), [1, 2, 3, 4])
    assert_close(se3.quaternion_to_matrix([2, 0, 0, 0]), np.eye(3))


@given(rotation_vector, st.floats(0.1, 10), st.floats(-3, 3))
def test_rotation6d(phi, scale, shear) -> None:
    rotation = se3.so3_exp(phi)
    six = se3.matrix_to_rotation6d(rotation)
    assert_close(six, np.concatenate([rotation[:, 0], rotation[:, 1]]))
    bent = np.concatenate([scale * six[:3], scale * six[3:] + shear * six[:3]])  # Gram-Schmidt takes both out
    assert_close(se3.rotation6d_to_matrix(bent), rotation, 1e-10)


# ---------------------------------------------------------------- interpolation, batches, bad input


@given(motion, motion)
def test_interpolation_ends_and_middle(a, b) -> None:
    assert_close(se3.se3_interpolate(a, b, 0.0), a, 1e-9)
    assert_close(se3.se3_interpolate(a, b, 1.0), b, 1e-7)
    assert_close(se3.so3_interpolate(a[:3, :3], b[:3, :3], 0.5), se3.se3_interpolate(a, b, 0.5)[:3, :3], 1e-9)


def test_interpolation_turns_at_constant_speed() -> None:
    path = se3.so3_interpolate(np.eye(3), se3.so3_exp([0, 0, 1.2]), np.linspace(0, 1, 5))
    assert_close(se3.so3_log(path), [[0, 0, z] for z in (0, 0.3, 0.6, 0.9, 1.2)])


def test_leading_axes_broadcast_and_equal_the_loop() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5, 6))
    for function in (se3.se3_exp, se3.se3_left_jacobian, se3.se3_left_jacobian_inverse, se3.se3_hat):
        assert_close(function(x)[2, 3], function(x[2, 3]))
    motions = se3.se3_exp(x)
    for function in (se3.se3_log, se3.se3_inverse, se3.se3_adjoint, se3.se3_vee):
        assert_close(function(motions)[2, 3], function(motions[2, 3]))
    points = rng.normal(size=(5, 3))
    assert_close(se3.se3_act(motions, points)[2, 3], motions[2, 3, :3, :3] @ points[3] + motions[2, 3, :3, 3])
    rotations = motions[..., :3, :3]
    assert_close(se3.matrix_to_quaternion(rotations)[2, 3], se3.matrix_to_quaternion(rotations[2, 3]))
    assert_close(se3.rotation6d_to_matrix(se3.matrix_to_rotation6d(rotations)), rotations)


@pytest.mark.parametrize("call", [
    lambda: se3.so3_exp([1.0, 2.0]),
    lambda: se3.se3_log(np.eye(3)),
    lambda: se3.quaternion_to_matrix([0, 0, 0, 0]),
    lambda: se3.quaternion_to_matrix([np.nan, 0, 0, 0]),
    lambda: se3.rotation6d_to_matrix([1, 0, 0, 2, 0, 0]),
    lambda: se3.rotation6d_to_matrix([0, 0, 0, 1, 0, 0]),
])  # fmt: skip
def test_what_is_no_rotation_is_refused(call) -> None:
    with pytest.raises(SpecError):
        call()
