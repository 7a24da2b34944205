"""Why a robot stands although it is commanded: what drivers tell about it, and the one line that a person gets.

Drivers tell of protective stops, programs that do not run and speed sliders on topics of their own. `DriverStatus` listens to those
that are known, `why_stopped` puts what they say behind the gate's reason. Neither is for the control thread.

Sources: ur_controllers documentation (io_and_status_controller, speed_scaling_state_broadcaster), ur_dashboard_msgs/SafetyMode,
diagnostic_msgs/DiagnosticStatus.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from robot_bridge.dds import codec
from robot_bridge.dds.topics import STATUS
from robot_bridge.safety.gate import SafetyGate
from robot_bridge.safety.states import REASONS
from robot_bridge.transport import Profile, Subscription, Transport
from sinew.errors import DataError, InputError
from sinew.protocols import Robot

ASKED = ("not_following", "frozen")
"""Reasons of the gate that a robot's driver may know more about."""
SAFETY_MODES = {
    3: "a protective stop",
    4: "recovery mode",
    5: "a safeguard stop",
    6: "an emergency stop of the cell",
    7: "the robot's emergency stop",
    8: "a safety violation",
    9: "a safety fault",
    12: "a safeguard stop in automatic mode",
    13: "a released enabling switch",
}
"""ur_dashboard_msgs/SafetyMode that no robot moves in."""
ERROR = 2
"""Level of diagnostic_msgs/DiagnosticStatus."""
SLOWEST = 0.01
"""Speed scaling, whether a share or percent, at which nothing moves."""
FIND_S = 2.0
"""Between two looks for topics."""


def why_stopped(gate: SafetyGate, robot: Robot) -> str:
    """One line: why the gate is latched, what was seen, and what to do; empty where it is not.

    A robot that was seen to stand is asked why (`why_still`, where it has one), which may take seconds.
    """
    reason = gate.latched
    if not reason:
        return ""
    details = [event.detail for event in gate.events if event.reason == reason and event.detail]
    meaning, remedy = REASONS[reason].meaning, REASONS[reason].remedy
    asked = getattr(robot, "why_still", None)
    told = asked() if reason in ASKED and asked is not None else ""
    return f"{reason}: {details[-1] if details else meaning}; {told or remedy}"


class DriverStatus:
    """Listens to what a robot's driver says about itself.

    Args:
        node: where; topics may appear later.
    """

    def __init__(self, node: Transport) -> None:
        self._node = node
        self._heard: dict[str, tuple[Subscription, Callable[[str, Any], str], str]] = {}
        self._problems: dict[str, str] = {}
        self._find_at = 0.0

    def look(self) -> None:
        """Take what has come; now and then look for topics as well. Never waits."""
        if time.monotonic() >= self._find_at:
            self._find_at = time.monotonic() + FIND_S
            self._find()
        for name, (subscription, read, message) in self._heard.items():
            for sample in subscription.take():
                try:
                    self._problems[name] = read(name, codec.decode(sample.data, message))
                except DataError:
                    continue

    @property
    def problem(self) -> str:
        """Why the robot does not move, as its driver says, with the remedy; empty where it says nothing."""
        return "; ".join(problem for problem in list(self._problems.values()) if problem)

    def _find(self) -> None:
        for endpoint in self._node.endpoints():
            if endpoint.publishes and endpoint.name not in self._heard and (read := _reader(endpoint.name, endpoint.message)):
                try:
                    profile = Profile(depth=1, reliable=endpoint.profile.reliable, latched=endpoint.profile.latched)
                    self._heard[endpoint.name] = (self._node.subscription(endpoint.name, endpoint.message, profile), read, endpoint.message)
                except InputError:  # a message that is not known here
                    continue


def _reader(name: str, message: str) -> Callable[[str, Any], str] | None:
    """How a status topic is read; None for any other topic."""
    if message == "ur_dashboard_msgs/SafetyMode":
        return _safety_mode
    if message == "diagnostic_msgs/DiagnosticArray":
        return _diagnostics
    if message == "std_msgs/Bool" and name.endswith("/robot_program_running"):
        return _program
    if message == "std_msgs/Float64" and name.endswith("/speed_scaling"):
        return _speed
    return _simulated if name == STATUS and message == "std_msgs/String" else None


def _safety_mode(name: str, message: Any) -> str:
    mode = SAFETY_MODES.get(message.mode, "")
    return f"the robot is in {mode} ({name}): clear its cause, then unlock it on the pendant" if mode else ""


def _program(name: str, message: Any) -> str:
    return "" if message.data else f"the robot's program is not running ({name}): play External Control on the pendant"


def _speed(name: str, message: Any) -> str:
    return (
        "" if message.data > SLOWEST else f"the robot's speed is scaled to {message.data:g} ({name}): raise the speed slider on the pendant"
    )


def _diagnostics(name: str, message: Any) -> str:
    errors = [f"{status.name}: {status.message}" for status in message.status if status.level == ERROR]
    return f"{name} reports {', '.join(errors[:3])}: see to it, then clear the error in the driver" if errors else ""


def _simulated(name: str, message: Any) -> str:
    return f"the robot stopped by itself ({name}): clear its stop" if message.data == "stopped" else ""
