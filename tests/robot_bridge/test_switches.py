"""Stopping a robot by a key, a signal, a topic and a service; nobody waits for motion."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import threading
import time
from collections.abc import Callable

import pytest

from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node
from robot_bridge.safety.operator import Operator
from robot_bridge.switches import StopTopic, TerminalKeys, stop_signals
from sinew.errors import InputError


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition, for as long as it may take on a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    yield master, slave
    for fd in (master, slave):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_any_key_stops(terminal):
    master, slave = terminal
    operator = Operator()
    keys = TerminalKeys(operator, fd=slave)
    os.write(master, b"x")
    until(lambda: operator.pressed)
    keys.close()
    assert operator.pressed == "key 'x'"


def test_an_answer_is_no_stop(terminal):
    master, slave = terminal
    operator, asked = Operator(), []
    keys = TerminalKeys(operator, fd=slave, tell=lambda line: (asked.append(line), os.write(master, b"Y")))
    assert keys.ask("go on?") == "y" and asked == ["go on?"] and not operator.pressed
    os.write(master, b" ")
    until(lambda: operator.pressed)  # and after the answer a key stops again
    keys.close()


def test_a_question_ends_when_the_robot_is_stopped_meanwhile(terminal):
    operator = Operator()
    keys = TerminalKeys(operator, fd=terminal[1], tell=lambda line: operator.press("topic"))
    assert keys.ask("go on?") == ""
    keys.close()


def test_the_space_bar_is_a_dead_man_switch_where_it_is_asked_for(terminal):
    master, slave = terminal
    operator = Operator(0.25)
    keys = TerminalKeys(operator, dead_man=True, fd=slave)
    assert not operator.alive(time.monotonic_ns())

    def held() -> bool:
        os.write(master, b" ")
        return operator.alive(time.monotonic_ns())

    until(held)
    until(lambda: not operator.alive(time.monotonic_ns()))  # let go
    assert not operator.pressed
    os.write(master, b"q")
    until(lambda: operator.pressed)
    keys.close()


def test_a_terminal_that_is_closed_stops(terminal):
    master, slave = terminal
    operator = Operator()
    keys = TerminalKeys(operator, fd=slave)
    os.close(master)
    until(lambda: operator.pressed == "the terminal was closed")
    keys._quit.set()
    keys._thread.join()


def test_what_is_no_terminal_is_refused(tmp_path):
    with open(tmp_path / "file", "w") as file, pytest.raises(InputError, match="no terminal"):
        TerminalKeys(Operator(), fd=file.fileno())


def test_the_first_signal_stops_the_robot_and_the_second_the_program():
    operator, before = Operator(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stop_signals(operator):
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: operator.pressed)
        assert operator.pressed == "SIGTERM"
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: False, 5.0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone():
    before, ran = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with stop_signals(Operator()):
            ran.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ran == [True]


@pytest.mark.parametrize("way", ["topic", "service"])
def test_a_topic_and_a_service_stop(domain, way):
    operator = Operator()
    switch = StopTopic(operator, domain=domain, reach="LOCALHOST")
    node = Node("elsewhere", domain=domain, reach="LOCALHOST")
    try:
        if way == "topic":
            publisher = node.publisher("/sinew/e_stop", "std_msgs/Bool")
            until(lambda: publisher.subscribers)
            publisher.send(make("std_msgs/Bool", data=False))
            time.sleep(0.1)
            assert not operator.pressed  # false lets nothing go on and stops nothing
            publisher.send(make("std_msgs/Bool", data=True))
            until(lambda: operator.pressed)
        else:
            client = node.client("/sinew/e_stop", "std_srvs/Trigger")
            assert client.call(make("std_srvs/Trigger_Request"), 20.0).success
        assert operator.pressed == f"{way} /sinew/e_stop"
    finally:
        node.close()
        switch.close()
