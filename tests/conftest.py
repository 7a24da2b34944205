"""What every test may count on."""

import signal

# Whoever starts tests in the background may have Ctrl-C ignored, and processes inherit that: tests of Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
