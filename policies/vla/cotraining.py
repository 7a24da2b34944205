"""Co-training: the backbone predicts the chunk as discrete tokens, so that it learns from actions without the expert's gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.vla.fast import IGNORED, ActionTokenizer
from policies.vla.prefix import PrefixContext, PrefixEncoder
from sinew.specs import ACTION


class DiscreteHead(nn.Module):
    """Next-token prediction of a chunk after the prefix, by the backbone itself.

    The sequence is proprioception and then the tokens so far; each sees the prefix and what came before it, while the
    prefix sees neither: its keys and values are those that acting uses, and one pass gives both.

    Args:
        horizon: H.
        action_dim: A.
        state_dim: length of the proprioception vector.
        width: of the backbone.
        scale: see `ActionTokenizer`.

    Source: knowledge insulation, Driess et al. 2025, arXiv:2505.23705, with the tokens of FAST, arXiv:2501.09747.
    """

    def __init__(self, horizon: int, action_dim: int, state_dim: int, width: int, scale: float) -> None:
        super().__init__()
        self.tokenizer = ActionTokenizer(horizon, action_dim, scale)
        self.tokens_in = nn.Embedding(self.tokenizer.size, width)
        self.places = nn.Parameter(torch.randn(self.tokenizer.length, width) * width**-0.5)
        self.state_in = nn.Linear(state_dim, width) if state_dim else None
        self.out = nn.Linear(width, self.tokenizer.size)

    def forward(self, encoder: PrefixEncoder, batch: Mapping[str, Any]) -> tuple[PrefixContext, Tensor]:
        """The prefix of a training batch, and the cross-entropy (B,) of its actions, the mean over a chunk's tokens."""
        labels = self.tokenizer.encode(batch[ACTION])
        labels = labels[:, : int((labels != IGNORED).sum(1).max())]
        prefix, state = encoder.tokens(batch, 2), encoder.state(batch, 2).flatten(1)
        told = self.tokens_in(labels[:, :-1].clamp(min=0))
        first = told.new_zeros(len(told), told.shape[-1]) if self.state_in is None else self.state_in(state)
        suffix = torch.cat([first.unsqueeze(1), told], dim=1) + self.places[: labels.shape[1]]
        size, allowed = prefix.there.shape[1], self._allowed(encoder, prefix.there, labels.shape[1])
        places = torch.arange(allowed.shape[1], device=allowed.device).repeat(len(allowed), 1)
        places[:, size:] -= (~prefix.there).sum(1, keepdim=True)  # padding between prefix and suffix takes no place
        embeddings = torch.cat([prefix.embeddings, suffix.to(prefix.embeddings)], dim=1)
        keys, values, last = encoder.backbone(embeddings, allowed, places)
        ctx = encoder.context(batch, prefix, [k[:, :, :size] for k in keys], [v[:, :, :size] for v in values], last[:, :size])
        logits = self.out(last[:, size:].to(suffix)).transpose(1, 2)
        entropy = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        return ctx, entropy.sum(1) / (labels != IGNORED).sum(1)

    @staticmethod
    def _allowed(encoder: PrefixEncoder, there: Tensor, length: int) -> Tensor:
        """Who sees whom, (B, P + L, P + L) bool."""
        rows, size = there.shape
        allowed = torch.ones(size + length, size + length, dtype=torch.bool, device=there.device).tril().repeat(rows, 1, 1)
        allowed[:, :size, :size] = encoder.seen(there.unsqueeze(1).expand(-1, size, -1))
        allowed[:, size:, :size] = there.unsqueeze(1)
        return allowed
