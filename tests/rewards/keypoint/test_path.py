import pytest
import torch

from rewards.keypoint.path import arc_lengths, hold_path
from sinew.errors import SpecError

CORNER = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]])


def follow(way, points):
    """Progress and distance after each of the points."""
    progress, seen = torch.zeros(1), []
    for point in points:
        progress, distance = hold_path(torch.tensor([point]), way, progress)
        seen.append((round(float(progress), 4), round(float(distance), 4)))
    return seen


def test_progress_is_the_way_walked_and_distance_the_way_beside():
    assert follow(CORNER, [(0.25, 0.1, 0.0), (0.9, 0.0, 0.0), (1.2, 0.5, 0.0), (1.0, 3.0, 0.0)]) == [
        (0.25, 0.1), (0.9, 0.0), (1.5, 0.2), (2.0, 2.0),
    ]  # fmt: skip


def test_what_was_walked_is_never_taken_back():
    assert follow(CORNER, [(1.0, 0.5, 0.0), (0.2, 0.0, 0.0)])[1] == (1.5, round(float((0.8**2 + 0.5**2) ** 0.5), 4))


def test_a_path_that_comes_back_gives_nothing_for_standing_at_its_end():
    there_and_back = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 0.001, 0], [0.0, 0.001, 0]]])
    assert follow(there_and_back, [(0.0, 0.001, 0.0)] * 3)[-1][0] == 0.0
    assert follow(there_and_back, [(x, 0.0, 0.0) for x in (0.5, 1.0, 1.5, 2.0, 1.5, 1.0, 0.5, 0.0)])[-1][0] == pytest.approx(4.0, abs=0.01)


def test_many_worlds_are_as_each_alone():
    generator = torch.Generator().manual_seed(0)
    ways = torch.rand(50, 5, 3, generator=generator)
    points, progress = torch.rand(50, 3, generator=generator), torch.rand(50, generator=generator)
    together = hold_path(points, ways, progress, arc_lengths(ways))
    for i in range(50):
        alone = hold_path(points[i : i + 1], ways[i : i + 1], progress[i : i + 1])
        torch.testing.assert_close((together[0][i : i + 1], together[1][i : i + 1]), alone)


def test_the_nearest_place_ahead_is_found_as_by_trying_all():
    generator = torch.Generator().manual_seed(1)
    ways = torch.rand(40, 3, 3, generator=generator)  # two segments: both are always open
    points = torch.rand(40, 3, generator=generator)
    arc = arc_lengths(ways)
    progress = torch.rand(40, generator=generator) * arc[:, -1] * 0.9
    _, distance = hold_path(points, ways, progress)
    for i in range(40):
        tried = torch.linspace(float(progress[i]), float(arc[i, -1]), 4001)
        second = tried > arc[i, 1]
        base = torch.where(second[:, None], ways[i, 1], ways[i, 0])
        unit = torch.where(second[:, None], (ways[i, 2] - ways[i, 1]) / (arc[i, 2] - arc[i, 1]), (ways[i, 1] - ways[i, 0]) / arc[i, 1])
        at = base + (tried - torch.where(second, arc[i, 1], 0.0))[:, None] * unit
        assert float(distance[i]) == pytest.approx(float((at - points[i]).norm(dim=1).min()), abs=1e-3)


def test_places_that_coincide_do_no_harm():
    way = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]])
    assert follow(way, [(0.5, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0)])[-1] == (1.0, 0.0)
    assert follow(torch.zeros(1, 2, 3), [(0.0, 0.0, 0.3)])[0] == (0.0, pytest.approx(0.3))


def test_one_place_is_no_path():
    with pytest.raises(SpecError, match="two or more"):
        hold_path(torch.zeros(1, 3), torch.zeros(1, 1, 3), torch.zeros(1))
