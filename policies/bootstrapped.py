"""Two proposals at every tick, the frozen base's and a small actor's, and critics that say which one is executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.base import PolicyModule, Wrapper, require
from policies.catalog import register
from sinew.errors import SpecError
from sinew.protocols import Obs
from sinew.specs import PolicySpec


@dataclass(frozen=True, kw_only=True)
class BootstrappedConfig:
    """Sizes of the actor and of the critics."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of each critic."""
    critic_heads: int = 2
    """Critics; the least of their values counts."""

    def __post_init__(self) -> None:
        if not self.hidden or not self.critic_hidden or min(*self.hidden, *self.critic_hidden, self.critic_heads) < 1:
            raise SpecError(
                f"bootstrapped needs widths and critics of at least 1, given {self.hidden}, {self.critic_hidden} and {self.critic_heads}"
            )


class ValueHeads(nn.Module):
    """Critics as one set of stacked weights, in the layout of `rl.critic.EnsembleMLP`; zero until they are given.

    Args:
        in_dim: inputs.
        hidden: widths, each layer followed by layer norm and ReLU.
        heads: number of critics, E.
    """

    def __init__(self, in_dim: int, hidden: Sequence[int], heads: int) -> None:
        super().__init__()
        widths = (in_dim, *hidden, 1)
        self.weight = nn.ParameterList(torch.zeros(heads, a, b) for a, b in pairwise(widths))
        self.bias = nn.ParameterList(torch.zeros(heads, 1, b) for b in widths[1:])
        self.gain = nn.ParameterList(torch.ones(heads, 1, b) for b in hidden)
        self.shift = nn.ParameterList(torch.zeros(heads, 1, b) for b in hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, D) → values (E, N)."""
        h = x.expand(len(self.bias[0]), *x.shape)
        for weight, bias, gain, shift in zip(self.weight, self.bias, self.gain, self.shift, strict=False):
            h = functional.layer_norm(torch.baddbmm(bias, h, weight), bias.shape[-1:]) * gain + shift
            h = h.relu()
        return torch.baddbmm(self.bias[-1], h, self.weight[-1])[..., 0]


class Chooser(nn.Module):
    """An actor of its own, and critics that prefer its action to the planned one or not.

    Args:
        feature_dim: D of the observation features.
        action_dim: A.
        config: sizes.
    """

    active: Tensor

    def __init__(self, feature_dim: int, action_dim: int, config: BootstrappedConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = feature_dim
        for width in config.hidden:
            layers += [nn.Linear(previous, width), nn.LayerNorm(width), nn.ReLU()]
            previous = width
        self.actor = nn.Sequential(*layers, nn.Linear(previous, action_dim), nn.Tanh())
        self.critic = ValueHeads(feature_dim + action_dim, config.critic_hidden, config.critic_heads).requires_grad_(False)
        self.register_buffer("active", torch.zeros((), dtype=torch.bool))
        """Whether there is a choice; until something was learned, the planned action is executed."""

    def value(self, features: Tensor, action: Tensor) -> Tensor:
        """Features (N, D), actions (N, A) → the least of the critics' values (N,)."""
        return self.critic(torch.cat((features, action), -1)).amin(0)

    def choose(self, features: Tensor, planned: Tensor, own: Tensor) -> Tensor:
        """Of the planned actions (N, A) and its own (N, A), those of more value; the planned ones in a tie."""
        better = (self.value(features, own) > self.value(features, planned)) & self.active
        return torch.where(better[:, None], own, planned)

    def forward(self, features: Tensor, planned: Tensor) -> Tensor:
        """Features (N, D), planned actions (N, A) in [-1, 1] → executed actions (N, A) in [-1, 1]."""
        return self.choose(features, planned, self.actor(features))


@register("bootstrapped")
class Bootstrapped(Wrapper):
    """A frozen base beside an actor that learned on its own: at every tick the action of more value is executed.

    Before anything was learned it acts exactly as its base.

    Args:
        base: policy with capability "observe".
        hidden: see `BootstrappedConfig`.
        critic_hidden: see `BootstrappedConfig`.
        critic_heads: see `BootstrappedConfig`.

    Raises:
        SpecError: the base cannot observe, or a size is not positive.

    Source: IBRL, Hu et al. 2023, arXiv:2311.02198.
    """

    Config = BootstrappedConfig

    def __init__(
        self, base: PolicyModule, hidden: Sequence[int] = (256, 256), critic_hidden: Sequence[int] = (256, 256), critic_heads: int = 2
    ) -> None:
        require(base, "observe", "choosing between actions")
        config = BootstrappedConfig(hidden=tuple(hidden), critic_hidden=tuple(critic_hidden), critic_heads=critic_heads)
        capabilities = tuple(dict.fromkeys((*base.spec.capabilities, "correct")))
        super().__init__(replace(base.spec, capabilities=capabilities), config, base.requires_grad_(False))
        self.chooser = Chooser(self.observation_dim, base.spec.action_dim, config).to(base.device)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Bootstrapped:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.hidden, config.critic_hidden, config.critic_heads)

    def correct(self, obs: Obs, action: Tensor) -> Tensor:
        """Planned actions (N, A) in [-1, 1] → executed actions (N, A) in [-1, 1]; a correcting base corrects first."""
        if "correct" in self.base.spec.capabilities:
            action = self.base.correct(obs, action)  # type: ignore[operator]
        return self.chooser(self.observe(obs), action.clamp(-1, 1))
