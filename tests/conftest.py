"""What every test may count on."""

import atexit
import os
import shutil
import signal
import tempfile

# Decoded pictures are kept for the next run: not in the cache of whoever runs the tests.
os.environ["SINEW_CACHE"] = tempfile.mkdtemp(prefix="sinew-tests-")
atexit.register(shutil.rmtree, os.environ["SINEW_CACHE"], ignore_errors=True)

# Whoever starts tests in the background may have Ctrl-C ignored, and processes inherit that: tests of Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
