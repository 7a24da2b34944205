"""The search over poses: any reward, no first guess, honest about what the reward does not tell; trajectories of odometry as a reward."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.closed_form import hand_eye
from calibration.estimator import calibrate
from calibration.search import METHODS, SearchConfig, search
from calibration.simulate import Scenario, simulate
from calibration.trajectory import TrajectoryReward, informative, rotation_information
from calibration.views import board_poses, pack
from sinew.errors import DataError, InputError
from sinew.se3 import se3, se3_act, se3_exp, se3_inverse, so3_exp, so3_log

TRUTH = se3(so3_exp([0.4, -1.9, 2.0]), [0.07, -0.12, 0.05])


def off(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Degrees and millimetres between two poses."""
    return float(np.rad2deg(np.linalg.norm(so3_log(a[:3, :3].T @ b[:3, :3])))), float(1e3 * np.linalg.norm(a[:3, 3] - b[:3, 3]))


def walk(seed: int, *, axis: np.ndarray | None = None, count: int = 30) -> np.ndarray:
    """Poses of a hand (count, 4, 4) that turns about every axis, or about one of its own only."""
    rng = np.random.default_rng(seed)
    turns = rng.uniform(-0.6, 0.6, (count, 3)) if axis is None else rng.uniform(-0.6, 0.6, (count, 1)) * axis
    return se3(so3_exp([0.3, 2.0, 1.0]) @ so3_exp(turns), rng.uniform([0.3, -0.2, 0.2], [0.7, 0.2, 0.6], (count, 3)))


def odometry(robot: np.ndarray, seed: int, *, scale: float = 1.0, jumps: int = 0, sigma_m: float = 1e-3) -> np.ndarray:
    """What a camera at TRUTH would say of its motion: in a world of its own, with noise and jumps."""
    rng = np.random.default_rng(100 + seed)
    noise = np.concatenate([rng.normal(0, sigma_m, (len(robot), 3)), rng.normal(0, 2 * sigma_m, (len(robot), 3))], 1)
    noise[rng.permutation(len(robot))[:jumps]] = rng.normal(0, 0.3, (jumps, 6))
    seen = se3_exp(rng.normal(size=6)) @ robot @ TRUTH @ se3_exp(noise)
    seen[:, :3, 3] /= scale
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_any_reward_will_do(method):
    points = np.random.default_rng(0).normal(0, 0.3, (6, 3))

    def reward(poses):  # of no useful scale, and broken somewhere
        error = np.abs(se3_act(poses[:, None], points) - se3_act(TRUTH, points)).sum((1, 2))
        return np.where(poses[:, 0, 3] > 0.29, np.nan, 1e6 - error**3)

    found = search(reward, SearchConfig(method=method, seed=1))
    degrees, millimetres = off(found.T, TRUTH)
    assert degrees < 0.5 and millimetres < 2.0
    assert found.reward == pytest.approx(float(reward(found.T[None])[0]))
    assert len(found.spread) == 6 and found.evaluations <= 1024 + 80 * 64 + 1


def test_what_the_reward_tells_less_stays_wider():
    weights = np.array([1.0, 30.0, 900.0])

    def reward(poses):
        turn = so3_log(TRUTH[:3, :3].T @ poses[:, :3, :3])
        place = (poses[:, :3, 3] - TRUTH[:3, 3]) @ TRUTH[:3, :3]  # along the camera's axes
        return -np.sum(weights * (turn**2 + place**2), 1)

    found = search(reward, SearchConfig(rounds=40))
    for first in (0, 3):
        widest, middle, narrow = found.spread[first : first + 3]
        assert [int(np.argmax(np.abs(s.axis))) for s in (widest, middle, narrow)] == [0, 1, 2]
        assert min(abs(s.axis[k]) for k, s in enumerate((widest, middle, narrow))) > 0.95
        # as the roots of the curvatures: 30 and 5.5 times
        assert widest.sigma / narrow.sigma == pytest.approx(30, rel=0.6)
        assert middle.sigma / narrow.sigma == pytest.approx(5.5, rel=0.6)
    assert {s.kind for s in found.weak} == {"translation", "rotation"}


