"""Replay: every frame is kept once, and everything that is a choice of the learner is made when sampling.

A `Ring` holds the last T steps of N worlds, time-major. The observation after a step is the next slot's frame; only where an
episode ended is it kept apart, in a side table behind the slots of the same tensor, so that a batch is one gather. n-step
length, discount and chunk stride are arguments of `sample`: nothing of them is baked into what is stored.

Frames, which are what takes space, may live in mapped files (`rl.storage`). They are not copied into a checkpoint then: there
are `margin` slots more than are remembered, so that what a checkpoint remembers stays untouched until as many steps were added.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, Unpack

import torch
from torch import Tensor

from rl.batch import DEMO, HUMAN, POLICY, SYNTHETIC, Batch, FrameSpec, Sampler, Way, concatenate
from rl.storage import MappedFolder
from sinew.errors import DataError, InputError, SpecError

__all__ = ["DEMO", "HUMAN", "POLICY", "SYNTHETIC", "Batch", "FrameSpec", "Mix", "Ring", "Sampler", "concatenate"]

PER_STEP = ("action", "reward", "terminated", "truncated", "source", "episode_step", "_final")
"""What is kept of every step beside its frames; always in memory and in every checkpoint."""


class Ring:
    """The last steps of `num_envs` worlds: as many as `window`, in `length` slots of time.

    Args:
        length: steps that are remembered, T.
        num_envs: worlds, N; N = 1 for recorded episodes one after the other.
        frame: {key: (shape, dtype)} of what a state consists of and is needed at the bootstrap state too, for example
            features, images and the base policy's action.
        action_dim: elements of the executed action, A.
        device: where the tensors live.
        margin: steps that may be added between two checkpoints; with mapped frames only.
        store: keeps the frames in files; None keeps them in memory.
    """

    def __init__(
        self,
        length: int,
        num_envs: int,
        frame: FrameSpec,
        action_dim: int,
        *,
        device: torch.device | str = "cpu",
        margin: int = 0,
        store: MappedFolder | None = None,
    ) -> None:
        if length < 2 or num_envs < 1:
            raise SpecError(f"a ring of {length} steps x {num_envs} worlds cannot hold a transition; at least 2 x 1 is needed")
        self.window, self.num_envs, self.action_dim = length, num_envs, action_dim
        self.frame = {k: (tuple(shape), dtype) for k, (shape, dtype) in frame.items()}
        self.device = torch.device(device)
        self.store, self.margin, self.saved = store, margin if store else 0, 0
        self.length = length + self.margin
        slots = self.length * num_envs
        self._final_rows = max(16, 2 * num_envs, slots // 32)
        where = self.device
        self._frames = {k: self._room(k, slots + self._final_rows) for k in self.frame}
        self._free = list(range(self._final_rows - 1, -1, -1))
        self.action = torch.zeros((slots, action_dim), device=where)
        self.reward = torch.zeros(slots, device=where)
        self.terminated = torch.zeros(slots, dtype=torch.bool, device=where)
        self.truncated = torch.zeros(slots, dtype=torch.bool, device=where)
        self.source = torch.zeros(slots, dtype=torch.uint8, device=where)
        self.episode_step = torch.zeros(slots, dtype=torch.int64, device=where)
        self._final = torch.full((slots,), -1, dtype=torch.int64, device=where)
        self._next_step = torch.zeros(num_envs, dtype=torch.int64, device=where)
        self.count = 0
        self._eligible: dict[tuple[int, int | None], Tensor] = {}
        self._last: Tensor | None = None

    def _room(self, key: str, rows: int) -> Tensor:
        shape, dtype = self.frame[key]
        if self.store is not None:
            return self.store.tensor(key, (rows, *shape), dtype)
        return torch.zeros((rows, *shape), dtype=dtype, device=self.device)

    def __len__(self) -> int:
        """Frames that are held."""
        return min(self.count, self.window) * self.num_envs

    def frames(self, key: str) -> Tensor:
        """(T, N, ...) view of the frames of `key`."""
        return self._frames[key][: self.length * self.num_envs].view(self.length, self.num_envs, *self.frame[key][0])

    # ------------------------------------------------------------ writing

    def add(
        self,
        frame: Mapping[str, Tensor],
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        *,
        final: Mapping[str, Tensor] | None = None,
        source: int | Tensor = POLICY,
    ) -> None:
        """Append one step of all worlds.

        Args:
            frame: {key: (N, ...)} before the step.
            action: (N, A) as it was executed.
            reward: (N,), or (N, R) for R rewards, as the first step has it.
            terminated: (N,) bool.
            truncated: (N,) bool; never both.
            final: {key: (M, ...)} after the step, of the M worlds whose episode ended, in the order of worlds. May be left
                out when none was truncated: nothing is bootstrapped from a terminal state.
            source: source bits, one for all or (N,).

        Raises:
            SpecError: a world is both terminated and truncated, or a truncated one comes without final frame.
        """
        N = self.num_envs
        low = (self.count % self.length) * N
        here = slice(low, low + N)
        ended = terminated | truncated
        any_ended = bool(ended.any())
        if any_ended:
            if bool((terminated & truncated).any()):
                raise SpecError("a world is both terminated and truncated; a terminated one must not be truncated")
            if final is None and bool(truncated.any()):
                raise SpecError("an episode was truncated but no final frame was given; pass final= with the frames after the step")
        if self.count >= self.length:
            self._release(here)
        for key, store in self._frames.items():
            store[here] = frame[key]
        self.action[here] = action
        if not self.count and reward.shape[1:] != self.reward.shape[1:]:  # several rewards for each step
            self.reward = self.reward.new_zeros(len(self.reward), *reward.shape[1:])
        self.reward[here] = reward
        self.terminated[here] = terminated
        self.truncated[here] = truncated
        self.source[here] = source
        self.episode_step[here] = self._next_step
        self._next_step += 1
        if any_ended:
            self._next_step[ended] = 0
            if final is not None:
                self._keep_final(torch.nonzero(ended)[:, 0] + low, final)
        self.count += 1
        self._changed()

    def cut(self, final: Mapping[str, Tensor]) -> None:
        """Mark the newest step of every world whose episode runs on as truncated, `final` {key: (N, ...)} being the state after it."""
        if not self.count:
            return
        low = ((self.count - 1) % self.length) * self.num_envs
        here = slice(low, low + self.num_envs)
        open_ = ~(self.terminated[here] | self.truncated[here])
        self.truncated[here] |= open_
        self._next_step[open_] = 0
        self._keep_final(torch.nonzero(open_)[:, 0] + low, {k: v[open_] for k, v in final.items()})
        self._changed()

    def relabel(self, slots: Tensor, *, reward: float, terminated: bool, truncated: bool) -> None:
        """Rewrite how steps at flat slots (M,) went, for a label that came late; a truncated one without final frame terminates."""
        bootstraps = (self._final[slots] >= 0) & truncated
        self.reward[slots] = reward
        self.truncated[slots] = bootstraps
        self.terminated[slots] = ~bootstraps & (terminated or truncated)
        self._changed()

    def _changed(self) -> None:
        """Forget what was worked out from the steps as they were."""
        self._eligible.clear()
        self._last = None

    def _release(self, here: slice) -> None:
        """Give back the side-table rows of slots that are overwritten."""
        rows = self._final[here]
        self._free.extend(rows[rows >= 0].tolist())
        self._final[here] = -1

    def _keep_final(self, slots: Tensor, final: Mapping[str, Tensor]) -> None:
        while len(self._free) < len(slots):
            self._grow()
        rows = torch.tensor([self._free.pop() for _ in range(len(slots))], dtype=torch.int64, device=self.device)
        self._final[slots] = rows
        base = self.length * self.num_envs
        for key, store in self._frames.items():
            store[base + rows] = final[key].to(store)

    def _grow(self) -> None:
        extra = max(16, self._final_rows // 2)
        for key, store in self._frames.items():
            if self.store is not None:
                self._frames[key] = self._room(key, len(store) + extra)
            else:
                self._frames[key] = torch.cat((store, store.new_zeros(extra, *store.shape[1:])))
        self._free.extend(range(self._final_rows + extra - 1, self._final_rows - 1, -1))
        self._final_rows += extra

    # ------------------------------------------------------------ sampling

    def starts(self, stride: int = 1, source: int | None = None) -> Tensor:
        """Absolute times * N + world of every step that a transition can start at.

        Left out are steps whose bootstrap state is not there yet (the newest step of a running episode), for a stride above 1
        steps that no chunk starts at or whose chunk is unfinished, and steps without any bit of `source`.
        """
        key = (stride, source)
        if key not in self._eligible:
            size, N = min(self.count, self.window), self.num_envs
            time = torch.arange(self.count - size, self.count, device=self.device)
            flat = ((time % self.length)[:, None] * N + torch.arange(N, device=self.device)).reshape(-1)
            ended = (self.terminated | self.truncated)[flat].view(size, N)
            good = torch.zeros(size, N, dtype=torch.bool, device=self.device)
            good[: max(0, size - stride)] = True
            tail = ended[max(0, size - stride) :].flip(0).cumsum(0).flip(0) > 0
            good[max(0, size - stride) :] = tail
            if stride > 1:
                good &= (self.episode_step[flat].view(size, N) % stride) == 0
            if source is not None:
                good &= (self.source[flat].view(size, N) & source) > 0
            self._eligible[key] = torch.nonzero(good.reshape(-1))[:, 0] + (self.count - size) * N
        return self._eligible[key]

    def available(self, stride: int = 1) -> int:
        """Transitions that can be drawn."""
        if stride > 1:
            return len(self.starts(stride))
        return max(0, min(self.count, self.window) - 1) * self.num_envs + len(self._newest_ended())

    def _newest_ended(self) -> Tensor:
        """Worlds whose newest step ended their episode: elsewhere it has no state after it yet."""
        if self._last is None:
            low = ((self.count - 1) % self.length) * self.num_envs
            here = slice(low, low + self.num_envs)
            self._last = torch.nonzero((self.terminated[here] | self.truncated[here]) & (self.count > 0))[:, 0]
        return self._last

    def _draw(self, number: int, stride: int, source: int | None, generator: torch.Generator | None) -> Tensor:
        """Uniform draw from `starts` (number,), without listing them in the plain case."""
        if stride > 1 or source is not None:
            pool = self.starts(stride, source)
            if not len(pool):
                raise InputError(f"the replay holds no transition to sample (stride {stride}, source bits {source})")
            return pool[torch.randint(len(pool), (number,), generator=generator, device=self.device)]
        size, N = min(self.count, self.window), self.num_envs
        if not size:
            raise InputError("the replay is empty; add steps before sampling")
        low = (self.count - size) * N
        last = self._newest_ended()
        whole = (size - 1) * N
        if not whole + len(last):
            raise InputError("the replay holds one unfinished step; add more before sampling")
        k = torch.randint(whole + len(last), (number,), generator=generator, device=self.device)
        if not len(last):
            return k + low
        return low + torch.where(k < whole, k, whole + last[(k - whole).clamp(min=0)])

    def sample(
        self,
        batch_size: int,
        *,
        updates: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        stride: int = 1,
        source: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Batch]:
        """Draw `updates` batches in one gather; each is a view of the whole.

        Args:
            batch_size: transitions per batch.
            updates: batches.
            n_step: a transition covers up to n_step chunks of `stride` steps; fewer where the episode ends or the newest
                step is reached. It never crosses the end of an episode.
            gamma: discount per environment step.
            stride: steps per chunk; above 1, transitions start only where an episode's step number is a multiple of it.
            source: only transitions whose first step has one of these source bits.
            generator: of this ring's device.

        Raises:
            InputError: there is nothing to sample.
        """
        start = self._draw(batch_size * updates, stride, source, generator)
        batch = self.gather(start, n_step=n_step, gamma=gamma, stride=stride)
        if updates == 1:
            return [batch]
        return [batch.map(lambda x, i=i: x[i * batch_size : (i + 1) * batch_size]) for i in range(updates)]

    def gather(self, start: Tensor, *, n_step: int = 1, gamma: float = 0.99, stride: int = 1) -> Batch:
        """The transitions that start at `start` (M,), given as in `starts`."""
        N, window = self.num_envs, n_step * stride
        time, world = start // N, start % N
        offsets = torch.arange(window, device=self.device)
        times = time[:, None] + offsets
        flat = (times % self.length) * N + world[:, None]
        terminated, truncated = self.terminated[flat], self.truncated[flat]
        ended = terminated | truncated
        written = times < self.count
        usable = written & ((times < self.count - 1) | ended)
        before = torch.zeros_like(ended)
        before[:, 1:] = (ended & written)[:, :-1].cumsum(1) > 0
        inside = usable & ~before
        span = inside.sum(1)
        if stride > 1:
            whole = span - span % stride
            complete = (ended & inside).any(1)
            span = torch.where(complete, span, whole)
            inside &= offsets < span[:, None]
        powers = gamma ** torch.arange(window + 1, device=self.device, dtype=torch.float32)
        reward, weight = self.reward[flat], inside * powers[:-1]
        reward = (reward * weight.view(*weight.shape, *(1,) * (reward.dim() - 2))).sum(1)
        discount = powers[span] * ~(terminated & inside).any(1)
        slot = flat[:, 0]
        last = flat.gather(1, (span - 1)[:, None])[:, 0]
        row = self._final[last]
        after = ((time + span) % self.length) * N + world
        over = self.terminated[last] | self.truncated[last]
        after = torch.where(row >= 0, self.length * N + row, torch.where(over, slot, after))
        action = self.action[slot]
        if stride > 1:
            action = self.action[flat[:, :stride]] * inside[:, :stride, None]
        return Batch(
            frames={k: v[slot] for k, v in self._frames.items()},
            action=action,
            reward=reward,
            discount=discount,
            next_frames={k: v[after] for k, v in self._frames.items()},
            span=span,
            source=reduce(torch.bitwise_or, (self.source[flat[:, :stride]] * inside[:, :stride]).unbind(1)),
            slot=slot,
        )

    # ------------------------------------------------------------ saving

    def state(self) -> dict[str, Tensor]:
        """Everything that `load_state` needs, as tensors for a safetensors file; mapped frames are brought to disk and stay there."""
        used, slots = min(self.count, self.length) * self.num_envs, self.length * self.num_envs
        shape = (self.window, self.num_envs, self.action_dim, self.count, self._final_rows, self.margin)
        out: dict[str, Tensor] = {}
        if self.store is not None:
            self.store.flush()
        else:
            out |= {f"frames.{k}": v[:used].clone() for k, v in self._frames.items()}
            out |= {f"final.{k}": v[slots:].clone() for k, v in self._frames.items()}
        for name in PER_STEP:
            out[name] = getattr(self, name)[:used].clone()
        out["next_step"] = self._next_step.clone()
        out["free"] = torch.tensor(self._free, dtype=torch.int64)
        out["shape"] = torch.tensor(shape)
        return out

    def kept(self) -> None:
        """The last `state` is safe: from here on, `margin` steps may be added before the next."""
        self.saved = self.count

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Become the ring that `state` was taken from.

        Raises:
            DataError: it is of a ring of another size or with other frames.
        """
        length, num_envs, action_dim, count, final_rows, margin = state["shape"].tolist()
        frames = {k.removeprefix("frames.") for k in state if k.startswith("frames.")} or set(self.frame)
        mine = (self.window, self.num_envs, self.action_dim, sorted(self.frame), self.margin)
        theirs = (length, num_envs, action_dim, sorted(frames), margin)
        if mine != theirs:
            raise DataError(f"the saved replay is of another shape: {theirs} (steps, worlds, action, frames, margin), expected {mine}")
        slots, used = self.length * num_envs, min(count, self.length) * num_envs
        self._final_rows = final_rows
        for key in self.frame:
            store = self._frames[key] = self._room(key, slots + final_rows)
            if self.store is None:
                store[:used], store[slots:] = state[f"frames.{key}"], state[f"final.{key}"]
        self.reward = self.reward.new_zeros(len(self.reward), *state["reward"].shape[1:])
        for name in PER_STEP:
            getattr(self, name)[:used] = state[name].to(self.device)
        self._final[used:] = -1
        self._next_step.copy_(state["next_step"])
        self._free = state["free"].tolist()
        self.count = self.saved = count
        self._changed()

    def moved(self, device: torch.device) -> Ring:
        """A copy in the memory of a device."""
        other = Ring(self.window, self.num_envs, self.frame, self.action_dim, device=device)
        other.load_state(self.state())
        return other


class Mix:
    """Batches of which a fixed share comes from a second replay: online and demonstrations, half and half.

    Args:
        online: first replay.
        demos: second replay.
        demo_fraction: share of `demos` in each batch, 0 to 1.
    """

    def __init__(self, online: Sampler, demos: Sampler, demo_fraction: float = 0.5) -> None:
        if not 0.0 <= demo_fraction <= 1.0:
            raise InputError(f"demo_fraction is {demo_fraction}; it is a share between 0 and 1")
        self.online, self.demos, self.demo_fraction = online, demos, demo_fraction

    def sample(self, batch_size: int, *, updates: int = 1, generator: torch.Generator | None = None, **way: Unpack[Way]) -> list[Batch]:
        """Like `Ring.sample`; the online transitions come first in each batch."""
        from_demos = round(batch_size * self.demo_fraction)
        options: dict[str, Any] = {"updates": updates, "generator": generator, **way}
        if not from_demos:
            return self.online.sample(batch_size, **options)
        if from_demos == batch_size:
            return self.demos.sample(batch_size, **options)
        online = self.online.sample(batch_size - from_demos, **options)
        demos = self.demos.sample(from_demos, **options)
        return [concatenate(a, b) for a, b in zip(online, demos, strict=True)]
