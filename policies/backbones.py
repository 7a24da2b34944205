"""Networks that map a noisy chunk, a time and a condition to a chunk: an MLP, a 1-D U-Net and a transformer.

Both take x (B, n, H, A) with n candidates per condition; the condition (B, E) is embedded once per observation and
broadcast over candidates and sampling steps.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.convolution import TimeConv, TimeGrow


class FourierTime(nn.Module):
    """Times in [0, 1] → sines and cosines at geometric frequencies from 1/4 to 32 cycles.

    Args:
        count: number of frequencies; the output has twice as many elements.
    """

    frequencies: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        octaves = torch.linspace(-2, 5, count)
        self.register_buffer("frequencies", 2 * math.pi * 2.0**octaves, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(...) → (..., 2 * count)."""
        angle = t.unsqueeze(-1) * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class MlpBackbone(nn.Module):
    """Plain network on the flattened chunk; time and condition enter its first layer.

    Args:
        horizon: H.
        action_dim: A.
        condition_dim: length of the observation vector.
        hidden: widths of the hidden layers.
        time_frequencies: Fourier frequencies of the time.
    """

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, hidden: tuple[int, ...], time_frequencies: int) -> None:
        super().__init__()
        self.shape = (horizon, action_dim)
        self.feature_dim = hidden[-1]
        self.chunk_in = nn.Linear(horizon * action_dim, hidden[0])
        self.condition_in = nn.Linear(condition_dim, hidden[0], bias=False)
        self.time_in = nn.Sequential(FourierTime(time_frequencies), nn.Linear(2 * time_frequencies, hidden[0], bias=False))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))
        self.out = nn.Linear(hidden[-1], horizon * action_dim)

    def embed(self, condition: Tensor) -> Tensor:
        """(B, condition_dim) → (B, E), the condition's share of the first layer."""
        return self.condition_in(condition)

    def embed_time(self, t: Tensor) -> Tensor:
        """(...) → (..., E)."""
        return self.time_in(t)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy x (B, n, H, A), time (B, n, E) or (E,), condition (B, E) → chunk (B, n, H, A), hidden (B, n, feature_dim)."""
        h = functional.silu(self.chunk_in(x.flatten(2)) + condition.unsqueeze(1) + time)
        for layer in self.layers:
            h = functional.silu(layer(h))
        return self.out(h).unflatten(-1, self.shape), h


Modulation = tuple[Tensor, ...]
"""What time and condition make of the layers that they scale and shift, (B, n or 1, size) for each."""


class Modulated(nn.Module):
    """A network that time and condition enter by linear layers on silu(condition + time), alike for all places of a chunk."""

    def modulators(self) -> list[Any]:
        """Those layers, in the order of use."""
        raise NotImplementedError

    def modulation(self, time: Tensor | Modulation, condition: Tensor) -> Modulation:
        """Time (B, n, E) or (E,), or what `ahead` made of it; condition (B, E)."""
        if not isinstance(time, Tensor):
            return time
        embedding = functional.silu(condition.unsqueeze(1) + time)
        return tuple(layer(embedding) for layer in self.modulators())

    def ahead(self, times: Tensor, condition: Tensor) -> list[Modulation]:
        """The modulation at every one of K times (K, E): the layers' weights are read once, not once per step of a sample."""
        embedding = functional.silu(condition.unsqueeze(1) + times)
        parts = [layer(embedding) for layer in self.modulators()]
        return [tuple(part[:, k : k + 1] for part in parts) for k in range(len(times))]


