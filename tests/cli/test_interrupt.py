"""Ctrl-C at any moment of a collection ends it, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def collecting(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sinew", "collect", "--task", "reach", "--episodes", "400", "--json", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)


def test_ctrl_c_is_never_lost_and_always_one_line(tmp_path: Path) -> None:
    out, stopped, before = tmp_path / "data", 0, -1
    for attempt in range(6):
        process = collecting(out)
        while process.poll() is None and len(list(out.glob("meta/episodes/*/*.parquet"))) <= max(before, 0):
            time.sleep(0.01)
        time.sleep(0.013 * attempt)  # another place of the loop each time
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130 and stdout == "", stderr
        assert stderr.splitlines()[-1].startswith("sinew: stopped") and "Traceback" not in stderr
        now = len(list(out.glob("meta/episodes/*/*.parquet")))
        stopped += now > before
        before = now
    assert stopped and 0 < before < 400
    process = collecting(out)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and json.loads(stdout)["episodes"] == 400, stderr
