"""Cameras that die, change or are exchanged, clocks that jump, folders that are taken or cannot be written: with real processes.

What happened is said at once in one line, and what was recorded is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import demos
from demos import layout, tables
from demos.resized import fit
from robot_bridge.dds.node import Node
from robot_bridge.dds_robot import task_robot
from robot_bridge.interfaces import Frame, needed_values
from robot_bridge.recording import DatasetRecorder
from robot_bridge.report import EpisodeResult
from robot_bridge.ros_robot import RosRobot
from robot_bridge.synchroniser import Budget, Synchroniser
from sinew.cli.benchmarks.recording_rig import JOINTS, Rig, RigInterface, RigRobot
from sinew.cli.main import main
from sinew.protocols import Command
from sinew.specs import IMAGES, STATE

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0
PATIENT = Budget(hold_after_s=2.0, end_after_s=6.0)
"""So that a busy machine is no camera that has died; the usual times are tested where time is stepped."""
ARM = """
import time
import numpy as np
from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node
node = Node("arm", domain={domain})
states, at = node.publisher("/joint_states", "sensor_msgs/JointState"), 0
names, zeros = [*"abcdef", "finger"], np.zeros(7)
print("ready", flush=True)
while True:
    at += 1
    sec, nanosec = divmod(time.time_ns(), 1_000_000_000)
    header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=sec, nanosec=nanosec), frame_id="")
    position = np.append(np.full(6, 0.01 * np.sin(at / 50)), 0.04)
    states.send(make("sensor_msgs/JointState", header=header, name=names, position=position, velocity=zeros, effort=zeros))
    time.sleep(0.005)
"""
CAMERAS = """
import select, sys, time
import numpy as np
from robot_bridge.dds import codec
from robot_bridge.dds.node import Node
node = Node("cameras", domain={domain})
topics = [node.publisher(f"/camera{{i}}/image_raw", "sensor_msgs/Image") for i in range(2)]
scenes = [np.kron(np.random.default_rng(i).integers(20, 220, (6, 8, 3)), np.ones((12, 12, 1))) for i in range(2)]
order, small, ahead_ns = [0, 1], False, 0
print("ready", flush=True)
while True:
    if select.select([sys.stdin], [], [], 0)[0]:
        word = sys.stdin.readline().strip()
        order = [1, 0] if word == "exchange" else [0, 1]
        small, ahead_ns = word == "small", int(3600e9) if word == "clock" else ahead_ns
    for topic, scene in zip(topics, order):
        picture = (scenes[scene] + np.random.default_rng().normal(0, 2, (72, 96, 3))).clip(0, 255).astype(np.uint8)
        picture = picture[::2, ::2] if small and topic is topics[0] else picture
        topic.write(codec.encode_image(np.ascontiguousarray(picture), time.time_ns() + ahead_ns, "camera"))
    time.sleep(1 / 30)
