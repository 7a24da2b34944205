"""The estimator: derivatives by differences, better than closed forms, honest about itself, unmoved by wrong views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.closed_form import hand_eye
from calibration.estimator import Priors, calibrate
from calibration.model import Free, Layout, first_estimate, linearise, residuals
from calibration.simulate import Scenario, simulate
from calibration.solve import UnobservableError, solve
from calibration.views import View, board_poses, pack
from sinew.errors import DataError, InputError
from sinew.se3 import se3_exp, se3_inverse, se3_log, so3_log


def off(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Degrees and millimetres between two poses."""
    return float(np.rad2deg(np.linalg.norm(so3_log(a[:3, :3].T @ b[:3, :3])))), float(1e3 * np.linalg.norm(a[:3, 3] - b[:3, 3]))


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_derivatives_are_those_of_differences(mount):
    made = simulate(Scenario(mount=mount, views=4), 0)
    rng = np.random.default_rng(0)
    views = pack([replace(v, twist=rng.normal(size=6), joint_jacobian=rng.normal(size=(6, 4))) for v in made.views])
    start = first_estimate(mount, made.X, made.Z, (made.camera,), views)
    start = replace(start, xi=rng.normal(size=(4, 6)) * 1e-3, time_offset_s=0.01, joint_offsets_rad=np.array([0, 0.01, -0.01, 0]))
    layout = Layout(start, Free(intrinsics=True, scale=True, time_offset=True, joint_offsets=True))
    _, shared, robot = linearise(start, views, layout)
    h = 1e-6
    for k in range(layout.size):
        step = np.zeros(layout.size)
        step[k] = h
        numeric = (residuals(layout.move(start, step, start.xi), views) - residuals(layout.move(start, -step, start.xi), views)) / (2 * h)
        # robot's twists are added before they are followed: to first order in what they are
        assert np.abs(shared[..., k] - numeric).max() <= 0.03 * np.abs(numeric).max() + 1e-4, k
    still = replace(start, xi=np.zeros((4, 6)), time_offset_s=0.0, joint_offsets_rad=np.zeros(4))
    robot = linearise(still, views, layout)[2]
    for k in range(6):
        xi = np.zeros((4, 6))
        xi[:, k] = h
        moved = [residuals(replace(still, xi=s * xi), views) for s in (1, -1)]
        np.testing.assert_allclose(robot[..., k], (moved[0] - moved[1]) / (2 * h), atol=1e-2)


def test_better_than_closed_forms_and_honest():
    ours, closed, squared = [], [], []
    for seed in range(16):
        made = simulate(Scenario(mount="in_hand" if seed % 2 else "to_hand", views=10), seed)
        mount = "in_hand" if seed % 2 else "to_hand"
        views = pack(made.views)
        found = calibrate(views, (made.camera,), mount)
        ours.append(off(found.estimate.X[0], made.X))
        robot = views.robot if mount == "in_hand" else se3_inverse(views.robot)
        closed.append(off(hand_eye(robot, board_poses(views, (made.camera,))[0], "shah"), made.X))
        error = se3_log(se3_inverse(found.estimate.X[0]) @ made.X)
        squared.append(float(error @ np.linalg.solve(found.covariance_of(), error)))
        assert not found.rejected
    size = [np.sqrt(np.mean(np.square(errors), axis=0)) for errors in (ours, closed)]
    assert (size[0] < 0.75 * size[1]).all(), size
    # normalised squared errors are about chi-square of six: their mean is 6, with a standard error of 0.9 here
    assert 3.0 < np.mean(squared) < 10.0


def test_noise_levels_are_found():
    for sigma_px, sigma_m, sigma_deg in ((0.3, 0.1e-3, 0.02), (0.3, 0.5e-3, 0.1), (0.5, 2e-3, 0.5)):
        found = []
        for seed in range(3):
            made = simulate(Scenario(views=25, sigma_px=sigma_px, sigma_m=sigma_m, sigma_rad=np.deg2rad(sigma_deg)), seed)
            noise = calibrate(pack(made.views), (made.camera,), "in_hand").noise
            found.append((noise.pixel / sigma_px, noise.position_m / sigma_m, noise.rotation_rad / np.deg2rad(sigma_deg)))
        middle = np.median(found, 0)
        assert (middle > 0.6).all() and (middle < 1.6).all(), middle


def test_wrong_views_and_corners_change_nothing():
    for seed in range(4):
        made = simulate(Scenario(bad_views=0.3, bad_corners=0.1), seed)
        found = calibrate(pack(made.views), (made.camera,), "in_hand")
        degrees, millimetres = off(found.estimate.X[0], made.X)
        assert degrees < 0.2 and millimetres < 1.0 and len(found.rejected) == 6, (seed, degrees, millimetres, found.rejected)
        assert all("px" in why or "mm" in why for why in found.rejected.values())


