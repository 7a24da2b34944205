"""The action expert: a transformer on noisy actions that attends, layer by layer, to the keys and values of the backbone.

The suffix, one proprioception token and H action tokens, sees the prefix and itself; the prefix never sees the suffix,
so it is computed once per observation and serves every sampling step and every candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.backbones import FourierTime
from policies.vla.backbone import Layout
from policies.vla.prefix import PrefixContext

MODULATIONS = 6
"""Scale, shift and gate, of the attention and of the MLP."""


class ExpertLayer(nn.Module):
    """Attention to prefix and suffix in one softmax, then an MLP; the time scales, shifts and gates both.

    Args:
        width: of the suffix tokens.
        layout: of the backbone; the key-value heads and their size are its own.
        group: query heads to a key-value head.
        mlp_ratio: hidden units of the MLP over the width.

    Source: adaptive norm of Peebles and Xie 2022, arXiv:2212.09748, as in pi0.5, arXiv:2504.16054.
    """

    def __init__(self, width: int, layout: Layout, group: int, mlp_ratio: float) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = layout.kv_heads, layout.head_dim
        inner = group * self.kv_heads * self.head_dim
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, round(mlp_ratio * width)), nn.GELU(), nn.Linear(round(mlp_ratio * width), width))

    def forward(self, h: Tensor, modulation: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
        """One layer.

        Args:
            h: (B, n, S, width).
            modulation: (B or 1, n or 1, 1, 6, width).
            keys: (B, kv_heads, P, head_dim) of the prefix.
            values: like `keys`.
            hidden: (B, 1, 1, P) or None, see `PrefixContext`.
        """
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = modulation.unbind(-2)
        h = h + (1 + gate) * self.attend(modulated(h, scale, shift), keys, values, hidden)
        return h + (1 + gate_mlp) * self.mlp(modulated(h, scale_mlp, shift_mlp))

    def attend(self, h: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
        """Attention of (B, n, S, width) to prefix and own suffix.

        Candidates, and the heads that share a key-value head, are rows of one product with the prefix: its keys and
        values are read once for all of them and never copied.
        """
        rows, n, length, _ = h.shape
        shape = (rows, n, length, self.kv_heads, -1, self.head_dim)
        query = (self.query(h) * self.head_dim**-0.5).view(shape).permute(0, 3, 1, 4, 2, 5)  # (B, kv, n, group, S, d)
        own_keys, own_values = self.key_value(h).view(rows, n, length, 2, self.kv_heads, self.head_dim).permute(3, 0, 4, 1, 2, 5)
        folded = query.flatten(2, 4)  # (B, kv, n * group * S, d)
        to_prefix = folded @ keys.transpose(-1, -2)
        if hidden is not None:
            to_prefix = to_prefix + hidden
        own = query.flatten(3, 4) @ own_keys.transpose(-1, -2)  # (B, kv, n, group * S, S)
        weights = torch.cat([to_prefix, own.flatten(2, 3)], dim=-1).softmax(-1)
        seen = weights[..., : keys.shape[-2]] @ values
        seen = seen + (weights[..., keys.shape[-2] :].unflatten(2, (n, -1)) @ own_values).flatten(2, 3)
        return self.out(seen.unflatten(2, (n, -1, length)).permute(0, 2, 4, 1, 3, 5).flatten(3))


class ActionExpert(nn.Module):
    """Noisy chunk, time and prefix to a velocity.

    The velocity is skip(t) y + F with the skip that predicts it best from y alone. The network F then need not carry the
    noise through itself: near t = 1 it predicts the actions and nothing else, which is where picture and instruction are
    learned from. It is the velocity's form of the preconditioning of Karras et al. 2022, arXiv:2206.00364.

    Args:
        horizon: H.
        action_dim: A.
        state_dim: length of the proprioception vector; 0 for none.
        layout: of the backbone; the expert has as many layers, and query heads in proportion to its width.
        width: of its tokens.
        mlp_ratio: hidden units of the MLPs over the width.
        time_frequencies: Fourier frequencies of the time.
        deviation: of the normalised actions, about.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        state_dim: int,
        layout: Layout,
        width: int,
        mlp_ratio: float,
        time_frequencies: int,
        deviation: float,
    ) -> None:
        super().__init__()
        self.variance = deviation**2
        self.feature_dim = width
        self.action_in = nn.Linear(action_dim, width)
        self.state_in = nn.Linear(state_dim, width) if state_dim else None
        self.positions = nn.Parameter(torch.randn(horizon + 1, width) * width**-0.5)
        self.time_in = nn.Sequential(FourierTime(time_frequencies), nn.Linear(2 * time_frequencies, width), nn.SiLU())
        self.modulate = nn.Linear(width, (MODULATIONS * layout.layers + 2) * width)
        group = max(1, round(width / layout.width * layout.heads / layout.kv_heads))
        self.layers = nn.ModuleList(ExpertLayer(width, layout, group, mlp_ratio) for _ in range(layout.layers))
        self.action_out = nn.Linear(width, action_dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def embed_time(self, t: Tensor) -> Tensor:
        """Times (...) → what every norm is modulated with, and the skip, (..., E)."""
        skip = (t - (1 - t) * self.variance) / (t.square() + (1 - t).square() * self.variance)
        return torch.cat([self.modulate(self.time_in(t)), skip.unsqueeze(-1)], dim=-1)

    def forward(self, x: Tensor, time: Tensor, ctx: PrefixContext) -> tuple[Tensor, Tensor]:
        """Noisy x (B, n, H, A), time (B, n, E) or (E,), prefix → velocity (B, n, H, A), hidden (B, n, width)."""
        actions = self.action_in(x)
        first = actions.new_zeros(1, 1, 1, 1) if self.state_in is None else self.state_in(ctx.state)[:, None, None]
        h = torch.cat([first.expand(*actions.shape[:2], 1, self.feature_dim), actions], dim=2) + self.positions
        modulation = time[..., :-1].reshape(*time.shape[:-1], 1, -1, self.feature_dim)
        for k, layer in enumerate(self.layers):
            part = modulation[..., MODULATIONS * k : MODULATIONS * (k + 1), :]
            h = layer(h, part, ctx.keys[k], ctx.values[k], ctx.hidden)
        h = modulated(h[:, :, 1:], *modulation[..., -2:, :].unbind(-2))
        return time[..., -1:].unsqueeze(-1) * x + self.action_out(h), h.mean(2)


def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """RMS norm whose scale and shift are given."""
    return functional.rms_norm(h, h.shape[-1:]) * (1 + scale) + shift
