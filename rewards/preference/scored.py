"""A number for what is seen, learned, and the potential that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.files import RewardUnavailable, Situation
from rewards.latent import Encoder, EncoderConfig, load_tensors, restore, save_tensors
from sinew.config import from_json, to_json
from sinew.errors import DataError
from sinew.specs import TensorSpec

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

    @torch.no_grad()
    def all(self, seen: Mapping[str, Tensor]) -> Tensor:
        """The same for many frames, a block at a time."""
        count = len(next(iter(seen.values())))
        blocks = [{key: value[i : i + BLOCK] for key, value in seen.items()} for i in range(0, count, BLOCK)]
        return torch.cat([self(block) for block in blocks]) if blocks else torch.zeros(0)


class ScoredPotential:
    """Φ(s) = sigmoid(score / temperature), in [0, 1]."""

    low, high = 0.0, 1.0

    def __init__(self, scored: Scored) -> None:
        self.scored, self.keys = scored, (*scored.encoder.config.vectors, *scored.encoder.config.pictures)

    @torch.no_grad()
    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32."""
        seen = {key: obs[key].cpu() for key in self.keys}
        return torch.sigmoid(self.scored(seen) / self.scored.temperature).to(obs[self.keys[0]].device)


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


def check_seen(config: EncoderConfig, situation: Situation) -> None:
    """Whether an environment gives what an encoder sees.

    Raises:
        RewardUnavailable: it lacks something, or it is of another length.
    """
    spec = situation.observation
    for key in (*config.vectors, *config.pictures):
        given: TensorSpec | None = spec.tensors.get(key)
        if given is None or (key in config.vectors and given.shape != (config.vectors[key],)):
            there = "nothing of that name" if given is None else f"one of shape {given.shape}"
            raise RewardUnavailable(
                f"the reward sees {key!r} of length {config.vectors.get(key, 'a picture')}; the environment gives {there}"
            )
