"""How a policy plans while something learns on top of it: how far ahead it commits, and from which noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, Wrapper, noise_for, require
from policies.catalog import register
from sinew.errors import SpecError
from sinew.protocols import Chunk, Context, Loss, Obs
from sinew.specs import PolicySpec


@dataclass(frozen=True, kw_only=True)
class PlannedConfig:
    """Settings of the planning."""

    act_steps: int | None = None
    """Actions that are kept of each chunk, so that the next one is planned sooner; None for all."""
    zero_noise: bool = False
    """Whether every chunk comes of zero noise, so that what learns on top need not learn against dice."""


def refuse_to_learn_parts(policy: PolicyModule, base: PolicyModule) -> None:
    """Raises `SpecError` where a policy keeps a part of its base's chunks: such parts cannot teach whole ones."""
    if policy.spec.horizon != base.spec.horizon:
        raise SpecError(f"a policy that keeps {policy.spec.horizon} of {base.spec.horizon} actions cannot learn from data: train its base")


@register("planned")
class Planned(Wrapper):
    """A base policy that plans shorter chunks, or from zero noise.

    Args:
        base: the policy.
        act_steps: see `PlannedConfig`; the horizon of this policy.
        zero_noise: see `PlannedConfig`; the noise that is given or drawn then changes nothing.

    Raises:
        SpecError: act_steps are not within the base's chunk, or it takes no noise that could be zero.
    """

    Config = PlannedConfig

    def __init__(self, base: PolicyModule, act_steps: int | None = None, zero_noise: bool = False) -> None:
        horizon = base.spec.horizon if act_steps is None else act_steps
        if not 1 <= horizon <= base.spec.horizon:
            raise SpecError(f"act_steps {horizon} is not within 1..{base.spec.horizon}, the actions of a chunk")
        if zero_noise:
            require(base, "noise", "planning from zero noise")
        lost = ("noise", "denoise", "energy") if zero_noise else ("denoise", "energy") if horizon < base.spec.horizon else ()
        left = tuple(capability for capability in base.spec.capabilities if capability not in lost)
        super().__init__(
            replace(base.spec, horizon=horizon, capabilities=left), PlannedConfig(act_steps=act_steps, zero_noise=zero_noise), base
        )

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Planned:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.act_steps, config.zero_noise)

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
        """The beginnings of the base's chunks, (B, n, act_steps, A); from zero noise all n are alike."""
        if guidance and "denoise" not in self.spec.capabilities:
            raise SpecError("a policy that plans from zero noise or shorter chunks takes no guidance: guide its base")
        drawn = noise_for(self.spec, ctx, n, noise, generator, self.device)
        used = torch.zeros_like(drawn) if self.config.zero_noise else drawn
        chunk = super().sample(ctx, n=n, noise=used, steps=steps, guidance=guidance, features=features)
        return replace(chunk, actions=chunk.actions[:, :, : self.spec.horizon], noise=drawn)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """The base's loss, of whole chunks."""
        refuse_to_learn_parts(self, self.base)
        return super().loss(batch, t=t, noise=noise)

    @property
    def correct(self) -> Callable[[Obs, Tensor], Tensor]:
        """The base's correction; there where the base corrects."""
        return self.base.correct  # type: ignore[return-value]
