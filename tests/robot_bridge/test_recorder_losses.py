"""What the recorder loses is counted and said, and a row never shows another row's picture, however the disk and the encoders stall."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import demos
from demos import accounts, layout, tables
from demos.writer import Writer
from robot_bridge import recording
from robot_bridge.faults.trial import wall_clock_off
from robot_bridge.gate import Verdict
from robot_bridge.interfaces import Frame
from robot_bridge.recording import OUTCOMES, UNKNOWN, DatasetRecorder
from robot_bridge.report import EpisodeResult
from sinew.cli.benchmarks.data_recording import killed
from sinew.cli.benchmarks.recording_rig import JOINTS, Rig, RigInterface, RigRobot, number_of, numbered
from sinew.errors import InputError
from sinew.protocols import Command, Observation
from sinew.specs import IMAGES, STATE

CAMERA = IMAGES + "camera0"
PLAIN = np.full((72, 96, 3), 90, dtype=np.uint8)


@pytest.fixture
def interface() -> Any:
    return RigInterface(RigRobot(Rig(out="", cameras=1, height=72, width=96)))


def frame(number: int, picture: np.ndarray | None = None, **changes: Any) -> Frame:
    """Tick `number` at 30 Hz: its state and its picture say which one it is."""
    stamp_ns = time.monotonic_ns()
    shown = numbered(PLAIN, number) if picture is None else picture
    joints = np.full(len(JOINTS), number / 1000)
    measured = Observation(
        stamp_ns, number, {"joint_position": joints, "gripper": np.array(0.04), "images.camera0": shown}, {"images.camera0": stamp_ns}
    )
    seen = {STATE: joints.astype(np.float32), CAMERA: shown}
    command = Command(stamp_ns, number, 0.1, {"joint_position": joints, "gripper": np.array(0.04)})
    return Frame(0, 0, number, seen, np.zeros(len(JOINTS) + 1), measured, command, due_ns=stamp_ns, **changes)


def ended(how: str = "success", **more: Any) -> EpisodeResult:
    return EpisodeResult(0, True if how == "success" else None, 10, 1.0, how, **more)


def account(root: Path, episode: int = 0) -> dict[str, Any]:
    return tables.native_account(layout.native_path(root, episode))


@pytest.mark.parametrize("seed", range(4))
def test_rows_and_pictures_belong_together_whatever_stalls(tmp_path, interface, monkeypatch, seed):
    """Encoding stalls at random; frames come when they come. What is recorded is whole, what is not is counted."""
    rng, whole = random.Random(seed), Writer.add_frame
    monkeypatch.setattr(recording, "BEHIND", 6)

    def stalling(self, *args, **kwargs):
        if rng.random() < 0.2:
            time.sleep(rng.random() * 0.05)
        whole(self, *args, **kwargs)

    monkeypatch.setattr(Writer, "add_frame", stalling)
    said: list[str] = []
    handed, given_up = 0, False
    with DatasetRecorder(tmp_path / "d", interface, on_trouble="go_on", tell=said.append) as recorder:
        for number in range(120):
            recorder.frame(frame(number))
            handed += 1
            if recorder.trouble:
                given_up = True
                break
            time.sleep(rng.random() * 0.004)
        recorder.end_episode(ended())
    data = demos.Dataset(tmp_path / "d")
    rows = np.round(data.column(STATE)[:, 0] * 1000).astype(int)
    assert [number_of(data[i][CAMERA]) for i in range(len(data))] == rows.tolist()
    assert (np.diff(rows) > 0).all() and rows[0] == 0
    told = account(tmp_path / "d")
    if not given_up:  # then nothing is taken any more
        assert len(rows) + told["dropped"].get("queue_full", 0) == handed == told["frames"] + told["dropped"].get("queue_full", 0)
        assert any("nothing lost" in s or "dropped" in s for s in said if s.startswith("episode 0"))
    assert bool(told["dropped"]) == any("frames are dropped and counted" in s for s in said)


def test_encoding_that_never_catches_up_ends_the_recording(tmp_path, interface, monkeypatch):
    free, whole = threading.Event(), Writer.add_frame
    monkeypatch.setattr(recording, "BEHIND", 5)
    monkeypatch.setattr(Writer, "add_frame", lambda self, *a, **k: (free.wait(60), whole(self, *a, **k))[1])
    said: list[str] = []
    recorder = DatasetRecorder(tmp_path / "d", interface, tell=said.append)
    with pytest.raises(InputError, match="5 frames behind and 6 were dropped: use a faster disk"):
        for number in range(100):
            recorder.frame(frame(number))
    free.set()
    recorder.close()
    data = demos.Dataset(tmp_path / "d")  # one that was being encoded, and perhaps those that waited, are kept
    assert data.num_episodes == 1 and 1 <= len(data) <= 6 and "5 frames behind" in data.episode(0).warnings[0]
    assert account(tmp_path / "d")["dropped"] == {"queue_full": 6}
    assert len([s for s in said if "dropped" in s]) == 1  # that it is given up is raised


def test_the_gate_s_word_is_not_put_to_another_frame_than_its_own(tmp_path, interface, monkeypatch):
    """Frame 2 is dropped: what the gate said of it must not stand in the row of frame 1."""
    clamped = Verdict(joint_position=np.full(len(JOINTS), 0.5), gripper=(0.01,), outcome="clamp", reason="velocity")
    with DatasetRecorder(tmp_path / "d", interface) as recorder:
        put = recorder._queue.put_nowait
        for number in range(5):
            if number == 2:
                monkeypatch.setattr(recorder._queue, "put_nowait", lambda item: (_ for _ in ()).throw(recording.queue.Full))
            recorder.frame(frame(number, verdict=clamped if number else None))
            monkeypatch.setattr(recorder._queue, "put_nowait", put)
        recorder.end_episode(ended())
    data = demos.Dataset(tmp_path / "d")
    clamp = OUTCOMES.index("clamp")
    assert data.column("gate.outcome")[:, 0].tolist() == [clamp, UNKNOWN, clamp, UNKNOWN]
    np.testing.assert_allclose(data.column("sent.joint_position")[:, 0], [0.5, 0.001, 0.5, 0.004], atol=1e-6)


def test_every_stream_is_kept_at_its_own_rate_and_what_is_missing_is_counted(tmp_path, interface):
    said: list[str] = []
    with DatasetRecorder(tmp_path / "d", interface, tell=said.append) as recorder:
        recorder.sample("joint_position", 1, 1, np.zeros(6), 0)  # before the first frame: no part of an episode
        recorder.frame(frame(0))
        begin = time.monotonic_ns()
        for number in range(100):
            if number not in (40, 41, 42):
                recorder.sample("joint_position", begin + number * 5_000_000, begin, np.full(6, number), number)
        recorder.frame(frame(1, passed={"images.camera0": 2, "deadline": 1}))
        recorder.happened("clock_jump", "/joint_states")
        recorder.end_episode(ended(passed={"thinking": 4}))
        assert recorder.account["skipped"] == {"images.camera0": 2, "deadline": 1, "thinking": 4}
        recorder.sample("joint_position", begin, begin, np.zeros(6), 999)  # between two episodes
        recorder.frame(frame(2))
        recorder.sample("joint_position", begin, begin, np.zeros(6), 1000)
        recorder.end_episode(ended())
    told = account(tmp_path / "d")
    assert told["streams"]["joint_position"]["came"] == 97 and told["streams"]["joint_position"]["lost"] == 3
    assert told["clock_jumps"] == {"/joint_states": 1} and told["dropped"] == {}
    values = accounts.samples(tmp_path / "d", 0)["joint_position"].values[:, 0]
    assert values.tolist() == [n for n in range(100) if n not in (40, 41, 42)]
    assert account(tmp_path / "d", 1)["streams"]["joint_position"]["lost"] == 0
    assert told["alignment"]["rate_hz"] == 30.0 and told["alignment"]["streams"]["images.camera0"]["alignment"] == "newest"
    assert "3 messages of joint_position missing" in next(s for s in said if s.startswith("episode 0:"))
    assert any("clock behind /joint_states was set anew" in s for s in said)


def test_this_machine_s_clock_may_be_set(tmp_path, interface):
    said: list[str] = []
    with DatasetRecorder(tmp_path / "d", interface, tell=said.append) as recorder:
        recorder.frame(frame(0))
        recorder._queue.join()
        with wall_clock_off(3600.0):
            for number in range(1, 6):
                recorder.frame(frame(number))
            recorder._queue.join()
        recorder.end_episode(ended())
    steps = np.diff(demos.Dataset(tmp_path / "d").column("timestamp_ns")[:, 0])
    assert (steps > 0).all() and steps.max() < 600e9  # stamps go on as they were
    assert account(tmp_path / "d")["clock_jumps"] == {"this machine": 1}
    assert [s for s in said if "clock" in s and not s.startswith("episode")] == [
        "this machine's clock was set by +3600.0 s; stamps go on as they were"
    ]


def test_the_newest_saved_episode_is_thrown_away_on_a_word(tmp_path, interface):
    said: list[str] = []
    with DatasetRecorder(tmp_path / "d", interface, tell=said.append) as recorder:
        recorder.again()
        for _ in range(2):
            recorder.frame(frame(0))
            recorder.end_episode(ended())
        recorder.again()
        recorder._queue.join()
        assert recorder.episodes == 1
        recorder.frame(frame(7))
        recorder.end_episode(ended())
    assert any("this run has saved no episode" in s for s in said)
    assert any("episode 1 of 1 frames is thrown away; record it again" in s for s in said)
    data = demos.Dataset(tmp_path / "d")
    assert data.num_episodes == 2 and number_of(data[1][CAMERA]) == 7


def test_a_camera_that_changes_is_said_at_once(tmp_path, interface):
    said: list[str] = []
    with DatasetRecorder(tmp_path / "d", interface, tell=said.append) as recorder:
        recorder.frame(frame(0))
        small = frame(1)
        small.measured.values["images.camera0"] = np.zeros((36, 48, 3), dtype=np.uint8)  # type: ignore[index]
        recorder.frame(small)
        recorder._queue.join()
        assert recorder.changed == "camera camera0 sends pictures of 48x36 now, they were 96x72: set its driver to one size"
        recorder.end_episode(ended(recorder.changed))
        assert "camera0 sends" in said[0] and recorder.look(small.measured).startswith("camera camera0 shows black")
    data = demos.Dataset(tmp_path / "d")
    assert len(data) == 2 and data.episode(0).warnings == (f"stopped for safety: {recorder.changed}",)


def test_what_an_earlier_process_left_is_told(tmp_path, interface):
    recorder = DatasetRecorder(tmp_path / "d", interface)
    recorder.frame(frame(0))
    recorder._queue.join()
    recorder._keeper.close()
    recorder._writer.finalize()  # as if the process had gone
    said: list[str] = []
    with DatasetRecorder(tmp_path / "d", interface, tell=said.append) as resumed:
        assert resumed.episodes == 1
    assert said == ["episode 0 of 1 frames was interrupted and is kept, its outcome unknown"]


@pytest.mark.parametrize("frames", [3, 17])
def test_a_killed_recorder_keeps_all_that_it_said_was_kept(tmp_path, frames):
    """SIGKILL for real, three cameras; how much more than that is kept depends on the machine and is measured by `sinew bench data`."""
    rig = Rig(out=str(tmp_path / "d"), cameras=3, height=72, width=96, episode_s=0.7, episodes=1000)
    found = killed(rig, frames, 0.01)
    assert found.saved == found.kept >= 1 and found.frames_told <= found.frames_kept <= found.frames_given + 1
    assert found.wrong == 0 and demos.check(tmp_path / "d", pictures=False).episodes >= found.saved
