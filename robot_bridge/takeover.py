"""Taking over: what a person asks of the robot at this moment, from a keyboard, a gamepad, a SpaceMouse or a script.

This is the one protocol of every device. A source is asked at every policy tick and never waits. While a person is in control it
gives what is asked, with the axes it was meant in, a stamp and a number; `robot_bridge.given` brings it into the policy's action
space. What is absolute (a leader arm, a hand's pose) counts from where the robot is when the person takes hold: the clutch of
`robot_bridge.clutch`. Beside motions a source gives requests: a word at a time.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from sinew.errors import InputError, SinewError

Frame = Literal["world", "tool"]
Kind = Literal["steps", "pose", "joints", "action"]
UNITS: dict[Kind, str] = {
    "steps": "6 shares of the largest step, -1 to 1: along x, y, z and about them",
    "pose": "position of the hand in metres and its rotation as a wxyz quaternion, 7 values",
    "joints": "the arm's joints in the robot's order, rad or m",
    "action": "the policy's action, in its physical units",
}
"""What `Given.values` are, for each kind."""
Request = Literal["pause", "reset", "discard", "intervene", "success", "failure", "last_success", "last_failure", "undo", "again", "stop"]
"""pause: hold, and go on again; reset and discard: give the episode up, nothing of it is kept; intervene: take hold, and let go
again, of a device that cannot tell by itself; success and failure: end it as that; last_…: the one before was that after all;
undo: take the last such word back; again: throw away the episode that was saved last; stop: end the run, which can be gone on
with."""
FAREWELL_S = 2.0
"""A keyboard's person has let go when no key was pressed for this long."""
KEY_S = 0.12
"""A key counts as held for this long: until it repeats."""


class DeviceLost(SinewError):  # noqa: N818
    """What a person controls the robot with is gone; the robot holds."""


@dataclass(frozen=True)
class Given:
    """What a person asks of the robot for one tick; where there is none, nobody is in control."""

    values: tuple[float, ...]
    """As `kind` says; `UNITS` has the units."""
    frame: Frame = "world"
    """Axes that motions are along. The axes of a pose are the world's wherever its origin is; "tool": what the hand does along its own
    axes the tool does along its own."""
    open: float | None = None
    """Share of the gripper's opening, 0 closed; None keeps it. Not for kind "action"."""
    arm: int = 0
    """Which arm moves, of several; not for kind "action"."""
    kind: Kind = "steps"
    """steps are relative; pose and joints absolute, so that they go through the clutch."""
    hold: int = 0
    """How often the person has taken hold of the device: at a new number a pose and joints count from where the robot is then."""
    also: tuple[Given, ...] = ()
    """What is asked of other arms in the same tick."""
    stamp_ns: int = field(default=0, compare=False)
    """When the device said it, monotonic clock; 0: at this moment."""
    seq: int = field(default=0, compare=False)
    """Grows with everything that the device says; the same number is the same word."""


