"""What was lived through: a ring for each place that acts, and the frames that its newest step led to."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from rl.batch import Batch, FrameSpec, Sampler, Way, concatenate
from rl.loop_config import LoopConfig
from rl.replay import Ring
from rl.source import Source
from rl.storage import MappedFolder
from rl.worlds import Step
from sinew.errors import InputError

AT_ONCE = 64
"""Most steps of a place that are taken in between two updates, where worlds act on their own."""
View = Callable[[Ring], Sampler]
"""How a ring is drawn from."""


@dataclass(frozen=True)
class Files:
    """Where mapped replays live."""

    folder: Path
    owner: Mapping[str, Any]
    """What they are of; told where it does not fit."""
    known: Sequence[str] | None
    """Identities that a checkpoint names; None for new ones."""


class Memory:
    """Rings of N worlds each, drawn from as one replay.

    Args:
        rings: one per place.
        device: where batches are wanted.
        at_once: most steps of a place that are taken in before anybody asks whether a checkpoint is due.
    """

    def __init__(self, rings: list[Ring], device: torch.device, at_once: int = 1) -> None:
        self.rings, self.device, self.at_once = rings, device, at_once
        self.view: View | None = None
        """How rings are drawn from; None for as they are."""
        self._viewed: tuple[View, list[Sampler]] | None = None
        self._held: list[dict[str, Tensor] | None] = [None] * len(rings)

    @property
    def place(self) -> torch.device:
        """Where transitions lie and are drawn."""
        return self.rings[0].device if self.rings else self.device

    def __len__(self) -> int:
        """Frames that are held."""
        return sum(len(ring) for ring in self.rings)

    @property
    def full(self) -> bool:
        """Whether a checkpoint is due before much more is taken in, so that the last one stays whole."""
        return any(ring.store is not None and ring.count - ring.saved >= ring.margin - self.at_once for ring in self.rings)

    def start(self, place: int, frames: Mapping[str, Tensor]) -> None:
        """All worlds of a place begin anew with `frames`; what was running there is cut, and bootstraps from where it was."""
        held = self._held[place]
        if held is not None:
            self.rings[place].cut(held)
        self._held[place] = self._kept(place, frames)

    def add(self, place: int, step: Step) -> None:
        """Append one step of the worlds of a place."""
        held = self._held[place]
        if held is None:
            raise RuntimeError(f"place {place} has not started")
        ring = self.rings[place]
        if step.reward.device != ring.device:
            step = step.to(ring.device)
        ring.add(held, step.action, step.reward, step.terminated, step.truncated, final=step.final, source=step.source)
        self._held[place] = self._kept(place, step.frames)

    def _kept(self, place: int, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ring = self.rings[place]
        return {key: frames[key].to(ring.device) for key in ring.frame}

    # ------------------------------------------------------------ sampling

    def sample(self, batch_size: int, *, updates: int = 1, generator: torch.Generator | None = None, **way: Unpack[Way]) -> list[Batch]:
        """Like `Ring.sample`, uniform over the transitions of all rings; slots count on from ring to ring."""
        views, stride = self._views(), way.get("stride", 1)
        if len(views) == 1:
            return [self._to(b) for b in views[0].sample(batch_size, updates=updates, generator=generator, **way)]
        total = batch_size * updates
        available = torch.tensor([ring.available(stride) for ring in self.rings], dtype=torch.float64)
        if not float(available.sum()):
            raise InputError(f"the replay holds no transition to sample (stride {stride})")
        shares = torch.multinomial(available, total, replacement=True, generator=generator).bincount(minlength=len(self.rings))
        parts: list[Batch] = []
        offset = 0
        for ring, view, share in zip(self.rings, views, shares.tolist(), strict=True):
            if share:
                part = view.sample(share, generator=generator, **way)[0]
                part.slot.add_(offset)
                parts.append(part)
            offset += ring.length * ring.num_envs
        order = torch.randperm(total, generator=generator)
        whole = self._to(reduce(concatenate, parts).map(lambda x: x[order]))
        return [whole.map(lambda x, i=i: x[i * batch_size : (i + 1) * batch_size]) for i in range(updates)]

    def _views(self) -> list[Sampler]:
        """The rings as they are drawn from; views are made once, since they may remember what they worked out."""
        if self.view is None:
            return list(self.rings)
        if self._viewed is None or self._viewed[0] is not self.view:
            self._viewed = self.view, [self.view(ring) for ring in self.rings]
        return self._viewed[1]

    def _to(self, batch: Batch) -> Batch:
        return batch if batch.reward.device == self.device else batch.map(lambda x: x.to(self.device))

    # ------------------------------------------------------------ saving

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load_state` needs."""
        out: dict[str, Tensor] = {}
        for i, (ring, held) in enumerate(zip(self.rings, self._held, strict=True)):
            out |= {f"{i}.{k}": v for k, v in ring.state().items()}
            out |= {f"{i}.held.{k}": v for k, v in (held or {}).items()}
        return out

    def kept(self) -> None:
        """The last `state` is safe."""
        for ring in self.rings:
            ring.kept()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Become the memory that `state` was taken from.

        Raises:
            DataError: it is of another shape.
        """
        for i, ring in enumerate(self.rings):
            mine = {k.removeprefix(f"{i}."): v for k, v in state.items() if k.startswith(f"{i}.")}
            held = {k.removeprefix("held."): v.to(ring.device) for k, v in mine.items() if k.startswith("held.")}
            ring.load_state({k: v for k, v in mine.items() if not k.startswith("held.")})
            self._held[i] = held or None

    @property
    def files(self) -> list[str] | None:
        """Identities of the mapped folders; None where frames are in memory."""
        found = [ring.store.identity for ring in self.rings if ring.store is not None]
        return found or None

    def forget_files(self) -> None:
        """Delete mapped files; nothing is learned any more."""
        for folder in {ring.store.folder.parent for ring in self.rings if ring.store is not None}:
            shutil.rmtree(folder, ignore_errors=True)


def make_memory(layout: FrameSpec, source: Source, config: LoopConfig, device: torch.device, files: Files) -> Memory:
    """Room for what the config wants remembered: in memory, or in mapped files where it asks for more than `replay_ram_gb`.

    Raises:
        InputError: the disk has no room for it.
        DataError: the files of a checkpoint are not there, or are of another run.
    """
    N, places = source.num_envs, source.places
    length = max(2, -(-min(config.replay_steps, config.steps) // (N * places)) + 1)
    per_frame = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
    if per_frame * length * N * places <= config.replay_ram_gb * 2**30:
        return Memory([Ring(length, N, layout, source.action_spec.dim, device=device) for _ in range(places)], device)
    at_once = 1 if source.together else AT_ONCE
    margin = -(-config.checkpoint_every // N) + 2 + 2 * at_once
    owner = {**files.owner, "frames": {k: [list(shape), str(dtype)] for k, (shape, dtype) in sorted(layout.items())}}
    rings = []
    for place in range(places):
        known = None if files.known is None else files.known[place]
        store = MappedFolder(files.folder / str(place), owner, known)
        rings.append(Ring(length, N, layout, source.action_spec.dim, margin=margin, store=store))
    return Memory(rings, device, at_once)
