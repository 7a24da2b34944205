"""The drift monitor: rare false alarms, bumps found and named, pictures of a standing robot count once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from calibration.drift import DriftMonitor, Picture
from calibration.model import Mount
from calibration.results import Mounted
from calibration.simulate import CAMERA, Scenario, board_points, simulate
from calibration.solve import solve
from calibration.views import pack
from sinew.errors import DataError, InputError
from sinew.se3 import se3, se3_act, se3_exp, se3_inverse, so3_exp

SIGMA = np.array([2e-4] * 3 + [4e-4] * 3)
"""Of the stored calibrations, m and rad."""
ROBOT = np.array([1e-4] * 3 + [3.5e-4] * 3)
BOARD = board_points((7, 5), 0.03)
TAG = 0.04 * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
KEYPOINTS = np.random.default_rng(7).uniform(-0.12, 0.12, (8, 3))
TURNED = np.array([0.6, -0.5, 0.62, 0.6, 0.5, -0.62])
"""A unit of movement and of turning, about."""


class World:
    """Cameras and a board that can be bumped."""

    def __init__(self, mount: Mount, seed: int, cameras: int = 1) -> None:
        self.rng, self.mount = np.random.default_rng(seed), mount
        facing = se3(so3_exp(np.array([np.pi, 0, 0])), np.array([0, 0, 0.45]))  # T_camera_board in the middle
        self.X = [se3(so3_exp(self.rng.normal(0, 0.5, 3)), self.rng.normal(0, 0.1, 3))]
        self.Z = se3(so3_exp(self.rng.normal(0, 0.2, 3)), np.array([0.5, 0.1, 0.1]))
        if mount == "to_hand":
            self.X, self.Z = [self.Z], self.X[0]
        for c in range(1, cameras):  # another place from which the board is seen too
            self.X.append(self.X[0] @ facing @ se3_exp(np.array([0, 0, 0, 0.3 * c, 0.2, 0.5])) @ se3_inverse(facing))
        self.first, self.board_then = [x.copy() for x in self.X], self.Z.copy()
        self.base = np.eye(4)
        self.stored = [
            Mounted(
                name=f"camera{c}", mount=mount, T=x @ se3_exp(self.rng.normal(0, SIGMA)), covariance=np.diag(np.roll(SIGMA**2, 3)),
                camera=CAMERA, Z=self.Z, pixel_sigma=0.3, robot_sigma_m=ROBOT[0], robot_sigma_rad=ROBOT[3],
            )
            for c, x in enumerate(self.X)
        ]  # fmt: skip
        self.facing = facing

    def of_tag(self, camera: int, tag: np.ndarray, noise: float = 0.3) -> Picture:
        """Of a tag (4, 4) that stands where the cameras beside the robot stand, while the hand is anywhere."""
        pixels = CAMERA.project(se3_act(se3_inverse(self.X[camera]) @ tag, TAG)) + self.rng.normal(0, noise, (len(TAG), 2))
        hand = se3_exp(self.rng.normal(0, 0.5, 6))
        return Picture(camera=f"camera{camera}", robot=hand, points=TAG, pixels=pixels, on="base")

    def picture(
        self, camera: int = 0, *, keypoints: bool = False, hand: np.ndarray | None = None, told: np.ndarray | None = None
    ) -> Picture:
        if hand is None:
            place = self.facing @ se3_exp(np.concatenate([self.rng.uniform(-0.05, 0.05, 3), self.rng.uniform(-0.5, 0.5, 3)]))
            x, z = self.first[0], self.board_then
            hand = z @ se3_inverse(place) @ se3_inverse(x) if self.mount == "in_hand" else x @ place @ se3_inverse(z)
        told = hand @ se3_exp(self.rng.normal(0, ROBOT)) if told is None else told
        inverse = se3_inverse(self.X[camera]) @ self.base
        points = KEYPOINTS if keypoints else BOARD
        if keypoints:
            place = inverse @ hand
        else:
            place = inverse @ (se3_inverse(hand) if self.mount == "in_hand" else hand) @ self.Z
        pixels = CAMERA.project(se3_act(place, points)) + self.rng.normal(0, 1.0 if keypoints else 0.3, (len(points), 2))
        sigma = np.full(len(points), 1.0 / 0.3) if keypoints else None
        on = "robot" if keypoints else None
        return Picture(camera=f"camera{camera}", robot=told, points=points, pixels=pixels, sigma=sigma, on=on)


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_false_alarms_are_as_rare_as_promised(mount):
    early = 0
    for seed in range(5):
        world = World(mount, seed)
        monitor = DriftMonitor(world.stored)
        most = 0.0
        for _ in range(30):
            found = monitor.see(world.picture())
            most = max(most, found.evidence)
            assert found.holds, found.told
        early += most > 300  # a chance of 30 / 300 at most
    assert early <= 3


def test_the_chance_of_a_picture_is_uniform():
    chances = []
    for seed in range(12):
        world = World("in_hand", 100 + seed)
        monitor = DriftMonitor(world.stored)
        chances += [monitor.see(world.picture()).chance for _ in range(12)][1:]
    # the mean of 132 uniform numbers has a standard error of 0.025
    assert 0.4 < np.mean(chances) < 0.6 and 0.02 < np.mean(np.array(chances) < 0.1) < 0.2


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
@pytest.mark.parametrize("what", ["camera", "board"])
@pytest.mark.parametrize(("metres", "degrees", "within"), [(0.02, 2.0, 1), (1e-3, 0.2, 12)])
def test_bumps_are_found_and_named(mount, what, metres, degrees, within):
    world = World(mount, 1)
    monitor = DriftMonitor(world.stored)
    for _ in range(12):
        assert monitor.see(world.picture()).holds
    bump = se3_exp(TURNED * ([metres] * 3 + [np.deg2rad(degrees)] * 3))
    if what == "camera":
        world.X[0] = world.X[0] @ bump
    else:
        world.Z = world.Z @ bump
    found = [monitor.see(world.picture()) for _ in range(within)][-1]
    assert not found.holds and 10 <= found.since <= 12 + within, found
    found = [monitor.see(world.picture()) for _ in range(12)][-1]
    assert what in found.moved[0] and len(found.moved) == 1, found
    assert found.moved_m == pytest.approx(metres, rel=0.35, abs=5e-4)
    assert np.rad2deg(found.moved_rad) == pytest.approx(degrees, rel=0.3)


def test_keypoints_of_the_hand_tell_too():
    world = World("to_hand", 3)
    monitor = DriftMonitor(world.stored)
    for _ in range(10):
        assert monitor.see(world.picture(keypoints=True)).holds
    world.X[0] = world.X[0] @ se3_exp(TURNED * ([1e-3] * 3 + [np.deg2rad(0.2)] * 3))
    found = [monitor.see(world.picture(keypoints=True)) for _ in range(25)][-1]
    assert found.moved == ("camera camera0",)


@pytest.mark.parametrize(("what", "named"), [("one", "camera camera1"), ("base", "robot's base"), ("board", "board on the hand")])
def test_of_several_cameras_the_one_that_moved_is_named(what, named):
    world = World("to_hand", 4, cameras=2)
    monitor = DriftMonitor(world.stored)
    for i in range(10):
        assert monitor.see(world.picture(i % 2)).holds
    bump = se3_exp(TURNED * ([0.01] * 3 + [np.deg2rad(1.0)] * 3))
    if what == "one":
        world.X[1] = world.X[1] @ bump
    elif what == "base":
        world.base = bump
    else:
        world.Z = world.Z @ bump
    found = [monitor.see(world.picture(i % 2)) for i in range(8)][-1]
    assert len(found.moved) == 1 and named in found.moved[0], found


def test_a_tag_beside_the_robot_tells_whatever_the_hand_does_and_of_two_cameras_which_one():
    world = World("to_hand", 4, cameras=2)
    monitor = DriftMonitor(world.stored)
    tag = world.X[0] @ se3(so3_exp(np.array([2.6, 0.3, 0.1])), np.array([0.02, 0.01, 0.4]))
    for i in range(60):
        found = monitor.see(world.of_tag(i % 2, tag))
        assert found.holds, found.told
    world.X[0] = world.X[0] @ se3_exp(TURNED * ([2e-3] * 3 + [np.deg2rad(0.4)] * 3))
    found = [monitor.see(world.of_tag(i % 2, tag)) for i in range(24)][-1]
    assert found.moved == ("camera camera0",) and "the mount of the camera, not of the board" in found.told


def test_one_camera_and_one_tag_cannot_tell_which_moved_and_say_so():
    world = World("to_hand", 8)
    monitor = DriftMonitor(world.stored)
    tag = world.X[0] @ se3(so3_exp(np.array([2.6, 0.3, 0.1])), np.array([0.02, 0.01, 0.4]))
    for _ in range(20):
        assert monitor.see(world.of_tag(0, tag)).holds
    moved = tag @ se3_exp(np.array([1e-3, 1e-3, 0, 0, 0, np.deg2rad(0.2)]))
    found = [monitor.see(world.of_tag(0, moved)) for _ in range(20)][-1]
    assert set(found.moved) == {"camera camera0", "the board beside the robot"} and "would tell which" in found.told


def test_what_was_learnt_yesterday_tells_of_a_bump_in_the_night():
    world = World("to_hand", 9)
    tag = world.X[0] @ se3(so3_exp(np.array([2.6, 0.3, 0.1])), np.array([0.02, 0.01, 0.4]))
    yesterday = DriftMonitor(world.stored)
    for _ in range(20):
        yesterday.see(world.of_tag(0, tag))
    kept = json.loads(json.dumps(yesterday.remember()))
    today = DriftMonitor(world.stored)
    today.recall(kept)
    for _ in range(20):
        assert today.see(world.of_tag(0, tag)).holds
    world.X[0] = world.X[0] @ se3_exp(TURNED * ([3e-3] * 3 + [np.deg2rad(0.5)] * 3))
    forgetful, bumped = DriftMonitor(world.stored), DriftMonitor(world.stored)
    bumped.recall(kept)
    found = [(forgetful.see(p), bumped.see(p)) for p in (world.of_tag(0, tag) for _ in range(4))][-1]
    assert found[0].holds and not found[1].holds
    with pytest.raises(InputError, match="after a new calibration"):
        DriftMonitor(World("to_hand", 10).stored).recall(kept)
    with pytest.raises(InputError, match="before the first picture"):
        bumped.recall(kept)
    for broken in ({}, {**kept, "mean": [1.0]}, {**kept, "places": {"moon": np.eye(4).tolist()}}):
        with pytest.raises(DataError, match="remove it"):
            DriftMonitor(world.stored).recall(broken)


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_poses_from_the_robots_body_tell_too(mount):
    world = World(mount, 11)
    monitor, sigma = DriftMonitor(world.stored), np.array([5e-4] * 3 + [2e-3] * 3)

    def look():
        told = world.X[0] @ se3_exp(np.roll(world.rng.normal(0, sigma), 3))
        return monitor.see_pose("camera0", se3_exp(world.rng.normal(0, 0.3, 6)), told, np.diag(sigma**2))

    for _ in range(30):
        assert look().holds
    world.X[0] = world.X[0] @ se3_exp(TURNED * ([4e-3] * 3 + [np.deg2rad(0.4)] * 3))
    found = [look() for _ in range(30)][-1]
    assert found.moved == ("camera camera0",) and found.moved_m == pytest.approx(4e-3, rel=0.4)
    with pytest.raises(InputError, match="covariance"):
        monitor.see_pose("camera0", np.eye(4), np.eye(4), np.eye(3))


def test_a_standing_robot_counts_once():
    world = World("in_hand", 5)
    monitor = DriftMonitor(world.stored)
    for _ in range(3):
        first = world.picture()
        hand = first.robot
        told = hand @ se3_exp(2.5 * ROBOT * np.sign(TURNED))  # far off, and just as far in every picture
        for _ in range(40):
            assert monitor.see(world.picture(hand=hand, told=told)).holds


def test_wrong_corners_are_no_bump_and_hopeless_pictures_count_for_nothing():
    world = World("to_hand", 6)
    monitor = DriftMonitor(world.stored)
    for _ in range(10):
        picture = world.picture()
        wrong = world.rng.random(len(BOARD)) < 0.2
        picture.pixels[wrong] = world.rng.uniform(0, 700, (int(wrong.sum()), 2))
        assert monitor.see(picture).holds
    before = monitor.seen
    picture = world.picture()
    picture.pixels[:] = world.rng.uniform(0, 700, picture.pixels.shape)
    found = monitor.see(picture)
    assert found.holds and np.isnan(found.chance) and monitor.seen == before


def test_a_calibration_of_ours_is_watched_with_the_board_where_it_was():
    made = simulate(Scenario(views=12), 0)
    result = solve(pack(made.views), [made.camera], "in_hand", model="poses")
    monitor = DriftMonitor.of(result, ("front",))
    for view in simulate(Scenario(views=12), 0).views:
        assert monitor.see(Picture(camera="front", robot=view.robot, points=view.points, pixels=view.pixels)).holds
    moved = made.views[0]
    off = Picture(camera="front", robot=moved.robot, points=moved.points, pixels=moved.pixels + np.array([30.0, 0.0]))
    found = monitor.see(off)
    assert not found.holds and "front" in found.told and not monitor.see(off).holds


def test_bad_input_is_told():
    world = World("in_hand", 0)
    monitor = DriftMonitor(world.stored)
    good = world.picture()
    with pytest.raises(InputError, match="not watched"):
        monitor.see(Picture(camera="other", robot=good.robot, points=good.points, pixels=good.pixels))
    with pytest.raises(InputError, match="fit together"):
        monitor.see(Picture(camera="camera0", robot=good.robot, points=good.points, pixels=good.pixels[:3]))
    with pytest.raises(InputError, match="not finite"):
        monitor.see(Picture(camera="camera0", robot=good.robot * np.nan, points=good.points, pixels=good.pixels))
    with pytest.raises(InputError, match="different names"):
        DriftMonitor([*world.stored, *world.stored])
