"""Which pictures of a moved board are kept, and what is said to be missing."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.boards import Board
from calibration.camera import Camera
from calibration.detection import Detection
from calibration.guidance import Guide
from sinew.se3 import se3, se3_act, so3_exp

BOARD, CAMERA = Board(), Camera(640, 480, (640.0, 640.0), (319.5, 239.5))


def seen(turn=(0.0, 0.0, 0.0), at=(0.0, 0.0, 0.5)) -> Detection:
    """The corners that are in the picture of a board at T_camera_board."""
    pixels = CAMERA.project(se3_act(se3(so3_exp(np.array(turn)), np.array(at)), BOARD.points))
    inside = ((pixels > 5) & (pixels < [634, 474])).all(1)
    ids = np.flatnonzero(inside)
    return Detection(ids, pixels[ids], np.ones(len(ids)))


def show(guide: Guide, found: Detection) -> str:
    """Held still for two pictures."""
    guide.offer(found, "before")
    return guide.offer(found, "now")


def test_pictures_are_kept_when_they_are_still_new_and_show_the_board():
    guide = Guide(BOARD, (640, 480))
    assert guide.offer(seen(), "a") == "hold it still" and guide.offer(seen(at=(0.05, 0, 0.5)), "b") == "hold it still"
    assert guide.offer(seen(at=(0.05, 0, 0.5)), "c") == "" and [s.view.name for s in guide.kept] == ["c"]
    assert show(guide, seen(at=(0.052, 0, 0.5))) == "as one before"
    nothing = Detection(np.zeros(0, dtype=int), np.zeros((0, 2)), np.zeros(0), "0 of 35 corners found")
    assert guide.offer(nothing, "d") == "0 of 35 corners found" and guide.offer(seen(at=(0, 0.1, 0.5)), "e") == "hold it still"
    assert len(guide.kept) == 1


@pytest.mark.parametrize(
    ("edge", "corner", "turn"),
    [
        ("left", (-0.1, 0.0), (0, 0.5, 0)),
        ("right", (0.1, 0.0), (0, -0.5, 0)),
        ("upper", (0.0, -0.07), (-0.5, 0, 0)),
        ("lower", (0.0, 0.07), (0.5, 0, 0)),
    ],
)
def test_the_edge_that_is_farther_away_is_no_longer_missing(edge, corner, turn):
    depth = se3_act(se3(so3_exp(np.array(turn, dtype=float)), np.array([0, 0, 0.5])), np.array([*corner, 0.0]))[2]
    assert depth > 0.5  # that edge is the far one
    guide = Guide(BOARD, (640, 480))
    show(guide, seen())
    before = next(m for m in guide.missing() if "edge" in m)
    assert edge in before
    assert show(guide, seen(turn)) == ""
    assert edge not in next(m for m in guide.missing() if "edge" in m)


def test_parts_of_the_picture_and_distances_are_asked_for_until_they_were_seen():
    guide = Guide(BOARD, (640, 480), wanted=3)
    assert not guide.cells().any() and any("nearer" in m for m in guide.missing())
    show(guide, seen(at=(-0.2, -0.15, 0.6)))
    assert guide.cells()[0, 0] and not guide.cells()[2, 3] and "top left" not in guide.missing()[0]
    rng = np.random.default_rng(0)
    for _ in range(400):
        if not guide.missing():
            break
        z = rng.choice([0.3, 0.5, 0.9])
        place = (rng.uniform(-0.4, 0.4) * z, rng.uniform(-0.3, 0.3) * z, z)
        found = seen(tuple(rng.uniform(-0.6, 0.6, 3)), place)
        if len(found.ids) > 6:
            show(guide, found)
    assert guide.missing() == [] and guide.cells().all()
    count = len(guide.kept)
    assert show(guide, seen((0.3, 0.2, 1.0), (0.03, 0.02, 0.7))) in ("of this there is enough", "as one before")
    assert len(guide.kept) == count