class Takeover(Protocol):
    """Where a person's wishes come from."""

    def read(self) -> Given | None:
        """What is asked now; None where nobody is in control, and where the newest is too old to count. Never waits.

        Raises:
            DeviceLost: it cannot be told any more.
        """
        ...

    def request(self) -> Request | None:
        """The next request; None for none. Never waits; raises as `read`."""
        ...

    def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
        """What is there to be seen: {key: (...)} before step `step` of the episode of `seed`; -1 between episodes."""
        ...

    def reopen(self) -> bool:
        """Try to find a lost device again; whether it is there."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...


class Unattended:
    """What sources have in common: nobody watches, and no device can be lost."""

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        return self.requests.popleft() if self.requests else None

    def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
        """See `Takeover.watch`."""

    def reopen(self) -> bool:
        """See `Takeover.reopen`."""
        return True

    def close(self) -> None:
        """See `Takeover.close`."""


class ScriptedTakeover(Unattended):
    """What is asked at each tick, known beforehand.

    Args:
        script: one entry for each `read`: a motion, None, or an exception to raise; then nobody asks any more.
        requests: {number of reads: request that is there from then on}.
    """

    def __init__(self, script: Iterable[Given | Exception | None] = (), requests: Mapping[int, Request] | None = None) -> None:
        super().__init__()
        self._planned: dict[int, Request] = dict(requests or {})
        self._script, self.reads = iter(script), 0

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        entry = next(self._script, None)
        self.reads += 1
        if isinstance(entry, Exception):
            raise entry
        return entry

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        for at in sorted(at for at in self._planned if at <= self.reads):
            self.requests.append(self._planned.pop(at))
        return super().request()


MOTIONS: dict[str, tuple[int, float]] = {
    "i": (0, 1.0), "k": (0, -1.0), "j": (1, 1.0), "l": (1, -1.0), "u": (2, 1.0), "o": (2, -1.0),
    "n": (5, 1.0), "m": (5, -1.0),
}  # fmt: skip
"""Key → (element of `Given.values`, direction)."""
WORDS: dict[str, Request] = {
    "p": "pause", "r": "reset", "y": "success", "x": "failure", "Y": "last_success", "X": "last_failure", "z": "undo", "q": "stop",
    "R": "again", "c": "intervene",
}  # fmt: skip
KEYS = (
    "i k forth and back, j l left and right, u o up and down, n m turn, g h close and open, b other arm, + - faster and slower, "
    "space gives back; y success, x failure (Y X of the last episode, z takes it back), p pause and go on, r reset, "
    "R throw the saved episode away and record it again, q stop; c takes hold of a device that cannot tell, and lets go"
)
"""What the keys do, in one line."""


class KeyboardTakeover(Unattended):
    """Keys of a terminal, without root and without a window. A terminal tells of no release: a key is held until it repeats.

    Args:
        fd: a terminal; standard input if left out.
        frame: axes of the motions.
        arms: arms that there are.
        now_s: monotonic clock.

    Raises:
        InputError: it is no terminal.
    """

    def __init__(
        self, fd: int | None = None, *, frame: Frame = "world", arms: int = 1, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._fd = sys.stdin.fileno() if fd is None else fd
        if not os.isatty(self._fd):
            raise InputError("a keyboard takes over from a terminal, and standard input is none: run it in one, or choose another source")
        self._before: list[Any] | None = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)  # keys at once and without echo; Ctrl-C stays a signal
        self._frame: Frame = frame
        self._arms, self._now_s = arms, now_s
        self._held_until = [0.0] * 6
        self._direction = [0.0] * 6
        self._pressed_s = -np.inf
        self._speed, self._open = 0.4, None
        self.arm = 0
        """Which arm its motions are of."""
        self._lost = ""

    def read(self) -> Given | None:
        """See `Takeover.read`; a person who pressed a key is in control until the space bar, or until none is pressed for a while."""
        self._listen()
        now = self._now_s()
        if now - self._pressed_s > FAREWELL_S:
            self._open = None
            return None
        values = tuple(self._speed * d if now < until else 0.0 for d, until in zip(self._direction, self._held_until, strict=True))
        return Given(values, self._frame, self._open, self.arm)

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        self._listen()
        return super().request()

    def _listen(self) -> None:
        if self._lost:
            raise DeviceLost(self._lost)
        while select.select([self._fd], [], [], 0)[0]:
            try:
                data = os.read(self._fd, 64)
            except OSError as e:  # the other end of the terminal is gone
                data, problem = b"", f" ({e.strerror})"
            else:
                problem = ""
            if not data:
                self._lost = f"the terminal is closed{problem}, and nobody can take over"
                raise DeviceLost(self._lost)
            for key in data.decode(errors="ignore"):
                self._press(key)

    def _press(self, key: str) -> None:
        now = self._now_s()
        if key in WORDS:
            self.requests.append(WORDS[key])
        elif key == " ":
            self._pressed_s, self._open = -np.inf, None
        elif key in "+-":
            self._speed = float(np.clip(self._speed + (0.1 if key == "+" else -0.1), 0.1, 1.0))
        elif key in MOTIONS:
            element, direction = MOTIONS[key]
            self._direction[element], self._held_until[element], self._pressed_s = direction, now + KEY_S, now
        elif key in "gh":
            self._open, self._pressed_s = (0.0 if key == "g" else 1.0), now
        elif key == "b":
            self.arm, self._open, self._pressed_s = (self.arm + 1) % self._arms, None, now

    def reopen(self) -> bool:
        """A closed terminal does not come back."""
        return not self._lost

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._before is not None and not self._lost:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        self._before = None


class Together:
    """Motions of a device, with the words of a keyboard beside its own.

    Args:
        device: moves; its words count too.
        words: gives words only.
    """

    def __init__(self, device: Takeover, words: Takeover) -> None:
        self.device, self.words = device, words

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        self.words.read()
        return self.device.read()

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        return self.device.request() or self.words.request()

    def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
        """See `Takeover.watch`."""
        self.device.watch(observation, step, seed)

    def reopen(self) -> bool:
        """See `Takeover.reopen`."""
        return self.device.reopen() and self.words.reopen()

    def close(self) -> None:
        """See `Takeover.close`."""
        self.device.close()
        self.words.close()


def open_takeover(kind: Literal["keyboard", "gamepad", "spacemouse"], *, frame: Frame = "world", arms: int = 1) -> Takeover:
    """The source of that kind; a gamepad or SpaceMouse has the keyboard's words beside its own where there is a terminal.

    Raises:
        InputError: no terminal, or no such device.
        MissingDependency: its package is not installed.
    """
    if kind == "keyboard":
        return KeyboardTakeover(frame=frame, arms=arms)
    device: Takeover
    if kind == "gamepad":
        from robot_bridge.gamepad import GamepadTakeover

        device = GamepadTakeover(frame=frame, arms=arms)
    else:
        from robot_bridge.spacemouse import SpaceMouseTakeover

        device = SpaceMouseTakeover(frame=frame, arms=arms)
    return Together(device, KeyboardTakeover()) if sys.stdin.isatty() else device
