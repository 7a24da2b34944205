"""`sinew calibrate watch` as its user runs it: on recordings, beside a robot on a network, and what cannot be."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibration.simulate import Scenario
from robot_bridge.dds import codec
from robot_bridge.dds.node import Node
from robot_bridge.dds.topics import COMMANDS
from robot_bridge.gate import Operator
from robot_bridge.serve_sim import SimServer
from robot_bridge.transport import DEFAULT
from sinew.cli import calibrated as calibrated_verb
from sinew.cli.main import main
from sinew.config import to_json
from sinew.errors import InputError
from sinew.se3 import se3_exp

ROOT = Path(__file__).resolve().parents[2]
DOMAINS = itertools.count(os.getpid())
BUMP = np.array([1, -1, 1, -1, 1, 1]) / 3**0.5


def beside(name: str) -> Any:
    """A test file of another folder, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(capsys, *arguments: Any) -> tuple[int, dict, str]:
    code = main(["calibrate", "watch", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


@pytest.fixture
def calibrated(tmp_path, capsys) -> Path:
    """A calibration of twenty samples, which are a.yaml."""
    samples = beside("cli/test_calibrate").samples
    samples(tmp_path / "a.yaml", Scenario(views=20), 0)
    arguments = ["--data", tmp_path / "a.yaml", "--out", tmp_path / "cal", "--names", "front", "--model", "poses"]
    assert main(["calibrate", "handeye", *map(str, arguments)]) == 0
    capsys.readouterr()
    return tmp_path / "cal"


def bumped(calibration: Path, metres: float, degrees: float) -> Path:
    """The same calibration as if the camera had been elsewhere when it was made."""
    content = json.loads((calibration / "calibration.json").read_text())
    twist = BUMP * ([metres] * 3 + [np.deg2rad(degrees)] * 3)
    content["cameras"][0]["T"] = (np.array(content["cameras"][0]["T"]) @ se3_exp(twist)).tolist()
    made = calibration.parent / "bumped"
    made.mkdir(exist_ok=True)
    (made / "calibration.json").write_text(json.dumps(content))
    return made


def test_recordings_tell_whether_the_camera_is_where_it_was(calibrated, tmp_path, capsys):
    code, told, _ = run(capsys, calibrated, "--data", tmp_path / "a.yaml", "--remember", tmp_path / "kept.json")
    assert code == 0 and told["holds"] and told["pictures"] == 20 and not told["moved"]
    assert json.loads((tmp_path / "kept.json").read_text())["cameras"]["front"]
    code, told, _ = run(capsys, bumped(calibrated, 4e-3, 0.8), "--data", tmp_path / "a.yaml")
    assert code == 2 and told["moved"] == ["camera front"] and "the mount of the camera, not of the board" in told["told"]
    assert told["moved_mm"] == pytest.approx(4.0, abs=1.5) and told["moved_deg"] == pytest.approx(0.8, abs=0.3)
    code, _, err = run(capsys, tmp_path / "bumped", "--data", tmp_path / "a.yaml", "--remember", tmp_path / "kept.json")
    assert code == 2 and "after a new calibration" in err


def test_what_cannot_be_is_one_line(calibrated, tmp_path, capsys):
    data, robot = ("--data", tmp_path / "a.yaml"), ("--robot", "dds")
    for arguments, said in (
        ((calibrated,), "give either --robot"),
        ((calibrated, *data, *robot), "give either --robot"),
        ((calibrated, *data, "--domain", 3), "--domain is for a robot on the network"),
        ((calibrated, *data, "--hold-on-drift"), "--hold-on-drift is for a robot"),
        ((calibrated, *robot, "--hold-on-drift", "--e-stop-topic", "stop"), "give an absolute name"),
        ((calibrated, *robot, "--rate", 0), "--rate 0 must be"),
        ((calibrated, *robot), "--board board.json"),
        ((calibrated, *robot, "--board", tmp_path / "none"), "cannot be read"),
        ((calibrated, calibrated, *data), "two cameras are called front"),
        ((tmp_path / "none", *data), "cannot be read"),
        ((calibrated, "--data", tmp_path / "none"), "does not exist"),
    ):
        code, told, err = run(capsys, *arguments)
        assert code == 2 and not told and said in err and err.count("\n") == 1, err


class Served:
    """A simulated arm before a board on the network, which goes from place to place in a thread of its own."""

    def __init__(self, place: Any, domain: int) -> None:
        fovy = float(np.deg2rad(place.physics.scene.model.camera(place.truth.camera).fovy[0]))
        self.place, self.quit, self.twist = place, threading.Event(), None
        self.server = SimServer(place.robot, Node("arm", domain=domain, reach="LOCALHOST"), cameras={place.truth.camera: fovy}, rate_hz=20)
        self.thread = threading.Thread(target=self._go, daemon=True)
        self.thread.start()

    def _go(self) -> None:
        import mujoco

        tick, data, scene = 0, self.place.physics.data, self.place.physics.scene
        while not self.quit.wait(0.05):
            if self.twist is not None:
                self.place.bump(self.twist)
                self.twist = None
            data.qpos[scene.joint_qpos] = self.place.joints[tick // 16 % len(self.place.joints)]
            mujoco.mj_forward(scene.model, data)  # pyright: ignore[reportAttributeAccessIssue]  # mujoco ships no type stubs
            self.place.robot._ticks = tick % 20
            self.place.robot.measure()
            self.server.publish(time.time_ns())
            tick += 1

    def close(self) -> None:
        self.quit.set()
        self.thread.join()
        self.server.close()


@pytest.fixture
def served(tmp_path):
    """A robot on the network with a calibration of its camera; gives both and the DDS domain."""
    pytest.importorskip("sim.render")
    module, domain = beside("robot_bridge/test_drift_watch"), 2 + next(DOMAINS) % 90
    place = module.Place("in_hand")
    folder = tmp_path / "true"
    folder.mkdir()
    content = {"version": 1, "cameras": [to_json(place.stored)], "board": to_json(module.BOARD)}
    (folder / "calibration.json").write_text(json.dumps(content))
    robot = Served(place, domain)
    yield robot, folder, domain
    robot.close()


def test_a_deployment_that_is_to_hold_is_stopped_with_what_has_moved(served, monkeypatch):
    robot, folder, domain = served
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = calibrated_verb.given([str(folder)], ["wrist"])
    common = {"robot": "dds", "robot_config": None, "domain": domain, "reach": "LOCALHOST", "timeout": 60.0}
    args, operator, lines = SimpleNamespace(calibration=(str(folder),), **common), Operator(), []
    with calibrated_verb.watching(args, given, operator, lines.append):
        assert not operator.pressed
        robot.twist = BUMP * ([0.02] * 3 + [np.deg2rad(2.0)] * 3)
        end = time.monotonic() + 120
        while not operator.pressed and time.monotonic() < end:
            time.sleep(0.05)
    assert "has moved by about" in operator.pressed and operator.pressed in lines
    nobody = SimpleNamespace(calibration=(str(folder),), **{**common, "timeout": 0.5, "domain": domain + 1})
    with pytest.raises(InputError, match="the cameras cannot be watched: no robot answered"):  # noqa: SIM117
        with calibrated_verb.watching(nobody, given, Operator(), lines.append):
            raise AssertionError("it began")


def test_beside_a_robot_on_the_network_it_is_told_on_diagnostics_and_stops_a_deployment(served):
    robot, folder, domain = served
    node = Node("listener", domain=domain, reach="LOCALHOST")
    diagnostics = node.subscription("/diagnostics", "diagnostic_msgs/DiagnosticArray", DEFAULT)
    stop = node.subscription("/sinew/e_stop", "std_msgs/Bool", DEFAULT)
    command = ["calibrate", "watch", folder, "--robot", "dds", "--domain", domain, "--reach", "LOCALHOST", "--rate", 5, "--hold-on-drift"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sinew", *map(str, command), "--timeout", "60", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def status(wanted: int, least: int) -> Any:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            for sample in diagnostics.take():
                (found,) = codec.decode(sample.data, "diagnostic_msgs/DiagnosticArray").status
                values = {pair.key: pair.value for pair in found.values}
                if found.level == wanted and int(values["used"]) >= least:
                    return found
            time.sleep(0.05)
        raise AssertionError(process.communicate()[1])

    try:
        good = status(0, 6)
        assert good.name == "sinew_watch: camera wrist" and good.hardware_id == "wrist" and "where it was" in good.message
        assert not stop.take()
        commanded = {topic for topic, _ in COMMANDS.values()}
        assert not [e for e in node.endpoints() if e.publishes and e.name in commanded]  # who looks is no second publisher
        robot.twist = BUMP * ([3e-3] * 3 + [np.deg2rad(0.5)] * 3)
        assert "has moved by about" in status(2, 7).message
        end = time.monotonic() + 60
        while not (samples := stop.take()) and time.monotonic() < end:
            time.sleep(0.05)
        assert codec.decode(samples[0].data, "std_msgs/Bool").data
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        node.close()
    told = json.loads(out)
    assert process.returncode == 2 and not told["holds"] and "camera wrist" in told["moved"], told
    assert "watching wrist of robot" in err and err.count("has moved by about") >= 1 and "Traceback" not in err
