"""Denoising policies: an observation encoder, a network and one sampler, whatever the network was trained to predict.

A family gives its parametrisation and nothing else. The network sees y = scale(sigma) x, where x = a + sigma eps is the
variance-exploding form that policies exchange, and its output F stands for the clean chunk

    D(x; sigma) = skip(sigma) y + out(sigma) F(y, level(sigma), c).

Flow matching, DDPM and EDM are three choices of (scale, skip, out, level), so they share sampler, guidance, goals,
mixing and distillation. One step of the probability flow, x' = D + (x - D) sigma' / sigma, is linear in y and F.

Source: Karras et al. 2022, arXiv:2206.00364 (the common frame); Song et al. 2020, arXiv:2010.02502 (the same step as DDIM).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn

from policies.backbones import MlpBackbone, Modulated, TransformerBackbone, UNetBackbone
from policies.base import EmbeddingContext, PolicyModule, noise_for, per_chunk, weighted_loss
from policies.conditioned import ConditionedPolicy
from policies.convolution import FEW_ROWS
from policies.encoders import ImageConfig, ObservationEncoder
from policies.goals import GoalContext, GoalEncoder, GoalSettings
from sinew.errors import SpecError
from sinew.protocols import Chunk, Loss
from sinew.specs import ACTION, PolicySpec

BACKBONES = ("mlp", "unet", "transformer")


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """Settings that all denoising policies share."""

    backbone: str = "mlp"
    """"mlp" for states and short chunks, "unet" (1-D, over the chunk's time axis) or "transformer" (one token per
    action) for long ones."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the MLP."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Channels per level of the U-Net."""
    embedding_dim: int = 128
    """Length of the time and condition embedding of U-Net and transformer; the transformer's width."""
    kernel: int = 5
    """Length of the U-Net's convolutions; odd."""
    groups: int = 8
    """Groups of the U-Net's norm."""
    layers: int = 4
    """Blocks of the transformer."""
    heads: int = 4
    """Attention heads of the transformer."""
    time_frequencies: int = 16
    """Fourier frequencies of the time."""
    mask_padding: bool = True
    """Leave the actions past an episode's end out of the loss; False trains on the repeated last action."""
    steps: int = 10
    """Steps of a sample."""
    goal: GoalSettings = field(default_factory=GoalSettings)
    """Conditioning on a goal, with classifier-free guidance; off without keys."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Settings of the image encoder."""

    def __post_init__(self) -> None:
        kind = type(self).__name__.removesuffix("Config").lower()
        if self.backbone not in BACKBONES:
            raise SpecError(f"{kind} backbone {self.backbone!r} is unknown: known are {', '.join(BACKBONES)}")
        sizes = (self.embedding_dim, self.time_frequencies, self.steps, self.kernel, self.groups, self.layers, self.heads)
        if not self.hidden or not self.channels or min((*self.hidden, *self.channels, *sizes)) < 1:
            raise SpecError(f"{kind} widths, channels, embedding_dim, layers, heads, time_frequencies, steps, kernel and groups "
                            "must be at least 1")
        if self.kernel % 2 == 0 or any(c % self.groups for c in self.channels):
            raise SpecError(f"{kind} kernel {self.kernel} must be odd and channels {self.channels} multiples of the {self.groups} groups")
        if self.embedding_dim % self.heads:
            raise SpecError(f"{kind} embedding_dim {self.embedding_dim} must be a multiple of the {self.heads} heads")


def make_backbone(config: DenoisingConfig, horizon: int, action_dim: int, condition_dim: int) -> nn.Module:
    """The network that `config` names, from noisy chunks (B, n, H, A), a time and a condition (B, condition_dim)."""
    if config.backbone == "mlp":
        return MlpBackbone(horizon, action_dim, condition_dim, config.hidden, config.time_frequencies)
    if config.backbone == "transformer":
        return TransformerBackbone(
            horizon, action_dim, condition_dim, config.embedding_dim, config.layers, config.heads, config.time_frequencies
        )
    return UNetBackbone(
        horizon, action_dim, condition_dim, config.channels, config.embedding_dim, config.kernel, config.groups, config.time_frequencies
    )


class Coefficients(NamedTuple):
    """A parametrisation at noise levels sigma, each like sigma."""

    scale: Tensor
    """y = scale x is what the network sees."""
    skip: Tensor
    out: Tensor
    """D = skip y + out F."""
    level: Tensor
    """The time that the network is told."""


class Corrupted(NamedTuple):
    """A training sample."""

    y: Tensor
    """(B, H, A) noisy chunk as the network sees it."""
    target: Tensor
    """(B, H, A) what it is to predict."""
    level: Tensor
    """(B,) the time that it is told."""


class _Step(NamedTuple):
    """One step of a sample in numbers."""

    sigma: float
    scale: float
    skip: float
    out: float
    keep: float
    pull: float
    """y' = keep y + pull D."""