def test_the_same_seed_is_the_same_search():
    def reward(poses):
        return -np.linalg.norm(poses - TRUTH, axis=(1, 2))

    first, second = (search(reward, SearchConfig(rounds=5, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(first.T, second.T)
    assert search(reward, SearchConfig(rounds=5, seed=4)).reward != first.reward


@pytest.mark.parametrize("scale", [None, 3.7])
def test_odometry_with_jumps_is_enough(scale):
    for seed in range(2):
        robot = walk(seed)
        seen = odometry(robot, seed, scale=scale or 1.0, jumps=3)
        reward = TrajectoryReward(robot=robot, visual=seen, scale=scale is not None, keep=0.85)
        found = search(reward, SearchConfig(seed=seed))
        degrees, millimetres = off(found.T, TRUTH)
        assert degrees < 0.4 and millimetres < 4.0, (seed, degrees, millimetres)
        assert off(hand_eye(robot, se3_inverse(seen), "park"), TRUTH)[1] > 2 * millimetres
        assert not found.weak and found.reward >= float(reward(TRUTH[None])[0])
        if scale is not None:
            assert reward.squares(found.T[None])[1][0] == pytest.approx(scale, rel=0.02)


def test_the_estimator_is_better_where_there_are_corners():
    # the search knows neither which corner is noisy nor that the robot is; it must come near all the same
    ours, theirs = [], []
    for seed in range(4):
        made = simulate(Scenario(views=12), 50 + seed)
        views = pack(made.views)
        seen = se3_inverse(board_poses(views, (made.camera,))[0])
        ours.append(off(search(TrajectoryReward(robot=views.robot, visual=seen), SearchConfig(seed=seed)).T, made.X))
        theirs.append(off(calibrate(views, (made.camera,), "in_hand").estimate.X[0], made.X))
    search_mm, estimator_mm = np.median(ours, 0)[1], np.median(theirs, 0)[1]
    assert estimator_mm < search_mm < 5.0 and np.median(ours, 0)[0] < 0.5


def test_one_axis_is_told_as_weak():
    axis = np.array([0.6, 0.0, 0.8])
    robot = walk(0, axis=axis)
    found = search(TrajectoryReward(robot=robot, visual=odometry(robot, 0)))
    weak = [s for s in found.weak if s.kind == "translation"]
    assert len(weak) == 1
    assert abs(found.T[:3, :3] @ np.array(weak[0].axis) @ axis) > 0.98


def test_alignment_is_blind_to_worlds_and_right_about_errors():
    robot = walk(1)
    exact = odometry(robot, 1, sigma_m=0.0)
    near = TRUTH @ se3_exp(np.random.default_rng(0).normal(0, 0.02, (5, 6)))
    reward = TrajectoryReward(robot=robot, visual=exact)
    assert reward(TRUTH[None])[0] == pytest.approx(0.0, abs=1e-7) and (reward(near) < -1e-3).all()
    elsewhere = TrajectoryReward(robot=se3_exp([1.0, 2, 3, 0.4, 0.5, 0.6]) @ robot, visual=se3_exp([3.0, 2, 1, 1, 0, -1]) @ exact)
    np.testing.assert_allclose(elsewhere(near), reward(near), atol=1e-9)
    # a pose off by a known amount, of two hundred: the alignment hardly moves
    long = walk(2, count=200)
    broken = odometry(long, 2, sigma_m=0.0)
    broken[7, :3, 3] += [0.3, 0, 0]
    squares = TrajectoryReward(robot=long, visual=broken, keep=1.0).squares(TRUTH[None])[0][0]
    assert squares.argmax() == 7 and np.sqrt(squares[7]) == pytest.approx(0.3, rel=0.03)
    assert TrajectoryReward(robot=long, visual=broken)(TRUTH[None])[0] == pytest.approx(0.0, abs=1e-7)


def test_scale_is_that_of_a_search_over_scales():
    robot, scale = walk(3), 2.5
    visual = odometry(robot, 3, scale=scale)
    candidates = TRUTH @ se3_exp(np.random.default_rng(1).normal(0, 0.02, (3, 6)))
    free = TrajectoryReward(robot=robot, visual=visual, scale=True, keep=1.0)
    best = np.full(3, -np.inf)
    for s in np.linspace(0.9, 1.1, 81) * scale:
        resized = visual.copy()
        resized[:, :3, 3] *= s
        best = np.maximum(best, TrajectoryReward(robot=robot, visual=resized, keep=1.0)(candidates))
    np.testing.assert_allclose(free(candidates), best, rtol=0.01)


def test_stretches_that_turn_about_two_axes_tell_most():
    still, one, full = walk(0, axis=np.zeros(3)), walk(1, axis=np.array([0, 0, 1.0])), walk(2)
    assert rotation_information(still) == pytest.approx(0.0, abs=1e-15)
    assert rotation_information(one) == pytest.approx(0.0, abs=1e-15) and rotation_information(full) > 1e-3
    chosen = informative(np.concatenate([still, one, full, still]), 28, 3)
    assert 60 - 14 <= chosen[0].start <= 60 + 14
    assert all(a.stop <= b.start for a, b in zip(*(lambda s: (s, s[1:]))(sorted(chosen, key=lambda s: s.start)), strict=False))


def test_what_cannot_be_searched_is_told():
    with pytest.raises(InputError, match="one number per pose"):
        search(lambda poses: poses)
    with pytest.raises(DataError, match="finite reward"):
        search(lambda poses: np.full(len(poses), np.nan))
    with pytest.raises(InputError, match="magic"):
        SearchConfig(method="magic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="population"):
        SearchConfig(population=3)
    with pytest.raises(InputError, match="elite"):
        SearchConfig(elite=0.01)
    robot = walk(0)
    with pytest.raises(InputError, match="4 or more"):
        TrajectoryReward(robot=robot, visual=robot[:5])
    with pytest.raises(DataError, match="tracking"):
        TrajectoryReward(robot=robot, visual=np.full_like(robot, np.nan))
    with pytest.raises(DataError, match="never moved"):
        TrajectoryReward(robot=robot, visual=np.tile(np.eye(4), (30, 1, 1)), scale=True)
    with pytest.raises(InputError, match="length"):
        informative(robot, 100, 1)
