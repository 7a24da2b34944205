"""What every test may count on."""

import atexit
import os
import shutil
import signal
import tempfile

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
