"""`sinew data`: info, check and repair of real datasets, through real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
ACTION = ActionSpec(kind="ee_delta", low=(-1,), high=(1,), rate_hz=20.0, names=("dx",))
STATE = ObservationSpec({"observation.state": TensorSpec(shape=(2,), unit="rad,m", names=("a", "b"))})


def sinew_data(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sinew", "data", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    import demos

    root = tmp_path / "demos"
    with demos.Writer.create(root, fps=20, observation_spec=STATE, action_spec=ACTION, robot_type="arm", task="move it") as writer:
        for episode in range(3):
            for i in range(12):
                values = {"observation.state": np.array([i, episode], np.float32), "action": np.array([i / 12], np.float32)}
                writer.add_frame(values, stamp_ns=i * 50_000_000)
            writer.save_episode(success=episode != 1)
    return root


def test_info_tells_size_outcomes_and_keys(dataset: Path) -> None:
    told = json.loads(sinew_data("info", str(dataset), "--json").stdout)
    assert (told["episodes"], told["frames"], told["fps"]) == (3, 36, 20)
    assert told["outcomes"] == {"success": 2, "failure": 1} and told["tasks"] == {"move it": 3}
    done = sinew_data("info", str(dataset))
    assert done.returncode == 0, done.stderr
    for text in ("3 episodes, 36 frames", "2 success, 1 failure", "'move it' (3)", "observation.state", "rad, m", "ee_delta at 20 Hz"):
        assert text in done.stdout, text


def test_check_of_a_sound_dataset(dataset: Path) -> None:
    done = sinew_data("check", str(dataset))
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.endswith("3 episodes, 36 frames, sound\n")
    assert json.loads(sinew_data("check", str(dataset), "--json").stdout)["ok"] is True


def test_a_truncated_file_is_an_error_with_its_name_and_exit_code_2(dataset: Path) -> None:
    table = next((dataset / "data").rglob("*.parquet"))
    table.write_bytes(table.read_bytes()[: table.stat().st_size // 2])
    done = sinew_data("check", str(dataset))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert table.name in done.stdout + done.stderr


@pytest.mark.parametrize("action", ["info", "check", "repair"])
def test_what_is_no_dataset_is_one_line_and_exit_code_2(tmp_path: Path, action: str) -> None:
    (tmp_path / "holiday.txt").write_text("sun")
    for folder in (tmp_path, tmp_path / "missing"):
        done = sinew_data(action, str(folder))
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("sinew: ") and done.stderr.count("\n") == 1
    assert (tmp_path / "holiday.txt").read_text() == "sun" and len(list(tmp_path.iterdir())) == 1


def test_repair_brings_in_what_a_killed_recorder_left(dataset: Path) -> None:
    source = """
import os, signal, sys
import numpy as np, demos
writer = demos.Writer.resume(sys.argv[1], task="move it")
for i in range(20):
    writer.add_frame({"observation.state": np.array([i, 9], np.float32), "action": np.zeros(1, np.float32)}, stamp_ns=i * 50_000_000)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", source, str(dataset)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9, killed.stderr
    found = json.loads(sinew_data("check", str(dataset), "--json").stdout)
    assert not found["ok"] and any(f["level"] == "warning" for f in found["findings"])
    mended = sinew_data("repair", str(dataset))
    assert mended.returncode == 0, mended.stderr + mended.stdout
    assert "brought in an interrupted episode" in mended.stdout
    told = json.loads(sinew_data("info", str(dataset), "--json").stdout)
    assert told["episodes"] == 4 and told["frames"] >= 36 + 19 and told["unsaved"] == []
