"""The page in a browser that moves a robot, as the command line opens it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.errors import InputError

if TYPE_CHECKING:
    from robot_bridge.gate import SafetyGate
    from robot_bridge.interfaces import TaskInterface
    from robot_bridge.takeover import Frame, Takeover
    from robot_bridge.teleop.browser.device import BrowserTakeover
    from sinew.protocols import Robot

LISTEN = "127.0.0.1:8443"
"""Where it is served if nobody says otherwise."""
PAGES = ("browser", "phone")
"""Devices that are a page."""
CAMERA = "images."
"""How the names of a robot's measured pictures begin."""


def open_page(
    device: str,
    listen: str | None,
    tell: Callable[[str], None],
    interface: TaskInterface,
    *,
    frame: Frame,
    arms: int,
    watched: bool = False,
) -> BrowserTakeover:
    """Serve the page and say where it is.

    Raises:
        InputError: the address cannot be listened at.
        MissingDependency: `websockets` is not installed.
    """
    from robot_bridge.teleop.browser.device import BrowserTakeover
    from sinew.cli.serve import address

    host, port = address(listen or LISTEN)
    about = {"task": interface.task_text, "robot": interface.robot_spec.name}
    takeover = BrowserTakeover(host, port, frame=frame, arms=arms, tell=tell, about=about, watched=watched)
    link = takeover.server.link
    tell(f"open the robot's page, with a link that works once:\n{link}")
    if device == "phone":
        tell(qr_code(link))
    tell(f"this machine made its certificate itself, so the browser warns; its fingerprint is\n{takeover.server.fingerprint}")
    if not takeover.server.local:
        tell("EVERYBODY ON THIS NETWORK REACHES THE PAGE, AND WHOEVER OPENS THE LINK FIRST MOVES THE ROBOT: show it to nobody")
    elif device == "phone":
        port = takeover.server.port
        tell(f"only this machine reaches it: adb reverse tcp:{port} tcp:{port} lets in a phone on a cable, --listen 0.0.0.0:8443 others")
    return takeover


def checked(device: str | None, listen: str | None) -> None:
    """Refuse an address where there is no page.

    Raises:
        InputError: there is one.
    """
    if listen is not None and device not in PAGES:
        raise InputError(f"--listen {listen} is where the robot's page is served: choose browser or phone as the device, or leave it out")


class Desk:
    """What the person is told and what they can press: on the terminal, and on the page where the device is one.

    Args:
        takeover: the device.
        note: writes a line on the terminal.
    """

    def __init__(self, takeover: Takeover | None, note: Callable[[str], None]) -> None:
        self._page: BrowserTakeover | None = takeover if hasattr(takeover, "show") else None  # type: ignore[assignment]
        self._note = note
        self.operator = None if self._page is None else self._page.operator  # the emergency stop that its button presses
        self.gate: SafetyGate | None = None
        """The one that judges now."""

    def tell(self, line: str) -> None:
        """Show a line."""
        self._note(line)
        if self._page is not None:
            self._page.say(line)

    @property
    def stopped(self) -> bool:
        """Whether the page's stop button was pressed."""
        return self.operator is not None and bool(self.operator.pressed)

    def watch(self, robot: Robot, state: Callable[[], Mapping[str, Any]]) -> None:
        """Show the robot's cameras and how things stand."""

        def pictures() -> dict[str, np.ndarray]:
            return {key.removeprefix(CAMERA): value for key, value in robot.read().values.items() if key.startswith(CAMERA)}

        if self._page is not None:
            self._page.show(pictures, lambda: {**state(), "holding": why_held(self.gate)})


def why_held(gate: SafetyGate | None) -> str:
    """Why the gate does not follow, in words; empty where it does."""
    from robot_bridge.safety.states import REASONS, State

    if gate is None or gate.state is State.NOMINAL or not gate.incidents:
        return ""
    return "; ".join(REASONS[reason].meaning for reason in tuple(gate.incidents[-1].reasons))


def qr_code(text: str) -> str:
    """A text as a QR code of block characters, two rows in a line, dark on light whatever the terminal's colours."""
    import cv2

    modules = cv2.QRCodeEncoder.create().encode(text) > 0  # True is light; it has its margin already
    rows = np.vstack([modules, np.ones((len(modules) % 2, modules.shape[1]), bool)])
    blocks = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
    lines = ["".join(blocks[bool(a), bool(b)] for a, b in zip(*pair, strict=True)) for pair in zip(rows[::2], rows[1::2], strict=True)]
    return "\n".join(lines)
