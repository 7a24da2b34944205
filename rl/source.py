"""Where steps come from: worlds in this process, or in others that act on their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rl.group import ALONE, Group
from rl.worlds import Control, Method, Step, Worlds
from sinew.progress import SILENT, Progress
from sinew.protocols import VecEnv
from sinew.specs import ActionSpec

Saved = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors and numbers that `Source.state` gave."""
FAR = 1_000_003
"""Between the seeds of exploration of learners that learn together."""


@dataclass(frozen=True)
class Arrival:
    """A step of the worlds of one place, or that they began anew."""

    place: int
    step: Step | None
    """None: all its worlds began anew."""
    frames: Mapping[str, Tensor]
    """{key: (N, ...)} after it."""
    stamp: Any = None
    """The source's own."""


class Source:
    """What the learning half asks of the acting half. Places are numbered from 0; each has `num_envs` worlds."""

    places: int = 1
    num_envs: int
    action_spec: ActionSpec
    control: Control | None = None
    group: Group = ALONE
    """Learners that learn together, each from a source of its own."""
    progress: Progress = SILENT
    """Is told what happens to those who act."""
    together: bool = True
    """Whether acting waits for learning: then every update that is due is made before the next step."""
    forgets: bool = False
    """Whether updates that could not be made in time are not made up for."""

    def open(self, block: int, step: int, saved: Saved | None) -> Mapping[str, Tensor]:
        """Begin, or go on from what `state` gave. Gives frames {key: (N, ...)} to learn their shapes from."""
        raise NotImplementedError

    def go_on(self, block: int, step: int, saved: Saved) -> None:
        """What learns is again what it was when `saved` was taken."""

    def gather(self, step: int, behind: float, wait: bool) -> Iterator[Arrival]:
        """What has arrived, in order for each place.

        Args:
            step: environment steps so far.
            behind: steps that no update was made for yet.
            wait: whether there is nothing to do until something arrives.
        """
        raise NotImplementedError

    def took(self, arrival: Arrival) -> None:
        """It is in the replay now."""

    def restart(self, block: int, step: int) -> None:
        """All worlds shall begin anew, where they wait for learning."""

    def publish(self, module: nn.Module, updates: int, step: int, *, now: bool = False) -> None:
        """These weights are what shall act; `now` even if others were told a moment ago."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers to go on from."""
        return {}, {}

    def saved(self) -> None:
        """The last `state` is safe."""

    def metrics(self, step: int, updates: int) -> dict[str, float]:
        """Counters worth a line in the log."""
        return {}

    def close(self) -> None:
        """Nothing is asked any more."""


class Here(Source):
    """Worlds of this process, one step at a time."""

    def __init__(self, worlds: Worlds) -> None:
        self.worlds, self.num_envs, self.action_spec, self.control = worlds, worlds.num_envs, worlds.action_spec, worlds.control
        self._began = False

    def open(self, block: int, step: int, saved: Saved | None) -> Mapping[str, Tensor]:
        """All worlds begin."""
        self.restart(block, step)
        return self.worlds.frames

    def go_on(self, block: int, step: int, saved: Saved) -> None:
        """All worlds begin once more, as they did after the checkpoint."""
        tensors, numbers = saved
        self.worlds.rng.set_state(tensors["rng"])
        self.worlds.episodes = numbers["episodes"]
        curriculum = getattr(self.worlds.env, "curriculum", None)
        if curriculum is not None:
            curriculum.load_state(numbers["curriculum"])
        self.restart(block, step)

    def restart(self, block: int, step: int) -> None:
        """All worlds begin anew, with seeds of this block of steps."""
        self.worlds.start(block, step)
        self._began = True

    def gather(self, step: int, behind: float, wait: bool) -> Iterator[Arrival]:
        """One step of all worlds."""
        if self._began:
            self._began = False
            yield Arrival(0, None, self.worlds.frames)
        made = self.worlds.step(step)
        yield Arrival(0, made, made.frames)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The stream of exploration, how many episodes were begun, and how far the worlds' ranges have grown, where they grow."""
        curriculum = getattr(self.worlds.env, "curriculum", None)
        grown = {} if curriculum is None else {"curriculum": curriculum.state()}
        return {"rng": self.worlds.rng.get_state()}, {"episodes": self.worlds.episodes, **grown}

    def metrics(self, step: int, updates: int) -> dict[str, float]:
        """Episodes begun, and how far ranges have grown."""
        curriculum = getattr(self.worlds.env, "curriculum", None)
        grown = {} if curriculum is None else {"reach": curriculum.share}
        return {"train_episodes": self.worlds.episodes, **grown}


def here(env: VecEnv, method: Method, seed: int, group: Group = ALONE) -> Here:
    """Worlds of this process for one of a group of learners; each of them has episodes and noise of its own."""
    stream = (seed, group.rank) if group.rank else (seed,)
    source = Here(Worlds(env, method, stream, seed + 1 + FAR * group.rank))
    source.group = group
    return source