def test_wrong_intrinsics_and_board_are_found_by_what_they_predict():
    made = simulate(Scenario(focal_error=0.01, centre_error_px=(4.0, -3.0)), 3)
    result = solve(pack(made.views), [made.camera], "in_hand")
    assert "intrinsics" in result.model and result.held_out_px is not None
    assert result.model_px[result.model] < result.model_px["poses"]
    assert off(result.T[0], made.X)[1] < 1.0
    larger = simulate(Scenario(), 4)
    views = pack([replace(v, points=v.points * 1.03) for v in larger.views])
    result = solve(views, [larger.camera], "in_hand")
    assert "scale" in result.model and result.scale == pytest.approx(1 / 1.03, abs=2e-3)


def test_right_models_stay_simple():
    chosen = [solve(pack(simulate(Scenario(), seed).views), [simulate(Scenario(), seed).camera], "in_hand").model for seed in range(2)]
    assert "poses" in chosen


@pytest.mark.parametrize(("motion", "told"), [("one_axis", "one axis"), ("translation", "never turned")])
@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_what_cannot_be_told_is_refused_or_taken_from_the_drawing(motion, told, mount):
    for seed in range(2):
        made = simulate(Scenario(motion=motion, mount=mount), seed)
        views = pack(made.views)
        with pytest.raises(UnobservableError, match=told):
            solve(views, [made.camera], mount, model="poses")
        drawing = made.X @ se3_exp(np.random.default_rng(seed).normal(size=6) * ([5e-3] * 3 + [0.03] * 3))
        result = solve(views, [made.camera], mount, model="poses", priors=Priors(X=drawing))
        degrees, millimetres = off(result.T[0], made.X)
        assert degrees < 0.6 and millimetres < 40
        assert result.observability[0].motion in ("one axis", "pure translation") and result.observability[0].advice
        assert max(d.from_prior for d in result.observability[0].directions) > 0.9


def test_several_cameras_share_the_robot():
    first, second = simulate(Scenario(views=12), 0), simulate(Scenario(views=12), 1)
    # the second camera is put on the same hand, and sees the same board
    x2 = first.X @ se3_exp(np.array([0.05, 0, 0.02, 0.1, 0.2, 0]))
    views = []
    for i, view in enumerate(first.views):
        views.append(replace(view, pose=i))
        board = se3_inverse(view.robot @ x2) @ first.Z
        pixels = first.true_camera.project(view.points @ board[:3, :3].T + board[:3, 3])
        pixels = pixels + np.random.default_rng(i).normal(0, 0.3, pixels.shape)
        if np.isfinite(pixels).all():
            views.append(View(robot=view.robot, points=view.points, pixels=pixels, camera=1, pose=i, name=f"other {i}"))
    result = solve(pack(views), [first.camera, first.camera], "in_hand", model="poses")
    assert off(result.T[0], first.X)[1] < 1.0 and off(result.T[1], x2)[1] < 1.0
    assert second.camera == first.camera and result.covariance.shape == (2, 6, 6)


def test_the_clocks_offset_is_found():
    rng = np.random.default_rng(0)
    made = simulate(Scenario(views=30), 5)
    twists = rng.normal(size=(30, 6)) * [0.2, 0.2, 0.2, 0.5, 0.5, 0.5]
    late = [replace(v, robot=v.robot @ se3_exp(-0.02 * t), twist=t) for v, t in zip(made.views, twists, strict=True)]
    result = solve(pack(late), [made.camera], "in_hand", model="poses", time_offset=True)
    assert result.time_offset_s == pytest.approx(0.02, abs=1e-3) and 0 < result.time_offset_sigma_s < 1e-3
    with pytest.raises(InputError, match="velocity"):
        solve(pack(made.views), [made.camera], "in_hand", time_offset=True)


def test_what_no_estimator_can_mend_is_told():
    made = simulate(Scenario(views=6), 0)
    with pytest.raises(InputError, match="at least 3"):
        solve(pack(made.views[:2]), [made.camera], "in_hand")
    with pytest.raises(DataError, match="the same"):
        solve(pack([replace(v, robot=made.views[0].robot) for v in made.views]), [made.camera], "in_hand")
    with pytest.raises(DataError, match="not finite"):
        solve(pack([replace(made.views[0], robot=np.full((4, 4), np.nan)), *made.views[1:]]), [made.camera], "in_hand")
    with pytest.raises(InputError, match="unknown"):
        solve(pack(made.views), [made.camera], "in_hand", model="magic")
