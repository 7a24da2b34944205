"""The half of the loop that acts: worlds, the method that acts in them, and what every step of them gives to remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rl.batch import POLICY, Batch, FrameSpec
from rl.learner import Frames, Learner
from sinew.errors import InputError
from sinew.protocols import Obs, VecEnv

Control = Callable[[], str | None]
"""What whoever stands beside the worlds asks for: "pause", "resume", "reset", "stop", or None for nothing new."""
REQUESTS = ("pause", "resume", "reset", "stop")


class Method(Protocol):
    """What a method decides: what is kept of an observation, how to act, and how to learn.

    Where worlds are in processes of their own, each has a copy of the method, and the weights of `actor` are brought there. A
    method that needs more to act also has an attribute `acting`, a module with all that it needs, made by `make_learner`. One that has
    no policy to begin with says so by an attribute `from_scratch`, which is true.
    """

    actor: nn.Module
    """What is learned, evaluated and kept."""
    stride: int
    """Environment steps per decision: the length of a transition."""

    @property
    def anchor(self) -> Callable[[Learner, float], None] | None:
        """For an actor that begins as another policy than the base: told how much more successful that is. None for all others."""
        ...

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """Worlds `ids` (None for all) begin new episodes, whose noise `seeds` fix."""
        ...

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """{key: (N, ...)} of the newest observations: the frames that are kept, and what `act` needs; advances plans."""
        ...

    def look_last(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """The frames after the last step of worlds `ids`; nothing moves on."""
        ...

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """The action (N, A) in [-1, 1] that is executed while learning."""
        ...

    def layout(self, frames: Frames) -> FrameSpec:
        """Which of the frames are kept."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """A batch of the replay as the learner takes it."""
        ...

    def make_learner(self, frames: Frames) -> Learner:
        """The learner for such frames."""
        ...


@dataclass(frozen=True)
class Step:
    """One step of N worlds, as it is remembered."""

    action: Tensor
    """(N, A) in [-1, 1], as it was executed."""
    reward: Tensor
    """(N,)."""
    terminated: Tensor
    """(N,) bool."""
    truncated: Tensor
    """(N,) bool."""
    source: Tensor | int
    """Source bits, one for all or (N,)."""
    frames: Mapping[str, Tensor]
    """{key: (N, ...)} after the step; of the new episode where one ended."""
    final: Mapping[str, Tensor] | None
    """{key: (M, ...)} after the last step of the M worlds whose episode ended; None if none did."""
    success: Sequence[float]
    """1 or 0 for each of these M."""

    def to(self, device: torch.device) -> Step:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("action", "reward", "terminated", "truncated")}
        source = self.source.to(device) if isinstance(self.source, Tensor) else self.source
        frames = {k: v.to(device) for k, v in self.frames.items()}
        final = None if self.final is None else {k: v.to(device) for k, v in self.final.items()}
        return Step(**moved, source=source, frames=frames, final=final, success=self.success)


class Worlds:
    """N worlds and what acts in them.

    Args:
        env: the worlds; an attribute `control` of it, if there is one, is asked for requests.
        method: acts in them.
        stream: what the seeds of episodes are drawn from; different for worlds that run at the same time.
        seed: of exploration.
    """

    def __init__(self, env: VecEnv, method: Method, stream: Sequence[int], seed: int) -> None:
        self.env, self.method, self.stream = env, method, tuple(stream)
        self.num_envs, self.action_spec = env.num_envs, env.action_spec
        self.control: Control | None = getattr(env, "control", None)
        self.rng = torch.Generator().manual_seed(seed)
        self.episodes = 0
        self.frames: dict[str, Tensor] = {}
        """{key: (N, ...)} of the newest observations."""

    def start(self, block: int, step: int) -> dict[str, Tensor]:
        """All worlds anew, with the seeds that `block` stands for; gives the first frames."""
        worlds = range(self.num_envs)
        obs = self.env.reset([_draw([*self.stream, block, w]) for w in worlds])
        self.method.reset(None, [self._episode_seed() for _ in worlds])
        self.frames = self._look(obs, step)
        return self.frames

    def step(self, step: int) -> Step:
        """One step of all worlds.

        Args:
            step: environment steps done before, over all worlds there are.

        Raises:
            InputError: a reward or an observation is not finite; the world is named.
        """
        action = self.method.act(self.frames, step, self.rng)
        obs, reward, terminated, truncated, info = self.env.step(self.action_spec.denormalize(action))
        self._refuse_non_finite("reward", reward, step)
        if "executed_action" in info:  # somebody took over: what was executed is what is remembered
            action = self.action_spec.normalize(info["executed_action"]).to(action)
        ended = terminated | truncated
        final, success = None, []
        if bool(ended.any()):
            final, success = self._end_episodes(torch.nonzero(ended)[:, 0].tolist(), info, reward, step)
        self.frames = self._look(obs, step)
        return Step(action, reward, terminated, truncated, info.get("source", POLICY), self.frames, final, success)

    def _end_episodes(self, ids: list[int], info: Mapping[str, Any], reward: Tensor, step: int) -> tuple[dict[str, Tensor], list[float]]:
        """Frames after the last step of worlds `ids`; their plans start anew before anything of the next episode is planned."""
        last = {k: v[ids] for k, v in info["final_observation"].items()}
        final = self.method.look_last(last, ids)
        self._refuse_frames("the final observation", final, step, ids)
        self.method.reset(ids, [self._episode_seed() for _ in ids])
        return final, info.get("success", reward > 0)[ids].float().tolist()

    def _look(self, obs: Obs, step: int) -> dict[str, Tensor]:
        frames = self.method.look(obs, step, self.rng)
        self._refuse_frames("the observation", frames, step)
        return frames

    def _episode_seed(self) -> int:
        """Seed of the base's noise in the next episode."""
        self.episodes += 1
        return _draw([*self.stream, 7, self.episodes])

    def _refuse_frames(self, what: str, frames: Mapping[str, Tensor], step: int, ids: list[int] | None = None) -> None:
        for key, value in frames.items():
            if value.is_floating_point():
                self._refuse_non_finite("the base policy's action" if key == "base_action" else what, value, step, ids)

    def _refuse_non_finite(self, what: str, values: Tensor, step: int, ids: list[int] | None = None) -> None:
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            row = int(torch.nonzero(~finite.reshape(len(values), -1).all(1))[0])
            world = row if ids is None else ids[row]
            raise InputError(
                f"world {world}: {what} is not finite after {step} environment steps; "
                "check the task's simulation for divergence (smaller time step, bounded actions); the last checkpoint is kept"
            )


def _draw(words: Sequence[int]) -> int:
    """A seed from whole numbers; the same for the same ones."""
    return int(np.random.SeedSequence(list(words)).generate_state(1)[0] >> 1)
