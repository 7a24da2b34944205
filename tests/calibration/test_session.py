"""Sessions with everything wrong in them that recordings have: named line by line, and the good rest kept."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from calibration.check import check
from calibration.results import mounted
from calibration.session import find_views, read_own, write_session
from calibration.simulate import Scenario, simulate
from calibration.solve import solve
from calibration.views import pack
from sinew.errors import DataError
from sinew.se3 import se3, se3_inverse, so3_exp

X = se3(so3_exp(np.array([2.0, 0.2, 0.1])), np.array([1.0, 0.1, 0.5]))
Z = se3(so3_exp(np.array([0.1, 0.3, 0.0])), np.array([0.0, 0.0, 0.1]))


@pytest.fixture
def session(drawn, tmp_path):
    """A folder of four pictures of a board on the hand."""
    board, pictures, camera, poses = drawn("charuco")
    writer = write_session(tmp_path / "s", board, (camera,), "to_hand", ("front",))
    for picture, pose in zip(pictures, poses, strict=True):
        writer.add(picture, X @ pose @ se3_inverse(Z))
    return tmp_path / "s"


def lines(session) -> list[dict]:
    return [json.loads(line) for line in (session / "poses.jsonl").read_text().splitlines()]


def write(session, rows) -> None:
    (session / "poses.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_what_is_wrong_is_named_and_the_rest_is_kept(session):
    rows, folder = lines(session), session / "images"
    picture = cv2.imread(str(folder / "0000.png"))
    for name in ("small", "torn", "junk", "lonely", "nan", "poseless"):
        cv2.imwrite(str(folder / f"{name}.png"), picture if name != "small" else cv2.resize(picture, (480, 360)))
    whole = (folder / "torn.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 3])
    (folder / "junk.png").write_bytes(b"no picture")

    def row(name, **more):
        return {**rows[0], "image": f"images/{name}.png", **more}

    others = [row("small"), row("torn"), row("junk"), row("gone"), row("nan", T_base_hand=[float("nan")] * 16)]
    others += [{"image": "images/poseless.png"}, rows[1], "{half a line", "", row("far", image="../../etc/passwd")]
    write(session, [others[0], *rows, *others[1:]])  # what is of another size comes first
    found = find_views(read_own(session))
    assert found.views.names == tuple(r["image"] for r in rows) and found.sizes == ((960, 720),)
    told = {
        "images/small.png": "480 x 360, those of this camera must be 960 x 720", "images/torn.png": "damaged", "images/junk.png": "damaged",
        "images/gone.png": "missing", "images/nan.png": "not finite", "images/poseless.png": "needs T_base_hand",
        "images/0001.png": "more than once", "line 12": "number 12", "images/lonely.png": "no line in poses.jsonl",
        "../../etc/passwd": "not inside the session",
    }  # fmt: skip
    assert set(found.rejected) == set(told)
    for name, why in told.items():
        assert why in found.rejected[name] and "\n" not in found.rejected[name], found.rejected[name]


def test_intrinsics_of_another_size_are_refused_and_unknown_ones_go_by_most(session):
    recorded = read_own(session)
    camera = recorded.cameras[0]
    assert camera is not None
    with pytest.raises(DataError, match="are 960 x 720, its intrinsics are for 1920 x 1440"):
        find_views(replace(recorded, cameras=(replace(camera, width=1920, height=1440),)))
    assert find_views(replace(recorded, cameras=(None,))).sizes == ((960, 720),)


def test_one_view_again_and_again_is_refused_and_views_of_one_pose_share_its_error(session, drawn):
    rows = lines(session)
    write(session, [rows[2]] * 5)
    with pytest.raises(DataError, match=r"all 5 views .* are the same one: move the robot"):
        find_views(read_own(session))
    picture = cv2.imread(str(session / rows[0]["image"]))
    noise = np.random.default_rng(0).normal(0, 3, picture.shape)
    cv2.imwrite(str(session / "images/again.png"), np.clip(picture + noise, 0, 255).astype(np.uint8))
    write(session, [*rows, {**rows[0], "image": "images/again.png"}])
    views = find_views(read_own(session)).views
    assert len(views) == 5 and len(views.robot) == 4 and views.pose[0] == views.pose[4]


def test_copies_do_not_make_a_calibration_surer(session):
    rows = lines(session)
    write(session, rows * 4)
    found = find_views(read_own(session))
    assert len(found.views) == 4 and len(found.rejected) == 4


@pytest.mark.parametrize("wrong", [1.07, 0.7])
def test_a_check_with_a_board_of_another_size_says_so_and_by_how_much(wrong):
    scenario = Scenario(mount="to_hand", views=30)
    made = simulate(scenario, 0)
    stored = mounted(solve(pack(made.views[:15]), [made.camera], "to_hand", model="poses"), ("front",))[0]
    views = pack([replace(v, points=v.points * wrong) for v in made.views[15:]])
    verdict = check(stored, views)
    assert verdict.holds and verdict.board_scale == pytest.approx(1 / wrong, rel=5e-3), verdict
    direction = "smaller" if wrong > 1 else "larger"
    assert f"% {direction} than told" in verdict.told and "camera front still is where it was" in verdict.told
    assert check(stored, pack(made.views[15:])).board_scale == 1.0
