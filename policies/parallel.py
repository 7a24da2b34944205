"""Several processes that train one policy: started by torchrun, each takes its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sinew.errors import InputError


@dataclass(frozen=True)
class Group:
    """The processes of a training run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's rows of a batch.

        Raises:
            InputError: the batch does not divide evenly.
        """
        if rows % self.size:
            near = max(rows // self.size, 1) * self.size
            raise InputError(f"batch_size {rows} is not a multiple of the {self.size} processes: use {near}")
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def average(self, tensors: Sequence[Tensor], extra: Tensor) -> Tensor:
        """Replace `tensors` by their mean over all processes, in one message; gives the mean of `extra` (K,)."""
        if self.size == 1:
            return extra
        message = torch.cat([*(t.flatten() for t in tensors), extra.to(tensors[0] if tensors else extra)])
        dist.all_reduce(message)
        message /= self.size
        parts = message.split([*(t.numel() for t in tensors), extra.numel()])
        for tensor, part in zip(tensors, parts, strict=False):
            tensor.copy_(part.view_as(tensor))
        return parts[-1].to(extra)

    def equalize(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the tensors of the first."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def own_device(device: torch.device | str) -> torch.device:
    """The device of this process: under torchrun, "cuda" means the GPU of its local rank.

    Raises:
        InputError: there is no such device, or no GPU that torch can use.
    """
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError(f"unknown device {device!r}: known are cpu, cuda and cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {str(device)!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; use cpu")
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[Group]:
    """The group that torchrun started this process in, or a group of one without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        if mine:
            dist.destroy_process_group()
