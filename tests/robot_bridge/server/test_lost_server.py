"""The machine with the policy is lost in the middle of an episode: the robot holds, stands, and moves no more by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import sim
from policies.live import LiveExecutor
from policies.remote import connect
from robot_bridge import SimRobot
from robot_bridge.deploy import DeployConfig, deploy
from robot_bridge.server.certificate import of_machine
from sinew.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-of-some-length"
SERVE = """
import sys, threading, numpy as np, sim, policies
from pathlib import Path
from robot_bridge.policy_server import PolicyServer
from robot_bridge.server.certificate import of_machine
from sinew.specs import PolicySpec
interface = sim.make_interface("lift")
spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=8)
stats = {key: {"mean": np.zeros(t.shape), "std": np.ones(t.shape)} for key, t in spec.observation.tensors.items()}
policy = policies.make("flow", spec, stats, {"hidden": [32], "steps": 2}).eval()
certificate = of_machine("127.0.0.1", Path(sys.argv[1]))
server = PolicyServer(policy, port=int(sys.argv[2]), token=sys.argv[3], certificate=certificate)
print(server.port, flush=True)
threading.Event().wait()
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Start a server of a policy for `lift` with TLS and a token; gives its process and its port."""
    running: list[subprocess.Popen[str]] = []

    def start(port: int = 0) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", SERVE, str(tmp_path / "server"), str(port), TOKEN]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT))
        told = running[-1].stdout
        assert told is not None
        return running[-1], int(told.readline())

    yield start
    for server in running:
        server.kill()
        server.communicate()


@pytest.fixture
def url(tmp_path: Path, process) -> tuple[subprocess.Popen[str], str]:
    server, port = process()
    return server, f"https://127.0.0.1:{port}#{of_machine('127.0.0.1', tmp_path / 'server').fingerprint}"


def episode(remote: Any, fault: Callable[[], object], mode: Literal["sync", "async"] = "sync", steps: int = 60):
    """One episode in real time with a fault at its third tick; gives the report and the robot's joints at the end.

    Where the machine is so busy that the gate latches before, there is another try.
    """
    interface = sim.make_interface("lift")
    for _ in range(10):
        robot = SimRobot(sim.RobotSim("lift"), interface.robot_spec)
        executor: Any = remote if mode == "sync" else LiveExecutor(remote, mode=mode, delay=2)
        frames: list[Any] = []

        def watch(frame: Any, frames: list[Any] = frames) -> None:
            frames.append(frame)
            if len(frames) == 3:
                fault()

        try:
            report = deploy(executor, interface, robot, seeds=[0], config=DeployConfig(realtime=False, max_steps=steps), on_frame=watch)
            measured = robot.read().values
        finally:
            robot.close()
        if len(frames) >= 3:
            return report, len(frames), measured
    pytest.fail("no episode came to its third tick")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_server_that_is_killed_leaves_a_robot_that_holds(url, mode):
    server, address = url
    remote = connect(address, TOKEN, timeout_s=1.0)
    report, frames, measured = episode(remote, lambda: (server.kill(), server.wait()), mode)
    assert frames < 60  # from some tick on there was nothing to do
    assert report.gate["outcomes"].get("hold", 0) + report.gate["outcomes"].get("rest", 0) > 0 or report.stopped
    assert np.abs(measured["joint_velocity"]).max() < 0.05
    assert server.poll() is not None
    with pytest.raises(InputError, match="nothing can be reached"):
        remote.sample(remote.encode({key: t[None, None] for key, t in _zeros(remote).items()}))
    remote.close()


def _zeros(remote):
    import torch

    return {key: torch.zeros(tensor.shape) for key, tensor in remote.spec.observation.tensors.items()}


def test_a_server_that_hangs_leaves_a_robot_that_holds(url):
    server, address = url
    remote = connect(address, TOKEN, timeout_s=0.5)
    report, frames, measured = episode(remote, lambda: server.send_signal(signal.SIGSTOP), steps=30)
    server.send_signal(signal.SIGCONT)
    assert frames < 30
    assert report.gate["outcomes"].get("hold", 0) + report.gate["outcomes"].get("rest", 0) > 0 or report.stopped
    assert np.abs(measured["joint_velocity"]).max() < 0.05
    remote.close()
