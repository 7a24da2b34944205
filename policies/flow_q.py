"""A one-step policy beside the behaviour flow that it is held to: what flow Q-learning learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn

from policies.backbones import MlpBackbone
from policies.base import PolicyModule, noise_for, per_chunk, weighted_loss
from policies.catalog import register
from policies.conditioned import ConditionedPolicy
from policies.encoders import ImageConfig, ObservationEncoder
from sinew.errors import SpecError
from sinew.protocols import Chunk, Loss
from sinew.specs import ACTION, PolicySpec


@dataclass(frozen=True, kw_only=True)
class FlowQConfig:
    """Settings of the one-step policy and its behaviour flow."""

    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of both networks."""
    flow_steps: int = 10
    """Euler steps of the behaviour flow."""
    mask_padding: bool = True
    """Leave the actions past an episode's end out of the loss; False trains on the repeated last action."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Settings of the image encoder."""

    def __post_init__(self) -> None:
        if not self.hidden or min(*self.hidden, self.flow_steps) < 1:
            raise SpecError(f"flow_q hidden widths {self.hidden} and flow_steps {self.flow_steps} must be at least 1")


class FlowQActor(nn.Module):
    """Both networks on observation features; chunks are flat, U = H * A.

    Args:
        feature_dim: D.
        horizon: H.
        action_dim: A.
        hidden: widths.
        flow_steps: Euler steps of the flow.
    """

    def __init__(self, feature_dim: int, horizon: int, action_dim: int, hidden: Sequence[int], flow_steps: int) -> None:
        super().__init__()
        self.shape, self.flow_steps = (horizon, action_dim), flow_steps
        self.behaviour = MlpBackbone(horizon, action_dim, feature_dim, tuple(hidden), 16)
        layers: list[nn.Module] = []
        previous = feature_dim + horizon * action_dim
        for width in hidden:
            layers += [nn.Linear(previous, width), nn.SiLU()]
            previous = width
        self.layers = nn.Sequential(*layers, nn.Linear(previous, horizon * action_dim))

    def jump(self, features: Tensor, noise: Tensor) -> Tensor:
        """The policy: features (B, D), noise (B, U) → chunk (B, U), not yet limited."""
        return self.layers(torch.cat([features, noise], dim=-1))

    def velocity(self, features: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The flow's velocity, noise minus chunk, at x (B, U) = t noise + (1 - t) chunk; t (B,)."""
        net = self.behaviour
        return net(x.view(-1, 1, *self.shape), net.embed_time(t)[:, None], net.embed(features))[0].flatten(1)

    def flow(self, features: Tensor, noise: Tensor) -> Tensor:
        """Where the flow takes noise (B, U): a chunk (B, U) in [-1, 1]."""
        net, x = self.behaviour, noise.view(-1, 1, *self.shape)
        condition = net.embed(features)
        times = net.embed_time(torch.linspace(1, 0, self.flow_steps + 1, device=noise.device, dtype=noise.dtype)[:-1])
        for time in times:
            x = x - net(x, time, condition)[0] / self.flow_steps
        return x.flatten(1).clamp(-1, 1)


@register("flow_q")
class FlowQ(ConditionedPolicy):
    """Chunks from noise in one step, by a network that reinforcement learning moves away from a flow that imitates.

    Trained on demonstrations alone it lands where that flow does.

    Args:
        spec: observation, action, horizon and n_obs_steps.
        config: settings.

    Source: Park et al. 2025, arXiv:2502.02538.
    """

    Config = FlowQConfig

    def __init__(self, spec: PolicySpec, config: FlowQConfig | None = None) -> None:
        config = config or FlowQConfig()
        encoder = ObservationEncoder(spec.observation, spec.n_obs_steps, config.image)
        complete = replace(spec, noise_shape=(spec.horizon, spec.action_dim), feature_dim=0, capabilities=("noise", "observe"))
        super().__init__(complete, config, encoder, config.image)
        self.actor = FlowQActor(encoder.dim, spec.horizon, spec.action_dim, config.hidden, config.flow_steps)

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
    def seeing_as(cls, policy: PolicyModule, horizon: int, hidden: Sequence[int] = (256, 256, 256), flow_steps: int = 10) -> FlowQ:
        """An untrained policy of `horizon` actions that sees the newest observation through a copy of another policy's encoder.

        Raises:
            SpecError: that policy has no such encoder.
        """
        if not isinstance(policy, ConditionedPolicy):
            raise SpecError(f"flow Q-learning needs a policy with an observation encoder of its own, not {type(policy).__name__}")
        spec = replace(policy.spec, horizon=horizon, n_obs_steps=1, noise_shape=(), feature_dim=0, capabilities=())
        made = cls(spec, FlowQConfig(hidden=tuple(hidden), flow_steps=flow_steps, image=policy.image))
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
        """Chunks (B, n, H, A) in one step; there are no features of a sample."""
        if guidance:
            raise SpecError("a flow_q policy takes no guidance: it puts its chunk out at once")
        if steps is not None and steps < 1:
            raise SpecError(f"a flow_q policy samples in at least 1 step, not {steps}")
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        flat = noise.reshape(ctx.batch * n, -1)
        seen = ctx.embedding.repeat_interleave(len(flat) // len(ctx.embedding), 0)
        return Chunk(actions=self.actor.jump(seen, flat).clamp(-1, 1).reshape_as(noise), noise=noise)

    def loss(self, batch: Mapping[str, Any], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Squared error of the flow's velocity, and of the policy against where the flow takes the same noise.

        Args:
            batch: {key: (B, To, ...)}, "action" (B, H, A) in [-1, 1], "action_is_pad" (B, H) bool, "weight" (B,) or none.
            t: (B,) times in [0, 1]; drawn where None.
            noise: (B, H, A); drawn where None.
        """
        action = batch[ACTION]
        if t is None or noise is None:
            drawn = {k: v.to(action.device) for k, v in self.draw(action.shape[0]).items()}
            t, noise = drawn["t"] if t is None else t, drawn["noise"] if noise is None else noise
        seen, z = self.encode(batch).embedding, noise.flatten(1)
        weight = t[:, None, None]
        velocity = self.actor.velocity(seen, (weight * noise + (1 - weight) * action).flatten(1), t).view_as(action)
        with torch.no_grad():
            wanted = self.actor.flow(seen, z)
        distance = (self.actor.jump(seen.detach(), z) - wanted).view_as(action)
        error = (velocity - (noise - action)).square().mean(-1) + distance.square().mean(-1)
        return weighted_loss(per_chunk(error, batch, self.config.mask_padding), batch)
