"""Cameras beside a robot, found from the robot's own outline: closed forms, finite differences, recovery, honesty, refusals."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from calibration.body import drawing_lens, outline, rim
from calibration.body_result import summary
from calibration.camera import Camera
from calibration.markerless import covariance, solve_markerless
from calibration.silhouettes import Look, Prior, Silhouettes, align, approach, linearise
from calibration.simulate_masks import Spoiling, look_from, looks_at
from robot_bridge.body import MujocoBody, body_of
from sinew.errors import DataError, InputError
from sinew.se3 import se3_exp, se3_inverse, se3_log, so3_exp, so3_log

CAMERA = Camera(320, 240, (300.0, 300.0), (159.5, 119.5))
T = look_from(np.array([1.5, -0.9, 1.0]), np.array([0.25, 0.0, 0.42]), 0.05)
CLEAN = Spoiling(joint_rad=0.0, edge_px=0.0)
LOW, HIGH = np.array([-1.2, -0.6, -1, 0.3, -1.5, -0.5, -1.5, 0.04, 0.04]), np.array([1.2, 0.9, 1, 1.8, 1.5, 1.5, 1.5, 0.04, 0.04])


@pytest.fixture(scope="module")
def arm():
    body = body_of("lift")
    yield body
    body.close()


@pytest.fixture(scope="module")
def clean(arm):
    rng = np.random.default_rng(0)
    return looks_at(arm, rng.uniform(LOW, HIGH, (8, 9)), CAMERA, T, CLEAN, rng)


def off(a, b) -> tuple[float, float]:
    return 1e3 * float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.rad2deg(np.linalg.norm(so3_log(a[:3, :3].T @ b[:3, :3]))))


# ---------------------------------------------------------------- the drawn body


def test_the_rim_of_a_ball_is_the_circle_where_the_camera_touches_it():
    """A ball of radius r at distance d: every ray to the rim makes the angle asin(r / d) with the ray to its middle."""
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body name="b"><joint name="j" type="slide" axis="1 0 0"/><geom type="sphere" size=".2"/></body>'
        '</worldbody><visual><quality numslices="96" numstacks="96"/></visual></mujoco>'
    )
    body, r = MujocoBody(model), 0.2
    lens = Camera(400, 300, (330.0, 320.0), (205.0, 141.0), (-0.25, 0.07, 0.001, -0.002, 0.0))
    pose = np.eye(4)
    pose[:3, 3] = [0.15, -0.1, -0.9]
    for camera in (lens, replace(lens, model="fisheye", distortion=(0.1, -0.02, 0.0, 0.0))):
        drawn = rim(body.draw(np.zeros(1), pose, drawing_lens(camera)), drawing_lens(camera), camera, pose)
        middle = -pose[:3, 3]
        rays = np.concatenate([camera.unproject(drawn.pixels), np.ones((len(drawn.pixels), 1))], 1)
        angle = np.arccos(rays @ middle / np.linalg.norm(rays, axis=1) / np.linalg.norm(middle))
        px = 325 * (angle - np.arcsin(r / np.linalg.norm(middle)))
        assert len(px) > 300 and abs(px.mean()) < 0.1 and px.std() < 0.35
        assert np.abs(np.linalg.norm(drawn.points, axis=1) - r).max() < 0.02  # on the ball, but for what a pixel at its edge hides
        outwards = drawn.pixels - camera.project(middle)
        assert (np.sum(outwards * drawn.normals, 1) > 0.8 * np.linalg.norm(outwards, axis=1)).mean() > 0.95
    body.close()


def test_outlines_end_between_pixels():
    grid = np.stack(np.meshgrid(np.arange(200.0), np.arange(160.0)), -1)
    for angle in (0.0, 0.3, 1.1):
        normal = np.array([np.cos(angle), np.sin(angle)])
        for further in (60.0, 60.3, 60.5):
            found = outline(grid @ normal < further)
            apart = found.pixels @ normal - further
            assert abs(apart.mean()) < (0.51 if angle == 0 else 0.05) and np.abs(found.normals - normal).max() < 0.35
    assert len(outline(np.zeros((20, 20), dtype=bool)).pixels) == 0 and len(outline(np.ones((20, 20), dtype=bool)).pixels) == 0


def test_derivatives_agree_with_finite_differences(arm, clean):
    s, rng = Silhouettes(arm, clean, CAMERA), np.random.default_rng(1)
    pose, q = T @ se3_exp(rng.normal(0, 0.003, 6)), clean[2].joints
    drawn, _ = s.rim_of(2, pose, q)
    seen = s.match(2, drawn)
    assert seen is not None
    e, by_shared, by_joints = linearise(arm, drawn, seen, CAMERA, pose, q)

    def apart(T_base_camera, points):
        inverse = se3_inverse(T_base_camera)
        return np.sum(drawn.normals * (seen.pixels - CAMERA.project(points @ inverse[:3, :3].T + inverse[:3, 3])), 1)

    small = 1e-6
    for k in range(6):
        d = small * np.eye(6)[k]
        change = (apart(pose @ se3_exp(d), drawn.points) - apart(pose @ se3_exp(-d), drawn.points)) / (2 * small)
        np.testing.assert_allclose(-change, by_shared[:, k], atol=1e-3, rtol=1e-5)
    moved = arm.jacobians(q, drawn.points, drawn.parts)
    for j in range(9):
        step = small * moved[:, :, j]
        change = (apart(pose, drawn.points + step) - apart(pose, drawn.points - step)) / (2 * small)
        np.testing.assert_allclose(-change, by_joints[:, j], atol=1e-3, rtol=1e-5)
    assert by_shared[:, 6].min() == by_shared[:, 6].max() == 1.0 and np.allclose(e, apart(pose, drawn.points), atol=1e-6)


def test_points_of_the_body_move_with_its_joints(arm):
    q, small = np.random.default_rng(2).uniform(LOW, HIGH), 1e-6
    for name in ("hand", "finger1", "link3", "tool"):
        place = [0.02, -0.01, 0.03]
        at = arm.point(name, place, q)
        told = arm.jacobians(q, at[None, :3], at[None, 3].astype(int))[0]
        for j in range(9):
            d = small * np.eye(9)[j]
            change = (arm.point(name, place, q + d) - arm.point(name, place, q - d))[:3] / (2 * small)
            np.testing.assert_allclose(told[:, j], change, atol=1e-6)
    with pytest.raises(InputError, match="known are"):
        arm.point("elbow", [0, 0, 0], q)


# ---------------------------------------------------------------- calibration


def test_clean_masks_give_the_camera_back_from_nothing(arm, clean):
    result = solve_markerless(arm, clean, CAMERA)
    mm, degrees = off(result.T, T)
    assert mm < 2 and degrees < 0.1 and len(result.used) == 8 and not result.rejected  # a pixel is 6 mm there, and 0.19 degrees
    assert result.observability.observable and result.observability.motion == "full" and abs(result.aligned.bleed_px) < 0.05
    told = summary(result)
    assert {"T", "covariance", "held_out_px", "used", "rejected", "model", "observability"} <= set(told) and told["held_out_px"] < 0.5


def test_the_truth_lies_within_what_is_told(arm):
    """Of three made-up calibrations with joints that are off, rough edges that bleed by 2 px; chance exceeds this once in a thousand."""
    square = 0.0
    for seed in range(3):
        rng = np.random.default_rng(10 + seed)
        looks = looks_at(arm, rng.uniform(LOW, HIGH, (8, 9)), CAMERA, T, Spoiling(bleed_px=2.0), rng)
        s = Silhouettes(arm, looks, CAMERA)
        rough, overlap = approach(s, T @ se3_exp(rng.normal(0, 0.01, 6)), scale=0.7, widths_px=(15.0, 10.0, 6.0))
        a = align(s, rough)
        error = se3_log(se3_inverse(a.T) @ T)
        square += float(error @ np.linalg.solve(covariance(a, None), error))
        mm, degrees = off(a.T, T)
        assert mm < 10 and degrees < 0.5 and abs(a.bleed_px - 2.0) < 0.3 and overlap > 0.7
    assert square < 42.3  # chi-square of 18


def test_wrong_masks_are_cast_out_by_name(arm, clean):
    looks = list(clean)
    looks[1] = replace(looks[1], mask=looks[4].mask, name="another view's mask")
    looks[5] = replace(looks[5], mask=np.random.default_rng(0).random(looks[5].mask.shape) > 0.5, name="noise")
    hidden = looks[6].mask.copy()
    hidden[:, :150] = False
    looks[6] = replace(looks[6], mask=hidden, name="half hidden")
    looks += [
        replace(clean[0], name="again"),
        replace(clean[0], joints=clean[0].joints * np.nan, name="no joints"),
        Look(joints=clean[3].joints + 0.2, mask=np.zeros_like(hidden), name="empty"),
        Look(joints=clean[3].joints + 0.3, mask=~clean[3].mask, name="inverted"),
        Look(joints=clean[3].joints + 0.4, mask=np.zeros((10, 10), dtype=bool), name="small"),
    ]
    result = solve_markerless(arm, looks, CAMERA, prior=Prior(T=T @ se3_exp(np.full(6, 0.01)), sigma_m=0.05, sigma_rad=0.2))
    assert {"another view's mask", "noise", "again", "no joints", "empty", "inverted", "small"} <= set(result.rejected)
    for name, why in (("again", "view 0"), ("empty", "empty"), ("inverted", "inverted"), ("small", "10 x 10"), ("noise", "outline")):
        assert why in result.rejected[name]
    mm, degrees = off(result.T, T)
    assert mm < 3 and degrees < 0.2


def test_what_cannot_be_told_is_refused_in_one_line(arm, clean):
    with pytest.raises(InputError, match="2 views are too few"):
        solve_markerless(arm, clean[:2], CAMERA)
    with pytest.raises(InputError, match="degrees"):
        solve_markerless(arm, [replace(look, joints=np.rad2deg(look.joints)) for look in clean], CAMERA)
    with pytest.raises(InputError, match="7 joint positions for 9 joints"):
        solve_markerless(arm, [replace(look, joints=look.joints[:7]) for look in clean], CAMERA)
    mixed = [replace(look, mask=clean[(i + 3) % 8].mask) for i, look in enumerate(clean)]
    with pytest.raises(DataError, match="do not fit"):
        solve_markerless(arm, mixed, CAMERA, prior=Prior(T=T))


def test_a_round_body_tells_all_but_the_turn_about_itself():
    """An upright post that only turns about itself looks the same from all around: that direction is named, and comes from the prior."""
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body name="b"><joint name="turn" axis="0 0 1"/><geom type="cylinder" fromto="0 0 0 0 0 .5" size=".06"/>'
        '<geom type="sphere" pos="0 0 .6" size=".1"/></body></worldbody></mujoco>'
    )
    body, rng = MujocoBody(model), np.random.default_rng(0)
    pose = look_from(np.array([1.0, 0.3, 0.6]), np.array([0.0, 0.0, 0.3]))
    looks = looks_at(body, np.linspace(-1, 1, 5)[:, None], CAMERA, pose, Spoiling(), rng)
    with pytest.raises(DataError, match="only joint turn moved") as told:
        solve_markerless(body, looks, CAMERA)
    assert "mm along" in str(told.value) and "\n" not in str(told.value)
    turned = np.eye(4)
    turned[:3, :3] = so3_exp(np.array([0.0, 0.0, 0.05]))
    result = solve_markerless(body, looks, CAMERA, prior=Prior(T=turned @ pose, sigma_m=0.05, sigma_rad=0.1))
    assert result.observability.advice and max(d.from_prior for d in result.observability.directions) > 0.1
    error = se3_log(se3_inverse(result.T) @ pose)[[3, 4, 5, 0, 1, 2]]
    assert error @ np.linalg.solve(result.covariance, error) < 22.5  # once in a thousand (chi-square of 6)
    assert np.rad2deg(result.observability.worst_rad) > 1.0
    body.close()
