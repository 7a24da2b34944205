"""ACT: a transformer that regresses a chunk of actions, with a latent variable for the style of the demonstration.

While training, a second encoder sees the demonstrated chunk and tells its style z; acting, z is zero, so that the policy
gives one chunk per observation. It is the plain baseline: no sampling, one pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from policies.base import PolicyModule, noise_for, per_chunk, weighted_loss
from policies.catalog import register
from policies.conditioned import ConditionedPolicy
from policies.encoders import ImageConfig, SpatialSoftmax, check_given, convolutional_trunk
from policies.normalizer import Normalizer
from sinew.errors import SpecError
from sinew.protocols import Chunk, Loss
from sinew.specs import ACTION, ObservationSpec, PolicySpec


@dataclass(frozen=True, kw_only=True)
class ActConfig:
    """Settings of ACT."""

    width: int = 128
    """Length of a token; a multiple of 4."""
    heads: int = 4
    """Attention heads; divides the width."""
    style_layers: int = 2
    """Blocks of the encoder that tells the style of a demonstrated chunk."""
    encoder_layers: int = 2
    """Blocks over latent and observation tokens."""
    decoder_layers: int = 2
    """Blocks over the chunk's queries."""
    feedforward: int = 512
    """Hidden units of the blocks' MLPs."""
    dropout: float = 0.1
    """Share of units that are left out while training."""
    latent_dim: int = 32
    """Length of the style z."""
    kl_weight: float = 10.0
    """Weight of the divergence of the style from N(0, I)."""
    latent_scale: float = 0.0
    """Acting, z is this many times the noise: 0 as published (one chunk per observation), 1 draws from the prior."""
    mask_padding: bool = True
    """Leave the actions past an episode's end out of the loss; False trains on the repeated last action."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Settings of the image encoder: "small" or "resnet18", of which every cell of the feature map becomes a token."""

    def __post_init__(self) -> None:
        layers = (self.style_layers, self.encoder_layers, self.decoder_layers)
        if min(self.width, self.heads, *layers, self.feedforward, self.latent_dim) < 1:
            raise SpecError("act width, heads, layers, feedforward and latent_dim must be at least 1")
        if self.width % self.heads or self.width % 4:
            raise SpecError(f"act width {self.width} must be a multiple of 4 and of the {self.heads} heads")
        if not 0 <= self.dropout < 1 or not (0 <= self.kl_weight < math.inf and 0 <= self.latent_scale < math.inf):
            raise SpecError(f"act needs dropout in [0, 1), kl_weight and latent_scale not negative; given {self.dropout}, "
                            f"{self.kl_weight} and {self.latent_scale}")
        if self.image.kind == "vit":
            raise SpecError("act looks at feature maps: image.kind 'vit' has none, use small or resnet18")


class TokenEncoder(nn.Module):
    """Observations to tokens: one per step for all vectors, one per cell of the feature map of each camera and step.

    Args:
        spec: the observation.
        n_obs_steps: To.
        config: settings.
    """

    def __init__(self, spec: ObservationSpec, n_obs_steps: int, config: ActConfig) -> None:
        super().__init__()
        if not spec.tensors:
            raise SpecError("the observation spec is empty: a policy needs at least one vector or camera")
        self.spec, self.n_obs_steps = spec, n_obs_steps
        self.normalizer = Normalizer(spec)
        self.cameras = spec.images
        self.state_in = nn.Linear(self.normalizer.dim, config.width) if self.normalizer.keys else None
        self.trunks = nn.ModuleList(convolutional_trunk(config.image) for _ in self.cameras)
        channels = 512 if config.image.kind == "resnet18" else config.image.channels[-1]
        self.map_in = nn.ModuleList(nn.Conv2d(channels, config.width, 1) for _ in self.cameras)
        self.place = nn.Parameter(0.02 * torch.randn(1 + len(self.cameras), n_obs_steps, config.width))
        self.softmax = SpatialSoftmax()
        self.step_dim = self.normalizer.dim + 2 * channels * len(self.cameras)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (B, To, ...)} → (B, tokens, W)."""
        check_given(obs, self.spec, (self.n_obs_steps,))
        tokens = []
        if self.state_in is not None:
            tokens.append(self.state_in(self.normalizer(obs, 2)) + self.place[0])
        for index, key in enumerate(self.cameras):
            maps = self.map_in[index](self._map(index, obs[key].flatten(0, 1)))
            cells = maps.flatten(2).transpose(1, 2) + sinusoids_2d(*maps.shape[1:]).to(maps)
            tokens.append((cells.unflatten(0, obs[key].shape[:2]) + self.place[1 + index].unsqueeze(1)).flatten(1, 2))
        return torch.cat(tokens, dim=1)

    def newest(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} of one step → (N, step_dim): normalised vectors, and where the channels of each camera's map are active."""
        check_given(obs, self.spec, ())
        parts = [self.normalizer(obs, 1)] if self.normalizer.keys else []
        return torch.cat([*parts, *(self.softmax(self._map(i, obs[key])) for i, key in enumerate(self.cameras))], dim=-1)

    def _map(self, index: int, image: Tensor) -> Tensor:
        """(R, height, width, 3) uint8 → feature map (R, C, rows, columns)."""
        x = image.movedim(-1, 1).to(self.place.dtype) / 127.5 - 1
        return self.trunks[index](x.contiguous())


