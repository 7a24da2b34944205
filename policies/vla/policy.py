"""The vision-language-action policy: a backbone that reads cameras and instruction, and a flow expert that acts on what it read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, per_chunk, weighted_loss
from policies.catalog import register
from policies.encoders import ImageConfig
from policies.flow import FlowPolicy
from policies.vla.backbone import Backbone, load_pretrained, rebuild
from policies.vla.cotraining import DiscreteHead
from policies.vla.expert import ActionExpert
from policies.vla.lora import LoraConfig, adapt, merge
from policies.vla.prefix import PrefixContext, PrefixEncoder
from policies.vla.text import Tokenizer, byte_pair_tokenizer
from policies.vla.tiny import TINY, TinyConfig, make_tiny
from sinew.errors import InputError, SpecError
from sinew.protocols import Loss, Obs
from sinew.specs import ACTION, PolicySpec

TOKENIZER_NAME = "tokenizer.json"
MORE_TIMES, MORE_NOISES = "more_t", "more_noise"
"""Keys of the further draws (B, draws - 1, ...) in a training batch."""


@dataclass(frozen=True, kw_only=True)
class VlaConfig:
    """Settings of the vision-language-action policy."""

    backbone: str = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    """Vision-language model: a folder, an id on the Hugging Face hub, or "tiny", made from scratch and trained whole."""
    layers: int = 0
    """First layers of the language model that are used; 0 for all. SmolVLA uses 16 of 32 (arXiv:2506.01844)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of a pretrained backbone's weights; the expert computes in float32, and adapters learn in it. All of a backbone is
    trained in float32 only: bfloat16 rounds small updates and their averages away."""
    train: Literal["full", "lora", "frozen"] = "full"
    """What of the backbone is trained: all, adapters of low rank, or nothing; the expert always is."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Settings of the adapters."""
    insulate: bool = False
    """Knowledge insulation: the expert's gradient stops at the backbone, which learns from discrete actions alone
    (arXiv:2505.23705)."""
    discrete_weight: float = 0.0
    """Weight of the cross-entropy of discrete actions, predicted by the backbone, beside the flow loss; 0 for none."""
    discrete_scale: float = 10.0
    """Steps per unit of a coefficient of the discrete actions."""
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    """Whether tokens of the prefix see all others, as in pi0, or those before them, as language models were pretrained."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    """Sizes of the backbone "tiny"."""
    instructions: tuple[str, ...] = ()
    """What the robot will be told. The tokenizer of "tiny" is fitted to it (it reads other text byte by byte); a policy
    with exactly one follows that one where none is given."""
    expert_width: float = 0.75
    """Width of the expert's tokens over that of the backbone's."""
    expert_mlp_ratio: float = 2.0
    """Hidden units of the expert's MLPs over its width."""
    deviation: float = 0.5
    """Of the normalised actions, about; scales how much of a noisy chunk is taken for actions before the network looks."""
    time_frequencies: int = 16
    """Fourier frequencies of the time."""
    time_sampling: str = "beta"
    """Training times: "beta" for Beta(1.5, 1), which looks more at noisy chunks (arXiv:2410.24164), or "uniform"."""
    draws: int = 4
    """Times and noises that are trained on per observation and step: they share the prefix, so all but one are cheap."""
    steps: int = 10
    """Euler steps of a sample."""
    mask_padding: bool = True
    """Leave the actions past an episode's end out of the loss; False trains on the repeated last action."""
    shift_px: int = 0
    """Random shift of training images in pixels; 0 for none, since it hides where things are."""
    record: dict[str, Any] | None = None
    """The backbone's own config, filled in when the policy is made, so that it loads without hub or network."""

    def __post_init__(self) -> None:
        if self.time_sampling not in ("uniform", "beta"):
            raise SpecError(f"vla time_sampling {self.time_sampling!r} is unknown: known are uniform, beta")
        if min(self.steps, self.draws, self.time_frequencies) < 1 or min(self.layers, self.shift_px) < 0:
            raise SpecError("vla steps, draws and time_frequencies must be at least 1, layers and shift_px at least 0")
        if min(self.expert_width, self.expert_mlp_ratio, self.deviation) <= 0:
            raise SpecError("vla expert_width, expert_mlp_ratio and deviation must be above 0")
        if self.dtype != "float32" and self.train == "full":
            raise SpecError(f"vla dtype={self.dtype!r} is too coarse for training all of the backbone: give train='lora' or 'frozen', "
                            "or dtype='float32'")
        if self.discrete_weight < 0 or self.discrete_scale <= 0:
            raise SpecError("vla discrete_weight must not be negative and discrete_scale above 0")
        if self.insulate and self.train != "frozen" and not self.discrete_weight:
            raise SpecError("vla insulate=True leaves the backbone without any gradient: give discrete_weight > 0, or train='frozen'")


