"""A one-step policy beside the behaviour flow that it is held to: what flow Q-learning learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from policies.base import EmbeddingContext, PolicyModule, Wrapper, noise_for
from policies.best_of import candidates as candidates_of
from policies.bootstrapped import ValueHeads
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
    candidates: int = 0
    """Chunks of the flow of which the best is taken, by critics; 0 for the one-step network instead."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of each critic."""
    critic_heads: int = 2
    """Critics; the mean of their values counts."""

    def __post_init__(self) -> None:
        if not self.hidden or not self.critic_hidden or min(*self.hidden, *self.critic_hidden, self.critic_heads) < 1:
            raise SpecError(f"flow_q widths {self.hidden}, {self.critic_hidden} and critics {self.critic_heads} must be at least 1")
        if self.candidates < 0:
            raise SpecError(f"flow_q candidates {self.candidates} must not be negative")


class FlowQActor(nn.Module):
    """What learning trains: the flow's network and the one-step policy's, on observation features; chunks are flat, U = H * A.

    Args:
        behaviour: network of a flow policy that looks at one observation.
        layers: features and noise → chunk; None where the best of several chunks is taken.
        critic: features and chunk → values; None else.
        shape: (H, A).
        steps: Euler steps of the flow.
    """

    def __init__(
        self, behaviour: nn.Module, layers: nn.Module | None, critic: nn.Module | None, shape: tuple[int, int], steps: int
    ) -> None:
        super().__init__()
        self.behaviour: Any = behaviour
        self.layers: Any = layers
        self.critic: Any = critic
        self.shape, self.steps = shape, steps

    def jump(self, features: Tensor, noise: Tensor) -> Tensor:
        """The policy: features (B, D), noise (B, U) → chunk (B, U), not yet limited."""
        return self.layers(torch.cat([features, noise], dim=-1))

    def best(self, features: Tensor, noise: Tensor) -> Tensor:
        """Of the chunks that the flow makes of noise (B, N, U), that of highest value, (B, U); without gradient."""
        rows, number = noise.shape[:2]
        with torch.no_grad():
            seen = features.repeat_interleave(number, 0)
            chunks = self.flow(seen, noise.flatten(0, 1))
            choice = self.critic(torch.cat([seen, chunks], -1)).mean(0).view(rows, number).argmax(1)
        return chunks.view(rows, number, -1)[torch.arange(rows, device=noise.device), choice]

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

    Or, with candidates, the chunk of that flow that critics value most.

    Args:
        base: the flow, which looks at one observation; its encoder is frozen.
        hidden: see `FlowQConfig`.
        candidates: see `FlowQConfig`.
        critic_hidden: see `FlowQConfig`.
        critic_heads: see `FlowQConfig`.

    Raises:
        SpecError: the base is no such flow.

    Source: Park et al. 2025, arXiv:2502.02538; the best of several, Li et al. 2025, arXiv:2507.07969.
    """

    Config = FlowQConfig

    def __init__(
        self,
        base: PolicyModule,
        hidden: Sequence[int] = (256, 256, 256),
        candidates: int = 0,
        critic_hidden: Sequence[int] = (256, 256),
        critic_heads: int = 2,
    ) -> None:
        if not isinstance(base, FlowPolicy) or not isinstance(base.encoder, ObservationEncoder) or base.spec.n_obs_steps != 1 or base.goal:
            raise SpecError(f"flow_q is made of a flow policy that looks at one observation and no goal, not of {type(base).__name__}")
        config = FlowQConfig(hidden=tuple(hidden), candidates=candidates, critic_hidden=tuple(critic_hidden), critic_heads=critic_heads)
        super().__init__(replace(base.spec, feature_dim=0, capabilities=("noise", "observe")), config, base)
        base.encoder.requires_grad_(False)
        size = base.spec.horizon * base.spec.action_dim
        seen, self.critic, self.layers = base.observation_dim + size, None, None
        if candidates:
            self.critic = ValueHeads(seen, config.critic_hidden, critic_heads).requires_grad_(False).to(base.device)
            return
        layers: list[nn.Module] = []
        for width in config.hidden:
            layers += [nn.Linear(seen, width), nn.SiLU()]
            seen = width
        self.layers = nn.Sequential(*layers, nn.Linear(seen, size)).to(base.device)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> FlowQ:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.hidden, config.candidates, config.critic_hidden, config.critic_heads)

    @classmethod
    def seeing_as(cls, policy: PolicyModule, horizon: int, steps: int = 10, **settings: Any) -> FlowQ:
        """An untrained policy of `horizon` actions that sees the newest observation through a copy of another policy's encoder.

        Args:
            policy: the other policy.
            horizon: actions in a chunk.
            steps: Euler steps of the flow.
            settings: fields of `FlowQConfig`.

        Raises:
            SpecError: that policy has no such encoder.
        """
        if not isinstance(policy, ConditionedPolicy) or not isinstance(policy.encoder, ObservationEncoder):
            raise SpecError(f"flow Q-learning needs a policy with an observation encoder of its own, not {type(policy).__name__}")
        spec = replace(policy.spec, horizon=horizon, n_obs_steps=1, noise_shape=(), feature_dim=0, capabilities=())
        base = FlowPolicy(spec, FlowConfig(steps=steps, image=policy.image))
        base.encoder.load_state_dict(policy.encoder.state_dict())
        return cls(base, **settings)

    def actor(self) -> FlowQActor:
        """Both networks, for learning; they stay this policy's own."""
        base: Any = self.base
        return FlowQActor(base.net, self.layers, self.critic, (self.spec.horizon, self.spec.action_dim), base.config.steps)

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
        """Chunks (B, n, H, A) in one step, or each the best of its own candidates; there are no features of a sample."""
        if guidance:
            raise SpecError("a flow_q policy takes no guidance: it puts its chunk out at once")
        if steps is not None and steps < 1:
            raise SpecError(f"a flow_q policy samples in at least 1 step, not {steps}")
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        rows, actor = ctx.batch * n, self.actor()
        seen = ctx.embedding.repeat_interleave(rows // len(ctx.embedding), 0)
        if self.config.candidates:
            many = candidates_of(noise, self.config.candidates).reshape(rows, self.config.candidates, -1)
            return Chunk(actions=actor.best(seen, many).reshape_as(noise), noise=noise)
        return Chunk(actions=actor.jump(seen, noise.reshape(rows, -1)).clamp(-1, 1).reshape_as(noise), noise=noise)