class DenoisingPolicy(ConditionedPolicy):
    """Base of the denoising families; see the module.

    Args:
        spec: observation, action, horizon and n_obs_steps.
        config: settings.
    """

    clip: bool = False
    """Whether clean estimates are limited to [-1, 1] while sampling."""

    def __init__(self, spec: PolicySpec, config: Any) -> None:
        encoder = ObservationEncoder(spec.observation, spec.n_obs_steps, config.image)
        goal = GoalEncoder(spec.observation, config.goal) if config.goal.keys else None
        net: Any = make_backbone(config, spec.horizon, spec.action_dim, encoder.dim + (goal.dim if goal else 0))
        capabilities = ("noise", "denoise", "features", "observe", *(("goal",) if goal else ()))
        shape = (spec.horizon, spec.action_dim)
        complete = replace(spec, noise_shape=shape, feature_dim=net.feature_dim, capabilities=capabilities)
        super().__init__(complete, config, encoder, config.image)
        self.goal = goal
        self.net = net
        self._plans: dict[Any, tuple[tuple[_Step, ...], Tensor]] = {}

    @classmethod
    def build(cls, spec: PolicySpec, stats: Mapping[str, Mapping[str, np.ndarray]], config: Any) -> Self:
        """See `policies.make`."""
        policy = cls(spec, config)
        policy.encoder.normalizer.fit(stats)
        if policy.goal is not None:
            policy.goal.normalizer.fit(stats)
        return policy

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Self:
        """See `PolicyModule.rebuild`."""
        return cls(spec, config)

    # ------------------------------------------------------------ the family

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The parametrisation at noise levels `sigma`, of any shape."""
        raise NotImplementedError

    def corrupt(self, action: Tensor, noise: Tensor, t: Tensor) -> Corrupted:
        """Training samples of actions (B, H, A) and noise (B, H, A) at times t (B,) in [0, 1]."""
        raise NotImplementedError

    def levels(self, steps: int) -> Tensor:
        """Falling noise levels (steps + 1,) float64 of the native sampler; the last is 0."""
        raise NotImplementedError

    # ------------------------------------------------------------ acting

    def encode(self, obs: Mapping[str, Tensor]) -> EmbeddingContext:
        """{key: (B, To, ...)} and, where there is a goal, {"goal.<key>": (B, ...)} → context with the condition's embedding."""
        seen = self.encoder(obs)
        if self.goal is None:
            return EmbeddingContext(self.net.embed(seen))
        return self.goal.context(seen, obs, self.net.embed)

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
        """Chunks (B, n, H, A); `features` are the hidden units of the last step.

        Each guidance is called as g(x, D, sigma, ctx) → D' in the variance-exploding form, on (B * n, H, A). Where one
        has `differentiates = True`, x is a leaf that requires grad and D was computed from it.
        """
        noise = noise_for(self.spec, ctx, n, noise, generator, ctx.embedding.device)
        plan, levels = self._plan(steps, noise)
        embedded = self._times(levels, ctx)
        wide = ctx.expand(n)
        y = (plan[0].scale * plan[0].sigma) * noise.reshape(-1, wide.candidates, *self.spec.noise_shape)
        hidden = y
        for k, step in enumerate(plan):
            if guidance:
                clean, hidden = self._guided(y, embedded[k], step, guidance, wide)
                y = step.keep * y + step.pull * clean
                continue
            raw, hidden = self._predict(y, embedded[k], ctx)
            if self.clip:
                y = step.keep * y + step.pull * (step.skip * y + step.out * raw).clamp(-1, 1)
            else:  # the clean estimate, written out
                y = (step.keep + step.pull * step.skip) * y + (step.pull * step.out) * raw
        shape = (ctx.batch, n)
        return Chunk(
            actions=y.clamp(-1, 1).reshape(*shape, *self.spec.noise_shape),
            noise=noise,
            features=hidden.reshape(*shape, -1) if features else None,
        )

    def _times(self, levels: Tensor, ctx: Any) -> Any:
        """What the network is told at each of the times (steps,)."""
        embedded = self.net.embed_time(levels)
        two = isinstance(ctx, GoalContext) and ctx.free is not None  # conditions to be told, with a goal and without
        if two or torch.compiler.is_exporting() or ctx.embedding.shape[0] > FEW_ROWS or not isinstance(self.net, Modulated):
            return embedded
        return self.net.ahead(embedded, ctx.embedding)

    def _guided(self, y: Tensor, time: Any, step: _Step, guidance: Sequence[Any], ctx: EmbeddingContext) -> tuple[Tensor, Tensor]:
        """The guided clean estimate (B, n, H, A), and the hidden units."""
        x = (y / step.scale).flatten(0, 1)
        differentiates = any(getattr(guide, "differentiates", False) for guide in guidance)
        with torch.enable_grad() if differentiates else torch.set_grad_enabled(torch.is_grad_enabled()):
            if differentiates:
                x = x.detach().requires_grad_()
            seen = x.view_as(y) * step.scale
            raw, hidden = self._predict(seen, time, ctx)
            flat = self._clean(seen, raw, step.skip, step.out).flatten(0, 1)
            sigma = x.new_full((x.shape[0],), step.sigma)
            for guide in guidance:
                flat = guide(x, flat, sigma, ctx)
        return (flat.detach() if differentiates else flat).view_as(y), hidden

    def _predict(self, y: Tensor, time: Any, ctx: EmbeddingContext) -> tuple[Tensor, Tensor]:
        """The network's output, moved away from the goal-free one where a goal is to be followed more than it was taught."""
        raw, hidden = self.net(y, time, ctx.embedding)
        if isinstance(ctx, GoalContext) and ctx.free is not None:
            free, _ = self.net(y, time, ctx.free)
            raw = free + self.config.goal.scale * (raw - free)
        return raw, hidden

    def _clean(self, y: Tensor, raw: Tensor, skip: Any, out: Any) -> Tensor:
        clean = skip * y + out * raw
        return clean.clamp(-1, 1) if self.clip else clean

    def _plan(self, steps: int | None, like: Tensor) -> tuple[tuple[_Step, ...], Tensor]:
        """The steps in numbers, and the times (steps,) that the network is told, of the kind and on the device of `like`."""
        count: int = self.config.steps if steps is None else steps
        key = (count, like.dtype, like.device)
        if key not in self._plans:
            with torch.inference_mode(False):  # kept for later, whoever asks then
                sigmas = self._levels(count)
                scale, skip, out, level = self.coefficients(sigmas)
                ratio = sigmas[1:] / sigmas[:-1]
                following = torch.cat([scale[1:-1], scale.new_ones(1)])  # the last step ends in x itself
                columns = (sigmas[:-1], scale[:-1], skip[:-1], out[:-1], following / scale[:-1] * ratio, following * (1 - ratio))
                self._plans[key] = tuple(_Step(*row) for row in torch.stack(columns, dim=-1).tolist()), level[:-1].to(like)
        return self._plans[key]

    def _levels(self, steps: int) -> Tensor:
        if steps < 1:
            raise SpecError(f"a {type(self).__name__.removesuffix('Policy').lower()} policy samples in at least 1 step, not {steps}")
        return self.levels(steps)

    def sigmas(self, steps: int | None = None) -> Tensor:
        """Noise levels (steps + 1,) float32 of the native sampler; the last is 0."""
        return self._levels(self.config.steps if steps is None else steps).float()

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """Variance-exploding denoiser D(x (B, H, A); sigma (B,)) → (B, H, A); at sigma = 0 it gives x, within [-1, 1] where it clips."""
        scale, skip, out, level = (value[..., None, None] for value in self.coefficients(sigma.view(-1, ctx.candidates)))
        y = x.view(*scale.shape[:2], *x.shape[1:]) * scale
        raw, _ = self._predict(y, self.net.embed_time(level[..., 0, 0]), ctx)
        return self._clean(y, raw, skip, out).view_as(x)

    # ------------------------------------------------------------ learning

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Squared error of what the network predicts.

        A sample's loss is the mean over its actions that lie within the episode (all with mask_padding=False), the
        scalar the mean over samples, by their weights where they have some: every window weighs alike, and a repeated
        last action is never taught as a motion.

        Args:
            batch: {key: (B, To, ...)}, "action" (B, H, A) in [-1, 1], "action_is_pad" (B, H) bool, "weight" (B,) or none.
            t: (B,) times in [0, 1]; drawn where None.
            noise: (B, H, A); drawn where None.
        """
        action = batch[ACTION]
        if t is None or noise is None:
            drawn = {k: v.to(action.device) for k, v in self.draw(action.shape[0]).items()}
            t, noise = drawn["t"] if t is None else t, drawn["noise"] if noise is None else noise
        y, target, level = self.corrupt(action, noise, t)
        predicted, _ = self.net(y.unsqueeze(1), self.net.embed_time(level).unsqueeze(1), self.encode(batch).embedding)
        error = (predicted.squeeze(1) - target).square().mean(-1)
        return weighted_loss(per_chunk(error, batch, self.config.mask_padding), batch)

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Times, noise, image shifts, and which samples are taught without their goal."""
        drawn = super().draw(rows, generator)
        if self.goal is not None:
            drawn["goal_dropped"] = torch.rand(rows, generator=generator) < self.config.goal.dropout
        return drawn

    def augment(self, batch: dict[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images moved, and the goals of some samples dropped."""
        batch = super().augment(batch, draws)
        return {**batch, "goal_dropped": draws["goal_dropped"]} if "goal_dropped" in draws else batch
