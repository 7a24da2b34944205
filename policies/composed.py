"""Several denoising policies as one: at every step of the sample, their estimates of the clean chunk are averaged.

In the variance-exploding form that policies exchange, a convex combination of denoisers is

    D(x; sigma) = sum_i w_i D_i(x; sigma),    score = sum_i w_i score_i,

whatever each was trained to predict. Earlier work combines networks that share one noise schedule; here flow, diffusion
and EDM mix. The first policy's sampler runs, over its own noise levels, and the others pull at its estimate.

Source: General Policy Composition, Cao et al. 2025, arXiv:2510.01068.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from policies.base import PolicyModule, require, weighted_loss
from policies.catalog import register
from sinew.errors import SpecError
from sinew.protocols import Chunk, Context, Loss, Obs
from sinew.specs import ObservationSpec, PolicySpec, check_action_join, check_observation_join

SHARED = ("language", "goal")
"""Capabilities that the whole has where any of its parts has them."""


@dataclass(frozen=True, kw_only=True)
class ComposedConfig:
    """Settings of a composition."""

    weights: tuple[float, ...]
    """Weight of each policy, in order; not negative, their sum 1."""

    def __post_init__(self) -> None:
        if any(not 0 <= w <= 1 for w in self.weights) or not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            raise SpecError(f"weights {', '.join(f'{w:g}' for w in self.weights)} must be in [0, 1] and sum to 1")


@dataclass(frozen=True)
class ComposedContext:
    """One context per policy."""

    parts: tuple[Context, ...]

    @property
    def batch(self) -> int:
        """Rows that the context stands for."""
        return self.parts[0].batch

    @property
    def embedding(self) -> Tensor:
        """The first policy's embedding."""
        return self.parts[0].embedding  # type: ignore[attr-defined]

    def expand(self, n: int) -> ComposedContext:
        """The same contexts for n candidates each; nothing is copied."""
        return ComposedContext(tuple(part.expand(n) for part in self.parts))


@register("composed")
class Composed(PolicyModule):
    """A convex combination of denoising policies; with weight 1 on the first it is the first, bit for bit.

    Each policy encodes its own observations, once per observation, over as many steps as it looks at. Noise, noise levels
    and features are those of the first. A policy that is asked beyond the largest noise level of its own sampler, where
    nothing is left of a chunk, answers for that level instead, with x scaled to it. Corrections and losses are combined
    with the same weights.

    Args:
        bases: policies with capability "denoise", equal in action, horizon and noise shape.
        weights: one per policy, not negative, sum 1.

    Raises:
        SpecError: fewer than two policies, one cannot denoise, or two do not fit together; names the difference.
    """

    Config = ComposedConfig
    wraps = True

    def __init__(self, bases: Sequence[PolicyModule], weights: Sequence[float]) -> None:
        config = ComposedConfig(weights=tuple(float(w) for w in weights))
        if len(bases) < 2 or len(bases) != len(config.weights):
            raise SpecError(f"a composition takes two or more policies with one weight each, not {len(bases)} with {len(config.weights)}")
        for base in bases:
            require(base, "denoise", "Composed")
        super().__init__(_joined([base.spec for base in bases]), config)
        distinct = [copy.deepcopy(base) if any(base is other for other in bases[:i]) else base for i, base in enumerate(bases)]
        self.parts = nn.ModuleList(distinct)
        self._largest = [float(base.sigmas()[0]) for base in self.bases()]  # type: ignore[operator]

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Composed:
        """See `PolicyModule.rebuild`."""
        return cls(bases, config.weights)

    def bases(self) -> tuple[PolicyModule, ...]:
        """The policies, in order."""
        return tuple(self.parts)  # type: ignore[arg-type]

    # ------------------------------------------------------------ acting

    def encode(self, obs: Mapping[str, Tensor]) -> ComposedContext:
        """{key: (B, To, ...)} → one context per policy, each from its own keys."""
        return ComposedContext(tuple(base.encode(self._own(base, obs)) for base in self.bases()))

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
        """Chunks of the first policy's sampler, with the estimates of all; guidance acts on their average."""
        wide = ctx.expand(n)
        guides: list[Any] = [_Seen(guide, wide) for guide in guidance]
        if self.config.weights[0] < 1:
            guides.insert(0, lambda x, clean, sigma, _: self._mix(x, clean, sigma, wide))
        first = self.bases()[0]
        return first.sample(ctx.parts[0], n=n, noise=noise, steps=steps, guidance=guides, features=features, generator=generator)

    def _mix(self, x: Tensor, first: Tensor, sigma: Tensor, ctx: ComposedContext) -> Tensor:
        """The average of the first policy's estimate (B, H, A) and those of the others."""
        mixed = self.config.weights[0] * first
        for base, weight, part, largest in list(zip(self.bases(), self.config.weights, ctx.parts, self._largest))[1:]:
            if weight:
                mixed = mixed + weight * _within(base, x, sigma, part, largest)
        return mixed

    def sigmas(self, steps: int | None = None) -> Tensor:
        """Noise levels of the first policy's sampler."""
        return self.bases()[0].sigmas(steps)  # type: ignore[operator]

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """The average denoiser, x (B, H, A) and sigma (B,) → (B, H, A)."""
        return self._mix(x, _within(self.bases()[0], x, sigma, ctx.parts[0], self._largest[0]), sigma, ctx)

    def observe(self, obs: Obs) -> Tensor:
        """The features of all policies side by side (N, observation_dim); capability "observe"."""
        return torch.cat([base.observe(obs) for base in self.bases()], dim=-1)  # type: ignore[operator]

    @property
    def observation_dim(self) -> int:
        """Length of what `observe` gives."""
        return sum(int(base.observation_dim) for base in self.bases())  # type: ignore[arg-type]

    @property
    def correct(self) -> Callable[[Obs, Tensor], Tensor]:
        """Corrected actions of every policy, averaged; there where any policy corrects."""
        if "correct" not in self.spec.capabilities:
            raise AttributeError("correct")
        return self._correct

    def _correct(self, obs: Obs, action: Tensor) -> Tensor:
        corrected = [base.correct(obs, action) if "correct" in base.spec.capabilities else action for base in self.bases()]  # type: ignore
        return sum(w * c for w, c in zip(self.config.weights, corrected, strict=True))  # type: ignore[return-value]

    # ------------------------------------------------------------ learning

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """The losses of all policies, averaged; the same t and noise for each."""
        losses = [base.loss(self._own(base, batch), t=t, noise=noise).per_sample for base in self.bases()]
        return weighted_loss(torch.stack([w * loss for w, loss in zip(self.config.weights, losses, strict=True)]).sum(0), batch)

    def after_update(self) -> None:
        """Each policy's."""
        for base in self.bases():
            base.after_update()

    def _own(self, base: PolicyModule, values: Mapping[str, Any]) -> dict[str, Any]:
        """What concerns one policy: its own observations over its own steps, and all that is no observation."""
        steps, own = base.spec.n_obs_steps, base.spec.observation.tensors
        return {k: v[:, -steps:] if k in own else v for k, v in values.items() if k in own or k not in self.spec.observation.tensors}


