"""Energies of an action chunk under a condition: an MLP and a transformer, smooth throughout and without time.

Both are E(x, c) = scale * sum(x * g(x, c)) with a network g of the chunk's shape, the inner-product form of Wang and Du
2025 (arXiv:2510.02300), whose gradient scale * (g + J_g^T x) has a direct way from the output layer. With a bare scalar
output, samples of a problem with two known modes came out 1.2 to 1.8 times further from them after equal training. The
networks are differentiated twice in training, so activations are SiLU and GELU, and attention is written out: fused kernels
have no second derivative.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class MlpEnergy(nn.Module):
    """Plain network on the flattened chunk; the condition enters its first layer.

    Args:
        horizon: H.
        action_dim: A.
        condition_dim: length of the observation vector.
        hidden: widths of the hidden layers.
        scale: size of the gradient at initialisation, roughly.
    """

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, hidden: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.feature_dim = hidden[-1]
        self.chunk_in = nn.Linear(horizon * action_dim, hidden[0])
        self.condition_in = nn.Linear(condition_dim, hidden[0], bias=False)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))
        self.out = nn.Linear(hidden[-1], horizon * action_dim)

    def embed(self, condition: Tensor) -> Tensor:
        """(B, condition_dim) → (B, E), all that the energy needs of an observation."""
        return self.condition_in(condition)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks x (R, H, A), embedded conditions (R, E) → energies (R,), hidden units (R, feature_dim)."""
        flat = x.flatten(1)
        h = functional.silu(self.chunk_in(flat) + condition)
        for layer in self.layers:
            h = functional.silu(layer(h))
        return self.scale * (flat * self.out(h)).sum(-1), h


class EnergyBlock(nn.Module):
    """Self-attention over the actions and an MLP, scaled, shifted and gated by six given vectors (arXiv:2212.09748)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Tokens x (R, H, W), modulation (R, 6, W) → (R, H, W)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.unsqueeze(2).unbind(1)
        x = x + gate * self.attend(self.norms[0](x) * (1 + scale) + shift)
        return x + gate_mlp * self.mlp(self.norms[1](x) * (1 + scale_mlp) + shift_mlp)

    def attend(self, x: Tensor) -> Tensor:
        """(R, H, W) → (R, H, W)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weight = (q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5).softmax(-1)
        return self.project((weight @ v).transpose(1, 2).flatten(2))


class TransformerEnergy(nn.Module):
    """One token per action; the condition enters every block by adaptive norm.

    Since there is no time, all modulations are functions of the observation alone and are computed once for it.

    Args:
        horizon: H.
        action_dim: A.
        condition_dim: length of the observation vector.
        width: length W of a token.
        layers: number of blocks.
        heads: attention heads; divides `width`.
        scale: size of the gradient at initialisation, roughly.
    """

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, width: int, layers: int, heads: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.feature_dim = width
        self.condition_in = nn.Sequential(nn.Linear(condition_dim, width), nn.SiLU(), nn.Linear(width, (6 * layers + 2) * width))
        self.token_in = nn.Linear(action_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(EnergyBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, action_dim)

    def embed(self, condition: Tensor) -> Tensor:
        """(B, condition_dim) → (B, (6 layers + 2) W), the modulations of every block and of the last norm."""
        return self.condition_in(condition)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks x (R, H, A), embedded conditions (R, E) → energies (R,), hidden units (R, W)."""
        modulation = condition.unflatten(-1, (-1, self.feature_dim))
        h = self.token_in(x) + self.position
        for index, block in enumerate(self.blocks):
            h = block(h, modulation[:, 6 * index : 6 * index + 6])
        shift, scale = modulation[:, -2:].unsqueeze(2).unbind(1)
        h = self.norm(h) * (1 + scale) + shift
        return self.scale * (x * self.out(h)).sum((1, 2)), h.mean(1)
