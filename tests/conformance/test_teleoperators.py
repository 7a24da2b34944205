"""Against the real lerobot package, in the venv that has it: its teleoperators move our robots."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="runs in the venv with the real lerobot: make conformance")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from robot_bridge.takeover import DeviceLost
from robot_bridge.teleop.lerobot.config import LerobotArm, LerobotConfig, LerobotJoint, load_lerobot
from robot_bridge.teleop.lerobot.device import LerobotTakeover, made
from sinew.errors import InputError

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
LIMITS = dict.fromkeys(JOINTS, (-2.0, 2.0))
BUS = Path(__file__).parents[1] / "robot_bridge" / "teleop" / "servo_bus.py"
DEADLINE_S = 120.0
PLUGIN = """
    from dataclasses import dataclass

    import numpy as np
    from lerobot.teleoperators import Teleoperator, TeleoperatorConfig
    from lerobot.teleoperators.utils import TeleopEvents


    @TeleoperatorConfig.register_subclass("sinew_test_stick")
    @dataclass
    class SinewTestStickConfig(TeleoperatorConfig):
        broken: bool = False


    class SinewTestStick(Teleoperator):
        config_class, name = SinewTestStickConfig, "sinew_test_stick"
        action_features = {"dtype": "float32", "shape": (4,), "names": {"delta_x": 0, "delta_y": 1, "delta_z": 2, "gripper": 3}}
        feedback_features = {}
        is_connected, is_calibrated = False, True

        def __init__(self, config):
            super().__init__(config)
            self.config, self.ticks = config, 0

        def connect(self, calibrate=True):
            self.is_connected = True

        def calibrate(self): ...

        def configure(self): ...

        def get_action(self):
            self.ticks += 1
            if self.config.broken and self.ticks > 5:
                raise ConnectionError("the stick is broken")
            return {"delta_x": np.float32(0.5), "delta_y": 0.0, "delta_z": -2.0, "gripper": 2}

        def get_teleop_events(self):
            done = self.ticks > 3
            return {TeleopEvents.IS_INTERVENTION: True, TeleopEvents.SUCCESS: done, TeleopEvents.TERMINATE_EPISODE: done}

        def send_feedback(self, feedback): ...

        def disconnect(self):
            self.is_connected = False