@register("act")
class ActPolicy(ConditionedPolicy):
    """Chunks by one pass of a transformer; with temporal ensembling by the executor's mode "ensemble".

    Differs from the published network in size, in normalising before attention instead of after, and in adding positions to
    the tokens once instead of at every layer. Loss and inference are the published ones.

    Args:
        spec: observation, action, horizon and n_obs_steps.
        config: settings.

    Source: Zhao et al. 2023, arXiv:2304.13705.
    """

    Config = ActConfig

    def __init__(self, spec: PolicySpec, config: ActConfig) -> None:
        encoder = TokenEncoder(spec.observation, spec.n_obs_steps, config)
        capabilities = (*(("noise",) if config.latent_scale else ()), "features", "observe")  # noise that does nothing cannot steer
        complete = replace(spec, noise_shape=(config.latent_dim,), feature_dim=config.width, capabilities=capabilities)
        super().__init__(complete, config, encoder, config.image)  # type: ignore[arg-type]
        width, horizon = config.width, spec.horizon
        self.style = StyleEncoder(encoder.normalizer.dim, spec.action_dim, horizon, config)
        self.latent_in = nn.Linear(config.latent_dim, width)
        self.observer = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**_block(config)), config.encoder_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.queries = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**_block(config)), config.decoder_layers, nn.LayerNorm(width))
        self.out = nn.Linear(width, spec.action_dim)

    @classmethod
    def build(cls, spec: PolicySpec, stats: Mapping[str, Mapping[str, np.ndarray]], config: Any) -> Self:
        """See `policies.make`."""
        policy = cls(spec, config)
        policy.encoder.normalizer.fit(stats)
        return policy

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Self:
        """See `PolicyModule.rebuild`."""
        return cls(spec, config)

    # ------------------------------------------------------------ acting

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
        """Chunks (B, n, H, A) for styles latent_scale * noise, all alike at latent_scale 0; `features` are the mean decoder token.

        Raises:
            SpecError: guidance is given, or steps is below 1; any other number of steps is one pass.
        """
        if guidance:
            raise SpecError("act takes no guidance: it has no denoising steps; use flow, diffusion or edm")
        if steps is not None and steps < 1:
            raise SpecError(f"act samples in at least 1 step, not {steps}")
        noise = noise_for(self.spec, ctx, n, noise, generator, ctx.embedding.device)
        rows = ctx.candidates * n
        if self.config.latent_scale == 0:  # one pass for all candidates
            z = noise.new_zeros(len(ctx.embedding), self.config.latent_dim)
            actions, hidden = (part.repeat_interleave(rows, 0) for part in self.decode(ctx.embedding, z))
        else:
            z = self.config.latent_scale * noise.flatten(0, 1)
            actions, hidden = self.decode(ctx.embedding.repeat_interleave(rows, 0), z)
        shape = noise.shape[:2]
        seen = hidden.unflatten(0, shape) if features else None
        return Chunk(actions=actions.clamp(-1, 1).unflatten(0, shape), noise=noise, features=seen)

    def decode(self, tokens: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Observation tokens (R, L, W) and styles (R, latent_dim) → chunks (R, H, A), not limited, and mean decoder tokens (R, W)."""
        memory = self.observer(torch.cat([self.latent_in(z).unsqueeze(1), tokens], dim=1))
        h = self.decoder(self.queries.expand(len(tokens), -1, -1), memory)
        return self.out(h), h.mean(1)

    # ------------------------------------------------------------ learning

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Absolute error of the actions within the episode, and the divergence of the style from N(0, I).

        Args:
            batch: {key: (B, To, ...)}, "action" (B, H, A) in [-1, 1], "action_is_pad" (B, H) bool, "weight" (B,) or none.
            t: not used.
            noise: (B, latent_dim) behind the styles; drawn where None.
        """
        action = batch[ACTION]
        if noise is None:
            noise = self.draw(action.shape[0])["noise"].to(action)
        normalizer = self.encoder.normalizer
        state = normalizer({key: batch[key][:, -1] for key in normalizer.keys}, 1) if normalizer.keys else None
        padding = batch.get("action_is_pad") if self.config.mask_padding else None
        mean, log_variance = self.style(state, action, padding)
        z = mean + (0.5 * log_variance).exp() * noise
        chunk, _ = self.decode(self.encoder(batch), z)
        error = per_chunk((chunk - action).abs().mean(-1), batch, self.config.mask_padding)
        divergence = kl_divergence(mean, log_variance)
        logs = {"l1": error.mean(), "kl": divergence.mean()}
        return weighted_loss(error + self.config.kl_weight * divergence, batch, logs)


class StyleEncoder(nn.Module):
    """A demonstrated chunk and the state it starts from → mean and log variance of its style.

    Args:
        state_dim: length of the normalised state; 0 for none.
        action_dim: A.
        horizon: H.
        config: settings.
    """

    position: Tensor

    def __init__(self, state_dim: int, action_dim: int, horizon: int, config: ActConfig) -> None:
        super().__init__()
        self.summary = nn.Parameter(0.02 * torch.randn(config.width))
        self.state_in = nn.Linear(state_dim, config.width) if state_dim else None
        self.action_in = nn.Linear(action_dim, config.width)
        self.register_buffer("position", sinusoids(torch.arange(horizon), config.width), persistent=False)
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**_block(config)), config.style_layers, nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.out = nn.Linear(config.width, 2 * config.latent_dim)

    def forward(self, state: Tensor | None, action: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """State (B, D), action (B, H, A), padding (B, H) bool, True where not looked at → (B, latent_dim) twice."""
        tokens = [self.summary.expand(len(action), 1, -1)]
        if self.state_in is not None and state is not None:
            tokens.append(self.state_in(state).unsqueeze(1))
        ahead = len(tokens)
        tokens.append(self.action_in(action) + self.position)
        masked = None if padding is None else functional.pad(padding, (ahead, 0), value=False)
        h = self.blocks(torch.cat(tokens, dim=1), src_key_padding_mask=masked)
        mean, log_variance = self.out(h[:, 0]).chunk(2, dim=-1)
        return mean, log_variance


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) of (B, latent_dim) → (B,), in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def sinusoids(position: Tensor, width: int) -> Tensor:
    """Positions (...) → (..., width) sines, then cosines, at wavelengths from 2 pi to 10000 times that (Vaswani et al. 2017)."""
    frequency = 10000.0 ** (-torch.arange(width // 2) / (width // 2))
    angle = position.unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sinusoids_2d(width: int, rows: int, columns: int) -> Tensor:
    """(rows * columns, width): half of the width tells the row of a cell, the other half its column."""
    row, column = sinusoids(torch.arange(rows), width // 2), sinusoids(torch.arange(columns), width // 2)
    return torch.cat([row.repeat_interleave(columns, 0), column.repeat(rows, 1)], dim=-1)


def _block(config: ActConfig) -> dict[str, Any]:
    """Arguments of torch's transformer layers."""
    return {
        "d_model": config.width,
        "nhead": config.heads,
        "dim_feedforward": config.feedforward,
        "dropout": config.dropout,
        "batch_first": True,
        "norm_first": True,
    }
