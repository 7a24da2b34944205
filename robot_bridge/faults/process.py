"""`sinew robot` and a deployment in processes of their own, as benchmarks and tests of bad networks use them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE_S = 120.0
POLICY = """
import sim
from robot_bridge import DdsRobot, DdsScene, MonotonicClock
from robot_bridge.deploy import deploy
from robot_bridge.faults.trial import Expert
interface = sim.make_interface("lift")
robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain={domain})
tell = lambda frame: print(frame.step, flush=True)
report = deploy(Expert(interface, MonotonicClock()), interface, robot, seeds=[0], scene=DdsScene(robot), on_frame=tell)
print("ended:", report.stopped or report.episodes[0].ended_by, flush=True)
robot.close()
"""


def until(done: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Wait until a function gives something.

    Raises:
        TimeoutError: it does not in time.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.005)
    raise TimeoutError(f"did not happen within {timeout_s:g} s")


class RobotProcess:
    """A simulated robot that writes down what it does.

    Args:
        folder: where its trace goes.
        domain: DDS domain.
        environment: variables besides those of this process.
        rate_hz: ticks per second.
        task: what is simulated.
    """

    def __init__(self, folder: Path, domain: int, environment: dict[str, str], rate_hz: float = 100.0, task: str = "lift") -> None:
        self._trace = folder / "trace.jsonl"
        command = [sys.executable, "-m", "sinew", "robot", "--domain", str(domain), "--trace", str(self._trace), "--json", "--with-parent"]
        command += ["--rate", f"{rate_hz:g}", "--task", task]
        pipe = subprocess.PIPE
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if "ready" not in line:
            raise RuntimeError(line + self.process.communicate()[1])

    def ticks(self, start: int = 0) -> list[dict[str, Any]]:
        """What it did so far, a mapping per tick, from tick `start` on."""
        return [json.loads(line) for line in self._trace.read_text().splitlines(keepends=True)[start:] if line.endswith("}\n")]

    def end(self) -> dict[str, Any]:
        """Ask it to end; what came to it."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        if self.process.returncode:
            raise RuntimeError(err)
        return json.loads(out)

    def kill(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.communicate()


class PolicyProcess:
    """The scripted expert, deployed on the robot of a domain for one episode."""

    def __init__(self, domain: int, environment: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        code = POLICY.format(domain=domain)
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=env)

    def wait_for_step(self, step: int) -> None:
        """Until it has decided so often."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == str(step):
                return
        raise RuntimeError(self.process.communicate()[1])

    def ended(self) -> str:
        """Wait for its end: why it stopped, or how the episode ended."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        lines = [line for line in out.splitlines() if line.startswith("ended:")]
        if not lines:
            raise RuntimeError(err)
        return lines[0].removeprefix("ended: ")

    def kill(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.communicate()


def speeds(ticks: list[dict[str, Any]]) -> np.ndarray:
    """(N,) rad/s of the fastest joint."""
    return np.abs([tick["joint_velocity"] for tick in ticks]).max(axis=1)


def travel_rad(ticks: list[dict[str, Any]]) -> float:
    """How far the farthest joint went."""
    return float(np.ptp([tick["joint_position"] for tick in ticks], axis=0).max())
