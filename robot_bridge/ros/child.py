"""A command of sinew as the work of a managed node.

It runs in a process of its own, so that its control loop shares neither a thread nor an interpreter with ROS 2's executor.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sinew.errors import InputError

OK, WARN, ERROR, STALE = range(4)
"""Levels of diagnostic_msgs/DiagnosticStatus."""
END_S = 5.0
"""How long a command may take to stop its robot before it is killed; the robot's own watchdog holds it then."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """How the work does, for /diagnostics."""

    level: int = OK
    message: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


class Command:
    """`sinew VERB ARGUMENTS`, started when its node is activated and interrupted when it is deactivated.

    Args:
        verb: the command that the node is for.
        program: how sinew is started.
    """

    def __init__(self, verb: str, program: tuple[str, ...] = (sys.executable, "-m", "sinew")) -> None:
        self._program = (*program, verb)
        self._words: list[str] = []
        self._child: subprocess.Popen[bytes] | None = None

    def configure(self, parameters: Mapping[str, Any]) -> None:
        """Take the command line from the parameter `arguments`, one text as for a shell, which none interprets.

        Raises:
            InputError: it is not a command line, or the command still runs.
        """
        try:
            words = shlex.split(parameters["arguments"])
        except ValueError as e:
            raise InputError(f"parameter arguments {parameters['arguments']!r} is not a command line: {e}") from None
        if self.running:
            raise InputError("the command still runs; deactivate the node first")
        self._words, self._child = words, None

    def activate(self) -> None:
        """Start it."""
        if not self.running:
            self._child = subprocess.Popen([*self._program, *self._words], stdin=subprocess.DEVNULL)

    def deactivate(self) -> None:
        """Interrupt it, as Ctrl-C does: it stops the robot and ends; if it does not in time, kill it."""
        if self._child is None or not self.running:
            return
        self._child.send_signal(signal.SIGINT)
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def health(self) -> Health:
        """Running, ended well, ended badly, or not started."""
        values = {"command": shlex.join([*self._program, *self._words])}
        if self._child is None:
            return Health(level=STALE, message="not started", values=values)
        code = self._child.poll()
        if code is None:
            return Health(message="running", values={**values, "pid": str(self._child.pid)})
        level, message = (OK, "done") if code == 0 else (ERROR, f"ended with exit code {code}")
        return Health(level=level, message=message, values={**values, "exit_code": str(code)})

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child is not None and self._child.poll() is None
