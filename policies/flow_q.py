"""A one-step policy beside the behaviour flow that it is held to: what flow Q-learning learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from policies.base import EmbeddingContext, PolicyModule, Wrapper, noise_for
from policies.catalog import register
from policies.conditioned import ConditionedPolicy
from policies.encoders import ObservationEncoder
from policies.flow import FlowConfig, FlowPolicy
from sinew.errors import SpecError
from sinew.protocols import Chunk
from sinew.specs import PolicySpec


@dataclass(frozen=True, kw_only=True)
class FlowQConfig:
    """Settings of the one-step policy."""

    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of its network."""

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise SpecError(f"flow_q hidden widths {self.hidden} must be at least 1")


class FlowQActor(nn.Module):
    """What learning trains: the flow's network and that of the one-step policy, on observation features; chunks are flat, U = H * A.

    Args:
        behaviour: network of a flow policy that looks at one observation.
        layers: features and noise → chunk.
        shape: (H, A).
        steps: Euler steps of the flow.
    """

    def __init__(self, behaviour: nn.Module, layers: nn.Module, shape: tuple[int, int], steps: int) -> None:
        super().__init__()
        self.behaviour: Any = behaviour
        self.layers, self.shape, self.steps = layers, shape, steps

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
        for t in torch.linspace(1, 0, self.steps + 1, device=noise.device, dtype=noise.dtype)[:-1]:
            x = x - net(x, net.embed_time(t), condition)[0] / self.steps
        return x.flatten(1).clamp(-1, 1)


@register("flow_q")
class FlowQ(Wrapper):
    """Chunks from noise in one step, by a network that reinforcement learning moves away from a flow that imitates.

    Args:
        base: the flow, which looks at one observation; its encoder is frozen.
        hidden: widths of the one-step policy.

    Raises:
        SpecError: the base is no such flow.

    Source: Park et al. 2025, arXiv:2502.02538.
    """

    Config = FlowQConfig

    def __init__(self, base: PolicyModule, hidden: Sequence[int] = (256, 256, 256)) -> None:
        if not isinstance(base, FlowPolicy) or not isinstance(base.encoder, ObservationEncoder) or base.spec.n_obs_steps != 1 or base.goal:
            raise SpecError(f"flow_q is made of a flow policy that looks at one observation and no goal, not of {type(base).__name__}")
        config = FlowQConfig(hidden=tuple(hidden))
        super().__init__(replace(base.spec, feature_dim=0, capabilities=("noise", "observe")), config, base)
        base.encoder.requires_grad_(False)
        size = base.spec.horizon * base.spec.action_dim
        layers: list[nn.Module] = []
        previous = base.observation_dim + size
        for width in config.hidden:
            layers += [nn.Linear(previous, width), nn.SiLU()]
            previous = width
        self.layers = nn.Sequential(*layers, nn.Linear(previous, size)).to(base.device)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> FlowQ:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.hidden)

    @classmethod
    def seeing_as(cls, policy: PolicyModule, horizon: int, hidden: Sequence[int] = (256, 256, 256), steps: int = 10) -> FlowQ:
        """An untrained policy of `horizon` actions that sees the newest observation through a copy of another policy's encoder.

        Raises:
            SpecError: that policy has no such encoder.
        """
        if not isinstance(policy, ConditionedPolicy) or not isinstance(policy.encoder, ObservationEncoder):
            raise SpecError(f"flow Q-learning needs a policy with an observation encoder of its own, not {type(policy).__name__}")
        spec = replace(policy.spec, horizon=horizon, n_obs_steps=1, noise_shape=(), feature_dim=0, capabilities=())
        base = FlowPolicy(spec, FlowConfig(hidden=tuple(hidden), steps=steps, image=policy.image))
        base.encoder.load_state_dict(policy.encoder.state_dict())
        return cls(base, hidden)

    def actor(self) -> FlowQActor:
        """Both networks, for learning; they stay this policy's own."""
        base: Any = self.base
        return FlowQActor(base.net, self.layers, (self.spec.horizon, self.spec.action_dim), base.config.steps)

    def encode(self, obs: Mapping[str, Tensor]) -> EmbeddingContext:
        """{key: (B, 1, ...)} → the observation's features (B, D)."""
        base: Any = self.base
        return EmbeddingContext(base.encoder(obs))

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
        return Chunk(actions=self.layers(torch.cat([seen, flat], -1)).clamp(-1, 1).reshape_as(noise), noise=noise)
