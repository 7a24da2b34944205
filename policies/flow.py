"""Flow matching on straight paths: noise is carried to an action chunk along a learned velocity field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from policies.backbones import MlpBackbone, UNetBackbone
from policies.base import EmbeddingContext, PolicyModule, noise_for
from policies.catalog import register
from policies.encoders import ImageConfig, ObservationEncoder, random_shift
from policies.sampling import sigma_to_time, time_to_sigma
from sinew.errors import SpecError
from sinew.protocols import Chunk, Loss, Obs
from sinew.specs import ACTION, PolicySpec

SIGMA_MAX = 1000.0
"""Noise level at which sampling starts; the data are bounded by 1, so nothing of them is left there."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Settings of the flow policy."""

    backbone: str = "mlp"
    """"mlp" for states and short chunks, "unet" (1-D, over the chunk's time axis) for long ones."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the MLP."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Channels per level of the U-Net."""
    embedding_dim: int = 128
    """Length of the U-Net's time and condition embedding."""
    kernel: int = 5
    """Length of the U-Net's convolutions; odd."""
    groups: int = 8
    """Groups of the U-Net's norm."""
    time_frequencies: int = 16
    """Fourier frequencies of the time."""
    time_sampling: str = "uniform"
    """Training times: "uniform", or "beta" for Beta(1.5, 1), which looks more at noisy chunks (arXiv:2410.24164)."""
    mask_padding: bool = True
    """Leave the actions past an episode's end out of the loss; False trains on the repeated last action."""
    steps: int = 10
    """Euler steps of a sample."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Settings of the image encoder."""

    def __post_init__(self) -> None:
        for name, known in (("backbone", ("mlp", "unet")), ("time_sampling", ("uniform", "beta"))):
            if getattr(self, name) not in known:
                raise SpecError(f"flow {name} {getattr(self, name)!r} is unknown: known are {', '.join(known)}")
        counts = (*self.hidden, *self.channels, self.embedding_dim, self.time_frequencies, self.steps, self.kernel, self.groups)
        if not self.hidden or not self.channels or min(counts) < 1:
            raise SpecError("flow widths, channels, embedding_dim, time_frequencies, steps, kernel and groups must be at least 1")
        if self.kernel % 2 == 0 or any(c % self.groups for c in self.channels):
            raise SpecError(f"flow kernel {self.kernel} must be odd and channels {self.channels} multiples of the {self.groups} groups")


