import json
import os
import pty
import select
import signal
import sys
import time

import pytest

from sinew.cli.main import main

DEADLINE_S = 240.0
MOVING = "ujk"


def with_keys(argv, steps):
    """Run a command in a terminal of its own: press a key, again and again if `until` begins with it, until a text is there."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "sinew", *map(str, argv)])
    seen, end, queue, pressed = "", time.monotonic() + DEADLINE_S, list(steps), False
    try:
        while time.monotonic() < end:
            if queue and (not pressed or queue[0][0] in MOVING):
                os.write(terminal, queue[0][0].encode())
                pressed = True
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 65536).decode(errors="replace")
                except OSError:
                    break
            if queue and queue[0][1] in seen:
                seen, pressed = seen[seen.index(queue[0][1]) + len(queue[0][1]) :], False
                queue.pop(0)
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(terminal)
    assert not queue, (queue, seen[-2000:])
    return code


def test_a_person_records_with_the_keyboard(tmp_path, capsys):
    out = tmp_path / "lift"
    steps = [
        (" ", "recording begins"), ("u", "recording"), ("y", "1 of 3 kept"), ("j", "recording"), ("r", "thrown away"),
        ("x", "nothing is recorded yet"), ("k", "recording"), ("x", "2 of 3 kept"), ("q", "2 of 3 kept"),
    ]  # fmt: skip
    argv = ["collect", "--task", "lift", "--teleop", "keyboard", "--robot", "sim", "--episodes", "3", "--out", out]
    assert with_keys(argv, steps) == 0
    assert main(["data", "info", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["outcomes"] == {"success": 1, "failure": 1} and told["frames"] >= 2


WRONG = [
    (["--teleop", "keyboard"], "terminal"),
    (["--teleop", "keyboard", "--quality", "human"], "--quality"),
    (["--teleop", "keyboard", "--episode-s", "0"], "--episode-s"),
    (["--robot", "sim"], "--teleop"),
    (["--robot-config", "ur5e"], "--teleop"),
    (["--teleop", "keyboard", "--robot-config", "ur5"], "did you mean 'ur5e'"),
    (["--teleop", "keyboard", "--robot-config", "ur5e", "--cameras", "top"], "unknown camera"),
]


@pytest.mark.parametrize(("argv", "said"), WRONG)
def test_what_does_not_belong_together_is_said_in_one_line(argv, said, tmp_path, capsys, monkeypatch):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(["collect", "--task", "lift", "--out", str(tmp_path / "x"), *argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sinew:")]
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "x").exists()