class FilmBlock(nn.Module):
    """Two convolutions over time with group norm; the condition scales and shifts the first (FiLM, arXiv:1709.07871)."""

    def __init__(self, channels_in: int, channels: int, embedding_dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Sequential(TimeConv(channels_in, channels, kernel, padding=kernel // 2), nn.GroupNorm(groups, channels))
        self.second = nn.Sequential(TimeConv(channels, channels, kernel, padding=kernel // 2), nn.GroupNorm(groups, channels))
        self.film = nn.Linear(embedding_dim, 2 * channels)
        self.skip = nn.Identity() if channels_in == channels else TimeConv(channels_in, channels, 1)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Signal x (B, C, L), scale and shift (B, 2 C') → (B, C', L)."""
        scale, shift = film.unsqueeze(-1).chunk(2, dim=1)
        h = functional.silu(self.first(x)) * (1 + scale) + shift
        return functional.silu(self.second(h)) + self.skip(x)


class UNetBackbone(Modulated):
    """1-D U-Net over the time axis of the chunk, conditioned by FiLM.

    Args:
        horizon: H; padded inside to a multiple of 2^(levels - 1) by repeating the last action.
        action_dim: A.
        condition_dim: length of the observation vector.
        channels: channels per level, each level at half the resolution of the one before.
        embedding_dim: length E of the time and condition embedding.
        kernel: odd length of the convolutions.
        groups: groups of the norm; divides all channels.
        time_frequencies: Fourier frequencies of the time.

    Source: Janner et al. 2022, arXiv:2205.09991; conditioning of Chi et al. 2023, arXiv:2303.04137.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        channels: tuple[int, ...],
        embedding_dim: int,
        kernel: int,
        groups: int,
        time_frequencies: int,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.multiple = 2 ** (len(channels) - 1)
        self.feature_dim = channels[-1]
        self.condition_in = nn.Linear(condition_dim, embedding_dim)
        self.time_in = nn.Sequential(
            FourierTime(time_frequencies),
            nn.Linear(2 * time_frequencies, embedding_dim),
            nn.SiLU(),
            nn.Linear(embedding_dim, embedding_dim),
        )
        widths = (action_dim, *channels)
        self.down = nn.ModuleList(FilmBlock(a, b, embedding_dim, kernel, groups) for a, b in zip(widths, channels, strict=False))
        self.shrink = nn.ModuleList(TimeConv(c, c, 3, 2, 1) for c in channels[:-1])
        self.middle = FilmBlock(channels[-1], channels[-1], embedding_dim, kernel, groups)
        pairs = list(zip(channels[::-1], channels[-2::-1], strict=False))
        self.grow = nn.ModuleList(TimeGrow(a, b) for a, b in pairs)
        self.up = nn.ModuleList(FilmBlock(2 * b, b, embedding_dim, kernel, groups) for _, b in pairs)
        self.out = TimeConv(channels[0], action_dim, 1)

    def embed(self, condition: Tensor) -> Tensor:
        """(B, condition_dim) → (B, E)."""
        return self.condition_in(condition)

    def embed_time(self, t: Tensor) -> Tensor:
        """(...) → (..., E)."""
        return self.time_in(t)

    def modulators(self) -> list[Any]:
        """See `Modulated`."""
        return [block.film for block in (*self.down, self.middle, *self.up)]

    def forward(self, x: Tensor, time: Tensor | Modulation, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy x (B, n, H, A), time (B, n, E) or (E,), condition (B, E) → chunk (B, n, H, A), hidden (B, n, feature_dim)."""
        rows = x.shape[:2]
        films = iter([film.expand(*rows, -1).flatten(0, 1) for film in self.modulation(time, condition)])
        h = x.flatten(0, 1).transpose(1, 2)
        h = functional.pad(h, (0, -self.horizon % self.multiple), mode="replicate")
        skips = []
        for index, block in enumerate(self.down):
            h = block(h, next(films))
            if index < len(self.shrink):
                skips.append(h)
                h = self.shrink[index](h)
        h = self.middle(h, next(films))
        hidden = h.mean(-1)
        for grow, block in zip(self.grow, self.up, strict=True):
            h = block(torch.cat([grow(h), skips.pop()], dim=1), next(films))
        chunk = self.out(h)[..., : self.horizon].transpose(1, 2)
        return chunk.unflatten(0, rows), hidden.unflatten(0, rows)


class TransformerBlock(nn.Module):
    """Self-attention over the chunk and an MLP; the condition scales, shifts and gates both, and starts at nothing.

    Source: Peebles and Xie 2023, arXiv:2212.09748 (adaLN-Zero).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Tokens x (R, L, W), modulation (R, 1, 6 W) → (R, L, W)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=-1)
        x = x + gate * self.attend(self.norms[0](x) * (1 + scale) + shift)
        return x + gate_mlp * self.mlp(self.norms[1](x) * (1 + scale_mlp) + shift_mlp)

    def attend(self, x: Tensor) -> Tensor:
        """(R, L, W) → (R, L, W)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.project(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerBackbone(Modulated):
    """One token per action; time and condition enter every block by adaptive norm.

    Args:
        horizon: H.
        action_dim: A.
        condition_dim: length of the observation vector.
        width: length W of a token and of the embedding.
        layers: number of blocks.
        heads: attention heads; divides `width`.
        time_frequencies: Fourier frequencies of the time.
    """

    def __init__(
        self, horizon: int, action_dim: int, condition_dim: int, width: int, layers: int, heads: int, time_frequencies: int
    ) -> None:
        super().__init__()
        self.feature_dim = width
        self.condition_in = nn.Linear(condition_dim, width)
        self.time_in = nn.Sequential(
            FourierTime(time_frequencies), nn.Linear(2 * time_frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.token_in = nn.Linear(action_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, action_dim)

    def embed(self, condition: Tensor) -> Tensor:
        """(B, condition_dim) → (B, W)."""
        return self.condition_in(condition)

    def embed_time(self, t: Tensor) -> Tensor:
        """(...) → (..., W)."""
        return self.time_in(t)

    def modulators(self) -> list[Any]:
        """See `Modulated`."""
        return [*(block.modulate for block in self.blocks), self.modulate]

    def forward(self, x: Tensor, time: Tensor | Modulation, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy x (B, n, H, A), time (B, n, W) or (W,), condition (B, W) → chunk (B, n, H, A), hidden (B, n, W)."""
        rows = x.shape[:2]
        parts = [part.expand(*rows, -1).flatten(0, 1).unsqueeze(1) for part in self.modulation(time, condition)]
        h = self.token_in(x.flatten(0, 1)) + self.position
        for block, part in zip(self.blocks, parts, strict=False):
            h = block(h, part)
        shift, scale = parts[-1].chunk(2, dim=-1)
        h = self.norm(h) * (1 + scale) + shift
        return self.out(h).unflatten(0, rows), h.mean(1).unflatten(0, rows)
