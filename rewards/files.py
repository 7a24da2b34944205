"""Reward files: what a reward is made of, as JSON that a person can read, and how it is built where it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rewards.sparse import Sparse
from sinew.config import from_json, to_json
from sinew.errors import DataError, InputError, SinewError
from sinew.protocols import Reward
from sinew.registry import Registry
from sinew.rundir import read_json, write_json
from sinew.specs import ActionSpec, ObservationSpec

VERSION = 1
MODULES: tuple[str, ...] = (
    "rewards.keypoint.settings",
    "rewards.keypoint.asked",
    "rewards.progress.nearest",
    "rewards.progress.transport",
    "rewards.progress.asked",
    "rewards.guard",
    "rewards.generated.reward",
    "rewards.preference.classifier",
    "rewards.preference.pairwise",
    "rewards.world.candidates",
)
"""Modules that enter kinds of rewards into `KINDS`."""


class RewardUnavailable(InputError):  # noqa: N818
    """A dense reward cannot be had now: no model answers, nothing to track. Sparse success stands in; learning goes on."""


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """A calibrated camera."""

    matrix: np.ndarray
    """(3, 3) pinhole matrix, pixels."""
    T_world_camera: np.ndarray
    """(4, 4), metres; the camera looks along +z, x to the right, y down."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Where a reward is used, as far as it may know."""

    observation: ObservationSpec
    """Of the environment."""
    action: ActionSpec
    """Of the environment."""
    gamma: float
    """The learner's discount per environment step."""
    num_envs: int
    """Worlds N side by side."""
    max_episode_steps: int
    """Steps after which an episode is cut off."""
    task_text: str = ""
    """What is to be done."""
    objects: tuple[str, ...] = ()
    """Objects whose poses are in observation.environment_state, as "<object>.x" and so on."""
    cameras: Mapping[str, CameraView] = field(default_factory=dict)
    """Calibrated cameras by name."""
    pictures: Callable[[str, int], np.ndarray] | None = None
    """(camera, world) → (H, W, 3) uint8 of the world as it is now; None where nothing can be looked at besides the observation."""
    look: Callable[[Mapping[str, Any], int], Any] | None = None
    """(observations of all worlds, world) → `rewards.keypoint.views.Scene` as its episode begins; None without calibrated cameras."""
    watch: Callable[[Mapping[str, Any], int, bool], Any] | None = None
    """(observations of all worlds, world, whether its episode begins) → `rewards.keypoint.views.View` of one or more cameras, after every
    step; None without calibrated cameras."""
    say: Callable[[str], None] = lambda text: None
    """Tells the user a line."""
    log: Callable[[Mapping[str, Any]], None] = lambda values: None
    """Keeps figures about the reward in the training log; JSON-able."""
    patient: bool = False
    """Whether nothing moves while somebody is asked, so that answers may be waited for."""
    folder: Path = Path()
    """Where the reward file lies, and weights that it names beside it; `build` fills it in."""


class Kind(Protocol):
    """Settings of one kind of reward: a frozen dataclass that `from_json` reads."""

    def build(self, situation: Situation) -> Reward:
        """The reward itself.

        Raises:
            RewardUnavailable: it cannot be had here; sparse success then stands in.
            InputError: settings and situation do not fit.
        """
        ...


KINDS: Registry[type] = Registry("kind of reward")
"""Name in a reward file → settings, a `Kind`."""


@KINDS.add("sparse")
@dataclass(frozen=True, kw_only=True)
class SparseSettings:
    """Success alone, where a dense reward was asked for and could not be had."""

    because: str = ""
    """Why not."""

    def build(self, situation: Situation) -> Reward:
        """Nothing dense.

        Raises:
            RewardUnavailable: always.
        """
        raise RewardUnavailable(self.because or "the reward file holds success alone")


def save(path: Path, kind: str, settings: Any, made: Mapping[str, Any]) -> None:
    """Write a reward file; `made` tells how it came about (model, text, hashes, date)."""
    write_json(path, {"reward": kind, "version": VERSION, "settings": to_json(settings), "made": dict(made)})


def load(path: Path) -> tuple[str, Kind]:
    """The kind and the settings in a reward file.

    Raises:
        InputError: no such file, or a kind that is not known.
        DataError: it is no reward file, or a setting is wrong.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there; `sinew reward propose` makes a reward file")
    data = read_json(path)
    if not isinstance(data, Mapping) or not {"reward", "version", "settings"} <= set(data):
        raise DataError(f"{path} is no reward file: it needs reward, version and settings")
    if data["version"] != VERSION:
        raise DataError(f"{path} is a reward file of version {data['version']}; this is version {VERSION}")
    for module in MODULES:
        import_module(module)
    return data["reward"], from_json(KINDS.get(str(data["reward"])), data["settings"], where=str(path))


class OrSparse:
    """A reward that is replaced by sparse success for good when it cannot be had any more; that is said once.

    Args:
        source: the reward.
        say: tells the user.
    """

    def __init__(self, source: Reward, say: Callable[[str], None]) -> None:
        self.source, self._say = source, say
        self.low, self.high = min(source.low, 0.0), max(source.high, 1.0)

    def begin(self, obs: Mapping[str, Any], ids: Any) -> None:
        """New episodes; see `rewards.environment.Rewarded`."""
        begin = getattr(self.source, "begin", None)
        if begin is not None:
            self._try(lambda: begin(obs, ids))

    def reward(self, transition: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
        """See `sinew.protocols.Reward`."""
        return self._try(lambda: self.source.reward(transition, context), lambda: Sparse().reward(transition, context))

    def _try(self, call: Callable[[], Any], otherwise: Callable[[], Any] = lambda: None) -> Any:
        try:
            return call()
        except RewardUnavailable as problem:
            _told(self._say, problem)
            self.source = Sparse()
            return otherwise()


def build(path: Path, situation: Situation) -> Reward:
    """The reward of a file, or sparse success where it cannot be had, which is said once.

    Raises:
        InputError: the file, or what it needs of the environment, is wrong.
    """
    _, settings = load(path)
    try:
        return OrSparse(settings.build(replace(situation, folder=path.parent)), situation.say)
    except RewardUnavailable as problem:
        _told(situation.say, problem)
        return Sparse()


def _told(say: Callable[[str], None], problem: SinewError) -> None:
    say(f"{problem}; success alone is rewarded from here on")