@register("flow")
class FlowPolicy(PolicyModule):
    """Rectified flow with t = 1 for noise: y = t eps + (1 - t) a, and the network learns the velocity eps - a.

    Sampling starts at t_max = SIGMA_MAX / (1 + SIGMA_MAX) from y = t_max eps and takes Euler steps to t = 0; the same
    noise levels in the variance-exploding form are `sigmas(steps)`.

    Source: Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.
    """

    Config = FlowConfig

    def __init__(self, spec: PolicySpec, config: FlowConfig) -> None:
        encoder = ObservationEncoder(spec.observation, spec.n_obs_steps, config.image)
        horizon, action_dim = spec.horizon, spec.action_dim
        if config.backbone == "mlp":
            net = MlpBackbone(horizon, action_dim, encoder.dim, config.hidden, config.time_frequencies)
        else:
            net = UNetBackbone(
                horizon,
                action_dim,
                encoder.dim,
                config.channels,
                config.embedding_dim,
                config.kernel,
                config.groups,
                config.time_frequencies,
            )
        capabilities = ("noise", "denoise", "features", "observe")
        super().__init__(
            replace(spec, noise_shape=(horizon, action_dim), feature_dim=net.feature_dim, capabilities=capabilities), config
        )
        self.encoder = encoder
        self.net = net

    @classmethod
    def build(cls, spec: PolicySpec, stats: Mapping[str, Mapping[str, np.ndarray]], config: Any) -> FlowPolicy:
        """See `policies.make`."""
        policy = cls(spec, config)
        policy.encoder.normalizer.fit(stats)
        return policy

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> FlowPolicy:
        """See `PolicyModule.rebuild`."""
        return cls(spec, config)

    def encode(self, obs: Mapping[str, Tensor]) -> EmbeddingContext:
        """{key: (B, To, ...)} → context with the condition's embedding."""
        return EmbeddingContext(self.net.embed(self.encoder(obs)))

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

        Each guidance is called as g(x, D, sigma, ctx) → D' in the variance-exploding form, on (B * n, H, A).
        """
        noise = noise_for(self.spec, ctx, n, noise, generator, ctx.embedding.device)
        sigmas = self.sigmas(steps)
        times, levels = sigma_to_time(sigmas).to(noise.device), sigmas.tolist()
        embedded = self.net.embed_time(times)
        wide = ctx.expand(n)
        y = times[0] * noise.reshape(-1, wide.candidates, *self.spec.noise_shape)
        hidden = y
        for k, (t, following) in enumerate(pairwise(times.tolist())):
            velocity, hidden = self.net(y, embedded[k], ctx.embedding)
            if guidance:
                clean = self._guided(y, y - t * velocity, levels[k], guidance, wide)
                y = clean + (y - clean) * (following / t)
            else:
                y = y + (following - t) * velocity
        shape = (ctx.batch, n)
        return Chunk(
            actions=y.clamp(-1, 1).reshape(*shape, *self.spec.noise_shape),
            noise=noise,
            features=hidden.reshape(*shape, -1) if features else None,
        )

    @staticmethod
    def _guided(y: Tensor, clean: Tensor, sigma: float, guidance: Sequence[Any], ctx: EmbeddingContext) -> Tensor:
        x, flat = (y * (1 + sigma)).flatten(0, 1), clean.flatten(0, 1)
        levels = x.new_full((x.shape[0],), sigma)
        for guide in guidance:
            flat = guide(x, flat, levels, ctx)
        return flat.view_as(clean)

    def sigmas(self, steps: int | None = None) -> Tensor:
        """Noise levels (steps + 1,) of the native sampler, equidistant in t; the last is 0."""
        count: int = self.config.steps if steps is None else steps
        if count < 1:
            raise SpecError(f"a flow policy samples in at least 1 step, not {count}")
        start = float(sigma_to_time(torch.tensor(SIGMA_MAX, dtype=torch.float64)))
        return time_to_sigma(torch.linspace(start, 0, count + 1, dtype=torch.float64)).float()

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """Variance-exploding denoiser: D = y - t v(y, t) at t = sigma / (1 + sigma), y = (1 - t) x; at sigma = 0 it gives x."""
        level = sigma.view(-1, ctx.candidates)
        t = sigma_to_time(level)
        y = x.view(*t.shape, *x.shape[1:]) / (1 + level)[..., None, None]
        velocity, _ = self.net(y, self.net.embed_time(t), ctx.embedding)
        return (y - t[..., None, None] * velocity).view_as(x)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Squared error of the velocity.

        A sample's loss is the mean over its actions that lie within the episode (all with mask_padding=False), the
        scalar the mean over samples: every window weighs alike, and a repeated last action is never taught as a motion.

        Args:
            batch: {key: (B, To, ...)}, "action" (B, H, A) in [-1, 1], "action_is_pad" (B, H) bool.
            t: (B,) times in [0, 1]; drawn where None.
            noise: (B, H, A); drawn where None.
        """
        action = batch[ACTION]
        if t is None or noise is None:
            drawn = {k: v.to(action.device) for k, v in self.draw(action.shape[0]).items()}
            t, noise = drawn["t"] if t is None else t, drawn["noise"] if noise is None else noise
        weight = t[:, None, None]
        y = weight * noise + (1 - weight) * action
        velocity, _ = self.net(y.unsqueeze(1), self.net.embed_time(t).unsqueeze(1), self.encode(batch).embedding)
        error = (velocity.squeeze(1) - (noise - action)).square().mean(-1)
        if self.config.mask_padding and "action_is_pad" in batch:
            keep = (~batch["action_is_pad"]).to(error.dtype)
            per_sample = (error * keep).sum(-1) / keep.sum(-1).clamp(min=1)
        else:
            per_sample = error.mean(-1)
        return Loss(per_sample.mean(), per_sample)

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Times, noise and image shifts for a training step."""
        drawn = super().draw(rows, generator)
        if self.config.time_sampling == "beta":
            drawn["t"] = drawn["t"].pow(1 / 1.5)  # inverse of the distribution function t^1.5 of Beta(1.5, 1)
        reach, cameras = self.config.image.shift_px, len(self.spec.observation.images)
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
