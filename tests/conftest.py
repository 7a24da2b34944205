"""What every test may count on."""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# Decoded pictures are kept for the next run: not in the cache of whoever runs the tests.
os.environ["SINEW_CACHE"] = tempfile.mkdtemp(prefix="sinew-tests-")
atexit.register(shutil.rmtree, os.environ["SINEW_CACHE"], ignore_errors=True)

# Whoever starts tests in the background may have Ctrl-C ignored, and processes inherit that: tests of Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SCHEDULER = os.sched_getscheduler(0), os.sched_getparam(0)


@pytest.fixture(autouse=True)
def ordinary_priority():
    """Run as root, SVT-AV1 puts the thread that opens an encoder under SCHED_FIFO 99, for good: every process that is started
    afterwards would keep all others from the cores."""
    os.sched_setscheduler(0, *SCHEDULER)
    yield
    os.sched_setscheduler(0, *SCHEDULER)


TESTS = Path(__file__).parent
REALTIME = (
    "cli/test_calibrate_robot.py", "cli/test_calibrate_watch.py", "cli/test_calibrated.py", "cli/test_collect_teleop.py",
    "cli/test_improve_robot.py", "cli/test_loop.py", "cli/test_teleop_devices.py", "faults/", "robot_bridge/learning/",
    "robot_bridge/server/test_lost_server.py", "robot_bridge/teleop/browser/",
)  # fmt: skip
"""Files and folders in which robots, operators and browsers keep to the time of day."""
REALTIME_FIXTURES = {"serve", "spawn"}
"""Start robots and policies in processes of their own."""


def pytest_collection_modifyitems(items):
    """Tests that are best run one after the other have the marker `realtime`: a robot whose loop gets no processor holds, as it should."""
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(REALTIME) or REALTIME_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.realtime)