"""


@pytest.fixture
def patience(monkeypatch):
    """LeRobot waits 50 ms for an answer, which a busy machine may take longer for."""
    from lerobot.motors.feetech import feetech

    monkeypatch.setattr(feetech, "patch_setPacketTimeout", lambda handler, length: handler.setPacketTimeoutMillis(3000))


@pytest.fixture
def servos(patience):
    """Six servos in a process of their own: LeRobot spins while it waits for an answer. The port, and what sets their angles."""
    given = json.dumps(dict.fromkeys(map(str, range(1, 7)), 777))
    bus = subprocess.Popen([sys.executable, str(BUS), "feetech", given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert bus.stdin is not None and bus.stdout is not None

    def turn(angles: dict[int, float]) -> None:
        assert bus.stdin is not None and bus.stdout is not None
        bus.stdin.write(json.dumps(angles) + "\n")
        bus.stdin.flush()
        bus.stdout.readline()

    yield bus.stdout.readline().strip(), turn
    bus.kill()
    bus.communicate()


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "sinew_test_stick.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "sinew_test_stick"


def until(does: Any) -> Any:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if found := does():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


def calibrated(folder: Path) -> dict[str, Any]:
    """Settings of an SO-101 leader whose servos are calibrated as they come."""
    motor = {"drive_mode": 0, "homing_offset": 0, "range_min": 0, "range_max": 4095}
    (folder / "mine.json").write_text(json.dumps({name: {"id": i, **motor} for i, name in enumerate((*JOINTS, "gripper"), 1)}))
    return {"id": "mine", "calibration_dir": str(folder)}


def test_lerobots_so101_leader_on_a_serial_port(servos, tmp_path):
    port, turn = servos
    turn({i: math.pi + 0.1 * i for i in range(1, 7)})
    settings = {"port": port, **calibrated(tmp_path)}
    device = LerobotTakeover("so101_leader", LerobotConfig(settings=settings), (JOINTS,), LIMITS)
    try:
        given = until(device.read)
        assert given.kind == "joints" and not device.tells_hold
        np.testing.assert_allclose(given.values, [0.1 * i for i in range(1, 6)], atol=0.005)
        assert given.open == pytest.approx((math.pi + 0.6) / math.tau, abs=0.005)
        turn({1: math.pi - 0.4})
        until(lambda: (g := device.read()) and abs(g.values[0] + 0.4) < 0.005)
    finally:
        device.close()
    turned = LerobotJoint(key="wrist_roll.pos", sign=-1, zero_rad=0.1)
    settings["use_degrees"] = False  # shares of the range then
    arm = LerobotArm(joints={"wrist_roll": turned, "elbow_flex": LerobotJoint(key="elbow_flex.pos", unit="deg")})
    device = LerobotTakeover("so101_leader", LerobotConfig(settings=settings, arms=(arm,)), (JOINTS,), LIMITS)
    try:
        given = until(device.read)
        share = 100 * 0.2 / math.pi
        assert given.values[1] == pytest.approx(2.0 * 0.2 / math.pi, abs=0.01)
        assert given.values[2] == pytest.approx(math.radians(share * 1.5), abs=0.01) and given.values[4] < 0
    finally:
        device.close()


def test_a_plugins_teleoperator_moves_by_steps_and_its_events_are_words(plugin):
    device = LerobotTakeover("sinew_test_stick", LerobotConfig(packages=(plugin,)), (JOINTS,), LIMITS)
    try:
        given = until(device.read)
        assert given.values == (0.5, 0, -1.0, 0, 0, 0) and given.open == 1.0 and given.kind == "steps" and device.tells_hold
        assert until(device.request) == "success" and device.request() is None  # once, however long it is told
    finally:
        device.close()


def test_a_teleoperator_that_fails_is_lost(plugin):
    device = LerobotTakeover("sinew_test_stick", LerobotConfig(packages=(plugin,), settings={"broken": True}), (JOINTS,), LIMITS)

    def lost() -> str | None:
        try:
            device.read()
        except DeviceLost as e:
            return str(e)
        return None

    try:
        assert "the stick is broken" in until(lost)
    finally:
        device.close()


def test_what_does_not_fit_is_said_in_one_line(servos, plugin, tmp_path):
    port, _ = servos
    settings = {"port": port, **calibrated(tmp_path)}
    file = tmp_path / "teleoperator.json"
    file.write_text(json.dumps({"settings": settings, "arms": [{"joints": {"lift": {"key": "shoulder_lift.pos"}}}]}))
    cases = (
        ("so101_lead", LerobotConfig(), (JOINTS,), "unknown teleoperator of LeRobot"),
        ("so101_leader", LerobotConfig(), (JOINTS,), "does not take settings"),
        ("so101_leader", LerobotConfig(settings={"port": "/dev/nowhere"}), (JOINTS,), "cannot be connected"),
        ("so101_leader", LerobotConfig(settings=settings), (("pan",),), "does not say pan"),
        ("so101_leader", load_lerobot(file), (JOINTS,), "joint 'lift' is none of arm 0's"),
        ("so101_leader", LerobotConfig(settings=settings, arms=(LerobotArm(arm=1),)), (JOINTS,), "the robot has 1"),
        ("keyboard", LerobotConfig(packages=("no_such_package",)), (JOINTS,), "no_such_package"),
    )
    for name, config, joints, said in cases:
        with pytest.raises(InputError, match=said) as e:
            LerobotTakeover(name, config, joints, LIMITS)
        assert "\n" not in str(e.value)
    (tmp_path / "mine.json").unlink()
    with pytest.raises(InputError, match="not calibrated: run lerobot-calibrate"):
        LerobotTakeover("so101_leader", LerobotConfig(settings=settings), (JOINTS,), LIMITS)
    assert made(plugin, LerobotConfig(packages=(plugin,))).name == plugin
