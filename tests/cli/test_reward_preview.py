"""What a reward looks for is drawn on the pictures of its preview."""

from __future__ import annotations

import json

import numpy as np
import pytest

from demos import Dataset
from sinew.cli import collect, reward_propose
from sinew.cli.main import main
from sinew.cli.reward_pictures import film
from sinew.cli.reward_preview import drawn_film
from sinew.cli.reward_recorded import builder, episodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Episodes of lift without pictures, and a keypoint reward of the oracle."""
    folder = tmp_path_factory.mktemp("preview")
    collect.collect(collect.Args(task="lift", out=folder / "data", episodes=2))
    reward_propose.run(reward_propose.Args(task="lift", vlm="oracle", out=folder / "r.json"))
    return folder


def pixel(view, point_m):
    """Where a camera sees a point of the world, (x, y)."""
    seen = view.matrix @ (np.linalg.inv(view.T_world_camera) @ [*point_m, 1.0])[:3]
    return seen[:2] / seen[2]


def test_ways_and_points_are_drawn_where_they_are_in_every_picture(folder):
    data = Dataset(folder / "data")
    episode = episodes(data, 2)[0]
    plain = film(data, episode, None)
    drawn = drawn_film(data, episode, None, builder(str(folder / "r.json"), data, print))
    assert plain is not None and drawn is not None and len(drawn) == len(plain.pictures) == len(episode.frames)
    names = data.observation_spec["observation.state"].names
    at = [names.index(f"tool.{axis}") for axis in "xyz"]
    for step in (0, len(drawn) // 2, len(drawn) - 1):
        changed = (drawn[step].astype(int) != plain.pictures[step]).any(2)
        assert 50 < changed.sum() < changed.size / 4  # something is drawn, and the scene is still to be seen
        x, y = pixel(plain.view, data.column("observation.state")[episode.frames[step]][at]).round().astype(int)
        assert changed[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7].any()  # the tool is marked where it is


def test_the_page_has_films_with_them_and_the_picture_that_the_model_saw(folder, tmp_path, capsys):
    capsys.readouterr()
    words = ["reward", "preview", str(folder / "r.json"), "--data", str(folder / "data"), "--out", str(tmp_path / "page"), "--films", "1"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = (tmp_path / "page" / "preview.html").read_text()
    assert len(told["films"]) == 1 and told["films"][0] in page
    assert "green the point that does the work" in page
    assert "r-view1.png" in page and (tmp_path / "page" / "r-view1.png").stat().st_size > 1000
