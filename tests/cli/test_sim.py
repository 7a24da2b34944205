"""`sinew sim`: from recorded motion to a file that worlds are drawn from, and what is refused."""

import json
from pathlib import Path

import pytest

from sinew.cli.main import main

TRUE = [
    {"what": "payload", "range": [0.6, 0.6], "unit": "kg"},
    {"what": "action_delay", "range": [40, 40], "unit": "ms"},
]


def ranges(folder: Path, *entries: dict) -> Path:
    path = folder / "ranges.json"
    path.write_text(json.dumps({"parameters": list(entries)}))
    return path


@pytest.fixture
def data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "data"
    file = ranges(tmp_path, *TRUE)
    assert main(["collect", "--task", "lift", "--episodes", "12", "--randomise", str(file), "--out", str(path), "--json"]) == 0
    capsys.readouterr()
    return path


def test_what_a_collection_was_played_with_is_kept_and_found_again(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from demos import Dataset
    from sim.randomise import load_randomisation

    kept = Dataset(data).column("randomised")
    assert kept.shape[1] == 2 and kept[0, -1] == pytest.approx(0.8) and (kept == kept[0]).all()
    out = tmp_path / "found.json"
    words = ["sim", "sysid", "--data", str(data), "--robot", "lift", "--out", str(out), "--window", "0.6", "--json"]
    assert main([*words, "--parameters", "payload", "action_delay"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["error_held_out_rad"]["after"] < told["error_held_out_rad"]["before"]
    found = load_randomisation(out)
    delay = next(p for p in found.parameters if p.what == "action_delay")
    assert delay.unit == "steps" and delay.centre == pytest.approx(0.8, abs=0.1)
    assert main(["sim", "draw", str(out), "--task", "lift", "--json"]) == 0
    assert "action_delay" in json.loads(capsys.readouterr().out)["names"]


def test_what_cannot_be_is_told_in_a_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ranges(tmp_path, {"what": "masss", "range": [1, 2], "unit": "kg"})
    out = ["--out", str(tmp_path / "f.json")]
    for words, said in (
        (["sim", "draw", str(file), "--task", "lift"], "did you mean 'mass'"),
        (["sim", "sysid", "--data", str(data), "--robot", "ur5", *out], "did you mean 'ur5e'"),
        (["sim", "sysid", "--data", str(data), "--robot", "ur5e", *out], "holds no positions of 'shoulder_pan_joint.position'"),
        (["sim", "sysid", "--data", str(data), "--robot", "lift", "--window", "0.1", *out], "--window 0.1: from 0.5 to 60"),
        (["sim", "sysid", "--data", str(data), "--robot", "lift", "--window", "30", *out], "frames; 609 in a row are needed"),
        (["sim", "sysid", "--data", str(data), "--robot", "lift", "--parameters", "dampng", *out], "did you mean 'damping'"),
        (["sim", "sysid", "--data", str(data), "--robot", "lift", *out, "--parameters"], "--parameters names none"),
        (["collect", "--task", "gym:CartPole-v1", "--randomise", str(file), "--out", str(tmp_path / "x")], ""),
    ):
        assert main(words) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("sinew: ") and said in told, told
