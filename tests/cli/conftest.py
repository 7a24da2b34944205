"""Commands as a user runs them: in a terminal of their own, or refused in one line."""

import os
import pty
import select
import signal
import sys
import time

import pytest

from sinew.cli.main import main

DEADLINE_S, SAFETY = 240.0, 4
HELD = "ujk"
"""Keys that are pressed again and again until the next text is there, as a person holds them."""


def _in_a_terminal(argv, steps, always=lambda: None):
    """Run a command in a terminal: wait for a text, do something, press a key; (text, what to do, key), one after the other.

    Gives the exit code; where the robot was stopped for safety not every text may have come.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "sinew", *map(str, argv)])
    seen, end, queue, held = "", time.monotonic() + DEADLINE_S, list(steps), ""
    try:
        while time.monotonic() < end:
            always()
            try:
                os.write(terminal, held.encode())
                if select.select([terminal], [], [], 0.03)[0]:
                    seen += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # it has ended
                break
            if queue and queue[0][0] in seen:
                text, do, key = queue.pop(0)
                seen, held = seen[seen.index(text) + len(text) :], key if key in HELD else ""
                do()
                os.write(terminal, key.encode())
        else:
            os.kill(child, signal.SIGKILL)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(terminal)
    assert not queue or code == SAFETY, (queue[0][0], seen[-3000:])
    return code


@pytest.fixture
def in_a_terminal():
    return _in_a_terminal


@pytest.fixture
def until_not_stopped(tmp_path):
    """Run a command that records into a folder, with a new one where the gate stopped its robot, which it does where a machine is too
    busy to decide in time; gives the folder."""

    def run(record):
        for attempt in range(8):
            out = tmp_path / f"recorded-{attempt}"
            code = record(out)
            if code != SAFETY:
                assert code == 0
                return out
        raise AssertionError("the robot was stopped again and again")

    return run


@pytest.fixture
def refused(capsys, monkeypatch):
    """Run a command that is refused, without a terminal; gives the one line that is said."""

    def run(argv):
        with open(os.devnull) as no_terminal:
            monkeypatch.setattr(sys, "stdin", no_terminal)
            assert main([str(word) for word in argv]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sinew:")]
        assert len(lines) == 1, lines
        return lines[0]

    return run
