import cv2
import numpy as np
import pytest

from rewards.files import RewardUnavailable
from rewards.keypoint.tracking import PointTracker

FRAMES, HIDDEN = 50, range(20, 35)
SIZE = (240, 320)


def sequence(cover, sigma=3.0, seed=0):
    """A textured square that turns and wanders; a board hides a share of it for 15 frames. Pictures, and where a point of it is."""
    rng = np.random.default_rng(seed)

    def texture(shape, blur, low, high):
        drawn = cv2.GaussianBlur(rng.integers(0, 255, shape).astype(np.float32), (0, 0), blur)
        return low + (high - low) * (drawn - drawn.min()) / (drawn.max() - drawn.min())

    back, thing = texture(SIZE, 6, 40, 160), texture((100, 100), 2.0, 0, 255)
    pictures, truth = [], []
    for t in range(FRAMES):
        angle, scale = 0.5 * np.sin(t / 20), 1 + 0.1 * np.sin(t / 15)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array([90 + 2.0 * t, 120 + 20 * np.sin(t / 10)])
        motion = np.column_stack((turn, centre - turn @ (50, 50)))
        where = cv2.warpAffine(np.ones_like(thing), motion, SIZE[::-1])
        image = back * (1 - where) + cv2.warpAffine(thing, motion, SIZE[::-1]) * where
        if t in HIDDEN:
            left = int(centre[0] - 60)
            image[:, left : int(left + 120 * cover)] = 90
        pictures.append(np.clip(image + rng.normal(0, sigma, image.shape), 0, 255).astype(np.uint8))
        truth.append(motion[:, :2] @ (30.0, 70.0) + motion[:, 2])
    mask = np.zeros(SIZE, bool)
    mask[72:168, 42:138] = True
    return pictures, np.array(truth), mask


def follow(cover, **options):
    pictures, truth, mask = sequence(cover, **options)
    tracker = PointTracker(pictures[0], truth[0], mask)
    found = [tracker.update(picture) for picture in pictures[1:]]
    error = np.linalg.norm(np.array([p for p, _ in found]) - truth[1:], axis=1)
    return error, np.array([c for _, c in found])


@pytest.mark.parametrize("cover", [0.0, 0.6])
def test_a_point_is_followed_while_its_thing_is_hidden_in_part(cover):
    error, sure = follow(cover)
    assert np.percentile(error, 95) <= 3.0
    assert error[-5:].max() < 0.5  # nothing has drifted
    hidden = sure[HIDDEN.start : HIDDEN.stop - 1]
    assert (hidden.mean() < 0.8) == (cover > 0) and sure[-5:].min() > 0.9


def test_a_thing_that_is_hidden_wholly_is_not_guessed_and_is_found_again():
    error, sure = follow(1.0)
    hidden = slice(HIDDEN.start, HIDDEN.stop - 1)
    assert sure[hidden].max() < 0.3
    assert error[-5:].max() < 0.5
    assert error[sure >= 0.3].max() < 3.0


def test_a_picture_of_something_else_leaves_the_point_where_it_was():
    pictures, truth, mask = sequence(0.0)
    tracker = PointTracker(pictures[0], truth[0], mask)
    here, _ = tracker.update(pictures[1])
    for other in (np.zeros(SIZE, np.uint8), np.random.default_rng(0).integers(0, 255, SIZE).astype(np.uint8)):
        there, sure = tracker.update(other)
        assert sure < 0.3
        np.testing.assert_allclose(there, here, atol=1e-9)


def test_colour_and_grey_pictures_are_followed_alike():
    pictures, truth, mask = sequence(0.0)
    grey, colour = PointTracker(pictures[0], truth[0], mask), PointTracker(np.repeat(pictures[0][..., None], 3, 2), truth[0], mask)
    for picture in pictures[1:4]:
        np.testing.assert_allclose(grey.update(picture)[0], colour.update(np.repeat(picture[..., None], 3, 2))[0], atol=0.01)


def test_what_cannot_be_followed_is_said():
    blank = np.full(SIZE, 120, np.uint8)
    with pytest.raises(RewardUnavailable, match="too little texture"):
        PointTracker(blank, np.array([100.0, 100.0]))
    for outside in ((-5.0, 10.0), (400.0, 10.0), (float("nan"), 1.0)):
        with pytest.raises(RewardUnavailable, match="outside the picture"):
            PointTracker(blank, np.array(outside))
