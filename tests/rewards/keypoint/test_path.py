import numpy as np
import pytest

from rewards.keypoint.path import Paths
from sinew.errors import SpecError

CORNER = [[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]


def laid(ways):
    """Paths over places (R, M, 3)."""
    ways = np.asarray(ways, np.float32)
    paths = Paths(*ways.shape[:2])
    paths.lay(np.arange(len(ways)), ways)
    return paths


def follow(way, points):
    """Progress and distance after each of the points."""
    paths, seen = laid([way]), []
    for point in points:
        distance = paths.walk(np.array([point], np.float32).T)
        seen.append((round(float(paths.progress[0]), 4), round(float(distance[0]), 4)))
    return seen


def test_progress_is_the_way_walked_and_distance_the_way_beside():
    assert follow(CORNER, [(0.25, 0.1, 0.0), (0.9, 0.0, 0.0), (1.2, 0.5, 0.0), (1.0, 3.0, 0.0)]) == [
        (0.25, 0.1), (0.9, 0.0), (1.5, 0.2), (2.0, 2.0),
    ]  # fmt: skip


def test_what_was_walked_is_never_taken_back():
    assert follow(CORNER, [(1.0, 0.5, 0.0), (0.2, 0.0, 0.0)])[1] == (1.5, round(float((0.8**2 + 0.5**2) ** 0.5), 4))


def test_a_path_that_comes_back_gives_nothing_for_standing_at_its_end():
    there_and_back = [[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 0.001, 0], [0.0, 0.001, 0]]
    assert follow(there_and_back, [(0.0, 0.001, 0.0)] * 3)[-1][0] == 0.0
    assert follow(there_and_back, [(x, 0.0, 0.0) for x in (0.5, 1.0, 1.5, 2.0, 1.5, 1.0, 0.5, 0.0)])[-1][0] == pytest.approx(4.0, abs=0.01)


def test_many_worlds_are_as_each_alone():
    rng = np.random.default_rng(0)
    ways, points = rng.random((50, 5, 3), np.float32), rng.random((12, 3, 50), np.float32)
    together, alone = laid(ways), [laid(ways[i : i + 1]) for i in range(50)]
    for p in points:
        distance = together.walk(p)
        for i, path in enumerate(alone):
            assert path.walk(p[:, i : i + 1])[0] == distance[i] and path.progress[0] == together.progress[i]


def by_hand(way, p, progress):
    """Progress and distance over the present segment and the next, one path in double precision, as the documentation says it."""
    steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
    arc = np.concatenate(([0.0], np.cumsum(steps)))
    present = min(int((progress >= arc[1:] - 1e-7).sum()), len(steps) - 1)
    found = []
    for s in range(present, min(present + 2, len(steps))):
        along = (way[s + 1] - way[s]) / steps[s]
        walked = np.clip((p - way[s]) @ along, max(progress - arc[s], 0.0), steps[s])
        found.append((float(np.linalg.norm(way[s] + walked * along - p)), max(arc[s] + walked, progress)))
    return min(found)[::-1]


def test_it_is_as_done_by_hand_along_whole_walks():
    rng = np.random.default_rng(2)
    for _ in range(20):
        way = rng.random((6, 3))
        paths, progress = laid([way]), 0.0
        for p in np.repeat(way, 8, axis=0) + rng.normal(0, 0.05, (48, 3)):
            distance = paths.walk(p[:, None].astype(np.float32))
            progress, expected = by_hand(way, p, progress)
            assert paths.progress[0] == pytest.approx(progress, abs=2e-5) and distance[0] == pytest.approx(expected, abs=2e-5)


def test_where_nobody_is_sure_the_progress_stays():
    paths = laid([CORNER, CORNER])
    paths.walk(np.array([[0.5, 0.0, 0.0]] * 2, np.float32).T, np.array([True, False]))
    assert paths.progress.tolist() == [0.5, 0.0]


def test_a_path_laid_anew_begins_anew_and_leaves_the_others():
    paths = laid([CORNER, CORNER])
    paths.walk(np.array([[1.0, 0.5, 0.0]] * 2, np.float32).T)
    paths.lay(np.array([1]), np.array([CORNER[:2]], np.float32))
    assert paths.progress.tolist() == [1.5, 0.0] and paths.arc[:, -1].tolist() == [2.0, 1.0]


def test_places_that_coincide_do_no_harm():
    way = [[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert follow(way, [(0.5, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0)])[-1] == (1.0, 0.0)
    assert follow([[0.0, 0, 0]] * 2, [(0.0, 0.0, 0.3)])[0] == (0.0, pytest.approx(0.3))


def test_one_place_is_no_path():
    with pytest.raises(SpecError, match="two or more"):
        Paths(1, 1)
