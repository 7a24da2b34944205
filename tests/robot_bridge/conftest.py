"""A small arm with first-order joints for tests that need no physics, and processes that speak DDS."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sinew.protocols import RobotSpec

ROOT = Path(__file__).resolve().parents[2]
SPEC = RobotSpec(
    name="test",
    joint_names=("a", "b", "c"),
    gripper_name="finger",
    position_low_rad=(-1.5, -1.5, -1.5),
    position_high_rad=(1.5, 1.5, 1.5),
    velocity_max_rad_s=(1.0, 2.0, 3.0),
    acceleration_max_rad_s2=(10.0, 20.0, 30.0),
    gripper_low_m=0.0,
    gripper_high_m=0.08,
    workspace_low_m=(-10.0, -10.0, -10.0),
    workspace_high_m=(10.0, 10.0, 10.0),
    rate_hz=20.0,
)
_domains = itertools.count(os.getpid() * 7)


class ServoPhysics:
    """Joints that go half of the way to their targets in each period; solved when the first joint is beyond 0.3 rad."""

    def __init__(self, joints: int = 3) -> None:
        self.joints = joints
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.seed = seed
        self.joint_position = np.zeros(self.joints) + 0.01 * np.random.default_rng(seed).standard_normal(self.joints)
        self.joint_velocity = np.zeros(self.joints)
        self.gripper: float | np.ndarray = 0.08
        self.targets: list[np.ndarray] = []

    @property
    def poses(self) -> dict[str, np.ndarray]:
        return {"cube": np.array([0.1, 0.2, 0.3, 1.0, 0.0, 0.0, 0.0])}

    @property
    def success(self) -> bool:
        return bool(self.joint_position[0] > 0.3)

    def step(self, joint_target: np.ndarray, gripper_target: float | np.ndarray, duration_s: float) -> None:
        moved = 0.5 * (np.asarray(joint_target) - self.joint_position)
        self.joint_position = self.joint_position + moved
        self.joint_velocity = moved / duration_s
        self.gripper = float(np.asarray(gripper_target))
        self.targets.append(np.array(joint_target))

    def image(self, camera: str, height: int = 4, width: int = 4) -> np.ndarray:
        return np.full((height, width, 3), 7, dtype=np.uint8)


@pytest.fixture
def spec() -> RobotSpec:
    return SPEC


@pytest.fixture
def physics() -> ServoPhysics:
    return ServoPhysics()


@pytest.fixture
def domain() -> int:
    """A DDS domain that no other test uses; below 101, so that its ports are not ephemeral ones."""
    from robot_bridge.dds import node

    # a process opens a domain with one range for good: one that it has not opened is free, one of the usual range is the next best
    for wanted in ((None,), (None, "LOCALHOST")):
        for _ in range(99):
            number = 1 + next(_domains) % 99
            if node._domains.get(number, (None, None))[1] in wanted:
                return number
    raise AssertionError("this process has opened every domain with an unusual range")


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code in a process of its own; whatever is left is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str, **environment: str) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=env, cwd=ROOT)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def serve(spawn: Callable[..., subprocess.Popen[str]], domain: int) -> Callable[..., subprocess.Popen[str]]:
    """Serve a simulated robot on `domain`; returns when it says that it is ready."""

    def start(task: str = "lift", **options: object) -> subprocess.Popen[str]:
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        process = spawn(f"from robot_bridge import serve; serve({task!r}, 0, {domain}{arguments})")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "ready" in line, line + process.communicate()[1]
        return process

    return start
