"""`sinew calibrate` with a robot, as its user runs it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from sinew.cli.calibrate_robot import accuracy
from sinew.cli.main import main
from sinew.errors import InputError


def run(capsys, *arguments: object) -> tuple[int, dict, str]:
    code = main(["calibrate", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def last(err: str) -> str:
    return err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A calibration that the simulated robot made, and what it printed."""
    import contextlib
    import io

    out, said = tmp_path_factory.mktemp("robot") / "cal", io.StringIO()
    arguments = ["--robot", "sim", "--mount", "to_hand", "--camera", "front", "--accuracy", "2mm", "--speed", "1", "--views-max", "8"]
    with contextlib.redirect_stdout(said):
        code = main(["calibrate", "handeye", *arguments, "--out", str(out), "--json"])
    return code, out, json.loads(said.getvalue())


def test_a_simulated_robot_calibrates_its_camera_and_says_how_far_off_it_is(calibrated):
    code, out, told = calibrated
    assert code == 0 and told["mount"] == "to_hand"
    assert told["taken"]["reached"] and told["taken"]["why"] == "the wanted accuracy is reached" and told["taken"]["worst_m"] < 2e-3
    assert told["taken"]["views"] == 8 >= len(told["used"]) >= 7
    assert told["error"]["mm"] < 0.5 and told["error"]["deg"] < 0.1 and told["held_out_px"] < 1.0
    assert told["taken"]["session"] == str(out / "session") and len((out / "session/poses.jsonl").read_text().splitlines()) >= 8
    transform = yaml.safe_load((out / "front.static_tf.yaml").read_text())["transforms"][0]
    assert transform["header"]["frame_id"] == "base_link" and transform["child_frame_id"] == "front_optical_frame"
    parameters = yaml.safe_load((out / "front.easy_handeye2.yaml").read_text())["parameters"]
    assert parameters["calibration_type"] == "eye_on_base" and parameters["tracking_base_frame"] == "front_optical_frame"


def test_the_robot_checks_whether_it_is_still_true(calibrated, capsys):
    _, out, _ = calibrated
    quick = ["--robot", "sim", "--accuracy", "3mm", "--speed", "1", "--views-max", "4"]
    code, told, _ = run(capsys, "check", out, *quick)
    assert code == 0 and told["holds"] is True and (out / "check-1/poses.jsonl").exists()
    # another seed has the camera elsewhere, by up to a centimetre and three degrees
    code, told, _ = run(capsys, "check", out, *quick, "--seed", 1)
    assert code == 2 and told["holds"] is False and 1e-3 < told["moved_m"] < 0.05 and (out / "check-2").exists()


def test_a_session_is_not_written_over(calibrated, capsys):
    _, out, _ = calibrated
    code, _, err = run(capsys, "handeye", "--robot", "sim", "--mount", "to_hand", "--camera", "front", "--out", out)
    assert code == 2 and "--resume" in last(err)
    more = ["--mount", "to_hand", "--camera", "front", "--out", out, "--resume", "--square", "0.02", "--marker", "0.015"]
    code, _, err = run(capsys, "handeye", "--robot", "sim", *more)
    assert code == 2 and "was taken with board" in last(err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either --data"),
        (("--data", "x", "--robot", "sim"), "give either --data"),
        (("--robot", "sim", "--mount", "in_hand"), "--camera NAME"),
        (("--robot", "sim", "--camera", "wrist"), "--mount in_hand or --mount to_hand"),
        (("--robot", "sim", "--camera", "front", "--mount", "in_hand"), "the simulated camera on the robot is wrist"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--accuracy", "fine"), "--accuracy fine"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--domain", "3"), "--domain"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--views-max", "2"), "at least 3"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--speed", "2"), "--speed 2"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--robot-config", "ur6"), "did you mean 'ur5e'"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--robot-config", "ros2_control"), "sinew robot add"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--kind", "checkerboard"), "upside down"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--floor", "0.4"), "stands where it may not"),
        (("--robot", "sim", "--camera", "wrist", "--mount", "in_hand", "--intrinsics", "nowhere"), "nowhere cannot be read"),
        (("--robot", "dds", "--camera", "wrist", "--mount", "in_hand", "--controller", "velocity"), "--robot-config"),
        (("--robot", "dds", "--camera", "wrist", "--mount", "in_hand"), "no terminal to ask in"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_begun(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "handeye", *arguments)
    assert code == 2 and said in last(err) and not (tmp_path / "calibration/session").exists(), err


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (("intrinsics",), "give either --images"),
        (("intrinsics", "--robot", "dds"), "--camera"),
        (("check", "nowhere"), "give either --data"),
        (("check", "nowhere", "--robot", "sim"), "nowhere"),
        (("publish", "nowhere"), "nowhere"),
    ],
)
def test_the_other_verbs_tell_what_they_need(tmp_path, capsys, monkeypatch, verb, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *verb)
    assert code == 2 and said in last(err), err


def test_accuracies_are_read_with_their_units():
    fine = accuracy("0.5mm")
    assert fine.position_m == pytest.approx(0.5e-3) and np.rad2deg(fine.rotation_rad) == pytest.approx(0.5 / 0.3 * 0.05, rel=0.01)
    both = accuracy("0.1cm,0.2deg")
    assert both.position_m == pytest.approx(1e-3) and both.rotation_rad == pytest.approx(np.deg2rad(0.2))
    assert accuracy("0.001rad").position_m == pytest.approx(0.001 / 2.9, rel=0.01)
    for wrong in ("0.5", "mm", "-1mm", "1mm,2mm", "1e9e9mm", "nanmm", ""):
        with pytest.raises(InputError, match="standard deviation"):
            accuracy(wrong)


def test_a_board_of_another_size_than_told_is_said(calibrated, tmp_path, capsys):
    """The same pictures, solved as if the squares were smaller."""
    session = tmp_path / "session"
    shutil.copytree(calibrated[1] / "session", session)
    board = json.loads((session / "board.json").read_text()) | {"square_m": 0.029, "marker_m": 0.0212}
    (session / "board.json").write_text(json.dumps(board))
    code, told, _ = run(capsys, "handeye", "--data", session, "--out", tmp_path / "b")
    assert code == 0 and told["scale"] == pytest.approx(30 / 29, abs=2e-3)
