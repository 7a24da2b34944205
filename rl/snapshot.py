"""Undoing: a module and its optimiser as they once were."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rl.checkpoint import load_optimizer_state


class Snapshot:
    """A module and its optimiser as they were, to be put back bit for bit."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.take()

    def take(self) -> None:
        """Remember both as they are now."""
        self.weights = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.moments = copy.deepcopy(self.optimizer.state_dict())

    def restore(self) -> None:
        """Put both back; what the module does and learns next is what it would have done then."""
        self.module.load_state_dict(self.weights)
        self.optimizer.load_state_dict(copy.deepcopy(self.moments))

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load_state` needs."""
        moments = self.moments["state"]
        weights = {f"best_policy.{k}": v for k, v in self.weights.items()}
        return weights | {f"best_optimizer.{i}.{k}": v for i, values in moments.items() for k, v in values.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what the snapshot that `state` was taken from did."""
        now = copy.deepcopy(self.optimizer.state_dict())
        load_optimizer_state("best_optimizer", self.optimizer, tensors)
        self.moments = copy.deepcopy(self.optimizer.state_dict())
        self.optimizer.load_state_dict(now)
        self.weights = {k.removeprefix("best_policy."): v for k, v in tensors.items() if k.startswith("best_policy.")}
