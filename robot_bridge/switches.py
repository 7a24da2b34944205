"""Ways to stop a robot: a key of the terminal, a signal, a topic, a service. Each presses the operator's emergency stop.

They run in threads of their own and share nothing with motion but the operator, which nobody waits for.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.safety.operator import Operator
from robot_bridge.transport import DEFAULT, open_transport
from sinew.errors import DataError, InputError

E_STOP = "/sinew/e_stop"
"""std_msgs/Bool: true stops; std_srvs/Trigger of the same name stops as well."""
POLL_S = 0.02


class TerminalKeys:
    """The keys of a terminal: any stops the robot, unless a question is open or the space bar is a dead-man switch.

    Args:
        operator: whose switches they are.
        dead_man: the robot moves only while the space bar is held; every other key stops.
        fd: a terminal; standard input if left out.
        tell: shows a question.

    Raises:
        InputError: it is no terminal.
    """

    def __init__(
        self, operator: Operator, *, dead_man: bool = False, fd: int | None = None, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self._fd = sys.stdin.fileno() if fd is None else fd
        if not os.isatty(self._fd):
            raise InputError("standard input is no terminal: nobody can be asked, and no key can stop the robot")
        self._operator, self._dead_man, self._tell = operator, dead_man, tell
        self._answer: str | None = None
        self._asking = threading.Event()
        self._answered = threading.Event()
        self._quit = threading.Event()
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)  # keys at once and without echo; Ctrl-C stays a signal
        self._thread = threading.Thread(target=self._listen, name="keys", daemon=True)
        self._thread.start()

    def ask(self, question: str) -> str:
        """The key that answers a question, in lower case; empty when the terminal is closed or the robot was stopped meanwhile."""
        self._answer = None
        self._answered.clear()
        self._asking.set()
        self._tell(question)
        while not self._answered.wait(POLL_S) and not self._operator.pressed and not self._quit.is_set():
            pass
        self._asking.clear()
        return (self._answer or "").lower()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._quit.set()
        self._thread.join()
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _listen(self) -> None:
        while not self._quit.is_set():
            if not select.select([self._fd], [], [], POLL_S)[0]:
                continue
            try:
                data = os.read(self._fd, 64)
            except OSError:
                data = b""
            if not data:  # the other end of the terminal is gone, and nobody could stop the robot any more
                self._operator.press("the terminal was closed")
                return
            for key in data.decode(errors="replace"):
                self._press(key)

    def _press(self, key: str) -> None:
        if self._asking.is_set() and not self._answered.is_set():
            self._answer = key
            self._answered.set()
        elif self._dead_man and key == " ":
            self._operator.beat()
        else:
            self._operator.press(f"key {key!r}")


class StopTopic:
    """A topic and a service that stop the robot, on a node of their own.

    Args:
        operator: who is told.
        name: of both.
        backend: transport, "dds" or "ros2".
        domain: None for ROS_DOMAIN_ID.
        reach: None for ROS_AUTOMATIC_DISCOVERY_RANGE.
    """

    def __init__(
        self, operator: Operator, name: str = E_STOP, *, backend: str = "dds", domain: int | None = None, reach: str | None = None
    ) -> None:
        self.name, self._operator = name, operator
        self._node = open_transport(backend, "sinew_e_stop", domain=domain, reach=reach)
        self._subscription = self._node.subscription(name, "std_msgs/Bool", DEFAULT)
        self._server = self._node.server(name, "std_srvs/Trigger", self._serve)
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="e-stop topic", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the network."""
        self._quit.set()
        self._thread.join()
        self._server.close()
        self._node.close()

    def _listen(self) -> None:
        while not self._quit.is_set():
            if not self._subscription.wait(POLL_S):
                continue
            for sample in self._subscription.take():
                try:
                    pressed = bool(codec.decode(sample.data, "std_msgs/Bool").data)
                except DataError:
                    pressed = True  # whatever it was, somebody wrote to the emergency stop
                if pressed:
                    self._operator.press(f"topic {self.name}")

    def _serve(self, request: Any) -> Any:
        self._operator.press(f"service {self.name}")
        return make("std_srvs/Trigger_Response", success=True, message="the robot stops; a person lets it go on")


@contextmanager
def stop_signals(operator: Operator) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or closed terminal presses the emergency stop; a second one ends the program at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def press(number: int, frame: FrameType | None) -> None:
        if operator.pressed:
            raise KeyboardInterrupt
        operator.press(signal.Signals(number).name)

    before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
