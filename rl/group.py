"""Learners that share one set of weights: each has its actors, its replay and its share of every batch; gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rl.checkpoint import read_state, write_state
from rl.learner import Learner
from sinew.errors import InputError

PATIENCE = timedelta(minutes=30)
"""Longest that learners wait for each other: for the slowest start, and for the evaluation of one of them."""


class Group:
    """A learner alone; what it asks a group for, it has."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether it evaluates and keeps the best."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all learners."""
        return list(values)

    def lead(self, ask: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """What the leader's evaluation gave, asked there alone."""
        return ask()

    def share(self, rows: int) -> int:
        """Rows of a batch that are this learner's."""
        return rows

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace `tensors` by their means over all learners, in one message."""

    def attach(self, learner: Learner) -> None:
        """From here on, every step of every optimiser is one of all learners."""

    def barrier(self) -> None:
        """Wait until all are here."""


ALONE = Group()
PREVIOUS = ".previous.safetensors"
"""Suffix of the checkpoint before the newest, which a group keeps."""


def read_together(path: Path, group: Group) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The checkpoint at `path`; where several learn, the one of the step that the leader's is of.

    Raises:
        InputError: this learner has none of that step.
    """
    found = read_state(path) if path.exists() else None
    if group.size == 1:
        return found
    wanted = group.total([float(found[1]["step"]) if found is not None and group.leads else 0.0])[0]
    for candidate in (path, path.with_suffix(PREVIOUS)):
        if candidate.exists() and (state := read_state(candidate))[1]["step"] == wanted:
            return state
    if wanted:
        raise InputError(f"{path.parent} has no checkpoint of step {wanted:.0f}, which the leader's is of; choose another --out")
    return None


def write_together(path: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], group: Group) -> None:
    """Write a checkpoint when all are here; the leader writes last, and who goes on without it has what was there before."""
    if group.size > 1:
        previous = path.with_suffix(PREVIOUS)
        previous.unlink(missing_ok=True)
        if path.exists():
            os.link(path, previous)
    if group.leads:
        group.barrier()
    write_state(path, tensors, numbers)
    if not group.leads:
        group.barrier()
    group.barrier()


class Ranks(Group):
    """Learners in processes of their own, over PyTorch's collectives.

    Args:
        rank: number of this one, from 0; the first leads.
        size: how many there are.
        where: tcp://host:port of the first, or env:// where the environment says it.
        device: where gradients are; a GPU's are averaged by NCCL.

    Raises:
        InputError: not all came.
    """

    def __init__(self, rank: int, size: int, where: str, device: torch.device | str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        with _told("come together"):
            dist.init_process_group(backend, init_method=where, rank=rank, world_size=size, timeout=PATIENCE)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all learners."""
        summed = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        with _told("count together"):
            dist.all_reduce(summed)
        return summed.tolist()

    def lead(self, ask: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Successes and episodes of the leader's evaluation."""
        found = ask() if self.leads else {"k": 0, "n": 0}
        k, n = self.total([found["k"], found["n"]])
        return {"k": round(k), "n": round(n)}

    def share(self, rows: int) -> int:
        """An equal part.

        Raises:
            InputError: it does not divide.
        """
        if rows % self.size:
            near = rows // self.size * self.size or self.size
            raise InputError(f"batch_size {rows} is not a multiple of the {self.size} learners: use {near}")
        return rows // self.size

    def attach(self, learner: Learner) -> None:
        """Give all the leader's weights, and average gradients before every step of an optimiser."""
        for module in learner._modules().values():
            for tensor in module.state_dict().values():
                carried = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
                dist.broadcast(carried, 0)
                tensor.copy_(carried)
        for optimizer in learner._optimizers().values():
            optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: self.average(_gradients(optimizer)))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace `tensors` by their means over all learners, in one message."""
        if not tensors:
            return
        message = torch.cat([t.flatten() for t in tensors])
        with _told("average gradients"):
            dist.all_reduce(message)
        message /= self.size
        parts: Sequence[Tensor] = message.split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        """Wait until all are here."""
        self.total([0.0])

    def close(self) -> None:
        """Leave."""
        dist.destroy_process_group()


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


@contextmanager
def torchrun(device: torch.device | str) -> Iterator[Group]:
    """The learners that torchrun started this process among, or a learner alone without it.

    Raises:
        InputError: not all came.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    group = Ranks(int(os.environ["RANK"]), size, "env://", device)
    try:
        yield group
    finally:
        group.close()


class _told:
    """Turns a failed collective into one line."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            raise InputError(
                f"the learners cannot {self.what}: one of them ended; the last checkpoint is kept, and the same command goes on"
            ) from None
