"""`sinew improve --robot … --reward`: rewards of whole episodes, worked out while the robot stands between them.

In a tick nothing is done but to keep what was observed. So a reward may take its time, ask a model over the network or follow points in
pictures, and no command comes late for it; and what was said late of an episode rewards all of it anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from robot_bridge.learning_env import LearningEnv
from sinew.cli.reward_on_robot import Shown, pictures_of
from sinew.errors import InputError

if TYPE_CHECKING:
    from sinew.protocols import Reward

HELD_BYTES = 1 << 30
"""So much of what was observed is remembered, for labels that come late."""
OVERHEAD_BYTES = 4096
"""Of a step, beside its arrays."""
GRACE_S, POLL_S = 5.0, 0.05
"""Once somebody asks to stop, a reward that is being worked out is waited for so long; and between two looks whether it is there."""
T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """A step as it was observed."""

    before: Mapping[str, Tensor]
    """{key: (1, ...)}."""
    after: Mapping[str, Tensor]
    action: Tensor
    """(1, A) as it was executed, physical units."""
    shown: Mapping[str, np.ndarray]
    """Pictures before it, by camera."""
    shown_after: Mapping[str, np.ndarray]
    """Pictures after it; of the step before where the episode ended, since the scene may be another one by then."""

    @property
    def size(self) -> int:
        """Bytes that are not those of the step before as well."""
        tensors = sum(t.numel() * t.element_size() for t in self.after.values())
        return OVERHEAD_BYTES + tensors + sum(p.nbytes for p in self.shown_after.values())


class Witness:
    """A robot to learn on, with what was observed in the newest step.

    Args:
        env: the robot; success is its reward.
        cameras: whose pictures are kept.
    """

    num_envs = 1

    def __init__(self, env: LearningEnv, cameras: Sequence[str]) -> None:
        self.env, self.cameras = env, tuple(cameras)
        self.max_episode_steps, self.control = env.max_episode_steps, env.control
        self.observation_spec, self.action_spec = env.observation_spec, env.action_spec
        self.newest: Seen | None = None
        self._before: Mapping[str, Tensor] = {}
        self._shown: Mapping[str, np.ndarray] = {}

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """See VecEnv.reset."""
        obs = self.env.reset(seed, ids)
        self._before, self._shown = obs, pictures_of(self.env.arm, self.cameras)
        return obs

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """See VecEnv.step."""
        made = self.env.step(action)
        obs, _, terminated, truncated, info = made
        now = pictures_of(self.env.arm, self.cameras)
        after = self._shown if bool(terminated | truncated) else now
        self.newest = Seen(self._before, info["final_observation"], info["executed_action"], self._shown, after)
        self._before, self._shown = obs, now
        return made

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()


class Assessment:
    """Rewards of whole episodes; see `rl.supervised.Assessor`.

    Args:
        witness: saw them.
        reward: built for one world.
        shown: the pictures that the reward looks at.
        stopping: whether somebody asks to stop.
    """

    def __init__(self, witness: Witness, reward: Reward, shown: Shown, stopping: Callable[[], bool]) -> None:
        self.witness, self.reward, self.shown, self._stopping = witness, reward, shown, stopping
        self._held: dict[int, Seen] = {}
        self._bytes = 0
        self._left = False

    def kept(self, time: int) -> None:
        """The newest step is in the replay, as its step `time`."""
        if self.witness.newest is None:
            return
        self._held[time] = self.witness.newest
        self._bytes += self.witness.newest.size
        while self._bytes > HELD_BYTES and len(self._held) > 1:
            oldest = next(iter(self._held))
            self._bytes -= self._held.pop(oldest).size

    def assess(self, begin: int, steps: int, success: bool, terminated: bool) -> list[float] | None:
        """Rewards of an episode; None where it is not remembered, or somebody who asked to stop does not want to wait.

        Raises:
            InputError: one is not finite.
        """
        seen = [self._held.get(time) for time in range(begin, begin + steps)]
        whole = [step for step in seen if step is not None]
        if self._left or len(whole) < steps:
            return None
        made = beside(lambda: self._play(whole, success, terminated), self._stopping)
        self._left = made is None  # the reward is still at it
        return made

    def _play(self, steps: Sequence[Seen], success: bool, terminated: bool) -> list[float]:
        begin: Any = getattr(self.reward, "begin", None)
        self.shown.pictures = steps[0].shown
        if begin is not None:
            begin(steps[0].before, [0])
        paid = []
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            self.shown.pictures = step.shown_after
            ends = {"success": last and success, "terminated": last and terminated, "truncated": last and not terminated}
            told = {name: torch.tensor([value]) for name, value in ends.items()}
            transition = {**step.before, **{f"next.{key}": value for key, value in step.after.items()}, "action": step.action, **told}
            paid.append(float(self.reward.reward(transition, {})))
        if not np.isfinite(paid).all():
            wrong = int(np.flatnonzero(~np.isfinite(paid))[0])
            raise InputError(f"the reward of step {wrong} of an episode is not finite; look at it with sinew reward check")
        return paid


def beside(work: Callable[[], T], stopping: Callable[[], bool]) -> T | None:
    """Do what may take long in a thread of its own; None where somebody asks to stop and it is not done soon after.

    Raises:
        whatever `work` raises.
    """
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as problem:  # whoever waits raises it
            failed.append(problem)

    thread = threading.Thread(target=run, name="reward", daemon=True)
    thread.start()
    asked_s: float | None = None
    while thread.is_alive():
        thread.join(POLL_S)
        if asked_s is None and stopping():
            asked_s = time.monotonic()
        if asked_s is not None and time.monotonic() - asked_s > GRACE_S:
            return None
    if failed:
        raise failed[0]
    return made[0]
