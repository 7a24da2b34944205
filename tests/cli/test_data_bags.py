"""`sinew data` with bags, through real processes: converting both ways, looking, mending, recording a graph, refusing in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import demos
from demos.bags import Bag
from robot_bridge.bag_recorder import recorded
from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node
from sinew.errors import InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = 1 + (os.getpid() * 13) % 99


def sinew_data(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sinew", "data", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bags") / "demos"
    observation = ObservationSpec({"observation.state": TensorSpec(shape=(2,), unit="rad", names=("a", "b"))})
    action = ActionSpec(kind="ee_delta", low=(-1,), high=(1,), rate_hz=20.0, names=("dx",))
    with demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="move it") as writer:
        for i in range(40):
            writer.add_frame({"observation.state": np.array([i, 1], np.float32), "action": np.array([i / 40], np.float32)})
        writer.save_episode(success=True)
    return root


def test_there_and_back_and_mended(dataset, tmp_path):
    made = sinew_data("convert", dataset, "--out", tmp_path / "a.mcap", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["frames"] == 40
    told = json.loads(sinew_data("info", tmp_path / "a.mcap", "--json").stdout)
    assert {t["name"]: t["messages"] for t in told["topics"]}["/action"] == 40
    back = sinew_data("convert", tmp_path / "a.mcap", "--out", tmp_path / "d")
    assert back.returncode == 0 and "1 episodes, 40 frames" in back.stdout
    np.testing.assert_array_equal(demos.Dataset(tmp_path / "d").column("action"), demos.Dataset(dataset).column("action"))
    data = (tmp_path / "a.mcap").read_bytes()
    (tmp_path / "a.mcap").write_bytes(data[: len(data) - 400])
    assert sinew_data("check", tmp_path / "a.mcap").returncode == 2
    mended = sinew_data("repair", tmp_path / "a.mcap")
    assert mended.returncode == 0 and "wrote 83 messages of 4 topics anew" in mended.stdout
    assert sinew_data("check", tmp_path / "a.mcap").returncode == 0


def test_refused_in_one_line(dataset, tmp_path):
    (tmp_path / "b.mcap").write_bytes(b"no bag")
    for arguments, said in [
        (("convert", tmp_path / "nothing", "--out", tmp_path / "d"), "no such file or folder"),
        (("convert", tmp_path / "b.mcap", "--out", tmp_path / "d"), "is no MCAP file"),
        (("convert", dataset, dataset, "--out", tmp_path / "d"), "takes one dataset"),
        (("convert", dataset, "--out", dataset), "exists already"),
        (("convert", dataset, "--out", tmp_path / "d", "--contract", "urr5"), "did you mean 'ur5e'"),
        (("record", "--out", tmp_path / "b.mcap", "--domain", DOMAIN), "exists already"),
        (("record", "--out", tmp_path / "c.mcap", "--duration", "0"), "above 0 s"),
    ]:
        done = sinew_data(*arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, (arguments, done.stderr)
        assert not (tmp_path / "d").exists()


@pytest.fixture
def counting():
    """A node that counts on /count until the test ends."""
    node = Node("counter", domain=DOMAIN, reach="LOCALHOST")
    publisher, end = node.publisher("/count", "std_msgs/Int64"), threading.Event()

    def count() -> None:
        i = 0
        while not end.wait(0.005):
            publisher.send(make("std_msgs/Int64", data=i))
            i += 1

    thread = threading.Thread(target=count)
    thread.start()
    yield publisher
    end.set()
    thread.join()
    node.close()


def until(done) -> None:
    deadline = time.monotonic() + 60
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert done()


def numbers(path: Path) -> list[int]:
    return [int.from_bytes(m.data[4:12], "little") for m in Bag(path).messages(["/count"])]


def test_a_graph_is_recorded_beside_a_deployment(counting, tmp_path):
    with recorded(tmp_path / "a.mcap", domain=DOMAIN, reach="LOCALHOST", contract="ur5e"):
        until(lambda: (tmp_path / "a.mcap").stat().st_size > 10_000)
    found = numbers(tmp_path / "a.mcap")
    assert Bag(tmp_path / "a.mcap").whole and found == list(range(found[0], found[0] + len(found)))
    assert "/sinew/contract" in Bag(tmp_path / "a.mcap").topics
    with pytest.raises(InputError, match="exists already"), recorded(tmp_path / "a.mcap", domain=DOMAIN, reach="LOCALHOST"):
        pass


def test_a_recorder_that_is_killed_leaves_a_readable_bag(counting, tmp_path):
    path = tmp_path / "bag"
    command = [sys.executable, "-m", "sinew", "data", "record", "--out", str(path), "--domain", str(DOMAIN), "--reach", "LOCALHOST"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    until(lambda: (path / "bag_0.mcap").exists() and (path / "bag_0.mcap").stat().st_size > 10_000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = numbers(path)
    assert len(found) > 50 and found == list(range(found[0], found[0] + len(found)))
    assert sinew_data("repair", path).returncode == 0 and numbers(path) == found and (path / "metadata.yaml").exists()
