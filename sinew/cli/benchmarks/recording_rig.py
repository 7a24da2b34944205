"""A robot with cameras and joints at their own rates, whose every picture tells which one it is; recorded as any robot is.

    python -m sinew.cli.benchmarks.recording_rig '{"out": "data", "cameras": 3, "tell": true}'

runs it as a process that can be killed, and says on standard output what it has handed over. Pictures are made beforehand and noisy, and
come from a thread per camera, as a driver's would; the control loop, the gate, the recorder and the encoders are the real ones.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sinew.protocols import Command, Observation, RobotSpec
from sinew.specs import IMAGES, STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from robot_bridge.interfaces import Tap
    from robot_bridge.recording import DatasetRecorder
    from sinew.protocols import Executor

JOINTS = ("a", "b", "c", "d", "e", "f")
NUMBER = "extra.number"
"""Stream that tells the number of each measurement."""
OPEN_M = 0.04
MADE = 40
"""Different pictures of a camera; each is shown again with another number."""
BITS, BLOCK = 20, 12
"""A picture's number, as black and white squares of so many pixels in its upper corner."""


@dataclass(frozen=True, kw_only=True)
class Rig:
    """What is recorded."""

    out: str
    cameras: int = 2
    height: int = 480
    width: int = 640
    camera_hz: float = 30.0
    joints_hz: float = 200.0
    episode_s: float = 60.0
    episodes: int = 10
    tell: bool = False
    """Say on standard output what has been handed over, for whoever kills this process."""

    @property
    def names(self) -> tuple[str, ...]:
        """Cameras."""
        return tuple(f"camera{i}" for i in range(self.cameras))


