"""A whole update as a CUDA graph: recorded once, then replayed over the same memory with no work left for the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sinew.errors import InputError

WARM_UP = 3
"""Updates of each kind that run as they are before one is recorded: they make the optimisers' moments and choose kernels."""


class Tensors(Protocol):
    """A batch: a structure of tensors, rows first."""

    def map(self, function: Any) -> Any:
        """The same structure with `function` applied to every tensor."""
        ...


T = TypeVar("T", bound=Tensors)


class GraphedUpdate(Generic[T]):
    """Calls `step(batch, with_actor)`, from its fourth call of either kind on by replaying what the device did.

    `step` must read nothing back from the device, take nothing new from the host but the batch, and draw from `generator`.

    Args:
        step: the update.
        generator: of all randomness in it, on the device.

    Raises:
        InputError: the generator is on the host.
    """

    def __init__(self, step: Callable[[T, bool], None], generator: torch.Generator) -> None:
        if generator.device.type != "cuda":
            raise InputError("engine 'graph' needs all noise drawn on the device; this method draws on the host: use 'compile'")
        self.step, self.generator = step, generator
        self._done = {False: 0, True: 0}
        self._batch: T | None = None
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: T, with_actor: bool) -> bool:
        """One update; whether it was a replay.

        Raises:
            InputError: the batch is of another size than the one recorded.
        """
        if self._done[with_actor] < WARM_UP:
            self._done[with_actor] += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self.step(batch, with_actor)
            torch.cuda.current_stream().wait_stream(self._stream)
            return False
        static = self._batch
        if static is None:
            static = self._batch = batch.map(torch.clone)
        copy_batch(static, batch)
        recorded = with_actor in self._graphs
        if not recorded:
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)
            with torch.cuda.graph(graph, stream=self._stream):
                self.step(static, with_actor)
            self._graphs[with_actor] = graph
        self._graphs[with_actor].replay()
        return recorded


def copy_batch(into: Tensors, batch: Tensors) -> None:
    """Overwrite the tensors of a batch by those of another.

    Raises:
        InputError: shapes differ.
    """
    mine: list[Tensor] = []
    theirs: list[Tensor] = []
    into.map(mine.append)
    batch.map(theirs.append)
    for a, b in zip(mine, theirs, strict=True):
        if a.shape != b.shape:
            raise InputError(f"engine 'graph' recorded batches of {len(a)} and got one of {len(b)}; keep batch_size fixed")
        a.copy_(b, non_blocking=True)
