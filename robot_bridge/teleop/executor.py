"""A person in the place of a policy: what a device gives becomes actions, and words end episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from robot_bridge.given import ActionSpace
from robot_bridge.interfaces import Frame, grippers_of
from robot_bridge.recording import DISCARDED, DatasetRecorder
from robot_bridge.report import EpisodeResult
from robot_bridge.takeover import DeviceLost, Request, Takeover
from sinew.protocols import Observation
from sinew.specs import ActionSpec, ObservationSpec, PolicySpec

if TYPE_CHECKING:
    from torch import Tensor

REOPEN_S = 1.0
"""Between two tries to find a lost device."""
ENDS = {"success": "success", "failure": "failure", "reset": DISCARDED, "discard": DISCARDED, "stop": "stop"}
"""Words that end an episode, and as what."""


class TeleopExecutor:
    """What a person asks for, as actions; an executor for `robot_bridge.deploy.deploy` and its `ended`.

    Nothing is asked before the person first moves, and the robot stays where it is; so it does while the person has let go, and
    while there is a pause. A lost device gives no action: the robot holds, and latches if the device does not come back soon.

    Args:
        takeover: the device.
        space: turns what it gives into the task's actions.
        observation: what is recorded.
        action: the task's actions.
        read: measures the robot, at once.
        tell: gets lines for the person.
    """

    def __init__(
        self,
        takeover: Takeover,
        space: ActionSpace,
        observation: ObservationSpec,
        action: ActionSpec,
        read: Callable[[], Observation],
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.spec = PolicySpec(observation=observation, action=action, horizon=1)
        self.moved = False
        """Whether the person has moved in this episode."""
        self.paused = False
        self._takeover, self._space, self._action, self._read, self._tell = takeover, space, action, read, tell
        self.again: Callable[[], None] = lambda: None
        """Called where the person throws away the episode that was saved last."""
        self._live, self._began, self._lost, self._reopen_s = False, False, False, 0.0
        self._ended = ""

    @property
    def recording(self) -> bool:
        """Whether this moment belongs to the demonstration."""
        return self.moved and not self.paused

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """An episode begins, or goes on after a hold."""
        self._live, self._began, self._ended = True, False, ""

    def begin(self) -> None:
        """A new demonstration: what was moved before does not count."""
        self.moved, self.paused, self._live = False, False, False
        while (word := self._requested()) is not None:  # other words from between two episodes mean neither
            if word == "again":
                self.again()

    def act(self, obs: Mapping[str, Tensor]) -> Tensor | None:
        """The next action (1, A) in [-1, 1]; None where the device is lost."""
        import torch

        if not self._live:  # asked to be ready, before an episode
            return torch.zeros(1, self._action.dim)
        if self._lost and not self._found():
            return None
        measured = self._read()
        joints = np.asarray(measured.values["joint_position"], dtype=float)
        if not self._began:
            self._space.reset(grippers_of(measured))
            self._began = True
        try:
            given = self._takeover.read()
        except DeviceLost as e:
            self._lost, self._reopen_s = True, time.monotonic()
            self._tell(f"{e}; the robot holds")
            return None
        if given is None or self.paused:
            action = self._space.hold(joints)
        else:
            action = self._space.action(given, joints)
            if not self.moved and self._space.moved:
                self.moved = True
                self._tell("recording")
        self._space.executed(action, by_person=True)
        self._listen()
        return torch.as_tensor(self._action.normalize(action), dtype=torch.float32).clip(-1, 1)[None]

    def ended(self) -> str:
        """How the person has ended the episode; empty where it goes on."""
        return self._ended

    def _listen(self) -> None:
        while (word := self._requested()) is not None:
            if word == "pause":
                self.paused = not self.paused
                self._tell("pause: the robot holds, p goes on" if self.paused else "going on")
            elif word in ("success", "failure") and not self.moved:
                self._tell(f"{word}: nothing is recorded yet")
            elif word in ENDS:
                self._ended = ENDS[word]
            elif word == "intervene":
                self._tell("intervene: this device says by itself when it is held")
            elif word == "again" and self.moved:
                self._tell("again: an episode is being recorded; throw that one away first")
            elif word == "again":
                self.again()
            else:
                self._tell(f"{word.replace('_', ' ')}: an episode that was saved is changed with sinew data edit")

    def _requested(self) -> Request | None:
        try:
            return self._takeover.request()
        except DeviceLost:  # the next `read` says so
            return None

    def _found(self) -> bool:
        """Whether the lost device is there again."""
        now = time.monotonic()
        if now - self._reopen_s < REOPEN_S:
            return False
        self._reopen_s = now
        self._lost = not self._takeover.reopen()
        if not self._lost:
            self._tell("the device is back")
        return not self._lost


class Attentive:
    """A recorder that leaves out what is no part of a demonstration: before the person first moves, and pauses.

    Args:
        recorder: takes the rest; what comes after a pause is told apart.
        executor: knows.
    """

    def __init__(self, recorder: DatasetRecorder, executor: TeleopExecutor) -> None:
        self._recorder, self._executor, self._apart = recorder, executor, False

    def frame(self, frame: Frame) -> None:
        """See `Recorder`."""
        if self._executor.recording:
            self._recorder.frame(frame)
        elif not self._apart:
            self._recorder.cut()
        self._apart = not self._executor.recording

    def sample(self, stream: str, stamp_ns: int, receipt_ns: int, value: np.ndarray | None = None, sequence: int | None = None) -> None:
        """See `robot_bridge.interfaces.Tap`."""
        if self._executor.recording:
            self._recorder.sample(stream, stamp_ns, receipt_ns, value, sequence)

    def happened(self, what: str, of: str, n: int = 1) -> None:
        """See `robot_bridge.interfaces.Tap`."""
        if self._executor.recording:
            self._recorder.happened(what, of, n)

    def end_episode(self, result: EpisodeResult) -> None:
        """See `Recorder`; the next demonstration begins."""
        self._recorder.end_episode(result)
        self._executor.begin()
