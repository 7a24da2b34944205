"""Choosing views: information adds up, candidates show the board, what is expected comes true, six chosen ones do for twelve."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from calibration.estimator import calibrate, fit
from calibration.model import Free, first_estimate
from calibration.next_view import Goal, Sector, around_board, at, information_by_pose, next_views, told_by
from calibration.noise import Noise
from calibration.simulate import Scenario, board_points, simulate, view_at
from calibration.views import pack
from sinew.errors import InputError
from sinew.se3 import se3_act, se3_inverse

TRUE = Noise(0.3, 0.1e-3, float(np.deg2rad(0.02)))
STRICT = Goal(position_m=1e-6, rotation_rad=1e-6)


def started(mount: str = "in_hand", views: int = 4, seed: int = 0):
    """Scenario, truth, views, their estimate with the noise known, and the board's corners."""
    scenario = Scenario(mount=mount, views=views)  # type: ignore[arg-type]
    made = simulate(scenario, seed)
    packed = pack(made.views)
    return scenario, made, packed, calibrate(packed, (made.camera,), scenario.mount, noise=TRUE), board_points((7, 5), 0.03)


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
@pytest.mark.parametrize("free", [Free(), Free(scale=True, intrinsics=True)])
def test_information_of_views_adds_up_to_that_of_the_estimate(mount, free):
    _, _, views, found, _ = started(mount, 8)
    whole = fit(views, found.estimate, free=free, noise=TRUE)
    assert whole.weights[views.seen].all()
    parts = information_by_pose(whole.estimate, views, whole.layout, TRUE)
    only = np.diag(np.linalg.inv(whole.information)) ** 0.5
    left = (whole.information - parts.sum(0)) * only[:, None] * only  # what was known of the lens and the scale before
    part = slice(0, whole.layout.z.stop)
    np.testing.assert_allclose(left[part, part], 0, atol=1e-5)
    np.testing.assert_allclose(left, np.diag(np.diag(left)), atol=1e-5)
    assert (np.linalg.eigvalsh(parts) > -1e-6 * np.abs(parts).max()).all()


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_candidates_look_at_the_board_from_the_side_that_was_seen(mount):
    _, made, views, found, points = started(mount)
    sector = Sector(tilt_rad=0.5)
    hands = around_board(found.estimate, views, points, sector, 100, 3)
    board = se3_inverse(hands @ made.X) @ made.Z if mount == "in_hand" else se3_inverse(made.X) @ hands @ made.Z
    sight = board[:, :3, 3] / np.linalg.norm(board[:, :3, 3], axis=1, keepdims=True)
    facing = np.sum(sight * board[:, :3, 2], 1) * np.sign(np.median(found.estimate.boards(views)[:, 2, 2]))
    assert (facing > np.cos(0.5) - 0.01).all() and facing.min() < np.cos(0.4)
    pixels = made.camera.project(se3_act(board, points.mean(0)))
    assert (pixels > 0).all() and (pixels < [1280, 720]).all()
    np.testing.assert_array_equal(hands, around_board(found.estimate, views, points, sector, 100, 3))


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_what_is_expected_comes_true(mount):
    scenario, made, views, found, points = started(mount)
    rng, taken, expected = np.random.default_rng(0), list(made.views), [told_by(found)]
    choices = next_views(found, views, points, goal=STRICT, count=4)
    assert len(choices) == 4 and not any(c.reaches for c in choices)
    for choice in choices:
        view = view_at(made, scenario, choice.T_base_hand, rng)
        assert view is not None  # the whole board is in the picture
        taken.append(view)
        expected.append(choice.covariance)
    goals = [np.trace(c[0, :3, :3]) + np.trace(c[0, 3:, 3:]) for c in expected]
    assert all(a > b for a, b in pairwise(goals))
    after = fit(pack(taken), at(found.estimate, len(taken)), noise=TRUE)
    ratio = np.sqrt(np.diag(told_by(after)[0]) / np.diag(expected[-1][0]))
    assert (np.abs(np.log(ratio)) < 0.1).all()


def test_only_poses_that_can_be_reached_are_chosen():
    _, _, views, found, points = started()
    asked: list[np.ndarray] = []
    middle = np.median(around_board(found.estimate, views, points, Sector())[:, 0, 3])

    def reachable(hand: np.ndarray) -> bool:
        asked.append(hand)
        return hand[0, 3] > middle

    choices = next_views(found, views, points, goal=STRICT, count=5, reachable=reachable)
    assert len(choices) == 5 and all(c.T_base_hand[0, 3] > middle for c in choices)
    assert len({h.tobytes() for h in asked}) == len(asked) < 100  # nothing is asked twice, and only what is good
    with pytest.raises(InputError, match="none of 300 hand poses"):
        next_views(found, views, points, goal=STRICT, reachable=lambda hand: False)
    with pytest.raises(InputError, match="0 are new"):  # where views were taken already
        next_views(found, views, points, goal=STRICT, candidates=views.robot)


