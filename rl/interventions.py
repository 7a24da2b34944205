"""A human in the loop: what a person did is remembered, sampled more often, and never mistaken for the policy's own choice.

Steps that a person chose carry the bit HUMAN in the one replay there is; no second buffer holds them again. `SupervisedMix`
draws one part of every batch from everything, and the other from demonstrations and the person's steps together, which is what
two buffers would give (Luo et al. 2024, arXiv:2410.21845). Where a method decides on whole chunks, a person who takes over
breaks a chunk, and the next one begins at the step after; `decision_steps` finds these beginnings again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from rl.batch import Way
from rl.labels import LEFT_OUT, Labels
from rl.replay import HUMAN, POLICY, Batch, Ring, concatenate
from rl.worlds import Control
from sinew.errors import InputError
from sinew.protocols import VecEnv

RESTARTED = 64
"""Bit of `source`: a plan was thrown away after this step, though nobody took over."""
Judged = Literal["actions", "choices"]
"""What critics judge: what was executed, whoever chose it; or the method's own choice, of which a person's step tells nothing."""


def decision_steps(ring: Ring, stride: int) -> tuple[Tensor, Tensor]:
    """Where chunks of `stride` steps began: at an episode's first step, after a step that broke a plan, and a chunk after the last.

    Returns:
        (T, N) bool, whether a chunk began at each remembered step, oldest first; (T, N) bool, whether that is certain, which it
        is not where the beginning of the oldest episode is forgotten.
    """
    flat, size = _slots(ring)
    broke = (ring.source[flat] & (HUMAN | RESTARTED) > 0).view(size, -1)
    age = ring.episode_step[flat].view(size, -1)
    begins = age == 0
    begins[1:] |= broke[:-1]
    at = torch.arange(size, device=ring.device)[:, None].expand_as(begins)
    last = torch.where(begins, at, -1).cummax(0).values
    since = torch.where(last >= 0, at - last, age)
    return since % stride == 0, last >= 0


def _slots(ring: Ring) -> tuple[Tensor, int]:
    """Flat slots of everything that is remembered, oldest first, and the number of steps T."""
    size = min(ring.count, ring.window)
    times = torch.arange(ring.count - size, ring.count, device=ring.device) % ring.length
    return (times[:, None] * ring.num_envs + torch.arange(ring.num_envs, device=ring.device)).reshape(-1), size


class SupervisedMix:
    """Batches of a replay that a person works on too; labels are settled before anything is drawn.

    Args:
        online: what was done in this run, by policy and person.
        demos: recorded demonstrations; None for none.
        share: part of each batch that comes from demonstrations and the person's steps, uniformly over both; it is less while
            there are fewer of them than that, so that none is drawn more than about once for each batch.
        judged: whether steps that a person broke a chunk at can be learned from.
        labels: late labels of `online`.
    """

    def __init__(
        self, online: Ring, demos: Ring | None = None, share: float = 0.5, *, judged: Judged = "actions", labels: Labels | None = None
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise InputError(f"share is {share}; it is a part between 0 and 1")
        self.online, self.demos, self.share, self.judged, self.labels = online, demos, share, judged, labels
        self._kept: tuple[Any, Tensor, Tensor] | None = None

    def starts(self, stride: int = 1) -> tuple[Tensor, Tensor]:
        """Times * N + world of every transition that may be drawn (M,), and whether a person acted in its first chunk (M,)."""
        ring = self.online
        key = (ring.count, stride, self.labels.version if self.labels else 0)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, *self._work_out(stride))
        return self._kept[1:]

    def _work_out(self, stride: int) -> tuple[Tensor, Tensor]:
        ring, N = self.online, self.online.num_envs
        flat, size = _slots(ring)
        source = ring.source[flat].view(size, N)
        ended = (ring.terminated | ring.truncated)[flat].view(size, N)
        at = torch.arange(size, device=ring.device)[:, None].expand(size, N)
        end = torch.where(ended, at, size).flip(0).cummin(0).values.flip(0)  # of the episode that each step is of
        stop = torch.minimum(at + stride, end + 1)  # of the chunk
        whole = (at + stride <= size - 1) | (end < size)

        def within(bit: int) -> Tensor:
            """Whether a step of the chunk has this bit."""
            before = torch.cat((source.new_zeros(1, N, dtype=torch.int64), (source & bit > 0).long().cumsum(0)))
            return before.gather(0, stop.clamp(max=size)) - before[:-1] > 0

        human = within(HUMAN)
        begins, certain = decision_steps(ring, stride)
        good = whole & begins & (source & LEFT_OUT == 0)
        if stride > 1:
            good &= certain & ~within(RESTARTED)  # else the chunk is no chunk of anybody's
        if self.judged == "choices":
            good &= ~human
        chosen = torch.nonzero(good.reshape(-1))[:, 0]
        return chosen + (ring.count - size) * N, human.reshape(-1)[chosen]

    def sample(self, batch_size: int, *, updates: int = 1, generator: torch.Generator | None = None, **way: Unpack[Way]) -> list[Batch]:
        """Like `Ring.sample`; the second part of each batch is of demonstrations and the person's steps.

        A transition's source has the bit HUMAN where a person acted anywhere in its first chunk.

        Raises:
            InputError: there is nothing to sample.
        """
        if self.labels is not None:
            self.labels.settle()
        stride = way.get("stride", 1)
        starts, human = self.starts(stride)
        people = starts[human]
        shown = self.demos.starts(stride) if self.demos is not None else starts[:0]
        second = min(round(batch_size * self.share), len(people) + len(shown))
        if not len(starts) and second < batch_size:
            raise InputError(f"the replay holds no transition to sample (stride {stride}, judged by {self.judged})")
        batches = []
        for _ in range(updates):
            parts: list[Batch] = []
            if second < batch_size:
                drawn = torch.randint(len(starts), (batch_size - second,), generator=generator, device=starts.device)
                parts.append(self.online.gather(starts[drawn], **way))
                parts[-1].source.bitwise_or_(human[drawn].to(torch.uint8) * HUMAN)
            if second:
                which = torch.randint(len(people) + len(shown), (second,), generator=generator, device=starts.device)
                by_person = which < len(people)
                if bool(by_person.any()):
                    parts.append(self.online.gather(people[which[by_person]], **way))
                    parts[-1].source.bitwise_or_(HUMAN)
                if not bool(by_person.all()) and self.demos is not None:
                    parts.append(self.demos.gather(shown[which[~by_person] - len(people)], **way))
            batch = parts[0]
            for part in parts[1:]:
                batch = concatenate(batch, part)
            batches.append(batch)
        return batches


class Replanned:
    """Worlds in which a plan is thrown away wherever a person acted, so that the next one begins at what is seen then.

    Args:
        env: puts info["source"], and may put info["interrupted"] (N,) bool where time has passed outside of the episode.
        restart: (worlds, seeds of their noise): forgets the plans of these worlds.
    """

    def __init__(self, env: VecEnv, restart: Callable[[Sequence[int], Sequence[int]], None]) -> None:
        self.env, self.restart = env, restart
        self.num_envs, self.max_episode_steps = env.num_envs, env.max_episode_steps
        self.observation_spec, self.action_spec = env.observation_spec, env.action_spec
        self.control: Control | None = getattr(env, "control", None)
        """The worlds' own, see `rl.worlds.Worlds`."""
        self._entropy: tuple[int, ...] = ()
        self._restarts = 0

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """See VecEnv.reset; the seeds also fix the noise of plans that begin anew, until the next reset."""
        self._entropy = (seed,) if isinstance(seed, int) else tuple(seed or ())
        self._restarts = 0
        return self.env.reset(seed, ids)

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """See VecEnv.step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        source = info.get("source", torch.full((self.num_envs,), POLICY, dtype=torch.uint8))
        if "interrupted" in info:
            source = source | info["interrupted"].to(torch.uint8) * RESTARTED
        worlds = torch.nonzero(source & (HUMAN | RESTARTED))[:, 0].tolist()
        if worlds:
            self.restart(worlds, [self._seed() for _ in worlds])
        return obs, reward, terminated, truncated, {**info, "source": source}

    def _seed(self) -> int:
        self._restarts += 1
        return int(np.random.SeedSequence([*self._entropy, 9, self._restarts]).generate_state(1)[0] >> 1)

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()