def numbered(picture: np.ndarray, number: int) -> np.ndarray:
    """A copy of a picture (H, W, 3) that tells its number."""
    shown = picture.copy()
    columns = picture.shape[1] // BLOCK
    for bit in range(BITS):
        row, column = divmod(bit, columns)
        shown[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = 255 * (number >> bit & 1)
    return shown


def number_of(picture: np.ndarray) -> int:
    """What `numbered` wrote, after encoding and decoding."""
    columns, number = picture.shape[1] // BLOCK, 0
    for bit in range(BITS):
        row, column = divmod(bit, columns)
        inside = picture[row * BLOCK + 3 : (row + 1) * BLOCK - 3, column * BLOCK + 3 : (column + 1) * BLOCK - 3]
        number |= int(inside.mean() > 127) << bit
    return number


class RigRobot:
    """The robot: joints that follow their commands, and cameras."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.tap = rig, cast("Tap | None", None)
        self.on_sample: Callable[[str, int], None] = lambda stream, sequence: None
        ones = (1.0,) * len(JOINTS)
        self._spec = RobotSpec(
            name="rig", joint_names=JOINTS, gripper_name="finger", position_low_rad=tuple(-3 * v for v in ones),
            position_high_rad=tuple(3 * v for v in ones), velocity_max_rad_s=tuple(2 * v for v in ones),
            acceleration_max_rad_s2=tuple(20 * v for v in ones), gripper_low_m=0.0, gripper_high_m=0.08,
            workspace_low_m=(-10.0, -10.0, -10.0), workspace_high_m=(10.0, 10.0, 10.0), rate_hz=rig.camera_hz,
        )  # fmt: skip
        self._command = np.zeros(len(JOINTS))
        self._joints = Observation(-(1 << 62), 0, {})
        self._pictures: dict[str, tuple[int, np.ndarray]] = {}
        self._quit, self._threads = threading.Event(), list[threading.Thread]()

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def connect(self, timeout_s: float = 10.0) -> None:
        if self._threads:
            return
        self._run("joints", self.rig.joints_hz, self._measure)
        for i, name in enumerate(self.rig.names):
            rng = np.random.default_rng(i)
            made = [scene(self.rig.height, self.rig.width, i, at, rng) for at in range(MADE)]
            self._run(name, self.rig.camera_hz, lambda number, n=name, m=made: self._show(n, number, m))

    def read(self) -> Observation:
        joints, pictures = self._joints, dict(self._pictures)
        values = {**joints.values, **{f"images.{n}": p for n, (_, p) in pictures.items()}}
        return Observation(joints.stamp_ns, joints.seq, values, {f"images.{n}": s for n, (s, _) in pictures.items()})

    def write(self, command: Command) -> None:
        self._command = np.asarray(command.values["joint_position"], dtype=float)

    def stop(self, reason: str) -> None:
        """It stays where it is."""

    def close(self) -> None:
        self._quit.set()
        for thread in self._threads:
            thread.join()

    def _measure(self, number: int) -> None:
        now_ns, before = time.monotonic_ns(), self._joints
        position = before.values.get("joint_position", np.zeros(len(JOINTS)))
        values = {"joint_position": position + 0.5 * (self._command - position), "joint_velocity": np.zeros(len(JOINTS))}
        values |= {"gripper": np.array(OPEN_M), NUMBER: np.array([float(number)])}
        self._joints = Observation(now_ns, number, values)
        for key, value in values.items():
            self._hand(key, now_ns, value, number)

    def _show(self, name: str, number: int, made: Sequence[np.ndarray]) -> None:
        picture, now_ns = numbered(made[number % len(made)], number), time.monotonic_ns()
        self._hand(f"images.{name}", now_ns, None, number)
        self._pictures[name] = (now_ns, picture)

    def _hand(self, stream: str, now_ns: int, value: np.ndarray | None, number: int) -> None:
        tap = self.tap
        if tap is not None:
            tap.sample(stream, now_ns, now_ns, value, number)
            self.on_sample(stream, number)

    def _run(self, name: str, rate_hz: float, work: Callable[[int], None]) -> None:
        from robot_bridge.cadence import next_deadline

        def run() -> None:
            period_ns, number = round(1e9 / rate_hz), 0
            deadline_ns = time.monotonic_ns()
            while not self._quit.is_set():
                time.sleep(max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9))
                work(number)
                number += 1
                deadline_ns = next_deadline(deadline_ns, period_ns, time.monotonic_ns())

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


class RigInterface:
    """What the rig's policy sees and does: its joints and cameras, at the cameras' rate."""

    objects: tuple[str, ...] = ()
    task_text = "hold still"

    def __init__(self, robot: RigRobot) -> None:
        rig, self.robot_spec = robot.rig, robot.spec
        self.max_episode_steps = round(rig.episode_s * rig.camera_hz)
        tensors = {STATE: TensorSpec(shape=(len(JOINTS),), unit="rad", names=JOINTS)}
        tensors |= {IMAGES + n: TensorSpec(shape=(rig.height, rig.width, 3), dtype="uint8") for n in rig.names}
        self.observation_spec = ObservationSpec(tensors)
        bound = (1.0,) * len(JOINTS)
        names = (*JOINTS, "gripper")
        low, high = (*(-v for v in bound), 0.0), (*bound, 2 * OPEN_M)
        self.action_spec = ActionSpec(kind="joint_position", low=low, high=high, rate_hz=rig.camera_hz, names=names)

    def observe(self, joint_position: np.ndarray, joint_velocity: np.ndarray, gripper: np.ndarray, poses: Mapping[str, Any]) -> Any:
        """{key: (N, D) float32}."""
        return {STATE: joint_position.astype(np.float32)}

    def decoder(self, num: int) -> Any:
        """Joint targets."""
        from robot_bridge.robot_interface import JointTargets

        return JointTargets(self.robot_spec, self.action_spec, num)


class Swaying:
    """A policy that moves the joints slowly to and fro, so that recordings have something to show."""

    def __init__(self, interface: RigInterface) -> None:
        self.spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=1)
        self._ticks = 0

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """An episode begins."""

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """(1, A) in [-1, 1]."""
        import torch

        self._ticks += 1
        sway = 0.2 * float(np.sin(self._ticks / 30))
        return torch.tensor([[*[sway] * len(JOINTS), 0.0]], dtype=torch.float32)


def record(rig: Rig) -> dict[str, Any]:
    """Record all episodes.

    Returns:
        "loop" and "policy": their cadences; "accounts" of the episodes; "wall_s" and "cpu_s" of the deployment; "bytes" of the dataset.
    """
    from robot_bridge.deploy import DeployConfig, deploy
    from robot_bridge.recording import DatasetRecorder

    robot = RigRobot(rig)
    interface: Any = RigInterface(robot)
    accounts: list[Mapping[str, Any]] = []
    with DatasetRecorder(rig.out, interface, about={"task": "rig"}) as recorder:
        told: Any = _Telling(recorder, accounts, rig.tell)
        if rig.tell:
            robot.on_sample = lambda stream, number: _tell(f"s {stream} {number}")
        config = DeployConfig(controller_rate_hz=rig.joints_hz)
        begin, cpu = time.monotonic(), time.process_time()
        report = deploy(cast("Executor", Swaying(interface)), interface, robot, episodes=rig.episodes, record=told, config=config)
        wall_s, cpu_s = time.monotonic() - begin, time.process_time() - cpu
    robot.close()
    size = sum(p.stat().st_size for p in Path(rig.out).rglob("*") if p.is_file())
    return {
        "loop": report.controller, "policy": report.policy, "accounts": accounts, "wall_s": wall_s, "cpu_s": cpu_s, "bytes": size,
        "ended": [e.ended_by for e in report.episodes], "stopped": report.why,
    }  # fmt: skip


class _Telling:
    """The recorder, with what it has been handed and what it has kept told of."""

    def __init__(self, recorder: DatasetRecorder, accounts: list[Mapping[str, Any]], tell: bool) -> None:
        self._recorder, self._accounts, self._frames = recorder, accounts, 0
        self.sample, self.happened, self._told = recorder.sample, recorder.happened, tell

    def frame(self, frame: Any) -> None:
        self._recorder.frame(frame)
        self._frames += 1
        if self._told:
            _tell(f"f {self._frames} {self._recorder.kept}")

    def end_episode(self, result: Any) -> None:
        self._recorder.end_episode(result)
        self._accounts.append(self._recorder.account)
        self._frames = 0
        if self._told:
            _tell(f"saved {self._recorder.episodes}")


def wrong_pictures(root: Path, rig: Rig) -> tuple[int, int]:
    """Frames whose picture is not the one that its row tells of, and frames looked at, of a recorded dataset."""
    from demos import Dataset
    from demos.accounts import samples
    from demos.layout import native_path
    from demos.native import FRAMES
    from demos.tables import native_account

    data, wrong, seen = Dataset(root, cache_bytes=0), 0, 0
    for episode in range(data.num_episodes):
        beside, ages = samples(root, episode), native_account(native_path(root, episode))["ages"]
        frames = beside[FRAMES]
        for name in rig.names:
            came = beside[f"images.{name}"]
            used = frames.stamps_ns - np.round(frames.values[:, ages.index(f"images.{name}")].astype(np.float64) * 1e9).astype(np.int64)
            at, first = 0, None
            for block in data.pictures(IMAGES + name, episode):
                for picture in block:
                    nearest = int(np.abs(came.stamps_ns - used[at]).argmin()) if at < len(used) else -1
                    if nearest >= 0 and abs(int(came.stamps_ns[nearest]) - int(used[at])) < 1000:
                        number = number_of(picture) - nearest  # pictures that came are numbered without a hole
                        first = number if first is None else first
                        wrong, seen = wrong + (number != first), seen + 1
                    at += 1
    return wrong, seen


def scene(height: int, width: int, camera: int, at: int, rng: np.random.Generator) -> np.ndarray:
    """A gradient with a block that moves, and a sensor's noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([columns * 150 / width + 40, rows * 150 / height + 20, np.full((height, width), 60.0 * camera)], -1)
    left = (at * width // MADE) % (width - width // 5)
    image[height // 2 : height // 2 + height // 6, left : left + width // 6] = (210, 60, 40)
    return (image + rng.integers(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


def _tell(line: str) -> None:
    os.write(1, (line + "\n").encode())


if __name__ == "__main__":
    result = record(Rig(**json.loads(sys.argv[1])))
    _tell("done " + json.dumps(result, default=float))
