"""What the recorder takes, what it refuses, and what it keeps when the disk is full."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import demos
from demos import layout
from sinew.errors import DataError, InputError, SpecError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec


@pytest.fixture
def writer(tmp_path, helpers):
    observation, action = helpers.specs(cameras=1)
    with demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action, task="push") as writer:
        yield writer


def broken(helpers, **changes):
    frame = {**helpers.frame(0, 0, 1), **changes}
    return {k: v for k, v in frame.items() if v is not None}


CAMERA = "observation.images.cam0"
REFUSED = [
    ({"action": np.array([0, np.nan, 0], np.float32)}, "frame 1: 'action' element 1 is nan"),
    ({"observation.state": np.array([0, 0, 0, -np.inf], np.float32)}, "frame 1: 'observation.state' element 3 is -inf"),
    ({"observation.state": np.zeros(5, np.float32)}, r"frame 1: 'observation.state' has shape \(5,\)"),
    ({"action": np.zeros(3)}, "frame 1: 'action' is float64"),
    ({"action": [0.0, 0.0, 0.0]}, "frame 1: 'action' is a list"),
    ({"action": None}, "frame 1: key 'action' is missing"),
    ({CAMERA: None}, f"frame 1: key '{CAMERA}' is missing"),
    ({"observation.extra": np.zeros(1, np.float32)}, "frame 1: key 'observation.extra' is unknown"),
    ({CAMERA: np.zeros((48, 32, 3), np.uint8)}, r"has shape \(48, 32, 3\), the dataset records \(32, 48, 3\)"),
    ({CAMERA: np.zeros((32, 48, 3), np.float32)}, "is float32, the dataset records uint8"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_bad_frames_are_refused_and_named(writer, helpers, changes, message):
    writer.add_frame(helpers.frame(0, 0, 1))
    with pytest.raises(DataError, match=message):
        writer.add_frame(broken(helpers, **changes))
    writer.add_frame(helpers.frame(0, 1, 1))
    assert writer.save_episode().length == 2


@pytest.mark.parametrize("task", ["", "   "])
def test_empty_task_is_refused(writer, helpers, task):
    with pytest.raises(DataError, match="frame 0: the task is empty"):
        writer.add_frame(helpers.frame(0, 0, 1), task=task)


def test_saving_nothing_is_refused(writer):
    with pytest.raises(DataError, match="without a frame"):
        writer.save_episode()


def test_specs_that_cannot_be_recorded_are_refused(tmp_path, helpers):
    _, action = helpers.specs()
    for key, spec in {
        "observation/state": TensorSpec(shape=(2,)),
        "state": TensorSpec(shape=(2,)),
        "observation.map": TensorSpec(shape=(2, 2)),
        "observation.images.depth": TensorSpec(shape=(8, 8, 1), dtype="uint16"),
    }.items():
        with pytest.raises(SpecError, match=key):
            demos.Writer.create(tmp_path / "x", fps=20, observation_spec=ObservationSpec({key: spec}), action_spec=action)
    assert not (tmp_path / "x").exists()


def test_a_taken_folder_is_refused(tmp_path, helpers):
    observation, action = helpers.specs()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"):
        demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action)
    with pytest.raises(InputError, match="whole number"):
        demos.Writer.create(tmp_path / "e", fps=29.97, observation_spec=observation, action_spec=action)  # pyright: ignore


def test_discarded_episodes_leave_nothing(writer, helpers):
    for at in range(3):
        writer.add_frame(helpers.frame(9, at, 1))
    writer.discard_episode()
    writer.add_frame(helpers.frame(0, 0, 1))
    writer.save_episode(success=False)
    dataset = demos.Dataset(writer.root)
    assert len(dataset) == 1 and dataset.episode(0).success is False
    np.testing.assert_array_equal(dataset[0]["action"], helpers.frame(0, 0, 1)["action"])


def test_loadable_after_every_save(writer, helpers):
    for episode in range(3):
        for at in range(4):
            writer.add_frame(helpers.frame(episode, at, 1), stamp_ns=at * 50_000_000)
        writer.save_episode(success=True)
        dataset = demos.Dataset(writer.root)
        assert dataset.num_episodes == episode + 1 and len(dataset) == 4 * (episode + 1)


def test_stamps_are_the_ones_given(tmp_path, helpers):
    observation, action = helpers.specs()
    stamps = [1_700_000_000_123_456_789, 1_700_000_000_173_000_001, 1_700_000_000_260_000_000]
    with demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action, task="t") as writer:
        for at, stamp in enumerate(stamps):
            writer.add_frame(helpers.frame(0, at), stamp_ns=stamp)
        writer.save_episode()
        begin = time.time_ns()
        writer.add_frame(helpers.frame(1, 0))
        writer.save_episode()
    dataset = demos.Dataset(tmp_path / "d")
    assert dataset.column("timestamp_ns")[:3, 0].tolist() == stamps
    assert begin <= dataset.column("timestamp_ns")[3, 0] <= time.time_ns()
    np.testing.assert_allclose(dataset.column("timestamp")[:, 0], [0, 0.05, 0.1, 0], atol=1e-7)


def test_outcome_columns(tmp_path, helpers):
    dataset = demos.Dataset(helpers.record(tmp_path / "d", [3, 2]))
    assert dataset.column("next.success")[:, 0].tolist() == [False, False, True, False, False]
    assert dataset.column("next.done")[:, 0].tolist() == [False, False, True, False, True]
    assert dataset.column("next.reward")[:, 0].tolist() == [0, 0, 1, 0, 0]


def test_stuck_and_blank_cameras_are_reported(tmp_path, helpers):
    observation, action = helpers.specs(cameras=3)
    with demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action, task="t") as writer:
        for at in range(60):
            frame = helpers.frame(0, at, 3)
            if at >= 15:
                frame["observation.images.cam1"] = helpers.frame(0, 15, 3)["observation.images.cam1"]
            frame["observation.images.cam2"] = np.zeros_like(frame["observation.images.cam2"])
            writer.add_frame(frame, stamp_ns=at * 50_000_000)
        episode = writer.save_episode()
    assert any("cam1" in w and "frame 15 to 59" in w for w in episode.warnings)
    assert any("cam2" in w and "one colour in 60" in w for w in episode.warnings)
    assert not any("cam0" in w for w in episode.warnings)
    assert demos.Dataset(tmp_path / "d").episode(0).warnings == episode.warnings
    found = {(f.key, f.frame) for f in demos.check(tmp_path / "d").findings}
    assert found == {("observation.images.cam1", 15), ("observation.images.cam2", 0)}


@pytest.mark.parametrize("shape", [(31, 47), (32, 48), (2, 2)])
def test_any_picture_size(tmp_path, helpers, shape):
    """Odd sizes have no 4:2:0 form; they are kept all the same."""
    observation = ObservationSpec({CAMERA: TensorSpec(shape=(*shape, 3), dtype="uint8")})
    with demos.Writer.create(tmp_path / "d", fps=10, observation_spec=observation, action_spec=helpers.specs()[1], task="t") as writer:
        for at in range(5):
            image = np.full((*shape, 3), 40 * at, np.uint8)
            writer.add_frame({CAMERA: image, "action": np.zeros(3, np.float32)})
        writer.save_episode()
    dataset = demos.Dataset(tmp_path / "d")
    for at in range(5):
        assert dataset[at][CAMERA].shape == (*shape, 3)
        assert np.abs(dataset[at][CAMERA].astype(int) - 40 * at).max() <= 6


def fill(writer: demos.Writer, helpers, cameras: int) -> int:
    """Record until the disk is full; the number of frames that were acknowledged. The refusal takes under a second."""
    at = 0
    while True:
        frame = helpers.frame(0, at, cameras)
        begin = time.monotonic()
        try:
            writer.add_frame(frame, stamp_ns=at * 50_000_000)
        except InputError as e:
            assert time.monotonic() - begin < 1 and "free space" in str(e)
            return at
        at += 1
        assert at < 20_000


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root; test_file_size_limit does the same without")
def test_full_disk(tmp_path, helpers):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        root = disk / "d"
        observation, action = helpers.specs(cameras=1)
        writer = demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="push")
        for at in range(6):
            writer.add_frame(helpers.frame(0, at, 1))
        writer.save_episode(success=True)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(max(0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 200_000)))
        count = fill(writer, helpers, 1)
        assert count > 10 and writer.episode_length == count
        with pytest.raises(InputError, match="free space"):
            writer.add_frame(helpers.frame(0, count, 1))
        with pytest.raises(InputError, match="frames are kept"):
            writer.save_episode(success=True)
        assert demos.Dataset(root).num_episodes == 1
        ballast.unlink()
        assert writer.save_episode(success=True).length == count
        writer.finalize()
        dataset = demos.Dataset(root)
        assert dataset.num_episodes == 2 and demos.check(root).ok
        for at in (0, count // 2, count - 1):
            np.testing.assert_array_equal(dataset[6 + at]["action"], helpers.frame(0, at, 1)["action"])
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


LIMITED = """
import os, sys, resource, signal
sys.path.insert(0, os.environ["CONFTEST"])
from conftest import make_frame, make_specs
import types, demos
from sinew.errors import InputError
observation, action = make_specs()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = demos.Writer.create(sys.argv[1], fps=20, observation_spec=observation, action_spec=action, task="push")
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
at = 0
try:
    while True:
        writer.add_frame(make_frame(0, at))
        at += 1
