"""What data and policies tell of their cameras: hashes, spans of episodes, and how far two calibrations are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sinew import calibrations
from sinew.calibrations import Calibration, apart, begin, collected, load, store
from sinew.errors import DataError
from sinew.se3 import se3_exp

SIGMA = np.array([1e-3] * 3 + [5e-4] * 3)
"""Of a calibration, rad and then m."""


def camera(name: str = "front", twist: Any = (0, 0, 0, 0, 0, 0), key: str = "a", mount: str = "to_hand", **lens: Any) -> dict[str, Any]:
    told = {"width": 640, "height": 480, "focal": [600.0, 600.0], "centre": [320.0, 240.0], **lens}
    covariance = np.diag(SIGMA**2).tolist()
    return {"name": name, "hash": key, "mount": mount, "T": se3_exp(twist).tolist(), "covariance": covariance, "camera": told}


def of(*cameras: dict[str, Any], first: int = 0) -> Calibration:
    return Calibration(cameras=cameras, from_episode=first)


def test_a_hash_is_the_cameras_own_or_of_all_of_them_in_any_order():
    one, two = camera("front", key="a"), camera("wrist", key="b")
    assert of(one).hash == "a" and of().hash == calibrations.UNKNOWN
    assert of(one, two).hash == of(two, one).hash != of(camera("front", key="b"), camera("wrist", key="a")).hash


def test_how_far_apart_is_told_in_metres_radians_and_chance():
    same = apart(camera(), camera())
    assert same.same and same.metres == 0 and same.chance == 1.0
    moved = apart(camera(), camera(twist=[0.003, 0.004, 0, 0, 0, 0.02]))
    assert moved.metres == pytest.approx(0.005, rel=0.01) and moved.radians == pytest.approx(0.02) and not moved.same
    assert moved.told.startswith("is 5.0 mm and 1.15 degrees from where it was")
    # two calibrations of one camera, each as far off as its own covariance says, are one in all but one of a thousand
    rng, order = np.random.default_rng(0), [3, 4, 5, 0, 1, 2]
    chances = [apart(camera(twist=rng.normal(0, SIGMA)[order]), camera(twist=rng.normal(0, SIGMA)[order])).chance for _ in range(300)]
    assert 0.42 < np.mean(chances) < 0.58 and np.mean(np.array(chances) < 0.1) == pytest.approx(0.1, abs=0.06)


def test_what_is_negligible_is_the_same_however_exactly_it_is_known():
    exact = camera(), camera(twist=[0, 5e-4, 0, 0, 0, 1e-3])
    for c in exact:
        c["covariance"] = (1e-14 * np.eye(6)).tolist()
    assert apart(*exact).chance < 1e-6 and apart(*exact).same


def test_other_lenses_and_mounts_are_others():
    longer = apart(camera(), camera(focal=[640.0, 640.0]))
    assert not longer.same and "another lens" in longer.told
    assert apart(camera(), camera(width=1280, height=960, focal=[1200.0, 1200.0], centre=[640.0, 480.0])).same  # the same, twice as fine
    assert "another shape" in apart(camera(), camera(width=640, height=360)).told
    assert "on the hand and was beside the robot" in apart(camera(), camera(mount="in_hand")).told


def test_one_camera_alone_goes_by_any_name():
    assert of(camera("camera0")).camera("front") is not None
    assert of(camera("camera0")).camera("front", others=2) is None
    assert of(camera("camera0"), camera("wrist")).camera("front") is None


def test_a_dataset_tells_from_which_episode_on(tmp_path):
    first, second = of(camera(key="a")), of(camera(key="b"))
    begin(tmp_path, 0, None)
    assert load(tmp_path) == () and not (tmp_path / "meta").exists()
    begin(tmp_path, 0, first)
    begin(tmp_path, 3, first)  # goes on as before
    begin(tmp_path, 5, second)
    begin(tmp_path, 7, None)
    assert [(c.from_episode, c.hash) for c in load(tmp_path)] == [(0, "a"), (5, "b"), (7, "")]
    begin(tmp_path, 7, second)  # nothing was recorded in between
    assert [(c.from_episode, c.hash) for c in load(tmp_path)] == [(0, "a"), (5, "b")]
    late = tmp_path / "late"
    begin(late, 4, first)
    assert [(c.from_episode, c.hash) for c in load(late)] == [(0, ""), (4, "a")]


def test_a_run_keeps_every_calibration_of_its_data_once(tmp_path):
    for name, keys in (("one", "ab"), ("two", "b"), ("none", "")):
        (tmp_path / name).mkdir()
        for episode, key in enumerate(keys):
            begin(tmp_path / name, episode, of(camera(key=key)))
    assert [c.hash for c in collected([tmp_path / "one", tmp_path / "two"])] == ["a", "b"]
    assert [c.hash for c in collected([tmp_path / "none", tmp_path / "two"])] == ["", "b"]
    assert collected([tmp_path / "none"]) == ()
    store(collected([tmp_path / "one"]), tmp_path / "run")
    assert [c.hash for c in load(tmp_path / "run")] == ["a", "b"]


@pytest.mark.parametrize("content", ['{"version": 2}', '{"version": 1}', "[]", '{"version": 1, "calibrations": [{"cameras": [{}]}]}', "{"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / calibrations.FILE).write_text(content)
    with pytest.raises(DataError) as refused:
        load(tmp_path)
    assert calibrations.FILE in str(refused.value) and "\n" not in str(refused.value)
