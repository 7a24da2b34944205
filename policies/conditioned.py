"""What policies share that see an observation through one encoder: context, image augmentation and features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from policies.base import EmbeddingContext, PolicyModule
from policies.encoders import ImageConfig, ObservationEncoder, random_shift
from sinew.protocols import Obs
from sinew.specs import PolicySpec


class ConditionedPolicy(PolicyModule):
    """A policy that conditions on one vector per observation.

    Args:
        spec: complete spec.
        config: the dataclass that the policy was made with.
        encoder: observations to vectors.
        image: the encoder's image settings.
    """

    def __init__(self, spec: PolicySpec, config: Any, encoder: ObservationEncoder, image: ImageConfig) -> None:
        super().__init__(spec, config)
        self.encoder = encoder
        self.image = image

    def encode(self, obs: Mapping[str, Tensor]) -> EmbeddingContext:
        """{key: (B, To, ...)} → context with the observation's vector (B, D)."""
        return EmbeddingContext(self.encoder(obs))

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Times, noise and image shifts for a training step."""
        drawn = super().draw(rows, generator)
        reach, cameras = self.image.shift_px, len(self.spec.observation.images)
        if reach and cameras:
            drawn["shift"] = torch.randint(-reach, reach + 1, (rows, cameras, 2), generator=generator)
        return drawn

    def augment(self, batch: dict[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images moved by draws["shift"] (B, cameras, 2)."""
        if "shift" not in draws:
            return batch
        moved = {key: random_shift(batch[key], draws["shift"][:, i]) for i, key in enumerate(self.spec.observation.images)}
        return {**batch, **moved}

    def observe(self, obs: Obs) -> Tensor:
        """Normalised vectors and image features (N, observation_dim) of one observation per world, without gradient."""
        with torch.no_grad():
            return self.encoder.newest(obs)

    @property
    def observation_dim(self) -> int:
        """Length of what `observe` gives."""
        return self.encoder.step_dim