def test_choosing_ends_when_the_accuracy_is_reached():
    _, _, views, found, points = started(views=6)
    now = np.sqrt(np.linalg.eigvalsh(told_by(found)[0, :3, :3]).max())
    assert next_views(found, views, points, goal=Goal(position_m=1.01 * now, rotation_rad=0.1), count=5) == []
    choices = next_views(found, views, points, goal=Goal(position_m=0.7 * now, rotation_rad=0.1), count=20)
    assert 1 <= len(choices) < 20 and choices[-1].reaches and not any(c.reaches for c in choices[:-1])


def test_a_motion_that_tells_nothing_is_made_up_for():
    made = simulate(Scenario(motion="near_axis", views=8), 2)
    views, points = pack(made.views), board_points((7, 5), 0.03)
    found = calibrate(views, (made.camera,), "in_hand", noise=TRUE)
    before = np.sqrt(np.linalg.eigvalsh(told_by(found)[0, :3, :3]).max())
    choices = next_views(found, views, points, goal=STRICT, count=2)
    assert np.sqrt(np.linalg.eigvalsh(choices[-1].covariance[0, :3, :3]).max()) < before / 5


def test_two_cameras_choose_together():
    made = simulate(Scenario(views=6), 1)
    other = [replace(v, camera=1, pose=i) for i, v in enumerate(made.views)]
    views = pack([*[replace(v, pose=i) for i, v in enumerate(made.views)], *other])
    found = calibrate(views, (made.camera, made.camera), "in_hand", noise=TRUE)
    choice = next_views(found, views, board_points((7, 5), 0.03), goal=STRICT)[0]
    assert choice.covariance.shape == (2, 6, 6)
    for c in range(2):
        assert np.trace(choice.covariance[c]) < np.trace(told_by(found)[c])


def expected_errors(seed: int) -> dict[str, float]:
    """By sets of views, the expected squared error at the truth and with the true noise, in units of the default goal's variance.

    The views are chosen with what three first ones tell, the noise estimated. Expected errors need far fewer trials than errors do;
    errors are compared by the benchmark.
    """
    mount, rng, goal = "in_hand" if seed % 2 else "to_hand", np.random.default_rng(seed), Goal()
    scenario = Scenario(mount=mount, views=12)
    made, points = simulate(scenario, seed), board_points((7, 5), 0.03)
    first = pack(made.views[:3])
    found = calibrate(first, (made.camera,), mount)
    chosen = [c.T_base_hand for c in next_views(found, first, points, goal=STRICT, count=6, seed=seed)]
    shown = [view_at(made, scenario, hand, rng) for hand in around_board(found.estimate, first, points, Sector(), 200, seed)]
    views = [*made.views, *[view_at(made, scenario, hand, rng) for hand in chosen], *[v for v in shown if v is not None][:12]]
    assert len(views) == 30
    packed = pack([v for v in views if v is not None])
    truth = first_estimate(mount, made.X, made.Z, (made.camera,), packed)
    parts = information_by_pose(truth, packed, found.layout, TRUE)
    sets = {"guided": range(12), "alone": range(12, 18), "six": [0, 1, 2, 12, 13, 14], "nine": [0, 1, 2, *range(12, 18)]}
    covariances = {k: np.linalg.inv(parts[list(rows)].sum(0)) for k, rows in {**sets, "random": range(18, 30)}.items()}
    return {
        k: float(np.trace(c[:3, :3]) / goal.position_m**2 + np.trace(c[3:6, 3:6]) / goal.rotation_rad**2) for k, c in covariances.items()
    }


def test_six_chosen_views_are_at_least_as_good_as_twelve_random_ones():
    """Six alone, or three first and three chosen, against twelve of a guided hand; all nine against twelve of the same candidates."""
    trials = [expected_errors(seed) for seed in range(10)]
    for ours, theirs in (("alone", "guided"), ("six", "guided"), ("nine", "random")):
        assert np.median([t[ours] / t[theirs] for t in trials]) <= 1.0, (ours, theirs)


def test_bad_goals_and_sectors_are_told():
    for bad in (lambda: Goal(position_m=0.0), lambda: Goal(rotation_rad=float("nan"))):
        with pytest.raises(InputError, match="above zero"):
            bad()
    for bad in (lambda: Sector(tilt_rad=1.5), lambda: Sector(fill=(0.0, 1.0)), lambda: Sector(roll_rad=7.0), lambda: Sector(margin=0.5)):
        with pytest.raises(InputError):
            bad()