except InputError:
    print(at)
"""


def test_file_size_limit(tmp_path, helpers):
    """The same by a limit on file sizes: needs no root. What was acknowledged enters at repair."""
    environment = {**os.environ, "CONFTEST": str(Path(__file__).parent), "PYTHONPATH": str(Path(demos.__file__).parent.parent)}
    out = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "d")], capture_output=True, text=True, env=environment)
    count = int(out.stdout)
    assert count > 10
    demos.repair(tmp_path / "d")
    dataset = demos.Dataset(tmp_path / "d")
    assert dataset.episode(0).length == count and dataset.episode(0).interrupted
    np.testing.assert_array_equal(dataset[count - 1]["action"], helpers.frame(0, count - 1)["action"])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000


def test_a_read_only_folder_is_told(tmp_path, helpers):
    observation, action = helpers.specs()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        demos.Writer.create(tmp_path / "file" / "d", fps=20, observation_spec=observation, action_spec=action)


def test_a_thousand_files_start_a_new_chunk(tmp_path, helpers, monkeypatch):
    monkeypatch.setattr(layout, "FILES_PER_CHUNK", 2)
    root = helpers.record(tmp_path / "d", [2, 2, 2])
    assert (root / "data/chunk-001/file-000.parquet").exists()
    assert len(demos.Dataset(root)) == 6


def test_action_spec_survives(tmp_path):
    action = ActionSpec(kind="joint_delta", low=(-0.1, 0.0), high=(0.1, 0.08), rate_hz=20.0, names=("j", "gripper"))
    state = TensorSpec(shape=(2,), unit="rad,m", names=("j", "g"), low=(-1.0, 0.0), high=(1.0, 0.1))
    observation = ObservationSpec({"observation.state": state})
    with demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action, task="t") as writer:
        writer.add_frame({"observation.state": np.zeros(2, np.float32), "action": np.zeros(2, np.float32)})
        writer.save_episode()
    dataset = demos.Dataset(tmp_path / "d")
    assert dataset.action_spec == action and dataset.observation_spec == observation


def test_features_that_are_only_read_refuse_to_go_on(tmp_path, helpers):
    root = helpers.record(tmp_path / "d", [2])
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["note"] = {"dtype": "string", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="feature 'note' is string"):
        demos.Writer.resume(root)
