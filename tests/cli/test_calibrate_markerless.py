"""`sinew calibrate markerless` as its user runs it: recordings with masks, with pictures alone, with keypoints, and bad ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from calibration.camera import Camera
from calibration.markerless_session import write_recording
from calibration.masks import read_picture
from calibration.results import read
from calibration.simulate_masks import Spoiling, look_from, looks_at
from robot_bridge.body import body_of
from sinew.cli.main import main
from sinew.se3 import se3_exp, se3_inverse, se3_log

CAMERA = Camera(320, 240, (300.0, 300.0), (159.5, 119.5), (-0.15, 0.03, 0.0, 0.0, 0.0))
T = look_from(np.array([1.5, -0.9, 1.0]), np.array([0.25, 0.0, 0.42]), 0.05)
PLACES = {"tip": ("tool", [0, 0, 0]), "wrist": ("link6", [0, 0.05, 0]), "elbow": ("link4", [0, 0.06, 0]), "base": ("base", [0.07, 0, 0.2])}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with pictures (a light robot before darkness), masks and keypoints, and a rough pose of the camera."""
    path, body, rng = tmp_path_factory.mktemp("rec") / "arm", body_of("lift"), np.random.default_rng(0)
    q = rng.uniform([-1.2, -0.6, -1, 0.3, -1.5, -0.5, -1.5], [1.2, 0.9, 1, 1.8, 1.5, 1.5, 1.5], (7, 7))
    q = np.concatenate([q, np.full((7, 2), 0.04)], 1)
    looks = looks_at(body, q, CAMERA, T, Spoiling(), rng)
    coloured = [np.where(v.mask[..., None], [200, 190, 60], 60) + rng.normal(0, 3, (240, 320, 3)) for v in looks]
    pictures = [np.clip(c, 0, 255).astype(np.uint8) for c in coloured]
    write_recording(path, [CAMERA], body.joints, q, pictures, [v.mask for v in looks])
    empty = np.clip(60 + rng.normal(0, 3, (240, 320, 3)), 0, 255).astype(np.uint8)
    import cv2

    cv2.imwrite(str(path / "empty.png"), empty)
    (path / "keypoints.json").write_text(json.dumps({k: {"body": b, "position": p} for k, (b, p) in PLACES.items()}))
    lines = [json.loads(line) for line in (path / "poses.jsonl").read_text().splitlines()]
    inverse = se3_inverse(T)
    for row in lines:
        at = np.array([body.point(b, p, np.array(row["joints"]))[:3] for b, p in PLACES.values()])
        seen = CAMERA.project(at @ inverse[:3, :3].T + inverse[:3, 3]) + rng.normal(0, 0.5, (4, 2))
        row["keypoints"] = {k: [float(u), float(v), 1.0] for k, (u, v) in zip(PLACES, seen, strict=True)}
    lines[2]["keypoints"]["tip"] = [10.0, 10.0, 0.9]  # found on something else
    (path / "poses.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (path / "rough.json").write_text(json.dumps((T @ se3_exp(np.array([0.02, -0.02, 0.03, 0.02, 0.02, -0.02]))).ravel().tolist()))
    body.close()
    return path


def run(capsys, *arguments: object) -> tuple[int, dict, str]:
    code = main(["calibrate", "markerless", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def near_the_truth(told: dict) -> bool:
    """Within three pixels, and as far off as its covariance makes likely but once in a thousand times (chi-square of 6)."""
    error = se3_log(se3_inverse(np.array(told["T"])) @ T)[[3, 4, 5, 0, 1, 2]]
    pixel_m, pixel_rad = float(np.linalg.norm(T[:3, 3])) / 300, 1 / 300
    close = np.linalg.norm(error[3:]) < 3 * pixel_m and np.linalg.norm(error[:3]) < 3 * pixel_rad
    return bool(close and error @ np.linalg.solve(np.array(told["covariance"]), error) < 22.5)


def test_masks_give_a_calibration_that_other_verbs_and_ros_read(recorded, tmp_path, capsys):
    given = ("--data", recorded, "--robot-config", "lift", "--cad-prior", recorded / "rough.json")
    code, told, _ = run(capsys, *given, "--out", tmp_path / "cal", "--name", "side")
    assert code == 0 and near_the_truth(told) and len(told["used"]) == 7 and told["observability"][0]["observable"]
    assert {"T", "covariance", "held_out_px", "used", "rejected", "model", "observability", "bleed_px", "hash"} <= set(told)
    stored = read(tmp_path / "cal")[0]
    assert stored.name == "side" and stored.mount == "to_hand" and [stored.hash] == told["hash"] and 0 < stored.robot_sigma_m < 0.01
    assert yaml.safe_load((tmp_path / "cal/side.static_tf.yaml").read_text())["transforms"][0]["header"]["frame_id"] == "base_link"
    page = (tmp_path / "cal/report.html").read_text()
    assert page.count('class="overlay"') == 7 and page.count("image/jpeg;base64") == 7 and "side: known to" in page and "http" not in page


def test_pictures_alone_are_enough_where_the_robot_stands_out(recorded, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(recorded, bare)
    shutil.rmtree(bare / "masks")
    given = ("--data", bare, "--robot-config", "lift", "--cad-prior", bare / "rough.json", "--out", tmp_path / "cal")
    for option in (("--empty", bare / "empty.png"), ("--colour", 200, 190, 60)):
        code, told, _ = run(capsys, *given, *option)
        assert code == 0 and near_the_truth(told)
    code, _, err = run(capsys, *given)
    assert code == 2 and "no view" in err and "missing" in err and err.count("sinew: ") == 1
    assert "give one" in run(capsys, *given, "--empty", bare / "empty.png", "--colour", 1, 2, 3)[2]
    assert "three numbers" in run(capsys, *given, "--colour", 1, 2)[2]


def test_keypoints_need_neither_masks_nor_a_first_guess(recorded, tmp_path, capsys):
    code, told, err = run(capsys, "--data", recorded, "--robot-config", "lift", "--keypoints", "--out", tmp_path / "cal")
    assert code == 0, err
    assert near_the_truth(told) and told["model"] == "keypoints" and told["points_left_out"] == {"images/0002.png": 1}
    assert told["held_out_px"] < 2 and "known to" in (tmp_path / "cal/report.html").read_text()


def test_bad_input_is_one_line(recorded, tmp_path, capsys):
    def told(*arguments: object, data=recorded, robot: object = "lift") -> str:
        code, _, err = run(capsys, "--data", data, "--robot-config", robot, "--out", tmp_path / "never", *arguments)
        lines = [line for line in err.splitlines() if line.startswith("sinew: ")]
        assert code == 2 and len(lines) == 1 and not (tmp_path / "never").exists()
        return lines[0]

    assert "does not exist" in told(data=tmp_path / "none")
    assert "look like it" in told(robot="ur5e") and "does not exist" in told(robot="my.urdf") and "simulated task" in told(robot="nothing")
    assert "cameras 0 to 0" in told("--camera", 3) and "known are" in told("--base", "foot")
    (tmp_path / "broken.xml").write_text("<mujoco><worldbody><geom/></mujoco>")
    assert "cannot be read" in told(robot=tmp_path / "broken.xml")
    (tmp_path / "still.xml").write_text('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
    assert "joint" in told(robot=tmp_path / "still.xml")

    def changed(**what: object):
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(recorded, copy)
        info = json.loads((copy / "session.json").read_text())
        (copy / "session.json").write_text(json.dumps({**info, **what}))
        return copy

    assert "use a board" in told(data=changed(mount="in_hand"))
    assert "no intrinsics" in told(data=changed(cameras=[]))
    assert "unknown joint" in told(data=changed(joints=[f"axis{i}" for i in range(9)]))
    assert "no usable line" in told(data=changed(joints=["joint1"]))
    degrees = changed()
    rows = [json.loads(line) for line in (degrees / "poses.jsonl").read_text().splitlines()]
    rows = [{**row, "joints": np.rad2deg(row["joints"]).tolist()} for row in rows]
    (degrees / "poses.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "looks like degrees" in told(data=degrees)
    (degrees / "poses.jsonl").unlink()
    assert "no recording" in told(data=degrees)
    assert read_picture(recorded / "images/0000.png").shape == (240, 320, 3)
