"""Taking over with a SpaceMouse: whoever moves its cap is in control, until a moment after it is let go.

Its first button closes the gripper, its second opens it, both together pause and go on.
"""
# pyspacemouse is an extra that type checkers may not find.
# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from robot_bridge.takeover import DeviceLost, Frame, Given, Unattended
from sinew.errors import InputError, MissingDependency

DEAD_ZONE = 0.05
LETTING_GO_S = 0.5
"""The person is still in control this long after the cap came to rest, so that a moment's pause hands nothing back."""
MOST_REPORTS = 64
"""Reports taken at once: the device sends more often than it is asked, and only the newest counts."""


class SpaceMouseTakeover(Unattended):
    """The first SpaceMouse.

    Args:
        frame: axes of the motions.
        arms: arms that there are; only one can be moved.
        now_s: monotonic clock.

    Raises:
        MissingDependency: pyspacemouse is not installed.
        InputError: there is no SpaceMouse, or it may not be read.
    """

    def __init__(self, *, frame: Frame = "world", arms: int = 1, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        try:
            import pyspacemouse
        except ImportError:
            raise MissingDependency("a SpaceMouse needs pyspacemouse: pip install 'sinew[teleop]'") from None
        if arms > 1:
            raise InputError(f"a SpaceMouse moves one arm and the task has {arms}: use --intervene gamepad or keyboard")
        self._frame: Frame = frame
        self._library, self._now_s = pyspacemouse, now_s
        self._device: Any = None
        self._moved_s = float("-inf")
        self._both = False
        problem = self._open()
        if problem:
            raise InputError(
                f"no SpaceMouse can be read ({problem}): plug it in, install hidapi and allow its use, or choose another source"
            )

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        state = self._newest()
        cap = (state.x, state.y, state.z, state.roll, state.pitch, state.yaw)
        values = tuple(0.0 if abs(v) < DEAD_ZONE else max(-1.0, min(1.0, float(v))) for v in cap)
        buttons = [bool(b) for b in (*state.buttons, 0, 0)[:2]]
        if all(buttons) and not self._both:
            self.requests.append("pause")
        self._both = all(buttons)
        if any(values) or any(buttons):
            self._moved_s = self._now_s()
        elif self._now_s() - self._moved_s > LETTING_GO_S:
            return None
        opening = None if buttons[0] == buttons[1] else 0.0 if buttons[0] else 1.0
        return Given(values, self._frame, opening)

    def reopen(self) -> bool:
        """See `Takeover.reopen`."""
        return not self._open()

    def close(self) -> None:
        """See `Takeover.close`."""
        if self._device is not None:
            with contextlib.suppress(Exception):  # it may be gone
                self._device.close()
            self._device = None

    def _open(self) -> str:
        """Find the device; what went wrong, empty for nothing."""
        self.close()
        try:
            self._device = self._library.open(axis_convention="ros")  # x forth, y left, z up
        except Exception as e:  # whatever the library and the system below it raise
            return f"{type(e).__name__}: {e}".splitlines()[0]
        return ""

    def _newest(self) -> Any:
        if self._device is None:
            raise DeviceLost("the SpaceMouse is gone")
        try:
            state = self._device.read()
            for _ in range(MOST_REPORTS):
                before = state.t
                state = self._device.read()
                if state.t == before:
                    break
        except Exception as e:  # the library raises its own kinds
            self.close()
            raise DeviceLost(f"the SpaceMouse is gone ({type(e).__name__})") from None
        return state
