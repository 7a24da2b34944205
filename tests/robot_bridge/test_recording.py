"""A deployment is recorded as it went: asked and sent, outcomes, contracts; trouble with the disk stops it safely or is passed over."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import demos
import sim
from robot_bridge import SimRobot, SimScene, SteppedClock
from robot_bridge.contract import Contract, Sink, Source, load
from robot_bridge.deploy import DeployConfig, deploy
from robot_bridge.gate import Verdict
from robot_bridge.recording import OUTCOMES, UNKNOWN, DatasetRecorder
from robot_bridge.report import EpisodeResult
from sinew.errors import InputError, SpecError
from sinew.rundir import read_json
from sinew.specs import PolicySpec


class Expert:
    """The scripted expert as an executor; `spoil` may change its actions."""

    def __init__(self, interface: Any, spoil=lambda tick, action: action) -> None:
        self.expert, self.interface, self.spoil, self.ticks = sim.make_expert("lift", "clean", 1), interface, spoil, itertools.count(1)
        self.spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=1)

    def reset(self, ids=None, seeds: Any = ()) -> None:
        self.expert.reset(seeds=seeds)

    def act(self, obs):
        action = self.interface.action_spec.normalize(torch.as_tensor(np.asarray(self.expert.act(obs)), dtype=torch.float32))
        return self.spoil(next(self.ticks), action)


@pytest.fixture
def interface():
    return sim.make_interface("lift")


def play(interface, recorder, *, spoil=lambda tick, action: action, **options):
    clock = SteppedClock()
    robot: Any = SimRobot(sim.RobotSim("lift"), interface.robot_spec, clock=clock)
    robot.sent, write = [], robot.write
    robot.write = lambda command: (robot.sent.append(command.values["joint_position"]), write(command))
    report = deploy(Expert(interface, spoil), interface, robot, scene=SimScene(robot), clock=clock, record=recorder, **options)
    return report, robot


def test_what_was_asked_and_what_was_sent(tmp_path, interface):
    with DatasetRecorder(tmp_path / "d", interface, about={"task": "lift"}) as recorder:
        frames: list[Any] = []
        report, robot = play(interface, recorder, seeds=(3, 4), on_frame=frames.append)
    data = demos.Dataset(tmp_path / "d")
    assert report.k == 2 and [data.episode(i).success for i in range(2)] == [True, True]
    assert [data.episode(i).length for i in range(2)] == [e.steps for e in report.episodes]
    assert data.episode(0).warnings == () and demos.check(tmp_path / "d").ok
    asked, sent = data.column("asked.joint_position"), data.column("sent.joint_position")
    assert asked.shape == sent.shape == (len(data), len(interface.robot_spec.joint_names))
    wanted = {tuple(np.float32(f.command.values["joint_position"])) for f in frames}
    assert {tuple(row) for row in asked} == wanted and {tuple(row) for row in sent[:10]} <= {tuple(np.float32(s)) for s in robot.sent}
    outcome, last = data.column("gate.outcome")[:, 0], [data.episode(0).length - 1, len(data) - 1]
    passed = outcome == OUTCOMES.index("pass")
    assert passed.sum() > len(data) / 2 and set(outcome[last]) == {UNKNOWN}
    assert np.median(np.abs(asked - sent)[passed].max(1)) < 0.05
    assert (np.diff(data.column("timestamp_ns")[: data.episode(0).length, 0]) == 50_000_000).all()
    assert read_json(tmp_path / "d/meta/sinew_collection.json")["task"] == "lift"


def test_what_the_gate_said_of_an_action_stands_beside_it(tmp_path, interface):
    frames: list[Any] = []
    play(interface, None, seeds=(3,), config=DeployConfig(max_steps=4), on_frame=frames.append)
    clamped = Verdict(joint_position=np.full(7, 0.5), gripper=(0.01,), outcome="clamp", reason="velocity")
    closed = Verdict(joint_position=None, gripper=(), outcome="latched", reason="asked")
    verdicts = [None, clamped, None, closed]  # the newest word when each command was handed over, on the one before
    with DatasetRecorder(tmp_path / "d", interface) as recorder:
        for frame, verdict in zip(frames, verdicts, strict=True):
            recorder.frame(replace(frame, verdict=verdict))
        recorder.end_episode(EpisodeResult(3, None, 4, 0.2, "time_limit"))
    data = demos.Dataset(tmp_path / "d")
    outcomes = data.column("gate.outcome")[:, 0].tolist()
    assert outcomes == [OUTCOMES.index("clamp"), UNKNOWN, OUTCOMES.index("latched"), UNKNOWN]
    np.testing.assert_allclose(data.column("sent.joint_position")[0], 0.5)
    np.testing.assert_allclose(data.column("sent.gripper")[0], 0.01)
    np.testing.assert_allclose(data.column("asked.joint_position")[0], frames[0].command.values["joint_position"], rtol=1e-6)
    assert data.episode(0).success is None and data.episode(0).warnings == ()


def test_a_stop_for_safety_is_marked(tmp_path, interface):
    def spoil(tick, action):
        return action * torch.nan if tick == 20 else action

    with DatasetRecorder(tmp_path / "d", interface) as recorder:
        report, _ = play(interface, recorder, spoil=spoil, seeds=(3, 4))
    data = demos.Dataset(tmp_path / "d")
    assert report.stopped and data.num_episodes == 1
    assert data.episode(0).success is False and data.episode(0).warnings == (f"stopped for safety: {report.stopped}",)
    assert np.isfinite(data.column("action")).all()


def contract(robot: str = "test") -> Contract:
    source = Source(key="joint_position", topic="/joint_states", message="sensor_msgs/JointState", field="position", names=("a",))
    sink = Sink(value="joint_position", kind="position", topic="/commands", joints=("a",))
    return Contract(robot=robot, rate_hz=20.0, sources=(source,), sinks=(sink,))


def test_the_contract_stays_with_the_data_and_another_is_refused(tmp_path, interface):
    with DatasetRecorder(tmp_path / "d", interface, contract=contract()) as recorder:
        play(interface, recorder, seeds=(3,), config=DeployConfig(max_steps=5))
    with DatasetRecorder(tmp_path / "d", interface, contract=contract()) as recorder:
        assert recorder.episodes == 1
        play(interface, recorder, seeds=(4,), config=DeployConfig(max_steps=5))
        assert recorder.episodes == 2
    assert load(tmp_path / "d") == contract() and demos.check(tmp_path / "d").ok
    for other in (contract("other"), None):
        with pytest.raises(SpecError, match="record into another folder"):
            DatasetRecorder(tmp_path / "d", interface, contract=other)
    shorter = replace(interface.action_spec, rate_hz=10.0)
    with pytest.raises(SpecError, match="rate"):
        DatasetRecorder(tmp_path / "d", _With(interface, action_spec=shorter), contract=contract())
    DatasetRecorder(tmp_path / "d", interface, contract=contract()).close()  # the refusals let go of the dataset


class _With:
    """Something with some attributes changed."""

    def __init__(self, inner: Any, **changed: Any) -> None:
        self.__dict__.update(changed)
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def full(monkeypatch):
    """A disk that is full from the n-th row on."""
    import errno

    import demos.journal

    whole = demos.journal._write

    def fill(after: int) -> None:
        written = itertools.count()

        def write(fd, data):
            if next(written) >= after:
                raise OSError(errno.ENOSPC, "No space left on device")
            whole(fd, data)

        monkeypatch.setattr(demos.journal, "_write", write)

    return fill


def test_a_full_disk_stops_the_robot(tmp_path, interface, full):
    full(12)
    with DatasetRecorder(tmp_path / "d", interface) as recorder, pytest.raises(InputError, match="No space left on device"):
        play(interface, recorder, seeds=(3,))
    data = demos.Dataset(tmp_path / "d")  # what was recorded is kept, its outcome unknown
    assert data.num_episodes == 1 and 5 < len(data) < 12 and data.episode(0).success is None
    assert "No space" in data.episode(0).warnings[0]


def test_a_full_disk_may_be_passed_over(tmp_path, interface, full, caplog):
    full(12)
    with DatasetRecorder(tmp_path / "d", interface, on_trouble="go_on") as recorder:
        report, _ = play(interface, recorder, seeds=(3, 4))
    assert report.k == 2 and "No space" in recorder.trouble
    assert [r.message.count("going on without recording") for r in caplog.records] == [1]
    assert len(demos.Dataset(tmp_path / "d")) < 12


def test_a_folder_that_cannot_be_written_is_refused_before_the_robot_moves(tmp_path, interface):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        DatasetRecorder(tmp_path / "file" / "d", interface)


def test_a_writer_that_does_not_keep_up_is_told_of(tmp_path, interface, monkeypatch):
    import threading

    free = threading.Event()
    monkeypatch.setattr("robot_bridge.recording.BEHIND", 8)
    monkeypatch.setattr(DatasetRecorder, "_take", lambda self, item: free.wait(60))
    recorder = DatasetRecorder(tmp_path / "d", interface)
    try:
        with pytest.raises(InputError, match="8 frames behind"):
            play(interface, recorder, seeds=(3,))
    finally:
        free.set()
        recorder.close()


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import sim
from robot_bridge.recording import DatasetRecorder
from test_recording import play

def spoil(tick, action):
    print(tick, flush=True)
    time.sleep(0.01)
    return action

interface = sim.make_interface("lift")
play(interface, DatasetRecorder({root!r}, interface), spoil=spoil, seeds=(3,))
"""


def test_a_killed_deployment_loses_moments(tmp_path):
    from pathlib import Path

    folder = Path(__file__).parent
    code = KILLED.format(tests=str(folder), root=str(tmp_path / "d"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=folder.parents[1])
    assert process.stdout is not None
    tick = next(int(line) for line in process.stdout if int(line) >= 30)
    rows = tmp_path / "d/recording/episode-000000/rows.bin"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not rows.exists() or not rows.stat().st_size):
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdout.close()
    report = demos.repair(tmp_path / "d")
    data = demos.Dataset(tmp_path / "d")
    assert report.ok and data.num_episodes == 1 and data.episode(0).interrupted and 1 <= len(data) <= tick + 30
    assert "sent.joint_position" in data.info["features"]
