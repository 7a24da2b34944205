"""Guidance: what moves the estimate of the clean chunk at every step of a sample, and the policy that always does so.

A guidance is called as g(x, D, sigma, ctx) → D' in the variance-exploding form, on rows (B * n, H, A). One that declares
`differentiates = True` gets an x that requires grad and a D that was computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, Wrapper, require
from policies.catalog import register
from policies.goals import PREFIX
from sinew.errors import InputError, SpecError
from sinew.protocols import Chunk, Context, Obs
from sinew.specs import PolicySpec

Guidance = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(x (R, H, A), D (R, H, A), sigma (R,), context) → D' (R, H, A)."""


class ValueGuidance:
    """Towards higher value: D' = D + strength * sigma^2 * grad_x Q(D(x)), each row's step limited in length.

    The gradient goes through the denoiser to x, so that it is that of the value of what x will become.

    Args:
        value: chunks (R, H, A) and the context → values (R,), differentiable.
        strength: lambda, in units of one over the value; 0 changes nothing.
        limit: longest step of an action, the root of the mean square over a chunk; None for none.

    Raises:
        SpecError: a number that cannot be.

    Source: Reuss et al. 2023, arXiv:2304.02532 (classifier guidance of BESO); Chung et al. 2022, arXiv:2209.14687 (through D).
    """

    differentiates = True

    def __init__(self, value: Callable[[Tensor, Any], Tensor], strength: float, limit: float | None = 0.5) -> None:
        if strength < 0 or (limit is not None and not limit > 0):
            raise SpecError(f"value guidance needs strength >= 0 and a limit above 0, given {strength:g} and {limit}")
        self.value, self.strength, self.limit = value, strength, limit

    def __call__(self, x: Tensor, clean: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """See the module."""
        if not self.strength:
            return clean
        (slope,) = torch.autograd.grad(self.value(clean, ctx).sum(), x, retain_graph=True)
        step = self.strength * sigma.square()[:, None, None] * slope
        if self.limit is not None:
            length = step.square().mean((1, 2), keepdim=True).sqrt()
            step = step * (self.limit / length.clamp(min=1e-12)).clamp(max=1)
        return clean + step


@dataclass(frozen=True, kw_only=True)
class GuidedConfig:
    """Settings of a guided policy, as far as they are numbers."""

    goal_scale: float = 1.0
    """How much further than the base by itself the goal is followed: 1 leaves the base, 0 forgets the goal."""
    reach: float | None = None
    """Actions are kept within plus and minus this, in normalised units, at every step of the sample; None for no such barrier."""

    def __post_init__(self) -> None:
        if not self.goal_scale >= 0 or (self.reach is not None and not 0 < self.reach <= 1):
            raise SpecError(f"guidance needs goal_scale >= 0 and reach in (0, 1], given {self.goal_scale} and {self.reach}")


@dataclass(frozen=True)
class GuidedContext:
    """A context beside the same observation without goal."""

    inner: Context
    free: Context

    @property
    def batch(self) -> int:
        """Rows that the context stands for."""
        return self.inner.batch

    @property
    def embedding(self) -> Tensor:
        """The inner context's embedding."""
        return self.inner.embedding  # type: ignore[attr-defined]

    def expand(self, n: int) -> GuidedContext:
        """The same contexts for n candidates each; nothing is copied."""
        return GuidedContext(self.inner.expand(n), self.free.expand(n))


@register("guided")
class Guided(Wrapper):
    """A policy whose samples are always guided; without guidance it is its base, bit for bit.

    The goal's scale is classifier-free guidance around the base: D' = D_free + goal_scale (D - D_free), so it multiplies the
    scale that the base was made with. Guidance given to `sample` acts after its own.

    Args:
        base: policy with capability "denoise", and "goal" where the goal's scale is not 1.
        guidance: callables that are always applied; a policy with one of them cannot be saved.
        goal_scale: see `GuidedConfig`.
        reach: see `GuidedConfig`.

    Raises:
        SpecError: the base lacks the capability.

    Source: Ho and Salimans 2022, arXiv:2207.12598, for the goal.
    """

    Config = GuidedConfig

    def __init__(
        self, base: PolicyModule, guidance: Sequence[Guidance] = (), *, goal_scale: float = 1.0, reach: float | None = None
    ) -> None:
        require(base, "denoise", "Guided")
        config = GuidedConfig(goal_scale=float(goal_scale), reach=reach)
        if config.goal_scale != 1:
            require(base, "goal", "a goal scale")
        super().__init__(base.spec, config, base)
        self.guidance = tuple(guide for guide in guidance if getattr(guide, "strength", 1) != 0)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Guided:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], goal_scale=config.goal_scale, reach=config.reach)

    def assets(self) -> dict[str, str]:
        """None, but a policy with a function inside cannot be saved.

        Raises:
            InputError: it holds guidance that is a function.
        """
        if self.guidance:
            name = type(self.guidance[0]).__name__
            raise InputError(f"a policy guided by {name} is not saved, since {name} is not part of it: save its base")
        return {}

    def encode(self, obs: Mapping[str, Tensor]) -> Context:
        """The base's context; with the goal-free one where the goal's scale needs it."""
        goals = [key for key in obs if key.startswith(PREFIX)]
        context = self.base.encode(obs)
        if self.config.goal_scale == 1 or not goals:
            return context
        return GuidedContext(context, self.base.encode({key: value for key, value in obs.items() if key not in goals}))

    def sample(
        self,
        ctx: Any,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """The base's guided chunks (B, n, H, A)."""
        inner, guides = ctx, list(self.guidance)
        if isinstance(ctx, GuidedContext):
            inner, wide = ctx.inner, ctx.free.expand(n)
            guides.insert(0, lambda x, clean, sigma, _: self._towards_goal(x, clean, sigma, wide))
        if self.config.reach is not None:
            guides.append(self._within_reach)
        return self.base.sample(
            inner, n=n, noise=noise, steps=steps, guidance=(*guides, *guidance), features=features, generator=generator
        )

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """The guided denoiser, x (B, H, A) and sigma (B,) → (B, H, A)."""
        inner = ctx.inner if isinstance(ctx, GuidedContext) else ctx
        differentiates = any(getattr(guide, "differentiates", False) for guide in self.guidance)
        with torch.enable_grad() if differentiates else torch.set_grad_enabled(torch.is_grad_enabled()):
            inside = differentiates and not x.requires_grad  # a gradient that is asked for from outside goes on through x
            x = x.detach().requires_grad_() if inside else x
            clean = super().denoise(x, sigma, inner)
            if isinstance(ctx, GuidedContext):
                clean = self._towards_goal(x, clean, sigma, ctx.free)
            for guide in self.guidance:
                clean = guide(x, clean, sigma, inner)
        clean = clean if self.config.reach is None else self._within_reach(x, clean, sigma, inner)
        return clean.detach() if inside else clean

    def _towards_goal(self, x: Tensor, clean: Tensor, sigma: Tensor, free: Any) -> Tensor:
        without = super().denoise(x, sigma, free)
        return without + self.config.goal_scale * (clean - without)

    def _within_reach(self, x: Tensor, clean: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        return clean.clamp(-self.config.reach, self.config.reach)

    @property
    def correct(self) -> Callable[[Obs, Tensor], Tensor]:
        """The base's correction; there where the base corrects."""
        return self.base.correct  # type: ignore[return-value]
