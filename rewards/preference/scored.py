"""A number for what is seen, learned, and the potential that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rewards.files import Situation
from rewards.latent import Encoder, EncoderConfig, load_tensors, restore, save_tensors
from rewards.learned import LearnedSettings, SeenPotential, ShapedBySight, check_seen
from sinew.config import from_json, to_json
from sinew.errors import DataError
from sinew.protocols import Reward

BLOCK = 1024
"""Frames that are scored at a time."""


class Scored(nn.Module):
    """Observations → one number each.

    Args:
        encoder: what sees.
    """

    temperature: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(encoder.config.dim, 1))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,)."""
        return self.head(self.encoder(seen))[:, 0]

    def chance(self, latents: Tensor) -> Tensor:
        """Latents (N, L) → sigmoid(score / temperature) (N,), in [0, 1]."""
        return torch.sigmoid(self.head(latents)[:, 0] / self.temperature)

    @torch.no_grad()
    def all(self, seen: Mapping[str, Tensor]) -> Tensor:
        """The same for many frames, a block at a time."""
        count = len(next(iter(seen.values())))
        blocks = [{key: value[i : i + BLOCK] for key, value in seen.items()} for i in range(0, count, BLOCK)]
        return torch.cat([self(block) for block in blocks]) if blocks else torch.zeros(0)


@dataclass(frozen=True, kw_only=True)
class ScoredSettings(LearnedSettings):
    """Settings: success, and a learned score as a potential, sigmoid(score / temperature)."""

    kind: ClassVar[str]
    """Of the weights."""

    def build(self, situation: Situation) -> Reward:
        """See `rewards.files.Kind`."""
        scored = load_scored(situation.folder / self.weights, self.kind)
        check_seen(scored.encoder.config, situation)
        return ShapedBySight(SeenPotential(scored.encoder, scored.chance, self.low, self.high), situation.gamma, self.weight)


def save_scored(path: Path, scored: Scored, kind: str, made: Mapping[str, Any]) -> None:
    """Write the network with what it is and how it came about."""
    save_tensors(path, scored.state_dict(), {"kind": kind, "encoder": to_json(scored.encoder.config), "made": dict(made)})


def load_scored(path: Path, kind: str) -> Scored:
    """The network of a file, for use.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged or holds something else.
    """
    tensors, described = load_tensors(path)
    if described.get("kind") != kind:
        raise DataError(f"{path} holds weights of kind {described.get('kind')!r}; {kind!r} is needed")
    scored = Scored(Encoder(from_json(EncoderConfig, described.get("encoder"), str(path))))
    restore(scored, tensors, path)
    if not float(scored.temperature) > 0:
        raise DataError(f"{path} has the temperature {float(scored.temperature):g}; it must be above 0")
    return scored.requires_grad_(False).eval()
