"""The vision-language-action policy: a backbone that reads cameras and instruction, and a flow expert that acts on what it read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

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


@dataclass(frozen=True, kw_only=True)
class VlaConfig:
    """Settings of the vision-language-action policy."""

    backbone: str = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    """Vision-language model: a folder, an id on the Hugging Face hub, or "tiny", made from scratch and trained whole."""
    layers: int = 0
    """First layers of the language model that are used; 0 for all. SmolVLA uses 16 of 32 (arXiv:2506.01844)."""
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
    time_frequencies: int = 16
    """Fourier frequencies of the time."""
    time_sampling: str = "beta"
    """Training times: "beta" for Beta(1.5, 1), which looks more at noisy chunks (arXiv:2410.24164), or "uniform"."""
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
        if min(self.steps, self.time_frequencies) < 1 or min(self.layers, self.shift_px) < 0:
            raise SpecError("vla steps and time_frequencies must be at least 1, layers and shift_px at least 0")
        if min(self.expert_width, self.expert_mlp_ratio) <= 0:
            raise SpecError("vla expert_width and expert_mlp_ratio must be above 0")
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
            spec.horizon, spec.action_dim, state_dim, layout, width, config.expert_mlp_ratio, config.time_frequencies
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
            backbone, text = load_pretrained(config.backbone, config.layers)
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
        if self.head is None:
            return weighted_loss(self.flow_loss(self.encode(batch), batch, t, noise), batch)
        ctx, entropy = self.head(self.encoder, batch)
        flow = self.flow_loss(ctx, batch, t, noise)
        logs = {"flow": flow.detach().mean(), "discrete": entropy.detach().mean()}
        return weighted_loss(flow + self.config.discrete_weight * entropy, batch, logs)

    def flow_loss(self, ctx: PrefixContext, batch: Mapping[str, Any], t: Tensor, noise: Tensor) -> Tensor:
        """Squared error of the velocity (B,) of batch["action"] (B, H, A) in contexts that are already encoded."""
        y, target, level = self.corrupt(batch[ACTION], noise, t)
        if self.config.insulate:
            ctx = ctx.detached()
        shape = (-1, ctx.candidates)
        velocity, _ = self.net(y.unflatten(0, shape), self.net.embed_time(level.view(shape)), ctx)
        return per_chunk((velocity.flatten(0, 1) - target).square().mean(-1), batch, self.config.mask_padding)

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
