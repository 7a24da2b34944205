"""Chunks of actions to discrete tokens and back: cosine transform over time, rounded, slow motions first.

Frequencies that round to zero at the end of the sequence are left out, so a smooth chunk has few tokens.

Source: the transform and its order follow FAST, Pertsch et al. 2025, arXiv:2501.09747. Coefficients are tokens as they
are here; there is no byte-pair code over them, and so nothing to fit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sinew.errors import InputError

IGNORED = -100
"""Stands where a row's sequence has ended; `torch.nn.functional.cross_entropy` passes over it."""


class ActionTokenizer(nn.Module):
    """Chunks (B, H, A) in [-1, 1] to tokens (B, H A + 1) and back.

    Token k < size - 1 is the coefficient (k - limit) / scale, the last one ends the sequence. The rounding error of a
    chunk has a root mean square below 1 / (2 scale), since the transform keeps lengths.

    Args:
        horizon: H.
        action_dim: A.
        scale: steps per unit of a coefficient; FAST uses 10.
    """

    basis: Tensor

    def __init__(self, horizon: int, action_dim: int, scale: float = 10.0) -> None:
        super().__init__()
        if scale <= 0:
            raise InputError(f"the scale of action tokens must be above 0, not {scale}")
        self.horizon, self.action_dim, self.scale = horizon, action_dim, scale
        self.limit = math.ceil(scale * math.sqrt(horizon))  # of a constant chunk of ones, the largest coefficient there is
        self.register_buffer("basis", cosine_basis(horizon), persistent=False)

    @property
    def end(self) -> int:
        """The token that ends a sequence."""
        return 2 * self.limit + 1

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return self.end + 1

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.horizon * self.action_dim + 1

    def encode(self, chunk: Tensor) -> Tensor:
        """(B, H, A) → (B, H A + 1) int64: coefficients by frequency and then by action element, the end, then `IGNORED`."""
        coefficients = (self.basis.to(chunk) @ chunk.clamp(-1, 1)) * self.scale
        levels = coefficients.round().clamp(-self.limit, self.limit).long().flatten(1)
        tokens = torch.cat([levels + self.limit, levels.new_full((len(levels), 1), IGNORED)], dim=1)
        places = torch.arange(self.length, device=chunk.device)
        count = ((levels != 0) * places[1:]).amax(1, keepdim=True)  # up to the last one that is not zero
        tokens = torch.where(places < count, tokens, IGNORED)
        return torch.where(places == count, self.end, tokens)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens, L <= H A + 1, → (B, H, A); what comes after the end, or is missing, is zero."""
        ended = ((tokens == self.end) | (tokens == IGNORED)).cumsum(1) > 0
        levels = torch.where(ended, 0, tokens - self.limit)[:, : self.length - 1]
        levels = nn.functional.pad(levels, (0, self.length - 1 - levels.shape[1]))
        coefficients = levels.view(-1, self.horizon, self.action_dim).to(self.basis.dtype) / self.scale
        return (self.basis.T @ coefficients).clamp(-1, 1)


def cosine_basis(length: int) -> Tensor:
    """Orthonormal type-II cosine transform (length, length): rows are frequencies."""
    k, n = torch.arange(length, dtype=torch.float64)[:, None], torch.arange(length, dtype=torch.float64)
    basis = torch.cos(math.pi * k * (n + 0.5) / length) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis.float()
