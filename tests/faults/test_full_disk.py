"""Fault 3 on a disk that is truly full: one line says so, the robot stands, and what was written before can be read.

The disk is a tmpfs of 4 MB, which an ordinary user may mount in name spaces of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOUNT = 'mount -t tmpfs -o size=4m none "$1" && exec "$2" -c "$3" "$1"'
FILL = """
import json, os, sys
from pathlib import Path
disk = Path(sys.argv[1])

def fill(left):
    # nothing but `left` bytes is free, in a file that can be taken away again
    with open(disk / "filler", "wb") as f:
        space = os.statvfs(disk)
        f.write(bytes(max(space.f_bavail * space.f_frsize - left, 0)))

def free():
    (disk / "filler").unlink()

def tell(**facts):
    print(json.dumps(facts), flush=True)
"""


def isolated(folder: Path) -> str:
    """Why a process cannot have a disk of its own here; empty where it can."""
    try:
        made = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(folder)], capture_output=True, text=True)
    except OSError as e:
        return f"needs unshare: {e}"
    return "" if made.returncode == 0 else f"needs user and mount name spaces, which are not allowed here: {made.stderr.strip()}"


@pytest.fixture
def on_disk(tmp_path: Path):
    """Run code with a disk of 4 MB of its own, and give what it tells."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if why := isolated(disk):
        pytest.skip(why)

    def run(code: str) -> dict[str, Any]:
        command = ["unshare", "-Urm", "sh", "-c", MOUNT, "sh", str(disk), sys.executable, FILL + code]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


RECORDING = """
import numpy as np, sim
from demos import Dataset, check, repair
from robot_bridge.faults.trial import Trial
from robot_bridge.recording import DatasetRecorder
from sinew.errors import InputError

interface = sim.make_interface("lift")
recorder = DatasetRecorder(disk / "data", interface, on_trouble="{on_trouble}")
Trial(record=recorder).run(seeds=(0,), max_steps=20)
whole = recorder.episodes
fill(8192)
second, told = Trial(record=recorder), ""
try:
    second.run(seeds=(1,), max_steps=60)
except InputError as e:
    told = str(e)
try:
    recorder.close()
except InputError as e:
    told = told or str(e)
path, success = np.array(second.robot.commands), told == "" and second.report.k == 1
kept = Dataset(disk / "data").num_episodes
free()
repair(disk / "data")
report = check(disk / "data")
tell(
    whole=whole, success=success, told=told, trouble=recorder.trouble, kept=kept, steps=len(path),
    repaired=Dataset(disk / "data").num_episodes,
    still=float(np.ptp(path[-2:], axis=0).max()), problems=[str(f) for f in report.findings if f.severity == "error"],
)
"""


ROOM = """
import sim
from demos import Dataset
from robot_bridge.faults.trial import Trial
from robot_bridge.recording import DatasetRecorder
from sinew.cli.recording_watch import before
from sinew.errors import InputError

with DatasetRecorder(disk / "data", sim.make_interface("lift")) as recorder:
    first = recorder.room().refusal(1e6)  # nothing was measured yet
    Trial(record=recorder, look=lambda world: before(recorder, 60.0, None)).run(seeds=(0,), max_steps=20)
    fill(1 << 20)
    recorder._room._asked_s = -10.0  # as if it had been a while
    trial, told = Trial(record=recorder, look=lambda world: before(recorder, 60.0, None)), ""
    try:
        trial.run(seeds=(1,), max_steps=20)
    except InputError as e:
        told = str(e)
tell(first=first, told=told, moved=len(trial.robot.commands), kept=Dataset(disk / "data").num_episodes)
"""


def test_an_episode_that_would_not_fit_is_not_begun(on_disk):
    told = on_disk(ROOM)
    assert told["first"] == "" and "an episode of up to 60 s would not fit" in told["told"] and "\n" not in told["told"]
    assert told["moved"] == 0 and told["kept"] == 1


def test_a_deployment_that_records_stops_with_the_robot_at_rest(on_disk):
    told = on_disk(RECORDING.replace("{on_trouble}", "stop"))
    assert "No space left on device" in told["told"] and "free space" in told["told"] and "\n" not in told["told"]
    assert told["still"] == 0.0 and 0 < told["steps"] < 300
    assert told["whole"] == 1 <= told["kept"] <= told["repaired"] and told["problems"] == []


def test_a_deployment_that_shall_go_on_does_so_without_recording(on_disk):
    told = on_disk(RECORDING.replace("{on_trouble}", "go_on"))
    assert "No space left on device" in told["trouble"] and told["still"] == 0.0 and told["success"]
    assert told["whole"] == 1 <= told["kept"] and told["problems"] == []


BAG = """
import threading, time
import numpy as np
from demos.bags import Bag
from robot_bridge.bag_recorder import BagRecorder
from robot_bridge.dds import codec
from robot_bridge.dds.node import Node
from sinew.errors import InputError

recorder = BagRecorder(Node("recorder", domain={domain}), disk / "bag.mcap")
node = Node("camera", domain={domain})
images = node.publisher("/front/image_raw", "sensor_msgs/Image")
picture, sent = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8), 0
deadline = time.monotonic() + 120
while not recorder.trouble and time.monotonic() < deadline:
    images.write(codec.encode_image(picture, time.time_ns(), "camera"))
    sent += 1
    time.sleep(0.01)
trouble = recorder.trouble
images.write(codec.encode_image(picture, time.time_ns(), "camera"))  # whoever publishes goes on as before
told = ""
try:
    recorder.close()
except InputError as e:
    told = str(e)
node.close()
kept = sum(1 for _ in Bag(disk / "bag.mcap").messages())
tell(trouble=trouble, told=told, kept=kept, sent=sent)
"""


def test_a_bag_recorder_says_so_and_keeps_what_was_recorded(on_disk, domain):
    told = on_disk(BAG.replace("{domain}", str(domain)))
    assert "No space left on device" in told["trouble"] and "No space left on device" in told["told"] and "\n" not in told["told"]
    assert 10 < told["kept"] <= told["sent"]


REPORTS = """
from sinew.errors import InputError
from sinew.rundir import RunDir, read_json, write_json

run = RunDir(disk / "run")
run.path.mkdir(exist_ok=True)
write_json(run.path / "deploy/lift-sim.json", {"success": 1})
run.log(step=1)
fill(0)
said, report = [], run.path / "deploy/lift-sim.json"
for write in (lambda: write_json(report, {"success": list(range(3000))}), lambda: [run.log(step=i) for i in range(5000)]):
    try:
        write()
    except InputError as e:
        said.append(str(e))
lines = list(run.metrics())
free()
run.log(step=-1)
after = list(run.metrics())
parts = [str(p) for p in (disk / "run").rglob(".*") if p.is_file()]
tell(said=said, report=read_json(report), lines=lines[:1], whole=len(lines), last=after[-1], after=len(after), parts=parts)
"""


def test_reports_and_metrics_say_so_and_stay_whole(on_disk):
    told = on_disk(REPORTS)
    report, metrics = told["said"]
    assert "deploy/lift-sim.json: No space left on device; free space" in report and "metrics.jsonl: No space left on device" in metrics
    assert told["report"] == {"success": 1} and told["parts"] == []  # the old one, and nothing half written
    assert told["lines"] == [{"step": 1}] and told["last"] == {"step": -1} and told["after"] == told["whole"] + 1
