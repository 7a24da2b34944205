"""A plain network from observation to chunk: regression as the plainest baseline, and what reinforcement learning from scratch learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from torch import Generator, Tensor

from policies.base import PolicyModule, noise_for, per_chunk, weighted_loss
from policies.catalog import register
from policies.conditioned import ConditionedPolicy
from policies.encoders import ImageConfig, ObservationEncoder
from policies.steered import NoiseActor
from sinew.errors import SpecError
from sinew.protocols import Chunk, Loss
from sinew.specs import ACTION, PolicySpec


@dataclass(frozen=True, kw_only=True)
class DirectConfig:
    """Settings of the plain policy."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor."""
    mask_padding: bool = True
    """Leave the actions past an episode's end out of the loss; False trains on the repeated last action."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Settings of the image encoder."""

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise SpecError(f"direct hidden widths {self.hidden} must be at least 1")


@register("direct")
class Direct(ConditionedPolicy):
    """The likeliest chunk of a tanh-Gaussian actor; where demonstrations differ, regression gives their mean.

    Args:
        spec: observation, action, horizon and n_obs_steps.
        config: settings.

    Source: the actor of Haarnoja et al. 2018, arXiv:1801.01290.
    """

    Config = DirectConfig

    def __init__(self, spec: PolicySpec, config: DirectConfig | None = None) -> None:
        config = config or DirectConfig()
        encoder = ObservationEncoder(spec.observation, spec.n_obs_steps, config.image)
        shape = (spec.horizon, spec.action_dim)
        complete = replace(spec, noise_shape=shape, feature_dim=0, capabilities=("observe",))
        super().__init__(complete, config, encoder, config.image)
        self.actor = NoiseActor(encoder.dim, spec.horizon * spec.action_dim, config.hidden, 1.0)

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

    @classmethod
    def seeing_as(cls, policy: PolicyModule, hidden: Sequence[int] = (256, 256)) -> Direct:
        """An untrained policy of one action at a time that sees through a copy of another policy's encoder, and knows nothing else of it.

        Raises:
            SpecError: that policy has no such encoder.
        """
        if not isinstance(policy, ConditionedPolicy):
            raise SpecError(f"starting from nothing needs a policy with an observation encoder of its own, not {type(policy).__name__}")
        spec = replace(policy.spec, horizon=1, n_obs_steps=1, noise_shape=(), feature_dim=0, capabilities=())
        made = cls(spec, DirectConfig(hidden=tuple(hidden), image=policy.image))
        made.encoder.load_state_dict(policy.encoder.state_dict())
        made.encoder.requires_grad_(False)
        return made

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
        """Chunks (B, n, H, A), all n alike; there are no features of a sample."""
        if guidance:
            raise SpecError("a direct policy takes no guidance: it puts its chunk out at once")
        if steps is not None and steps < 1:
            raise SpecError(f"a direct policy samples in at least 1 step, not {steps}")
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        chunk = self.actor(ctx.embedding).view(-1, 1, *self.spec.noise_shape)
        return Chunk(actions=chunk.expand(-1, noise.numel() // chunk.numel(), -1, -1).reshape_as(noise), noise=noise)

    def loss(self, batch: Mapping[str, Any], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Squared error of the likeliest chunk, the mean over a sample's actions within the episode, weighted between samples."""
        chunk = self.actor(self.encode(batch).embedding).view_as(batch[ACTION])
        return weighted_loss(per_chunk((chunk - batch[ACTION]).square().mean(-1), batch, self.config.mask_padding), batch)
