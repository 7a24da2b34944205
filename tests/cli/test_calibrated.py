"""`--calibration` from the recording to the deployment: kept, shown, checked, converted, compared, refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.camera import Camera
from calibration.results import Mounted
from sinew.cli.main import main
from sinew.config import to_json
from sinew.se3 import se3, se3_exp, so3_exp

pytest.importorskip("sim.render")
PLACE = se3(so3_exp(np.array([2.0, 0.1, 0.0])), np.array([0.9, 0.0, 0.6]))


def result_of(folder: Path, twist=(0, 0, 0, 0, 0, 0), name: str = "front") -> Path:
    """A calibration.json as 'sinew calibrate handeye' writes it."""
    mounted = Mounted(
        name=name, mount="to_hand", T=PLACE @ se3_exp(np.array(twist)), covariance=np.diag([3e-4] * 3 + [2e-4] * 3) ** 2,
        camera=Camera(640, 480, (600.0, 600.0), (320.0, 240.0)), Z=np.eye(4), pixel_sigma=0.3, robot_sigma_m=1e-4, robot_sigma_rad=3e-4,
    )  # fmt: skip
    folder.mkdir()
    (folder / "calibration.json").write_text(json.dumps({"version": 1, "cameras": [{**to_json(mounted), "hash": mounted.hash}]}))
    return folder


def sinew(capsys, *arguments, code: int = 0) -> tuple[dict, str]:
    found = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert found == code, err
    return json.loads(out) if out else {}, err


def refusal(err: str) -> str:
    (line,) = [line for line in err.splitlines() if line.startswith("sinew: ")]
    return line


def test_from_the_recording_to_the_deployment(tmp_path, capsys):
    first, moved = result_of(tmp_path / "first", name="camera0"), result_of(tmp_path / "moved", (0.02, 0, 0, 0, 0.03, 0))
    again = result_of(tmp_path / "again", (2e-4, 0, 0, 0, 3e-4, 0))
    collect = ("collect", "--task", "lift", "--cameras", "front", "--image-size", 32, "--out", tmp_path / "d")
    sinew(capsys, *collect, "--episodes", 1, "--calibration", first)
    sinew(capsys, *collect, "--episodes", 2, "--calibration", again)
    told, _ = sinew(capsys, "data", "info", tmp_path / "d")
    assert [(c["from_episode"], list(c["cameras"])) for c in told["calibrations"]] == [(0, ["front"]), (1, ["front"])]
    checked, _ = sinew(capsys, "data", "check", tmp_path / "d")
    (finding,) = [f for f in checked["findings"] if "calibrat" in f["message"]]
    assert finding["level"] == "note" and "are where they were" in finding["message"]

    sinew(capsys, "train", "--data", tmp_path / "d", "--steps", 2, "--batch-size", 8, "--out", tmp_path / "run")
    hashes = [c["hash"] for c in told["calibrations"]]
    assert json.loads((tmp_path / "run/provenance.json").read_text())["inputs"]["calibration"] == " ".join(hashes)
    deploy = ("deploy", tmp_path / "run", "--robot", "sim", "--episodes", 1, "--max-steps", 2)
    deployed, err = sinew(capsys, *deploy, "--calibration", again, "--record", tmp_path / "e")
    assert deployed["calibration"]["cameras"]["front"]["same"] and "camera front" not in err
    assert [c["hash"] for c in sinew(capsys, "data", "info", tmp_path / "e")[0]["calibrations"]] == [hashes[1]]
    line = refusal(sinew(capsys, *deploy, "--calibration", moved, code=2)[1])
    assert "camera front is 19.8 mm and 1.70 degrees" in line and "--allow-other-calibration" in line
    allowed, err = sinew(capsys, *deploy, "--calibration", moved, "--allow-other-calibration")
    assert not allowed["calibration"]["cameras"]["front"]["same"] and "going on as told" in err
    silent, err = sinew(capsys, *deploy)
    assert silent["calibration"] is None and err.count("give --calibration") == 1


def test_episodes_whose_camera_was_elsewhere_are_named_and_converters_keep_it(tmp_path, capsys):
    first, moved = result_of(tmp_path / "first"), result_of(tmp_path / "moved", (0.02, 0, 0, 0, 0.03, 0))
    collect = ("collect", "--task", "lift", "--cameras", "front", "--image-size", 32, "--out", tmp_path / "d")
    for episodes, given in ((1, ["--calibration", first]), (2, ["--calibration", f"front={moved}"]), (3, [])):
        sinew(capsys, *collect, "--episodes", episodes, *given)
    sinew(capsys, "data", "convert", tmp_path / "d", "--out", tmp_path / "a.mcap")
    sinew(capsys, "data", "convert", tmp_path / "a.mcap", "--out", tmp_path / "back")
    there, back = (sinew(capsys, "data", "info", tmp_path / name)[0]["calibrations"] for name in ("d", "back"))
    assert there == back and [c["from_episode"] for c in back] == [0, 1, 2] and back[2]["hash"] == ""
    found = [f for f in sinew(capsys, "data", "check", tmp_path / "back")[0]["findings"] if "calibrations" in f["where"]]
    assert [(f["level"], f["episode"]) for f in found] == [("warning", 1), ("note", 2)]
    assert "camera front is 20.0 mm and 1.72 degrees from where it was" in found[0]["message"] and "not known" in found[1]["message"]


def test_a_policy_without_pictures_or_without_a_calibration_is_not_refused(tmp_path, capsys):
    given = result_of(tmp_path / "given", name="camera0")
    for name, cameras in (("plain", []), ("pictures", ["--cameras", "front", "--image-size", 32])):
        sinew(capsys, "collect", "--task", "lift", "--episodes", 1, *cameras, "--out", tmp_path / name)
        sinew(capsys, "train", "--data", tmp_path / name, "--steps", 2, "--batch-size", 8, "--out", tmp_path / f"{name}-run")
        deploy = ("deploy", tmp_path / f"{name}-run", "--robot", "sim", "--episodes", 1, "--max-steps", 2)
        silent, err = sinew(capsys, *deploy)
        assert silent["calibration"] is None and "calibration" not in err
        _, err = sinew(capsys, *deploy, "--calibration", given)
        assert err.count("does not tell where its data's cameras were") == (name == "pictures")


def test_what_cannot_be_is_one_line(tmp_path, capsys):
    one = result_of(tmp_path / "one", name="top")
    collect = ("collect", "--task", "lift", "--cameras", "front", "wrist", "--episodes", 1, "--out", tmp_path / "d")
    assert "looked at are front, wrist: give it as front=" in refusal(sinew(capsys, *collect, "--calibration", one, code=2)[1])
    line = refusal(sinew(capsys, *collect, "--calibration", f"front={one}", f"front={one}", code=2)[1])
    assert "two cameras are called front" in line
    assert "cannot be read" in refusal(sinew(capsys, *collect, "--calibration", tmp_path / "none", code=2)[1])
    assert not (tmp_path / "d").exists()
