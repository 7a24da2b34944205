"""A life-cycle node around a command of sinew: `python -m robot_bridge.ros deploy --ros-args -p arguments:="RUN --robot ros2"`."""

from __future__ import annotations

import signal
import sys
import threading

from sinew.errors import SinewError


def main(words: list[str]) -> int:
    """Run the node until it is interrupted; returns the exit code."""
    verb = words[0] if words and not words[0].startswith("-") else ""
    if verb not in ("deploy", "robot", "serve"):
        sys.stderr.write(f"{verb or 'no verb'}: give deploy, robot or serve, then --ros-args -p arguments:='...'\n")
        return 2
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        from robot_bridge.ros.child import Command
        from robot_bridge.ros.managed import ManagedNode

        node = ManagedNode(f"sinew_{verb}", Command(verb), {"arguments": ""}, arguments=words[1:])
    except SinewError as e:
        sys.stderr.write(f"sinew: {e}\n")
        return e.exit_code
    try:
        ended.wait()
    finally:
        node.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
