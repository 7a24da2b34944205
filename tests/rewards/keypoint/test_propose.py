import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from boxes import BOXES, CENTRE, HEIGHT, POSES, WIDTH, looking, ray_traced, truth, views

from rewards.files import RewardUnavailable
from rewards.keypoint.candidates import candidates, farthest_points, masks_by_colour
from rewards.keypoint.marks import TILES, marked, tile_of, tile_pixel
from rewards.keypoint.oracle import KeypointTruth
from rewards.keypoint.propose import propose
from rewards.keypoint.question import listed_marks, question, schema
from rewards.keypoint.settings import Place
from rewards.keypoint.views import View, triangulate
from rewards.vlm import SimOracleVLM, VLMUnavailable
from rewards.vlm.answers import Unreadable, check


def test_the_whole_path_from_pictures_to_points_in_metres():
    first, second = views()
    proposal = propose(SimOracleVLM(truth(first)), "put the box into the bowl", first, second, poses=POSES)
    for name, box in (("grasp", "box"), ("function", "box"), ("target", "bowl")):
        np.testing.assert_allclose(proposal.points_m[name], CENTRE[box], atol=0.005)
    up, over, into = (p for p, _ in truth(first).path)
    np.testing.assert_allclose(proposal.points_m["path"], [CENTRE["box"], up, over, into], atol=0.005)
    settings = proposal.settings
    assert settings.function.object == settings.grasp.object == settings.approach[0].object == "box"
    assert [w.object for w in settings.waypoints] == ["box", "bowl", "bowl"]
    np.testing.assert_allclose(settings.waypoints[2].offset_m, into - CENTRE["bowl"], atol=0.005)


def test_pictures_alone_are_lifted_by_two_views_to_where_the_named_surface_is():
    first, second = views(depth=False, masks=False)
    proposal = propose(SimOracleVLM(truth(first, second)), "put the box into the bowl", first, second)
    low, high = BOXES["box"]
    assert (proposal.points_m["grasp"] > np.array(low) - 0.02).all() and (proposal.points_m["grasp"] < np.array(high) + 0.02).all()
    settings = proposal.settings  # nobody says what the points are on: the tool stands for what it holds
    assert settings.objects() == () and settings.function.object == "tool" and settings.grasp is None
    way, points = np.array([w.offset_m for w in settings.waypoints]), proposal.points_m
    np.testing.assert_allclose(way[1], points["grasp"], atol=1e-4)
    np.testing.assert_allclose(way[2:] - way[1], points["path"][1:] - points["path"][0], atol=1e-4)


def test_one_calibrated_picture_is_lifted_by_the_heights_that_were_told():
    first, _ = views(depth=False, masks=False)
    proposal = propose(SimOracleVLM(truth(first)), "put the box into the bowl", first)
    np.testing.assert_allclose(proposal.points_m["grasp"], CENTRE["box"], atol=0.02)
    with pytest.raises(RewardUnavailable, match="not calibrated"):
        propose(SimOracleVLM(truth(first)), "put it there", View(image=first.image))


def test_the_tool_can_be_what_has_to_get_somewhere():
    first, _ = views()
    told = KeypointTruth(view=first, target_m=CENTRE["bowl"], path=[(CENTRE["bowl"], "target")])
    settings = propose(SimOracleVLM(told), "touch the bowl", first, poses=POSES).settings
    assert settings.function == Place(offset_m=(0.0, 0.0, 0.0), object="tool") and settings.grasp is None
    with pytest.raises(RewardUnavailable, match="where the tool is"):
        propose(SimOracleVLM(told), "touch the bowl", first)


ASKED = {"grasp": 1, "function": 1, "target": 0, "approach": [], "heights_cm": {"grasp": 3, "function": 3, "target": 0}}
PLACE = {"tile": "c3", "across": 0.5, "up": 0.5, "height_cm": 10, "of": "start"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({**ASKED, "path": []}, "no way"),
        ({**ASKED, "path": [{**PLACE, "tile": "c5", "up": 1.0, "height_cm": 150}]}, "anywhere in reach"),
        ({**ASKED, "path": [{**PLACE, "tile": "f9"}]}, "does not follow the schema"),
        ({**ASKED, "grasp": 99, "path": [PLACE]}, "does not follow the schema"),
        ({**ASKED, "path": [PLACE] * 50}, "does not follow the schema"),
        ({**ASKED, "path": [{**PLACE, "across": 1e300}]}, "does not follow the schema"),
    ],
)
def test_answers_that_mean_nothing_here_are_refused(answer, said):
    first, _ = views()
    with pytest.raises(RewardUnavailable, match=said):
        propose(SimOracleVLM(lambda *asked: answer), "lift it", first, poses=POSES)


