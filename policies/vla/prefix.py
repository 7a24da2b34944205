"""Observation and instruction to the prefix: keys and values of every layer of the backbone, made once per observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from policies.encoders import check_given
from policies.normalizer import Normalizer
from policies.vla.backbone import Backbone
from policies.vla.text import Tokenizer, instructions_of
from sinew.errors import InputError
from sinew.specs import TASK, ObservationSpec


@dataclass(frozen=True)
class PrefixContext:
    """What the action expert sees of an observation; shared by all its candidates, whose number is only counted."""

    keys: tuple[Tensor, ...]
    """Per layer of the backbone (B, kv_heads, P, head_dim)."""
    values: tuple[Tensor, ...]
    """Like `keys`."""
    hidden: Tensor | None
    """(B, 1, 1, P) added to attention scores: 0, or minus infinity for padding; None where nothing is padding."""
    state: Tensor
    """(B, D) normalised proprioception."""
    embedding: Tensor
    """(B, width) mean of the last hidden states: the prefix in one vector."""
    candidates: int = 1
    """Candidates per observation."""

    @property
    def batch(self) -> int:
        """Rows that the context stands for: observations times candidates."""
        return self.embedding.shape[0] * self.candidates

    def expand(self, n: int) -> PrefixContext:
        """The same prefix for n candidates each; the storage is shared."""
        return replace(self, candidates=self.candidates * n)

    def detached(self) -> PrefixContext:
        """The same prefix, through which no gradient reaches the backbone."""
        cut = {"keys": tuple(k.detach() for k in self.keys), "values": tuple(v.detach() for v in self.values)}
        return replace(self, **cut)


class Tokens(NamedTuple):
    """Embedded tokens of a prefix."""

    embeddings: Tensor
    """(B, P, width)."""
    there: Tensor
    """(B, P) bool, False for padding."""


class PrefixEncoder(nn.Module):
    """Cameras and instruction through the backbone, vectors through the normaliser.

    The tokens are those of every camera, in the order of the spec and of time, and then those of the instruction.

    Args:
        spec: the observation.
        n_obs_steps: To.
        backbone: the vision-language model.
        causal: whether a token sees only those before it, as a language model was pretrained; False: all see all.
        instructions: those that the policy was made for.
    """

    def __init__(self, spec: ObservationSpec, n_obs_steps: int, backbone: Backbone, causal: bool, instructions: Sequence[str]) -> None:
        super().__init__()
        self.spec = spec
        self.cameras = spec.images
        self.n_obs_steps = n_obs_steps
        self.normalizer = Normalizer(spec)
        self.backbone = backbone
        self.causal = causal
        self.instructions = tuple(instructions)
        self.tokenizer: Tokenizer | None = None

    def forward(self, obs: Mapping[str, Any]) -> PrefixContext:
        """{key: (B, To, ...)} with "task", B strings → the prefix.

        Raises:
            SpecError: an observation is missing, or has another shape or number of steps than the policy looks at.
            InputError: the instruction is missing.
        """
        check_given(obs, self.spec, (self.n_obs_steps,))
        return self._prefix(obs)

    def _prefix(self, obs: Mapping[str, Any]) -> PrefixContext:
        tokens = self.tokens(obs, 2)
        allowed = tokens.there.unsqueeze(1).expand(-1, tokens.there.shape[1], -1)
        keys, values, last = self.backbone(tokens.embeddings, self.seen(allowed))
        return self.context(obs, tokens, keys, values, last)

    def newest(self, obs: Mapping[str, Any]) -> Tensor:
        """{key: (N, ...)} of one step → normalised vectors and pooled prefix (N, D + width)."""
        check_given(obs, self.spec, ())
        alone = {key: obs[key].unsqueeze(1) for key in self.spec}
        ctx = self._prefix(alone if TASK not in obs else {**alone, TASK: obs[TASK]})
        return torch.cat([ctx.state, ctx.embedding], dim=-1)

    def context(
        self, obs: Mapping[str, Any], tokens: Tokens, keys: Sequence[Tensor], values: Sequence[Tensor], last: Tensor
    ) -> PrefixContext:
        """The context of what the backbone made of `tokens`, in the type of the normaliser."""
        kind = self.normalizer.mean.dtype
        keys, values, last = [k.to(kind) for k in keys], [v.to(kind) for v in values], last.to(kind)
        there, hidden = tokens.there.unsqueeze(-1).to(last.dtype), None
        if not bool(tokens.there.all()):
            hidden = torch.zeros_like(last[..., 0]).masked_fill(~tokens.there, -torch.inf)[:, None, None]
        pooled = (last * there).sum(1) / there.sum(1)
        return PrefixContext(tuple(keys), tuple(values), hidden, self.state(obs, 2).flatten(1), pooled)

    def seen(self, allowed: Tensor) -> Tensor:
        """`allowed` (B, L, L), cut to what comes before where the prefix is causal."""
        return allowed.tril() if self.causal else allowed

    def tokens(self, obs: Mapping[str, Any], leading: int) -> Tokens:
        """Embedded tokens of observations with `leading` leading axes, (B, To) or (B,).

        Raises:
            InputError: the instruction is missing.
        """
        rows, parts = len(obs[self.cameras[0]]), []
        for key in self.cameras:
            image = obs[key]
            seen = self.backbone.images(image.flatten(0, leading - 1))
            parts.append(seen.reshape(rows, -1, seen.shape[-1]))
        if self.tokenizer is None:
            raise InputError("the policy has no tokenizer: load it with policies.load, or make it with policies.make")
        words, there = self.tokenizer(instructions_of(obs, rows, self.instructions), self.backbone.device)
        parts.append(self.backbone.text(words))
        pictures = sum(part.shape[1] for part in parts[:-1])
        return Tokens(torch.cat(parts, dim=1), torch.cat([there.new_ones(rows, pictures), there], dim=1))

    def state(self, obs: Mapping[str, Any], leading: int) -> Tensor:
        """Normalised vectors (*lead, D); D may be 0."""
        if self.normalizer.keys:
            return self.normalizer(obs, leading)
        image = obs[self.cameras[0]]
        return self.normalizer.mean.new_zeros(*image.shape[:leading], 0)
