"""A policy that samples from zero noise: what it does is a function of what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, Wrapper, noise_for, require
from policies.catalog import register
from sinew.protocols import Chunk, Context
from sinew.specs import PolicySpec


@dataclass(frozen=True, kw_only=True)
class ZeroNoiseConfig:
    """There is nothing to set."""


@register("zero_noise")
class ZeroNoise(Wrapper):
    """A base policy whose every chunk comes of zero noise; the noise that is given or drawn changes nothing.

    What learns on top of it need not learn against the base's dice.

    Args:
        base: policy with capability "noise".

    Raises:
        SpecError: the base takes no noise.
    """

    Config = ZeroNoiseConfig

    def __init__(self, base: PolicyModule) -> None:
        require(base, "noise", "sampling from zero noise")
        left = tuple(capability for capability in base.spec.capabilities if capability not in ("noise", "denoise", "energy"))
        super().__init__(replace(base.spec, capabilities=left), ZeroNoiseConfig(), base)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> ZeroNoise:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0])

    def sample(
        self,
        ctx: Context,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """The base's chunks of zero noise, (B, n, H, A), all n alike."""
        drawn = noise_for(self.spec, ctx, n, noise, generator, self.device)
        chunk = self.base.sample(ctx, n=n, noise=torch.zeros_like(drawn), steps=steps, guidance=guidance, features=features)
        return replace(chunk, noise=drawn)

    def correct(self, obs: Any, action: Tensor) -> Tensor:
        """The base's; capability "correct"."""
        return self.base.correct(obs, action)  # type: ignore[operator]
