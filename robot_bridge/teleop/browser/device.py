"""The page as a person's device: what its hands ask goes where a keyboard's or a gamepad's would."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from robot_bridge.safety.operator import Operator
from robot_bridge.takeover import DeviceLost, Frame, Given, Request
from robot_bridge.teleop.browser.messages import Hand, Sample
from robot_bridge.teleop.browser.server import PageServer
from sinew.specs import IMAGES

STILL = (0.0,) * 6
UNWATCHED_S = 1.0
"""A page that has been silent for longer watches over no policy."""
MOST_LINES = 5
"""Lines for the person that the page may not have shown yet."""


class BrowserTakeover:
    """A page in a browser.

    Where a person demonstrates, nobody at the page is no lost device: the robot holds until somebody is there. Where a policy acts and
    a person watches over it, it is one.

    Args:
        host: address that the page is served at; this machine alone if left out.
        port: 0 for any that is free.
        frame: axes of the motions.
        arms: arms that there are.
        tell: gets lines for the terminal.
        about: what the page shows of the robot and the task.
        watched: whether a policy acts while nobody holds.
        settings: of the `PageServer`.

    Raises:
        InputError: the address cannot be listened at, or there is no certificate.
        MissingDependency: `websockets` is not installed.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        frame: Frame = "world",
        arms: int = 1,
        tell: Callable[[str], None] = lambda line: None,
        about: Mapping[str, Any] | None = None,
        watched: bool = False,
        **settings: Any,
    ) -> None:
        self._frame: Frame = frame
        self._arms, self._visit, self._watched = arms, 0, watched
        self._lines: deque[tuple[int, str]] = deque(maxlen=MOST_LINES)
        self._pictures: dict[str, np.ndarray] = {}
        self._state: Callable[[], Mapping[str, Any]] = dict
        self.server = PageServer(
            host,
            port,
            source=lambda: self._pictures,
            state=self._told,
            about={"arms": arms, "watched": watched, **(about or {})},
            tell=tell,
            **settings,
        )

    @property
    def operator(self) -> Operator:
        """The emergency stop that the page's button presses."""
        return self.server.operator

    # ------------------------------------------------------------ for the robot

    def read(self) -> Given | None:
        """See `Takeover.read`. A page that goes away while a demonstration is recorded, or is loaded anew, asks for a pause."""
        self._look()
        before, self._visit = self._visit, self.server.visit
        if before and self._visit != before and self._state().get("recording"):
            self.server.requests.append("pause")
        sample, hands = self.server.held()
        given = [self._given(sample, hand) for hand in hands if hand.arm < self._arms] if sample is not None else []
        if not given:
            # who holds what does not count any more wants the robot to stand, and not the policy to go on
            stands = self._watched and sample is not None and any(hand.grip for hand in sample.hands)
            return Given(STILL, self._frame) if stands else None
        first, *rest = given
        return replace(first, also=tuple(rest))

    def _given(self, sample: Sample, hand: Hand) -> Given:
        said: dict[str, Any] = {"open": hand.open, "arm": hand.arm, "hold": hand.grip, "frame": self._frame, "seq": sample.number}
        said["stamp_ns"] = self.server.monotonic_ns(sample.heard_ns)
        if hand.pose is not None:
            return Given(hand.pose, kind="pose", **said)
        return Given(hand.rate or STILL, kind="steps", **said)

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        self._look()
        return self.server.requests.popleft() if self.server.requests else None

    def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
        """See `Takeover.watch`: its pictures are shown, where nobody has better ones."""
        self._pictures = {key.removeprefix(IMAGES): value for key, value in observation.items() if key.startswith(IMAGES)}

    def reopen(self) -> bool:
        """See `Takeover.reopen`."""
        return not self._watched or self.server.silent_s() <= UNWATCHED_S

    def _look(self) -> None:
        """Whether somebody is there who must be.

        Raises:
            DeviceLost: nobody is.
        """
        if self._watched and not self.server.present:
            raise DeviceLost("the robot's page is not open")
        if self._watched and self.server.silent_s() > UNWATCHED_S:
            raise DeviceLost("the robot's page is hidden, or does not answer")

    def close(self) -> None:
        """See `Takeover.close`."""
        self.server.close()

    # ------------------------------------------------------------ for the person

    def show(self, pictures: Callable[[], Mapping[str, np.ndarray]], state: Callable[[], Mapping[str, Any]]) -> None:
        """What the page shows from now on; both are called in threads of the server and return at once.

        Args:
            pictures: {camera: (H, W, 3) uint8 RGB}.
            state: "recording", "paused", "holding" (why), "kept", "episodes".
        """
        self.server.source, self._state = pictures, state

    def say(self, line: str) -> None:
        """Show a line on the page."""
        self._lines.append((self._lines[-1][0] + 1 if self._lines else 1, line))

    def _told(self) -> dict[str, Any]:
        return {**self._state(), "said": list(self._lines)}
