"""A small correction, made at every tick from the newest observation, on top of a frozen base policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from policies.base import PolicyModule, Wrapper, require
from policies.catalog import register
from sinew.errors import SpecError
from sinew.protocols import Obs
from sinew.specs import PolicySpec


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """Settings of the correction."""

    scale: float = 0.3
    """Largest correction per element, in normalised action units (1 is half the action's range)."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor."""

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 2:
            raise SpecError(f"residual scale {self.scale} must be in (0, 2]: 2 reaches the whole action range")
        if not self.hidden or min(self.hidden) < 1:
            raise SpecError(f"residual hidden widths {self.hidden} must be at least 1")


class ResidualActor(nn.Module):
    """Observation features and planned action → correction; zero until it is trained.

    Args:
        feature_dim: D of the observation features.
        action_dim: A.
        hidden: widths, each layer followed by layer norm and ReLU.
        scale: the correction is scale * tanh(...).
    """

    def __init__(self, feature_dim: int, action_dim: int, hidden: Sequence[int], scale: float) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = []
        previous = feature_dim + action_dim
        for width in hidden:
            layers += [nn.Linear(previous, width), nn.LayerNorm(width), nn.ReLU()]
            previous = width
        last = nn.Linear(previous, action_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, features: Tensor, base_action: Tensor) -> Tensor:
        """Features (N, D), planned actions (N, A) in [-1, 1] → corrections (N, A) in [-scale, scale]."""
        return self.scale * torch.tanh(self.layers(torch.cat([features, base_action], dim=-1)))


@register("residual")
class Residual(Wrapper):
    """A base policy whose planned actions are corrected: clip(action + actor(observe(obs), action), -1, 1).

    The base is frozen; a fresh residual acts exactly as its base.

    Args:
        base: policy with capability "observe".
        scale: largest correction per element, in normalised action units.
        hidden: widths of the actor.

    Raises:
        SpecError: the base cannot observe.

    Source: Johannink et al. 2019, arXiv:1812.03201; on chunked policies Ankile et al. 2024, arXiv:2407.16677.
    """

    Config = ResidualConfig

    def __init__(self, base: PolicyModule, scale: float = 0.3, hidden: Sequence[int] = (256, 256)) -> None:
        require(base, "observe", "Residual")
        config = ResidualConfig(scale=float(scale), hidden=tuple(hidden))
        capabilities = tuple(dict.fromkeys((*base.spec.capabilities, "correct")))
        super().__init__(replace(base.spec, capabilities=capabilities), config, base.requires_grad_(False))
        self.actor = ResidualActor(self.observation_dim, base.spec.action_dim, config.hidden, config.scale).to(base.device)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Residual:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.scale, config.hidden)

    def correct(self, obs: Obs, action: Tensor) -> Tensor:
        """Planned actions (N, A) in [-1, 1] → executed actions (N, A) in [-1, 1]; a correcting base corrects first."""
        if "correct" in self.base.spec.capabilities:
            action = self.base.correct(obs, action)  # type: ignore[operator]
        return (action + self.actor(self.observe(obs), action)).clamp(-1, 1)
