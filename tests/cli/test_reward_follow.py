"""`sinew reward classifier --follow` beside a recorder in another process: what is saved or labelled is learned from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from demos import Dataset

PATIENCE_S = 300
"""Longest wait for anything; machines are busy."""

RECORDER = """
import sys
import numpy as np
from demos import Writer
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

spec = ObservationSpec({"observation.state": TensorSpec(shape=(2,), names=("height", "side"))})
action = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=20.0, names=("z",))
rng = np.random.default_rng(0)
with Writer.create(sys.argv[1], fps=20, observation_spec=spec, action_spec=action, robot_type="toy", task="lift it") as writer:
    for number in range(100):
        line = sys.stdin.readline().strip()
        if line == "end":
            break
        for _ in range(int(line)):
            success = bool(rng.integers(2)) if number else _ % 2 == 0
            for t in range(10):
                state = np.array([(1.0 if success else 0.3) * t / 9, rng.normal()], np.float32)
                writer.add_frame({"observation.state": state, "action": np.zeros(1, np.float32)}, stamp_ns=t * 50_000_000)
            writer.save_episode(success=success)
        print("saved", flush=True)
"""


def until(found, process):
    """The first true value of `found()`; fails where the process ends or time is up."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := found():
            return value
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("nothing came")


def learned_from(path):
    """The hash of the data that the reward file was learned from; None while it is not there."""
    return json.loads(path.read_text())["made"]["hash"] if path.is_file() else None


def test_what_a_recorder_saves_and_a_person_says_is_learned_until_ctrl_c(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out, labels = tmp_path / "done.json", tmp_path / "labels.jsonl"
    labels.write_text("")
    recorder = subprocess.Popen([sys.executable, "-c", RECORDER, str(tmp_path / "data")], env=environment, **pipes)

    def record(count):
        recorder.stdin.write(f"{count}\n")
        recorder.stdin.flush()
        assert recorder.stdout.readline() == "saved\n", recorder.stderr.read()

    record(24)
    words = ["reward", "classifier", "--data", tmp_path / "data", "--out", out, "--labels", labels, "--updates", 30, "--follow", "--json"]
    command = [sys.executable, "-m", "sinew.cli.main", *map(str, words)]
    follower = subprocess.Popen(command, env=environment, **pipes)
    try:
        first = Dataset(tmp_path / "data").content_hash()
        until(lambda: learned_from(out) == first, follower)
        record(6)
        second = Dataset(tmp_path / "data").content_hash()
        assert second != first
        until(lambda: learned_from(out) == second, follower)
        before = out.stat().st_mtime_ns
        labels.write_text('{"episode": 0, "success": false}\n')
        until(lambda: out.stat().st_mtime_ns != before, follower)
        assert learned_from(out) == second  # the same data, judged anew
        before = out.stat().st_mtime_ns
        labels.write_text("no label\n")
        said = until(lambda: "not learned anew" in (line := follower.stderr.readline()) and line, follower)
        assert "line 1" in said and out.stat().st_mtime_ns == before  # the last reward stays
    finally:
        recorder.stdin.write("end\n")
        recorder.stdin.flush()
        recorder.wait(PATIENCE_S)
        follower.send_signal(signal.SIGINT)
        told, _ = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 0 and recorder.returncode == 0
    assert json.loads(told)["episodes"] == 30
