"""Taking over with a gamepad, through SDL's map of controllers: the layout is the same whoever made it.

The left shoulder button is the dead man's: the person is in control while it is held, and only then.

| part | what it does |
|---|---|
| left shoulder | held: the person acts |
| left stick | x and y |
| right stick | up and down, turn |
| right and left trigger | close and open the gripper |
| right shoulder | the other arm |
| A, B, X, Y | success, failure, undo, the last episode was a success after all |
| start, back | pause and go on, reset |
"""
# pygame is an extra that type checkers may not find.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
from typing import Any

from robot_bridge.takeover import DeviceLost, Frame, Given, Request, Unattended
from sinew.errors import InputError, MissingDependency

DEAD_ZONE = 0.15
"""Deflections below this share are none: sticks do not come back to the middle exactly."""
FULL = 32767.0
WORDS: dict[str, Request] = {"A": "success", "B": "failure", "X": "undo", "Y": "last_success", "START": "pause", "BACK": "reset"}
"""Button → what it asks for."""


class GamepadTakeover(Unattended):
    """The first gamepad.

    Args:
        frame: axes of the motions.
        arms: arms that there are.

    Raises:
        MissingDependency: pygame is not installed.
        InputError: there is no gamepad.
    """

    def __init__(self, *, frame: Frame = "world", arms: int = 1) -> None:
        super().__init__()
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window: events come without one
        os.environ.setdefault("SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS", "1")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
            from pygame._sdl2 import controller
        except ImportError:
            raise MissingDependency("a gamepad needs pygame: pip install 'sinew[teleop]'") from None
        self._pygame, self._controller = pygame, controller
        self._frame: Frame = frame
        self._arms, self._arm = arms, 0
        self._down: set[str] = set()
        pygame.display.init()
        controller.init()
        self._pad: Any = None
        if not self.reopen():
            raise InputError("no gamepad is there: plug one in, or choose another source for --intervene")

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        self._listen()
        if not self._button("LEFTSHOULDER"):
            return None
        x, y, turn, up = (self._axis(name) for name in ("LEFTX", "LEFTY", "RIGHTX", "RIGHTY"))
        opening = 0.0 if self._axis("TRIGGERRIGHT") > 0.5 else 1.0 if self._axis("TRIGGERLEFT") > 0.5 else None
        return Given((-y, -x, -up, 0.0, 0.0, -turn), self._frame, opening, self._arm)  # sticks point right and down, worlds forth and left

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        self._listen()
        return super().request()

    def reopen(self) -> bool:
        """See `Takeover.reopen`."""
        self._pygame.event.pump()
        for i in range(self._controller.get_count()):
            if self._controller.is_controller(i):
                self._pad = self._controller.Controller(i)
                return True
        return False

    def close(self) -> None:
        """See `Takeover.close`."""
        if self._pad is not None:
            self._pad.quit()
            self._pad = None
        self._controller.quit()
        self._pygame.display.quit()

    def _listen(self) -> None:
        self._pygame.event.pump()
        if self._pad is None or not self._pad.attached():
            self._pad = None
            raise DeviceLost("the gamepad is gone")
        for name, word in WORDS.items():
            if self._pressed(name):
                self.requests.append(word)
        if self._pressed("RIGHTSHOULDER"):
            self._arm = (self._arm + 1) % self._arms

    def _pressed(self, name: str) -> bool:
        """Whether a button went down since it was asked last."""
        down = self._button(name)
        fresh = down and name not in self._down
        (self._down.add if down else self._down.discard)(name)
        return fresh

    def _button(self, name: str) -> bool:
        return bool(self._pad.get_button(getattr(self._pygame, f"CONTROLLER_BUTTON_{name}")))

    def _axis(self, name: str) -> float:
        share = self._pad.get_axis(getattr(self._pygame, f"CONTROLLER_AXIS_{name}")) / FULL
        return 0.0 if abs(share) < DEAD_ZONE else max(-1.0, min(1.0, share))