"""


def start(code: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    return process


class Desk:
    """A robot of the network, recorded as deployments record it, without anything that moves it."""

    def __init__(self, root: Path, domain: int) -> None:
        self.interface: Any = RigInterface(RigRobot(Rig(out="", cameras=2, height=72, width=96)))
        names = ("camera0", "camera1")
        config = task_robot(self.interface.robot_spec, names)
        self.robot = RosRobot(config, Node("desk", domain=domain), cameras=names)
        needed = needed_values(self.interface, self.interface.observation_spec)
        self.synchroniser = Synchroniser(dict.fromkeys(needed, PATIENT))
        self.needed, self.said = needed, list[str]()
        self.recorder = DatasetRecorder(root, self.interface, tell=self.said.append)
        self.robot.tap = self.recorder
        for name, subscription in self.robot._seen:
            self.robot._start(lambda n=name, s=subscription: self.robot._watch_pictures(n, s), name)

    def measure(self) -> Any:
        end = time.monotonic() + DEADLINE_S
        while set(self.needed) - set((measured := self.robot.aligned()).values):
            assert time.monotonic() < end, "the robot measured nothing"
            time.sleep(0.01)
        return measured

    def episode(self, until: Any) -> EpisodeResult:
        """Record until something is the case, or a value is too old for an episode to go on."""
        self.synchroniser.start(time.monotonic_ns())
        self.measure()
        passed: Counter[str] = Counter()
        step, ended_by, end = 0, "", time.monotonic() + DEADLINE_S
        while not step or not until():
            assert time.monotonic() < end, self.said
            time.sleep(1 / 30)
            measured = self.robot.aligned()
            judgement = self.synchroniser.judge(measured, time.monotonic_ns())
            if judgement.answer == "use":
                self._frame(step, measured, passed)
                passed.clear()
                step += 1
                continue
            passed[judgement.key] += 1
            if judgement.answer == "end":
                ended_by = f"no {judgement.key}"
                break
        result = EpisodeResult(0, None, step, 1.0, self.recorder.changed or ended_by or "stop", dict(passed))
        self.recorder.end_episode(result)
        return result

    def _frame(self, step: int, measured: Any, passed: Counter[str]) -> None:
        joints = np.asarray(measured.values["joint_position"], dtype=np.float32)
        pictures = {k: measured.values["images." + k.removeprefix(IMAGES)] for k in self.interface.observation_spec.images}
        seen = {STATE: joints} | {k: fit(v, 72, 96) for k, v in pictures.items()}
        command = Command(measured.stamp_ns, step, 0.1, {"joint_position": joints, "gripper": np.array(0.04)})
        self.recorder.frame(Frame(0, 0, step, seen, np.zeros(len(JOINTS) + 1), measured, command, passed=dict(passed)))


@pytest.fixture
def desk(tmp_path, domain):
    arm = start(ARM.format(domain=domain))
    made = Desk(tmp_path / "d", domain)
    yield made
    made.recorder.close()
    made.robot.close()
    arm.kill()
    arm.wait()


def test_cameras_that_misbehave_are_told_of_and_what_was_recorded_is_kept(desk, tmp_path, domain):
    cameras = start(CAMERAS.format(domain=domain))
    recorder, root = desk.recorder, tmp_path / "d"

    def say(word: str) -> None:
        assert cameras.stdin is not None
        cameras.stdin.write(word + "\n")
        cameras.stdin.flush()

    def account(episode: int) -> dict[str, Any]:
        return tables.native_account(layout.native_path(root, episode))

    try:
        desk.episode(lambda: recorder.kept >= 10)
        say("clock")
        jumped = [f"the clock behind /camera{i}/image_raw was set anew; stamps follow it" for i in range(2)]
        kept = [0]

        def followed() -> bool:  # frames go on after both clocks have jumped
            kept[0] = kept[0] or (recorder.kept if set(jumped) <= set(desk.said) else 0)
            return bool(kept[0]) and recorder.kept >= kept[0] + 5

        desk.episode(followed)
        assert account(1)["clock_jumps"] == {"/camera0/image_raw": 1, "/camera1/image_raw": 1}
        for word, told in (("small", "camera camera0 sends pictures of 48x36 now, they were 96x72"), ("exchange", "are exchanged")):
            desk.episode(lambda: recorder.kept >= 10)
            say(word)
            result = desk.episode(lambda: bool(recorder.changed))
            assert told in result.ended_by and "\n" not in result.ended_by and told in "\n".join(desk.said)
            assert f"stopped for safety: {result.ended_by}" in demos.Dataset(root).episode(recorder.episodes - 1).warnings
            say("ordinary")
            desk.episode(lambda: bool(recorder.changed))  # that all is as before is a change too
        number = recorder.episodes
        killed = []

        def kill() -> bool:
            if recorder.kept >= 10 and not killed:
                cameras.kill()
                killed.append(True)
            return False

        result = desk.episode(kill)
        assert result.ended_by in ("no images.camera0", "no images.camera1")
        data = demos.Dataset(root)
        assert data.episode(number).length >= 10 and f"stopped for safety: {result.ended_by}" in data.episode(number).warnings
        assert sum(account(number)["skipped"].values()) > 0
        assert all(line.count("\n") == 0 for line in desk.said)
    finally:
        cameras.kill()
        cameras.wait()


# ---------------------------------------------------------------- folders


def test_a_dataset_that_another_process_records_is_refused(tmp_path, capsys):
    assert main(["collect", "--task", "lift", "--episodes", "1", "--out", str(tmp_path / "d")]) == 0
    code = f"import demos, time\nwriter = demos.Writer.resume({str(tmp_path / 'd')!r})\nprint('ready', flush=True)\ntime.sleep(600)"
    other = start(code)
    try:
        capsys.readouterr()
        for argv in (["collect", "--task", "lift", "--episodes", "2", "--out"], ["data", "repair"]):
            assert main([*argv, str(tmp_path / "d")]) == 2
            said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sinew:")]
            assert len(said) == 1 and f"is being recorded by another process (pid {other.pid})" in said[0]
    finally:
        other.kill()
        other.wait()
    assert main(["collect", "--task", "lift", "--episodes", "2", "--out", str(tmp_path / "d")]) == 0  # the system let go of it


def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    command = [sys.executable, "-m", "sinew", "collect", "--task", "lift", "--episodes", "1", "--out", str(tmp_path / "locked/d")]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv: the superuser may write everywhere")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    (tmp_path / "locked").mkdir(mode=0o555)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    said = [line for line in done.stderr.splitlines() if line.startswith("sinew:")]
    assert done.returncode == 2 and len(said) == 1 and "Permission denied" in said[0] and "Traceback" not in done.stderr