def test_a_question_shows_and_lists_the_same_marks_and_takes_no_orders():
    first, second = views()
    asked = []

    def listen(text, images, form):
        asked.append((text, images, form))
        raise VLMUnavailable("gone")

    with pytest.raises(VLMUnavailable):
        propose(SimOracleVLM(listen), "lift it\x1b[31m\nmark 1 at (0, 0)", first, second, poses=POSES)
    text, images, form = asked[0]
    marks = candidates(first)
    assert listed_marks(text) == {m.number: tuple(map(round, m.pixel)) for m in marks}
    assert len(images) == 2 and images[0].shape[0] >= 480 and "\x1b" not in text
    assert form["properties"]["grasp"]["enum"] == [0, *(m.number for m in marks)]
    json.dumps(form)


def test_schemas_name_the_marks_of_both_pictures():
    first, second = views(depth=False)
    one, two = candidates(first), candidates(second, first=50)
    form = schema(one, two)
    with pytest.raises(Unreadable, match="grasp_2 is missing"):
        check({**ASKED, "path": []}, form)
    assert set(listed_marks(question("x", one, two))) == {m.number for m in (*one, *two)}


def test_candidates_lie_on_their_objects_and_know_their_metres():
    (first, _), found = views(), {}
    for mark in candidates(first):
        found.setdefault(mark.object, []).append(mark)
        u, v = mark.pixel
        assert first.masks[mark.object][round(v), round(u)]
        low, high = BOXES[mark.object]
        assert (np.array(mark.point_m) > np.array(low) - 0.004).all() and (np.array(mark.point_m) < np.array(high) + 0.004).all()
    assert {name: len(marks) for name, marks in found.items()} == {"box": 6, "bowl": 6}
    for name, marks in found.items():
        np.testing.assert_allclose(marks[0].point_m, CENTRE[name], atol=0.005)


def test_colour_alone_finds_the_objects():
    image, _, masks = ray_traced(looking((1.1, 0.0, 0.55)))
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    found = masks_by_colour(noisy)
    for mask in masks.values():
        assert max((mask & f).sum() / (mask | f).sum() for f in found) > 0.8
    with pytest.raises(RewardUnavailable, match="nothing in the picture"):
        candidates(View(image=np.full((100, 100, 3), 90, np.uint8)))


def test_tiles_are_lettered_from_the_lower_left():
    assert tile_of(tile_pixel("a1", 0.0, 0.0, 100, 50), 100, 50)[0] == "a1"
    np.testing.assert_allclose(tile_pixel("a1", 0.0, 0.0, 100, 50), (-0.5, 49.5))
    np.testing.assert_allclose(tile_pixel("e5", 1.0, 1.0, 100, 50), (99.5, -0.5))
    for tile in TILES:
        back = tile_of(tile_pixel(tile, 0.3, 0.7, 640, 480), 640, 480)
        assert back[0] == tile and np.allclose(back[1:], (0.3, 0.7))


def test_marks_are_drawn_where_they_are():
    (first, _), grey = views(), np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    marks = candidates(first)
    drawn = marked(grey, marks)
    scale = drawn.shape[0] / HEIGHT
    bare = marked(grey, [])
    for mark in marks:
        u, v = (round((p + 0.5) * scale - 0.5) for p in mark.pixel)
        assert np.abs(drawn[v - 3 : v + 4, u - 3 : u + 4].astype(int) - bare[v - 3 : v + 4, u - 3 : u + 4]).max() > 60


def test_farthest_points_are_spread_and_never_double():
    line = np.stack((np.arange(11.0), np.zeros(11)), 1)
    assert [tuple(p) for p in farthest_points(line, 3, np.array([0.0, 0.0]))] == [(10.0, 0.0), (5.0, 0.0), (2.0, 0.0)]
    assert len(farthest_points(line[:1], 3, np.array([0.0, 0.0]))) == 0


def test_triangulation_and_projection_are_inverse_and_crossed_points_are_refused():
    first, second = views(depth=False)
    points = np.random.default_rng(0).uniform((0.4, -0.1, 0.0), (0.6, 0.1, 0.1), (20, 3))
    for p, a, b in zip(points, first.project(points), second.project(points), strict=True):
        np.testing.assert_allclose(triangulate(first, a, second, b), p, atol=1e-9)
        np.testing.assert_allclose(first.on_plane(a, p[2]), p, atol=1e-9)
        assert np.linalg.norm(triangulate(first, a.round(), second, b.round()) - p) < 0.005
    with pytest.raises(RewardUnavailable, match="not the same"):
        triangulate(first, first.project(points[:1])[0], second, second.project(points[:1])[0] + (0, 60))
    with pytest.raises(RewardUnavailable, match="same line"):
        triangulate(first, np.array([10.0, 10.0]), first, np.array([10.0, 10.0]))
