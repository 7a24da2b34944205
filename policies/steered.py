"""Latent steering: a frozen policy whose noise is chosen by a small actor instead of drawn.

A policy that is deterministic in its noise is a map from noise to chunks. Which noise is good in which situation can be
learned without a gradient through the policy, or any look inside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from policies.base import PolicyModule, Wrapper, noise_for, require
from policies.catalog import register
from policies.executor import ChunkExecutor
from sinew.errors import SpecError
from sinew.protocols import Chunk, Obs
from sinew.specs import PolicySpec

CONTEXT = "context."
"""Prefix of the tensors of a packed context."""
LOG_STD = (-5.0, 2.0)
"""Limits of the logarithm of the actor's standard deviation."""
START_LOG_STD = -1.5
"""Where steering begins it: about a third of the prior's spread, since drawing from all of the prior is what the policy did before."""
TAKEN = ("noise", "denoise", "energy")
"""Capabilities that a steered policy no longer has: its noise is its own."""


@dataclass(frozen=True, kw_only=True)
class SteeredConfig:
    """Settings of the steering."""

    bound: float = 1.5
    """Largest element of the noise."""
    knots: int = 0
    """The noise is this many vectors, interpolated over the chunk: 1 repeats one, 0 gives each action its own."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor."""
    steps: int | None = None
    """Sampling steps of the base while it is steered; None for its own."""
    act_steps: int | None = None
    """Actions that are kept of each chunk, so that the next one is chosen sooner; None for all."""

    def __post_init__(self) -> None:
        if not self.bound > 0 or self.knots < 0 or (self.steps is not None and self.steps < 1):
            raise SpecError(f"steering needs bound > 0, knots >= 0 and steps >= 1, given {self.bound}, {self.knots} and {self.steps}")
        if self.act_steps is not None and self.act_steps < 1:
            raise SpecError(f"steering act_steps {self.act_steps} must be at least 1")
        if not self.hidden or min(self.hidden) < 1:
            raise SpecError(f"steering hidden widths {self.hidden} must be at least 1")


class NoiseActor(nn.Module):
    """Observation features → a distribution over noise, tanh of a Gaussian within the bound.

    Args:
        feature_dim: D of the observation features.
        size: elements U of what is chosen.
        hidden: widths, each layer followed by layer norm and ReLU.
        bound: largest element.
        log_std: logarithm of the standard deviation at first.
    """

    active: Tensor

    def __init__(self, feature_dim: int, size: int, hidden: Sequence[int], bound: float, log_std: float = 0.0) -> None:
        super().__init__()
        self.size, self.bound = size, bound
        layers: list[nn.Module] = []
        previous = feature_dim
        for width in hidden:
            layers += [nn.Linear(previous, width), nn.LayerNorm(width), nn.ReLU()]
            previous = width
        last = nn.Linear(previous, 2 * size)
        nn.init.normal_(last.weight, std=1e-3)  # at first: about zero, whatever is seen
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[size:], log_std)
        self.layers = nn.Sequential(*layers, last)
        self.register_buffer("active", torch.zeros((), dtype=torch.bool))
        """Whether the actor chooses; until it has learned, noise is drawn as the policy alone would."""

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) → the most likely choice (N, U) in [-bound, bound]."""
        return self.bound * torch.tanh(self.layers(features)[..., : self.size])

    def draw(self, features: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """A choice (N, U) from `normal` (N, U) ~ N(0, I), and its log probability (N,), in units of the bound."""
        mean, log_std = self.layers(features).chunk(2, dim=-1)
        log_std = log_std.clamp(*LOG_STD)
        before = mean + log_std.exp() * normal
        log_p = -0.5 * normal.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_p = log_p - 2 * (math.log(2) - before - functional.softplus(-2 * before))  # log of the slope of tanh
        return self.bound * torch.tanh(before), log_p.sum(-1)


@dataclass(frozen=True)
class SteeredContext:
    """The base's context, and what the actor looks at."""

    inner: Any
    features: Tensor
    """(B, D), of the newest observation."""

    @property
    def batch(self) -> int:
        """Rows that the context stands for."""
        return self.inner.batch

    @property
    def embedding(self) -> Tensor:
        """The inner context's embedding."""
        return self.inner.embedding

    def expand(self, n: int) -> SteeredContext:
        """The same for n candidates each; nothing is copied."""
        return SteeredContext(self.inner.expand(n), self.features)


