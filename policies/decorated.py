"""A bounded correction drawn from a distribution while it is learned, and the likeliest one afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from policies.base import PolicyModule, Wrapper, require
from policies.catalog import register
from policies.steered import NoiseActor
from sinew.errors import SpecError
from sinew.protocols import Obs
from sinew.specs import PolicySpec


@dataclass(frozen=True, kw_only=True)
class DecoratedConfig:
    """Settings of the correction."""

    scale: float = 0.1
    """Largest correction per element, in normalised action units (1 is half the action's range)."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor."""
    sees_base: bool = True
    """Whether the actor looks at the planned action too; a base that draws noise needs it, or its noise cannot be corrected."""

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 2:
            raise SpecError(f"decorated scale {self.scale} must be in (0, 2]: 2 reaches the whole action range")
        if not self.hidden or min(self.hidden) < 1:
            raise SpecError(f"decorated hidden widths {self.hidden} must be at least 1")


class Decoration(NoiseActor):
    """Observation features and planned action → a distribution over corrections, tanh of a Gaussian within the scale.

    Args:
        feature_dim: D of the observation features.
        action_dim: A.
        config: settings.
    """

    def __init__(self, feature_dim: int, action_dim: int, config: DecoratedConfig) -> None:
        super().__init__(feature_dim + action_dim * config.sees_base, action_dim, config.hidden, config.scale)
        self.sees_base = config.sees_base

    def sight(self, features: Tensor, planned: Tensor) -> Tensor:
        """What it looks at, of features (N, D) and planned actions (N, A)."""
        return torch.cat((features, planned), -1) if self.sees_base else features


@register("decorated")
class Decorated(Wrapper):
    """A base policy whose planned actions are corrected by the likeliest draw: clip(action + actor(...), -1, 1).

    Before anything was learned it acts exactly as its base.

    Args:
        base: policy with capability "observe".
        scale: see `DecoratedConfig`.
        hidden: see `DecoratedConfig`.
        sees_base: see `DecoratedConfig`.

    Raises:
        SpecError: the base cannot observe, or the scale cannot be.

    Source: Policy Decorator, Yuan et al. 2024, arXiv:2412.13630.
    """

    Config = DecoratedConfig

    def __init__(self, base: PolicyModule, scale: float = 0.1, hidden: Sequence[int] = (256, 256), sees_base: bool = True) -> None:
        require(base, "observe", "decorating")
        config = DecoratedConfig(scale=float(scale), hidden=tuple(hidden), sees_base=sees_base)
        capabilities = tuple(dict.fromkeys((*base.spec.capabilities, "correct")))
        super().__init__(replace(base.spec, capabilities=capabilities), config, base.requires_grad_(False))
        self.actor = Decoration(self.observation_dim, base.spec.action_dim, config).to(base.device)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Decorated:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.scale, config.hidden, config.sees_base)

    def correct(self, obs: Obs, action: Tensor) -> Tensor:
        """Planned actions (N, A) in [-1, 1] → executed actions (N, A) in [-1, 1]; a correcting base corrects first."""
        if "correct" in self.base.spec.capabilities:
            action = self.base.correct(obs, action)  # type: ignore[operator]
        action = action.clamp(-1, 1)
        correction = self.actor(self.actor.sight(self.observe(obs), action)) * self.actor.active
        return (action + correction).clamp(-1, 1)