@register("vla")
class VlaPolicy(FlowPolicy):
    """Flow matching on what a vision-language model made of cameras and instruction.

    `encode` runs the backbone once and keeps keys and values of every layer; each sampling step runs the small expert
    alone, and n candidates are n rows against the same keys.

    Source: pi0, arXiv:2410.24164; SmolVLA, arXiv:2506.01844.
    """

    Config = VlaConfig

    def __init__(self, spec: PolicySpec, config: VlaConfig, backbone: Backbone) -> None:
        if not spec.observation.images:
            raise SpecError(f"a vla policy needs a camera; the observation has {', '.join(spec.observation)}")
        layout = backbone.layout
        encoder = PrefixEncoder(spec.observation, spec.n_obs_steps, backbone, config.attention == "causal", config.instructions)
        width = max(1, round(config.expert_width * layout.width))
        capabilities = ("noise", "denoise", "features", "observe", "language")
        complete = replace(spec, noise_shape=(spec.horizon, spec.action_dim), feature_dim=width, capabilities=capabilities)
        PolicyModule.__init__(self, complete, config)
        self.encoder: Any = encoder
        self.image = ImageConfig(shift_px=config.shift_px)
        self.goal = None
        state_dim = spec.n_obs_steps * encoder.normalizer.dim
        self.net = ActionExpert(
            spec.horizon,
            spec.action_dim,
            state_dim,
            layout,
            width,
            config.expert_mlp_ratio,
            config.time_frequencies,
            config.deviation,
        )
        self.head = None
        if config.discrete_weight:
            self.head = DiscreteHead(spec.horizon, spec.action_dim, state_dim, layout.width, config.discrete_scale)
        self._plans = {}
        if config.train != "full":
            backbone.requires_grad_(False)
        if config.train == "lora":
            adapt(backbone.decoder, config.lora)

    @classmethod
    def build(cls, spec: PolicySpec, stats: Mapping[str, Mapping[str, np.ndarray]], config: VlaConfig) -> Self:
        """See `policies.make`."""
        if config.backbone == TINY:
            text = byte_pair_tokenizer(config.instructions)
            side = max((max(spec.observation[key].shape[:2]) for key in spec.observation.images), default=1)
            backbone = make_tiny(Tokenizer(text).size, side, config.tiny)
        else:
            backbone, text = load_pretrained(config.backbone, config.layers, config.dtype)
        policy = cls(spec, replace(config, record=dict(backbone.record)), backbone)
        policy.encoder.normalizer.fit(stats)
        policy.take_assets({TOKENIZER_NAME: text})
        return policy

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: VlaConfig, bases: Sequence[PolicyModule]) -> Self:
        """See `PolicyModule.rebuild`."""
        if config.record is None:
            raise InputError("the config of the vla policy records no backbone")
        return cls(spec, config, rebuild(config.record))

    def assets(self) -> dict[str, str]:
        """The tokenizer."""
        return {TOKENIZER_NAME: self.encoder.tokenizer.text}

    def take_assets(self, assets: Mapping[str, str]) -> None:
        """Receive the tokenizer."""
        if TOKENIZER_NAME not in assets:
            raise InputError(f"a vla policy needs its {TOKENIZER_NAME}")
        self.encoder.tokenizer = Tokenizer(assets[TOKENIZER_NAME])

    def encode(self, obs: Mapping[str, Any]) -> PrefixContext:  # type: ignore[override]
        """{key: (B, To, ...)} with "task", B strings → the prefix, encoded once."""
        return self.encoder(obs)

    def _predict(self, y: Tensor, time: Tensor, ctx: Any) -> tuple[Tensor, Tensor]:
        return self.net(y, time, ctx)

    def loss(self, batch: Mapping[str, Any], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Squared error of the velocity, as in `FlowPolicy.loss`, and the weighted cross-entropy of discrete actions.

        Args:
            batch: as in `FlowPolicy.loss`, with "task", B strings.
            t: (B,) times in [0, 1]; drawn where None.
            noise: (B, H, A); drawn where None.
        """
        action = batch[ACTION]
        if t is None or noise is None:
            drawn = {k: v.to(action.device) for k, v in self.draw(action.shape[0]).items()}
            t, noise = drawn["t"] if t is None else t, drawn["noise"] if noise is None else noise
        ctx, entropy = (self.encode(batch), None) if self.head is None else self.head(self.encoder, batch)
        t, noise = t.unsqueeze(1), noise.unsqueeze(1)
        if MORE_TIMES in batch:
            t, noise = torch.cat([t, batch[MORE_TIMES]], dim=1), torch.cat([noise, batch[MORE_NOISES]], dim=1)
        flow = self.flow_losses(ctx, batch, t, noise).mean(1)
        if entropy is None:
            return weighted_loss(flow, batch)
        logs = {"flow": flow.detach().mean(), "discrete": entropy.detach().mean()}
        return weighted_loss(flow + self.config.discrete_weight * entropy, batch, logs)

    def flow_losses(self, ctx: PrefixContext, batch: Mapping[str, Any], t: Tensor, noise: Tensor) -> Tensor:
        """Squared errors of the velocity (B, n) at n times t (B, n) and noises (B, n, H, A), of contexts that are already encoded.

        The actions are batch["action"], (B, H, A), or (B, n, H, A) where they differ.
        """
        action, weight = batch[ACTION], t[..., None, None]
        action = action if action.ndim == 4 else action.unsqueeze(1)
        seen = ctx.detached() if self.config.insulate else ctx
        velocity, _ = self.net(weight * noise + (1 - weight) * action, self.net.embed_time(t), seen)
        errors = (velocity - (noise - action)).square().mean(-1)
        return torch.stack([per_chunk(error, batch, self.config.mask_padding) for error in errors.unbind(1)], dim=1)

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """As in `FlowPolicy.draw`, and the further times and noises of each observation."""
        drawn = super().draw(rows, generator)
        if self.config.draws > 1:
            more = super().draw(rows * (self.config.draws - 1), generator)
            drawn |= {MORE_TIMES: more["t"].view(rows, -1), MORE_NOISES: more["noise"].view(rows, -1, *self.spec.noise_shape)}
        return drawn

    def augment(self, batch: dict[str, Any], draws: Mapping[str, Tensor]) -> dict[str, Any]:
        """Images moved, and the further times and noises beside them."""
        return {**super().augment(batch, draws), **{key: draws[key] for key in (MORE_TIMES, MORE_NOISES) if key in draws}}

    def merge_adapters(self) -> None:
        """Put the adapters into the weights: the same function, without the adapters' cost; the backbone is then frozen."""
        merge(self.encoder.backbone)
        self.encoder.backbone.requires_grad_(False)
        self.config = replace(self.config, train="frozen")

    def observe(self, obs: Obs) -> Tensor:
        """Normalised vectors and the prefix in one vector, (N, observation_dim), of one observation per world, without gradient."""
        with torch.no_grad():
            return self.encoder.newest(obs)

    @property
    def observation_dim(self) -> int:
        """Length of what `observe` gives."""
        return self.encoder.normalizer.dim + self.encoder.backbone.layout.width