class _Seen:
    """A guidance that is called with the context of the whole."""

    def __init__(self, guide: Any, ctx: ComposedContext) -> None:
        self.guide, self.ctx = guide, ctx
        self.differentiates = getattr(guide, "differentiates", False)

    def __call__(self, x: Tensor, clean: Tensor, sigma: Tensor, _: Any) -> Tensor:
        return self.guide(x, clean, sigma, self.ctx)


def _within(base: Any, x: Tensor, sigma: Tensor, ctx: Any, largest: float) -> Tensor:
    """The estimate (B, H, A) of one policy, asked at no larger noise level than it knows."""
    beyond = (sigma / largest).clamp(min=1)
    return base.denoise(x / beyond[:, None, None], sigma / beyond, ctx)


def _joined(specs: Sequence[PolicySpec]) -> PolicySpec:
    """The spec of a composition.

    Raises:
        SpecError: two policies differ in action, horizon, noise, or in an observation that both look at.
    """
    first = specs[0]
    tensors = dict(first.observation.tensors)
    for number, spec in enumerate(specs[1:], start=2):
        names = "policy 1 of the composition", f"policy {number}"
        common = ObservationSpec({key: value for key, value in spec.observation.tensors.items() if key in tensors})
        try:
            check_action_join(names[0], first.action, names[1], spec.action)
            check_observation_join("the policies before it", ObservationSpec(tensors), names[1], common)
        except SpecError as e:
            raise SpecError(f"{e}: train both on data with the same one") from None
        for field in ("horizon", "noise_shape"):
            a, b = getattr(first, field), getattr(spec, field)
            if a != b:
                raise SpecError(f"{names[0]} has {field} {a}, {names[1]} {b}: train both with the same one")
        tensors = {**spec.observation.tensors, **tensors}
    everywhere = [set(spec.capabilities) for spec in specs]
    shared = [name for name in SHARED if any(name in have for have in everywhere)]
    capabilities = [
        "noise",
        "denoise",
        *(["features"] if "features" in first.capabilities else []),
        *(["observe"] if all("observe" in have for have in everywhere) else []),
        *(["correct"] if any("correct" in have for have in everywhere) else []),
        *shared,
    ]
    return PolicySpec(
        observation=ObservationSpec(tensors),
        action=first.action,
        horizon=first.horizon,
        n_obs_steps=max(spec.n_obs_steps for spec in specs),
        noise_shape=first.noise_shape,
        feature_dim=first.feature_dim if "features" in first.capabilities else 0,
        capabilities=tuple(capabilities),
    )
