"""A process that controls a robot goes before others while it does, where that is allowed and nobody has put it behind them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, os, sys, threading
from robot_bridge.cadence import favoured

def nice():
    return os.getpriority(os.PRIO_PROCESS, 0)

if len(sys.argv) > 1:
    os.nice(int(sys.argv[1]))
told, ready, done = [nice()], threading.Event(), threading.Event()

def other():
    ready.wait()
    told.append(nice())
    done.set()

before = threading.Thread(target=other)
before.start()
with favoured():
    ready.set()
    done.wait()
    told.append(nice())
    during = threading.Thread(target=lambda: told.append(nice()))
    during.start()
    during.join()
told.append(nice())
before.join()
print(json.dumps(told))
"""


def told(*argv: str) -> list[int]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", CODE, *argv], capture_output=True, text=True, env=env, check=True)
    return json.loads(done.stdout)


def test_every_thread_goes_first_and_back_again():
    before, other, own, new, after = told()
    allowed = before <= 0 and (os.geteuid() == 0 or other != before)
    if not allowed:
        assert other == own == new == after == before
        pytest.skip("this process may not go before others")
    assert other == own == new == min(before, -10) and after == before


def test_who_was_put_behind_others_stays_there():
    before, other, own, new, after = told("3")
    assert before > 0 and other == own == new == after == before
