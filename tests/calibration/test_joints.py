"""Joints whose zeros are off: the model is exact about any offsets, and an arm is better where it is used when they are estimated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.joints import about, solve_joints
from calibration.model import first_estimate
from calibration.simulate import CAMERA, Scenario, simulate
from calibration.simulate_arm import HOME, commanded_error, forward, jacobian, simulate_arm
from calibration.solve import solve, summary
from calibration.views import pack
from sinew.errors import InputError
from sinew.se3 import se3_inverse, se3_log


def test_the_arm_moves_as_its_jacobian_says():
    joints, h = HOME + np.random.default_rng(0).normal(size=(3, 6)) * 0.4, 1e-6
    moved = [se3_log(se3_inverse(forward(joints - h * e)) @ forward(joints + h * e)) / (2 * h) for e in np.eye(6)]
    np.testing.assert_allclose(jacobian(joints), np.stack(moved, -1), atol=1e-8)


def test_poses_told_about_offsets_are_those_of_the_arm():
    made = simulate_arm(0, views=5)
    views = pack(made.views)
    offsets = np.random.default_rng(1).normal(size=6) * 0.1
    there = about(views, made.joints, forward, jacobian, offsets)
    start = first_estimate("in_hand", made.X, made.Z, (CAMERA,), there)
    np.testing.assert_allclose(replace(start, joint_offsets_rad=offsets).hands(there), forward(made.joints + offsets), atol=1e-12)
    step = np.random.default_rng(2).normal(size=6) * 1e-5
    near = replace(start, joint_offsets_rad=offsets + step).hands(there)
    np.testing.assert_allclose(near, forward(made.joints + offsets + step), atol=1e-9)  # to first order of the step
    with pytest.raises(InputError, match="a row per pose"):
        solve_joints(views, made.joints[:3], forward, jacobian, [CAMERA], "in_hand")


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_offsets_make_the_arm_better_where_it_is_used(mount):
    plain, joined, squares = [], [], []
    for seed in range(4):
        made = simulate_arm(seed, mount, encoder_rad=np.deg2rad(0.05))
        views = pack(made.views)
        alone = solve(views, [CAMERA], mount, model="poses", unobservable_ok=True)
        result = solve_joints(views, made.joints, forward, jacobian, [CAMERA], mount, model="poses", unobservable_ok=True)
        plain.append(commanded_error(made, alone.fit.estimate, seed)[0])
        joined.append(commanded_error(made, result.fit.estimate, seed)[0])
        assert result.joint_offsets_rad[0] == result.joint_offsets_rad[-1] == 0.0 and not result.joint_offsets_sigma_rad[[0, -1]].any()
        error = (result.joint_offsets_rad - made.offsets)[1:-1] / result.joint_offsets_sigma_rad[1:-1]
        squares.append(float(np.mean(error**2)))
        assert summary(result)["joint_offsets_rad"] == result.joint_offsets_rad.tolist()
    assert np.mean(joined) < 0.5 * np.mean(plain), (joined, plain)
    assert np.median(squares) < 6.0, squares


def test_views_without_the_arms_jacobian_cannot_tell_offsets():
    made = simulate(Scenario(views=10), 0)
    with pytest.raises(InputError, match="Jacobian"):
        solve(pack(made.views), [made.camera], "in_hand", joint_offsets=True)


def test_camera_and_board_are_told_together():
    made = simulate(Scenario(views=12), 1)
    result = solve(pack(made.views), [made.camera], "in_hand", model="poses")
    both = np.array(summary(result)["covariance_with_board"])
    np.testing.assert_allclose(both[:6, :6], result.covariance[0])
    np.testing.assert_allclose(both, both.T)
    assert both.shape == (12, 12) and np.linalg.eigvalsh(both)[0] > 0
    # where the camera is and where the board is are told by the same views: they go together
    assert np.abs(both[:6, 6:]).max() > 0.1 * np.sqrt(both[:6, :6].max() * both[6:, 6:].max())
