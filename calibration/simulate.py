"""Made-up calibrations with a known answer: for tests, benchmarks and the choice of views."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from calibration.camera import Camera
from calibration.views import View
from sinew.se3 import Array, se3, se3_act, se3_exp, se3_inverse, so3_exp

Mount = Literal["in_hand", "to_hand"]
Motion = Literal["full", "tiny", "near_axis", "one_axis", "translation"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How a made-up calibration is noisy."""

    mount: Mount = "in_hand"
    motion: Motion = "full"
    views: int = 20
    corners: tuple[int, int] = (7, 5)
    square_m: float = 0.03
    sigma_px: float = 0.3
    sigma_m: float = 0.1e-3
    """Of the robot's positions."""
    sigma_rad: float = float(np.deg2rad(0.02))
    """Of the robot's orientations, each axis."""
    bad_views: float = 0.0
    """Part of the views whose robot pose is a wrong one."""
    bad_corners: float = 0.0
    """Part of the corners that lie anywhere."""
    focal_error: float = 0.0
    """What the assumed focal length is too long by, as a part of it."""
    centre_error_px: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Simulated:
    """A made-up calibration."""

    views: list[View]
    camera: Camera
    """The camera as it is believed to be."""
    true_camera: Camera
    X: Array
    """T_hand_camera, or T_base_camera."""
    Z: Array
    """T_base_board, or T_hand_board."""


CAMERA = Camera(1280, 720, (900.0, 900.0), (640.0, 360.0), (-0.1, 0.05, 0.0005, -0.0005, 0.0))


def board_points(corners: tuple[int, int], square_m: float) -> Array:
    """Inner corners (columns x rows, 3) of a board, its middle the origin."""
    x, y = np.meshgrid(np.arange(corners[0]), np.arange(corners[1]))
    points = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], -1) * square_m
    return points - points.mean(0)


def simulate(scenario: Scenario, seed: int) -> Simulated:
    """A calibration with a known answer; every view shows the whole board."""
    rng = np.random.default_rng(seed)
    points = board_points(scenario.corners, scenario.square_m)
    x = se3(so3_exp(rng.normal(0, 0.6, 3)), rng.uniform(-0.08, 0.08, 3) + np.array([0, 0, 0.05]))
    z_place = se3(so3_exp(rng.normal(0, 0.2, 3)), np.array([0.5, 0.0, 0.1]) + rng.uniform(-0.1, 0.1, 3))
    board = _board_in_camera(scenario, points, rng)  # T_camera_board
    if scenario.mount == "in_hand":
        z = z_place
        hand = z @ se3_inverse(board) @ se3_inverse(x)
    else:
        x, z = z_place @ se3(so3_exp(rng.normal(0, 0.6, 3)), np.zeros(3)), x
        hand = x @ board @ se3_inverse(z)
    noise = np.concatenate([rng.normal(0, scenario.sigma_m, (len(hand), 3)), rng.normal(0, scenario.sigma_rad, (len(hand), 3))], 1)
    told = hand @ se3_exp(noise)
    for i in rng.permutation(len(hand))[: round(scenario.bad_views * len(hand))]:
        told[i] = told[i] @ se3_exp(np.concatenate([rng.normal(0, 0.05, 3), rng.normal(0, 0.2, 3)]))
    believed = replace(
        CAMERA,
        focal=(CAMERA.focal[0] * (1 + scenario.focal_error),) * 2,
        centre=(CAMERA.centre[0] + scenario.centre_error_px[0], CAMERA.centre[1] + scenario.centre_error_px[1]),
    )
    views = []
    for i, (pose, robot) in enumerate(zip(board, told, strict=True)):
        pixels = CAMERA.project(se3_act(pose, points)) + rng.normal(0, scenario.sigma_px, (len(points), 2))
        wrong = rng.random(len(points)) < scenario.bad_corners
        pixels[wrong] = rng.uniform([0, 0], [CAMERA.width, CAMERA.height], (int(wrong.sum()), 2))
        views.append(View(robot=robot, points=points, pixels=pixels, name=f"view {i}"))
    return Simulated(views, believed, CAMERA, x, z)


def _board_in_camera(scenario: Scenario, points: Array, rng: np.random.Generator) -> Array:
    """Poses (N, 4, 4) at which the whole board is in the picture."""
    poses: list[Array] = []
    middle = se3(so3_exp(np.array([np.pi, 0, 0]) + rng.normal(0, 0.05, 3)), np.array([0, 0, 0.45]))
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    while len(poses) < scenario.views:
        if scenario.motion == "full":
            turn, move = rng.uniform(-0.6, 0.6, 3), rng.uniform([-0.15, -0.1, -0.15], [0.15, 0.1, 0.15])
        elif scenario.motion == "tiny":
            turn, move = np.deg2rad(rng.uniform(-3, 3, 3)), rng.uniform(-0.08, 0.08, 3)
        elif scenario.motion == "translation":
            turn, move = np.zeros(3), rng.uniform([-0.15, -0.1, -0.15], [0.15, 0.1, 0.15])
        else:
            wobble = np.deg2rad(rng.normal(0, 1, 3)) if scenario.motion == "near_axis" else np.zeros(3)
            turn, move = axis * np.deg2rad(rng.uniform(-30, 30)) + wobble, rng.uniform([-0.1, -0.08, -0.1], [0.1, 0.08, 0.1])
        pose = se3(so3_exp(turn), move) @ middle
        pose[:3, 3] = middle[:3, 3] + move
        pixels = CAMERA.project(se3_act(pose, points))
        if np.isfinite(pixels).all() and (pixels > 5).all() and (pixels < np.array([CAMERA.width, CAMERA.height]) - 5).all():
            poses.append(pose)
    return np.array(poses)


def view_at(made: Simulated, scenario: Scenario, hand: Array, rng: np.random.Generator, name: str = "") -> View | None:
    """What is seen and told with the hand truly at T_base_hand (4, 4); None when the board is not wholly in the picture."""
    board = se3_inverse(hand @ made.X) @ made.Z if scenario.mount == "in_hand" else se3_inverse(made.X) @ hand @ made.Z
    points = board_points(scenario.corners, scenario.square_m)
    pixels = made.true_camera.project(se3_act(board, points))
    size = np.array([made.true_camera.width, made.true_camera.height])
    if not (np.isfinite(pixels).all() and (pixels > 0).all() and (pixels < size - 1).all()):
        return None
    wrong = np.concatenate([rng.normal(0, scenario.sigma_m, 3), rng.normal(0, scenario.sigma_rad, 3)])
    return View(robot=hand @ se3_exp(wrong), points=points, pixels=pixels + rng.normal(0, scenario.sigma_px, pixels.shape), name=name)
