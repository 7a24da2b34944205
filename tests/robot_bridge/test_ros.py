"""The parts of the ROS 2 side that need no ROS 2; test_transport_conformance.py runs the rest where it is sourced."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from robot_bridge.ros.child import ERROR, OK, STALE, Command
from robot_bridge.ros.topics import Subscription
from robot_bridge.transport import open_transport
from sinew.errors import InputError, MissingDependency

LISTENS = (
    "import signal, sys, time\n"
    "def end(*_): sys.exit(0)\n"
    "signal.signal(signal.SIGINT, end)\n"
    "open(sys.argv[2], 'w').close()\n"
    "time.sleep(600)\n"
)


def until(done) -> None:
    end = time.monotonic() + 30.0
    while not done():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def test_without_ros_the_transport_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    for module in [name for name in sys.modules if name.startswith("robot_bridge.ros")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingDependency, match=r"source /opt/ros/.*or use dds") as refused:
        open_transport("ros2", "n")
    assert refused.value.exit_code == 3


def test_a_subscription_keeps_the_newest_and_wakes_who_waits():
    subscription = Subscription("/x", depth=3)
    assert subscription.take() == [] and not subscription.wait(0.01)
    for i in range(5):
        subscription.put(bytes([i]), {"source_timestamp": 100 + i})
    assert [(s.data[0], s.source_ns) for s in subscription.take(2)] == [(2, 102), (3, 103)]
    newest = subscription.newest()
    assert newest and newest.data == b"\4" and subscription.newest() is None
    thread = threading.Timer(0.05, subscription.put_plain, (b"late",))
    thread.start()
    assert subscription.wait(30.0)
    assert abs(subscription.take()[0].source_ns - time.time_ns()) < 60e9  # the receipt's, where ROS 2 tells no stamp
    threading.Timer(0.05, subscription.close).start()
    assert not subscription.wait(30.0)


def test_a_command_is_started_and_interrupted(tmp_path):
    program, ready = tmp_path / "program.py", tmp_path / "ready"
    program.write_text(LISTENS)
    command = Command("deploy", (sys.executable, str(program)))
    assert command.health().level == STALE
    command.configure({"arguments": f"'{ready}' --robot ros2"})
    command.activate()
    until(ready.exists)
    assert command.running and command.health().message == "running" and str(ready) in command.health().values["command"]
    with pytest.raises(InputError, match="still runs"):
        command.configure({"arguments": ""})
    command.deactivate()
    assert not command.running and command.health().level == OK and command.health().message == "done"
    command.deactivate()


def test_a_command_that_fails_is_told_of(tmp_path):
    command = Command("deploy", (sys.executable, "-c", "import sys; sys.exit(4)"))
    command.configure({"arguments": ""})
    command.activate()
    until(lambda: not command.running)
    health = command.health()
    assert health.level == ERROR and health.message == "ended with exit code 4"


def test_a_command_line_that_is_none_is_refused():
    with pytest.raises(InputError, match="is not a command line"):
        Command("deploy").configure({"arguments": "'open"})
