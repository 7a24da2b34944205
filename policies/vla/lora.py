"""Low-rank adapters: linear layers that keep their weights and learn a small difference.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sinew.errors import InputError, SpecError


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of the adapters."""

    rank: int = 16
    """Rank of the difference."""
    alpha: float = 32.0
    """The difference is scaled by alpha / rank."""
    layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Last parts of the names of the linear layers that are adapted."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not self.layers:
            raise SpecError("lora rank must be at least 1, alpha above 0, and layers not empty")


class LoraLinear(nn.Module):
    """y = W x + b + (alpha / rank) B A x with W, b frozen; B starts at zero, so that nothing changes at first.

    A and B are float32 at least, whatever W is: in bfloat16, small updates and their averages are rounded away.

    Args:
        base: the layer; frozen from here on.
        rank: rows of A.
        alpha: scale of the difference.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        like = {"dtype": torch.promote_types(base.weight.dtype, torch.float32), "device": base.weight.device}
        self.down = nn.Parameter(torch.randn(rank, base.in_features, **like) * base.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, **like))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        difference = functional.linear(functional.linear(x.to(self.down.dtype), self.down), self.up) * self.scale
        return self.base(x) + difference.to(x.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer with the same function."""
        layer = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None)
        layer.weight = nn.Parameter((self.base.weight + self.scale * self.up @ self.down).to(self.base.weight.dtype))
        if self.base.bias is not None:
            layer.bias = nn.Parameter(self.base.bias.clone())
        return layer


def adapt(module: nn.Module, config: LoraConfig) -> int:
    """Freeze `module` and put adapters on its linear layers of the given names.

    Returns:
        Number of layers adapted.

    Raises:
        InputError: a name fits no linear layer.
    """
    module.requires_grad_(False)
    found = list(_linears(module, config.layers, nn.Linear))
    absent = [name for name in config.layers if not any(n == name for _, n, _ in found)]
    if absent:
        linears = sorted({n.rpartition(".")[2] for n, m in module.named_modules() if isinstance(m, nn.Linear)})
        raise InputError(f"lora layers: no linear layer is named {absent[0]!r}; there are {', '.join(linears)}")
    for parent, name, layer in found:
        setattr(parent, name, LoraLinear(cast(nn.Linear, layer), config.rank, config.alpha))
    return len(found)


def merge(module: nn.Module) -> int:
    """Replace every adapted layer by one plain layer with the same function, and give how many there were."""
    found = list(_linears(module, (), LoraLinear))
    for parent, name, layer in found:
        setattr(parent, name, cast(LoraLinear, layer).merged())
    return len(found)


def _linears(module: nn.Module, names: Sequence[str], kind: type) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, layer) of the layers of a kind, of all names where `names` is empty."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind) and (not names or name in names):
                yield parent, name, child
