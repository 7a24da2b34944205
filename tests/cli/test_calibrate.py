"""`sinew calibrate` as its user runs it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from calibration.boards import Board
from calibration.simulate import Scenario, simulate
from sinew.cli.main import main
from sinew.se3 import matrix_to_quaternion, se3_exp


def samples(path, scenario: Scenario, seed: int, kind: str = "eye_in_hand") -> np.ndarray:
    """easy_handeye2 samples of a made-up calibration; returns X."""
    from calibration.views import board_poses, pack

    made = simulate(scenario, seed)
    boards, _ = board_poses(pack(made.views), [made.camera])

    def transform(pose):
        w, x, y, z = (float(v) for v in matrix_to_quaternion(pose[:3, :3]))
        t = [float(v) for v in pose[:3, 3]]
        return {"translation": dict(zip("xyz", t, strict=True)), "rotation": {"x": x, "y": y, "z": z, "w": w}}

    rows = [{"robot": transform(v.robot), "tracking": transform(b)} for v, b in zip(made.views, boards, strict=True)]
    path.write_text(yaml.safe_dump({"parameters": {"calibration_type": kind}, "samples": rows}))
    return made.X


def run(capsys, *arguments: str) -> tuple[int, dict, str]:
    code = main(["calibrate", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def test_a_sheet_is_a_pdf_of_true_size(tmp_path, capsys):
    code, told, _ = run(capsys, "board", "--out", tmp_path / "b.pdf")
    data = (tmp_path / "b.pdf").read_bytes()
    assert code == 0 and data.startswith(b"%PDF") and data.rstrip().endswith(b"%%EOF") and told["ruler_mm"] == 100
    assert b"/PrintScaling /None" in data and f"{297 * 72 / 25.4:.3f}".encode() in data
    assert told["width_mm"] == pytest.approx(1e3 * Board().size_m[0])
    code, _, err = run(capsys, "board", "--out", tmp_path / "c.pdf", "--square", 0.2, "--marker", "0.1")
    assert code == 2 and "does not fit" in err and err.count("\n") == 1


def test_samples_of_others_are_calibrated_checked_and_written_for_ros(tmp_path, capsys):
    x = samples(tmp_path / "a.yaml", Scenario(views=20), 0)
    code, told, _ = run(capsys, "handeye", "--data", tmp_path / "a.yaml", "--out", tmp_path / "cal", "--names", "front")
    assert code == 0 and told["mount"] == "in_hand" and len(told["used"]) == 20
    assert np.linalg.norm(np.array(told["T"])[:3, 3] - x[:3, 3]) < 2e-3 and np.shape(told["covariance"]) == (6, 6)
    assert {"T", "covariance", "held_out_px", "used", "rejected", "model", "observability"} <= set(told)
    w = matrix_to_quaternion(np.array(told["T"])[:3, :3])[0]
    transform = yaml.safe_load((tmp_path / "cal/front.static_tf.yaml").read_text())["transforms"][0]
    assert transform["header"]["frame_id"] == "tool0" and transform["transform"]["rotation"]["w"] == pytest.approx(w)
    assert yaml.safe_load((tmp_path / "cal/front.camera_info.yaml").read_text())["distortion_model"] == "plumb_bob"
    page = (tmp_path / "cal/report.html").read_text()
    assert str(tmp_path / "cal/report.html") in told["files"] and "front: known to" in page and "http" not in page
    assert yaml.safe_load((tmp_path / "cal/front.easy_handeye2.yaml").read_text())["parameters"]["calibration_type"] == "eye_in_hand"
    # the same camera seen again is where it was; bumped, it is not
    samples(tmp_path / "b.yaml", Scenario(views=20), 0)
    assert run(capsys, "check", tmp_path / "cal", "--data", tmp_path / "b.yaml")[0] == 0
    bumped = json.loads((tmp_path / "cal/calibration.json").read_text())
    bumped["cameras"][0]["T"] = (np.array(told["T"]) @ se3_exp(np.array([0.02, 0, 0, 0, 0.03, 0]))).tolist()
    (tmp_path / "cal/calibration.json").write_text(json.dumps(bumped))
    code, verdict, _ = run(capsys, "check", tmp_path / "cal", "--data", tmp_path / "b.yaml")
    assert code == 2 and verdict["holds"] is False and verdict["moved_m"] == pytest.approx(0.02, abs=3e-3)
    assert "calibrate again" in verdict["told"]


def test_what_cannot_be_told_is_refused_in_one_line_or_comes_from_the_drawing(tmp_path, capsys):
    x = samples(tmp_path / "a.yaml", Scenario(motion="one_axis"), 1)
    code, _, err = run(capsys, "handeye", "--data", tmp_path / "a.yaml", "--out", tmp_path / "cal", "--model", "poses")
    assert code == 2 and "one axis" in err and "--cad-prior" in err and not (tmp_path / "cal").exists()
    (tmp_path / "cad.json").write_text(json.dumps((x @ se3_exp(np.array([3e-3, 0, 0, 0.01, 0, 0]))).ravel().tolist()))
    code, told, _ = run(
        capsys,
        "handeye",
        "--data",
        tmp_path / "a.yaml",
        "--out",
        tmp_path / "cal",
        "--model",
        "poses",
        "--cad-prior",
        tmp_path / "cad.json",
    )
    assert code == 0 and told["observability"][0]["advice"] and np.linalg.norm(np.array(told["T"])[:3, 3] - x[:3, 3]) < 0.03


def test_bad_input_is_one_line(tmp_path, capsys):
    assert "does not exist" in run(capsys, "handeye", "--data", tmp_path / "none")[2]
    (tmp_path / "empty").mkdir()
    assert "no calibration set" in run(capsys, "handeye", "--data", tmp_path / "empty")[2]
    (tmp_path / "x.yaml").write_text("samples: 5")
    assert "easy_handeye2" in run(capsys, "handeye", "--data", tmp_path / "x.yaml")[2]
    samples(tmp_path / "a.yaml", Scenario(views=4), 0, kind="none")
    assert "--mount" in run(capsys, "handeye", "--data", tmp_path / "a.yaml")[2]
    code, _, err = run(capsys, "check", tmp_path / "a.yaml", "--data", tmp_path / "a.yaml")
    assert code == 2 and "no calibration" in err
    assert "empty" in run(capsys, "intrinsics", "--images", tmp_path / "empty")[2]


def test_a_lens_is_found_from_pictures(tmp_path, capsys, monkeypatch):
    """From corners as drawn through a bent lens; pictures themselves are tested where they are looked at."""
    from calibration import intrinsics
    from calibration.views import pack

    for model, d in (("pinhole", (-0.2, 0.08, 0.001, -0.001, 0.0)), ("fisheye", (0.1, -0.02, 0.0, 0.0))):
        made = simulate(Scenario(views=18, sigma_px=0.1), 0)
        lens = replace(made.true_camera, distortion=d, model=model)
        from calibration.model import first_estimate

        views = pack(made.views)
        boards = first_estimate("in_hand", made.X, made.Z, (lens,), views).boards(views)
        rng = np.random.default_rng(0)
        views = pack(
            [
                replace(v, pixels=lens.project(v.points @ b[:3, :3].T + b[:3, 3]) + rng.normal(0, 0.1, v.pixels.shape))
                for v, b in zip(made.views, boards, strict=True)
            ]
        )
        found = intrinsics.calibrate_intrinsics(views, (lens.width, lens.height))
        if model == "fisheye":
            assert found.camera.model == "fisheye" or found.held_out_px < 0.2
        assert found.held_out_px < 0.2 and abs(found.camera.focal[0] - 900) < 6 * max(found.sigma[0], 1.0)
        assert 0 < found.covered <= 1
