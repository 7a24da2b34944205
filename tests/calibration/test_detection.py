"""Boards in drawn pictures: corners to a tenth of a pixel, and pictures that cannot be used told why."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from calibration.boards import Board
from calibration.detection import detect
from calibration.order import resolve_order
from calibration.session import SessionWriter, find_views, read_own, write_session
from calibration.simulate import Scenario, simulate
from calibration.solve import solve
from calibration.views import pack
from sinew.errors import DataError, InputError
from sinew.se3 import se3_act


@pytest.mark.parametrize("kind", ["charuco", "apriltag", "checkerboard", "circles"])
def test_corners_are_where_they_were_drawn(drawn, kind):
    board, pictures, camera, poses = drawn(kind)
    errors = []
    for picture, pose in zip(pictures, poses, strict=True):
        found = detect(picture, board)
        assert not found.refused, found.refused
        error = found.pixels - camera.project(se3_act(pose, board.points[found.ids]))
        if kind == "checkerboard" and np.abs(error).max() > 5:  # it looks the same upside down
            error = found.pixels[::-1] - camera.project(se3_act(pose, board.points[found.ids]))
        errors.append(error)
        assert len(found.ids) == board.count and (found.sigma > 0).all()
    whole = np.concatenate(errors)
    assert np.sqrt(np.mean(whole**2)) < 0.12 and np.abs(whole.mean(0)).max() < 0.05


def test_pictures_that_cannot_be_used_are_refused_with_the_reason(drawn):
    board, pictures, _, _ = drawn("charuco")
    picture = pictures[0]
    assert "out of focus" in detect(cv2.GaussianBlur(picture, (0, 0), 6), board).refused
    assert "moved" in detect(cv2.blur(picture, (21, 1)), board).refused
    assert "0 of 35" in detect(np.full_like(picture, 128), board).refused
    half = np.where(np.arange(picture.shape[1]) > 400, picture, 120).astype(np.uint8)
    part = detect(half, board)
    assert not part.refused and 6 <= len(part.ids) < 35
    assert len(detect(np.repeat(picture[..., None], 3, -1), board).ids) == 35
    with pytest.raises(InputError, match="uint8"):
        detect(picture.astype(float), board)


def test_boards_are_checked():
    for bad in ({"kind": "magic"}, {"columns": 1}, {"square_m": 30.0}, {"marker_m": 0.05}, {"dictionary": "DICT_NO"}):
        with pytest.raises(InputError):
            Board(**bad)


def test_a_board_that_looks_the_same_upside_down_is_turned_the_right_way():
    board = Board(kind="checkerboard", columns=8, rows=6)
    made = simulate(Scenario(views=14, mount="to_hand"), 0)
    rng = np.random.default_rng(0)
    as_printed = np.argsort(np.lexsort((board.points[:, 0], board.points[:, 1])))
    shown = [replace(v, points=board.points, pixels=v.pixels[as_printed]) for v in made.views]
    turned = [replace(v, pixels=v.pixels[::-1]) if rng.random() < 0.5 else v for v in shown]
    right = resolve_order(turned, board, (made.camera,), "to_hand")
    same = [np.array_equal(a.pixels, b.pixels) for a, b in zip(right, shown, strict=True)]
    assert all(same) or not any(same)
    assert np.linalg.norm(solve(pack(right), [made.camera], "to_hand", model="poses").T[0][:3, 3] - made.X[:3, 3]) < 2e-3


def test_a_session_is_kept_and_what_is_wrong_with_it_is_named(drawn, tmp_path):
    board, pictures, camera, poses = drawn("charuco")
    writer = write_session(tmp_path / "s", board, [camera], "to_hand")
    for picture, pose in zip(pictures, poses, strict=True):
        writer.add(picture, pose, stamp_ns=5)
    with pytest.raises(InputError, match="already"):
        write_session(tmp_path / "s", board, [camera], "to_hand")
    more = SessionWriter(tmp_path / "s")
    more.count = 4
    more.add(pictures[0][:300], poses[0])
    more.add(pictures[0], np.full((4, 4), np.nan))
    (tmp_path / "s/images/0001.png").write_bytes(b"no picture")
    with (tmp_path / "s/poses.jsonl").open("a") as file:
        file.write('{"image": "../secret.png", "T_base_hand": [1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1]}\n{"image": "images/0000.png"}\nnonsense\n')
    session = read_own(tmp_path / "s")
    assert session.mount == "to_hand" and session.board == board and session.cameras == (camera,) and len(session.shots) == 6
    assert set(session.skipped) == {"../secret.png", "images/0000.png", "line 9"} and "inside" in session.skipped["../secret.png"]
    found = find_views(session)
    assert len(found.views) == 3 and found.sizes == ((960, 720),)
    assert "damaged" in found.rejected["images/0001.png"] and "300" in found.rejected["images/0004.png"]
    assert "finite" in found.rejected["images/0005.png"]
    with pytest.raises(DataError):
        read_own(tmp_path)
