"""Value networks: an ensemble as one set of stacked weights, and the head that says what its outputs mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rl.heads import ScalarHead, ValueHead
from sinew.errors import InputError

__all__ = ["LAYER_NORM_EPS", "Critic", "EnsembleMLP", "ScalarHead", "ValueHead", "polyak"]

LAYER_NORM_EPS = 1e-5


class EnsembleMLP(nn.Module):
    """E independent multi-layer perceptrons: linear, layer norm, ReLU per hidden layer, then linear.

    Weights are stacked, w (E, in, out), and each head has its own layer-norm gain and shift. Heads are chosen before the
    products, so a random subset costs only its own share.

    Args:
        in_dim: input features.
        hidden: widths of the hidden layers.
        out_dim: outputs per head.
        heads: E.
        layer_norm: whether hidden layers are normalised.
        generator: of the orthogonal initialisation, which is drawn for each head on its own.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int] = (256, 256),
        out_dim: int = 1,
        heads: int = 2,
        *,
        layer_norm: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or in_dim < 1 or not hidden:
            raise InputError(f"an ensemble of {heads} heads with {in_dim} inputs and hidden layers {tuple(hidden)} has nothing to compute")
        self.in_dim, self.hidden, self.out_dim, self.heads, self.layer_norm = in_dim, tuple(hidden), out_dim, heads, layer_norm
        widths = (in_dim, *self.hidden, out_dim)
        where = None if generator is None else generator.device  # weights are drawn where the generator is
        self.weight = nn.ParameterList(torch.empty(heads, a, b, device=where) for a, b in itertools.pairwise(widths))
        self.bias = nn.ParameterList(torch.zeros(heads, 1, b, device=where) for b in widths[1:])
        self.gain = nn.ParameterList(torch.ones(heads, 1, b, device=where) for b in self.hidden if layer_norm)
        self.shift = nn.ParameterList(torch.zeros(heads, 1, b, device=where) for b in self.hidden if layer_norm)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Orthogonal weights for each head (gain sqrt 2, 1 for the output layer), zero biases, unit gains."""
        with torch.no_grad():
            for layer, weight in enumerate(self.weight):
                for head in weight:
                    nn.init.orthogonal_(head, gain=1.0 if layer == len(self.hidden) else math.sqrt(2), generator=generator)
            for values, fill in ((self.bias, 0.0), (self.gain, 1.0), (self.shift, 0.0)):
                for value in values:
                    value.fill_(fill)

    def forward(self, x: Tensor, heads: Tensor | Sequence[int] | None = None) -> Tensor:
        """Evaluate heads.

        Args:
            x: (B, in) shared by the heads, or (K, B, in) one input per head.
            heads: (K,) indices of the heads, drawn by the caller; None for all.

        Returns:
            (K, B, out).
        """
        index = None if heads is None else torch.as_tensor(heads, device=x.device)

        def pick(p: Tensor) -> Tensor:
            return p if index is None else p.index_select(0, index)

        number = self.heads if index is None else index.shape[0]
        h = x.expand(number, *x.shape) if x.dim() == 2 else x
        for layer, width in enumerate(self.hidden):
            h = torch.baddbmm(pick(self.bias[layer]), h, pick(self.weight[layer]))
            if self.layer_norm:
                h = nn.functional.layer_norm(h, (width,), eps=LAYER_NORM_EPS) * pick(self.gain[layer]) + pick(self.shift[layer])
            h = h.relu()
        return torch.baddbmm(pick(self.bias[-1]), h, pick(self.weight[-1]))


class Critic(nn.Module):
    """An ensemble and the meaning of its outputs.

    Args:
        in_dim: features plus action (plus whatever else the caller puts in).
        hidden: widths of the hidden layers.
        heads: ensemble size E.
        layer_norm: whether hidden layers are normalised.
        head: meaning of the outputs (`rl.heads`); scalar if left out.
        generator: of the initialisation.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int] = (256, 256),
        heads: int = 2,
        *,
        layer_norm: bool = True,
        head: ValueHead | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.head: ValueHead = head or ScalarHead()
        self.net = EnsembleMLP(in_dim, hidden, self.head.out_dim, heads, layer_norm=layer_norm, generator=generator)

    def forward(self, x: Tensor, heads: Tensor | Sequence[int] | None = None) -> Tensor:
        """Values (K, B) of inputs (B, in) by the heads `heads` (all if None)."""
        return self.head.value(self.net(x, heads))


def polyak(target: Sequence[Tensor], online: Sequence[Tensor], tau: float) -> None:
    """Move `target` by the share `tau` towards `online`, in place."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target), list(online), tau)  # pyright: ignore[reportPrivateImportUsage]