@register("steered")
class LatentSteered(Wrapper):
    """A base policy whose noise an actor chooses from the observation; before it has learned, the base itself, bit for bit.

    Args:
        base: policy with capabilities "noise" and "observe".
        bound: see `SteeredConfig`.
        knots: see `SteeredConfig`.
        hidden: see `SteeredConfig`.
        steps: see `SteeredConfig`.
        act_steps: see `SteeredConfig`; the horizon of this policy.

    Raises:
        SpecError: the base lacks a capability, or there are more knots or act_steps than actions in a chunk.

    Source: Wagenmaker et al. 2025, arXiv:2506.15799.
    """

    Config = SteeredConfig

    def __init__(
        self,
        base: PolicyModule,
        bound: float = 1.5,
        knots: int = 0,
        hidden: Sequence[int] = (256, 256),
        steps: int | None = None,
        act_steps: int | None = None,
    ) -> None:
        require(base, "noise", "latent steering")
        require(base, "observe", "latent steering")
        if "correct" in base.spec.capabilities:
            raise SpecError("steering chooses noise for chunks and cannot go around a correction of every action: steer its base")
        config = SteeredConfig(bound=float(bound), knots=knots, hidden=tuple(hidden), steps=steps, act_steps=act_steps)
        length, *rest = base.spec.noise_shape
        if knots > length:
            raise SpecError(f"{knots} knots are more than the {length} steps of the noise of a chunk")
        horizon = act_steps or base.spec.horizon
        if horizon > base.spec.horizon:
            raise SpecError(f"act_steps {horizon} are more than the {base.spec.horizon} actions of a chunk")
        left = tuple(capability for capability in base.spec.capabilities if capability not in TAKEN)
        super().__init__(replace(base.spec, capabilities=left, horizon=horizon), config, base.requires_grad_(False))
        self.rows = knots or length
        size = self.rows * math.prod(rest)
        self.actor = NoiseActor(self.observation_dim, size, config.hidden, config.bound, START_LOG_STD).to(base.device)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> LatentSteered:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.bound, config.knots, config.hidden, config.steps, config.act_steps)

    def encode(self, obs: Mapping[str, Any]) -> SteeredContext:
        """The base's context and the features of the newest observation."""
        newest = {key: value[:, -1] if key in self.spec.observation else value for key, value in obs.items()}
        return SteeredContext(self.base.encode(obs), self.observe(newest))

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
        """The base's chunks (B, n, H, A) from the noise that the actor finds most likely; an active actor makes all n alike."""
        if guidance:
            raise SpecError("a steered policy takes no guidance: what its noise was chosen for would no longer come of it")
        drawn = used = noise_for(self.spec, ctx, n, noise, generator, self.device)
        if bool(self.actor.active):
            steps = self.config.steps if steps is None else steps
            chosen = self.noise(self.actor(ctx.features))
            used = chosen.unsqueeze(1).expand(-1, drawn.numel() // chosen.numel(), *chosen.shape[1:]).reshape_as(drawn)
        chunk = self.base.sample(ctx.inner, n=n, noise=used, steps=steps, features=features)
        return replace(chunk, actions=chunk.actions[:, :, : self.spec.horizon], noise=drawn)

    def noise(self, u: Tensor) -> Tensor:
        """What the actor chose, (B, U), as noise (B, *noise_shape)."""
        length, *rest = self.spec.noise_shape
        knots = u.view(len(u), self.rows, -1)
        if self.rows not in (1, length):
            knots = functional.interpolate(knots.transpose(1, 2), length, mode="linear", align_corners=True).transpose(1, 2)
        return knots.expand(-1, length, -1).reshape(len(u), length, *rest)


class Steering:
    """What learning to steer asks of a policy: frames of observations, and the chunk that a choice makes of a frame.

    Args:
        policy: the policy.
        executor: keeps its observation history; it is not asked to act.
        act_steps: actions of a chunk that are executed.
        half: keep the context's tensors in half precision, for contexts that are large: keys and values of a language model.
    """

    def __init__(self, policy: LatentSteered, executor: ChunkExecutor, act_steps: int, *, half: bool = False) -> None:
        self.policy, self.executor, self.act_steps, self.half = policy, executor, act_steps, half
        self.actor = policy.actor
        self._template: Any = None

    def reset(self, ids: Sequence[int] | None) -> None:
        """Worlds `ids` (None for all) begin new episodes."""
        self.executor.reset(ids)

    def frames(self, obs: Obs, ids: Sequence[int] | None = None, *, remember: bool = True) -> dict[str, Tensor]:
        """{"features": (N, D), and the context's tensors (N, ...)}: all that `decode` needs of these observations."""
        context = self.executor.context(obs, ids, remember=remember)
        packed, self._template = pack(context.inner)
        if self.half:
            packed = {key: value.half() if value.dtype == torch.float32 else value for key, value in packed.items()}
        return {"features": context.features, **packed}

    def decode(self, frames: Mapping[str, Tensor], u: Tensor) -> Tensor:
        """Frames and choices (B, U) → the actions that are executed, (B, act_steps, A) in [-1, 1]; differentiable in `u` where it asks."""
        with torch.set_grad_enabled(u.requires_grad):
            if self.half:
                frames = {key: value.float() if value.dtype == torch.float16 else value for key, value in frames.items()}
            context = unpack(self._template, frames, len(u))
            chunk = self.policy.base.sample(context, noise=self.policy.noise(u).unsqueeze(1), steps=self.policy.config.steps)  # type: ignore[operator]
            return chunk.actions[:, 0, : self.act_steps].clamp(-1, 1)


def pack(context: Any, prefix: str = CONTEXT) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a context, batch first, and the context itself to put others of the same kind into.

    Raises:
        SpecError: it holds what differs between rows and is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in _parts(context):
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif is_dataclass(value) or isinstance(value, Mapping | tuple):
            tensors |= pack(value, f"{prefix}{name}.")[0]
        elif isinstance(value, list) and len(set(value)) > 1:
            raise SpecError(f"the context of {type(context).__name__} has {name} that differ between rows: steer with one instruction")
    return tensors, context


def unpack(template: Any, tensors: Mapping[str, Tensor], rows: int, prefix: str = CONTEXT) -> Any:
    """A context like `template` of `rows` rows with these tensors in it."""
    made: dict[str, Any] = {}
    for name, value in _parts(template):
        if isinstance(value, Tensor):
            made[name] = tensors[prefix + name]
        elif is_dataclass(value) or isinstance(value, Mapping | tuple):
            made[name] = unpack(value, tensors, rows, f"{prefix}{name}.")
        elif isinstance(value, list):
            made[name] = value[:1] * rows
        else:
            made[name] = rows if name == "rows" else value
    if isinstance(template, Mapping):
        return made
    return tuple(made.values()) if isinstance(template, tuple) else replace(template, **made)


def _parts(context: Any) -> list[tuple[str, Any]]:
    if isinstance(context, Mapping):
        return list(context.items())
    if isinstance(context, tuple):
        return [(str(i), value) for i, value in enumerate(context)]
    return [(field.name, getattr(context, field.name)) for field in dataclasses.fields(context)]
