"""An energy policy: a scalar energy of action chunks, trained so that its gradient leads from noise to the demonstrations.

Equilibrium matching teaches the gradient of E(x, c) along straight paths x = gamma a + (1 - gamma) eps:

    grad E = c(gamma) (eps - a),   c(gamma) = scale * min(1, (1 - gamma) / (1 - plateau)),

so that demonstrations are equilibria and everything around them leads to one. There is no time: acting is gradient
descent from noise, and each sample stops where its own gradient has vanished.

Taught through its own descent from pure noise instead, with the squared error of each step, an energy learns the mean
of the demonstrations (tests/policies/test_energy.py shows both on two modes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Generator, Tensor

from policies.base import EmbeddingContext, PolicyModule, noise_for, per_chunk, weighted_loss
from policies.catalog import register
from policies.conditioned import ConditionedPolicy
from policies.encoders import ImageConfig, ObservationEncoder
from policies.energy_network import MlpEnergy, TransformerEnergy
from sinew.errors import SpecError
from sinew.protocols import Chunk, Loss
from sinew.specs import ACTION, PolicySpec

BACKBONES = ("mlp", "transformer")


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """Settings of the energy policy."""

    backbone: str = "mlp"
    """"mlp" for states and short chunks, or "transformer" (one token per action) for long ones."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the MLP."""
    embedding_dim: int = 128
    """Width of the transformer."""
    layers: int = 4
    """Blocks of the transformer."""
    heads: int = 4
    """Attention heads of the transformer."""
    scale: float = 4.0
    """Size of the gradient that is taught, far from the demonstrations, in distances to them."""
    plateau: float = 0.8
    """Share gamma of the way to a demonstration from which on the gradient falls to zero."""
    steps: int = 15
    """Largest number of gradients of a sample."""
    step_size: float = 0.05
    """Descent per gradient; (1 - plateau) / scale reaches a demonstration in one step from anywhere near it."""
    tolerance: float = 0.3
    """A sample stops where the root mean square of its gradient is below this; 0 never stops early."""
    mask_padding: bool = True
    """Leave the actions past an episode's end out of the loss; False trains on the repeated last action."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Settings of the image encoder."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise SpecError(f"energy backbone {self.backbone!r} is unknown: known are {', '.join(BACKBONES)}")
        if not self.hidden or min(*self.hidden, self.embedding_dim, self.layers, self.heads, self.steps) < 1:
            raise SpecError("energy widths, embedding_dim, layers, heads and steps must be at least 1")
        if self.embedding_dim % self.heads:
            raise SpecError(f"energy embedding_dim {self.embedding_dim} must be a multiple of the {self.heads} heads")
        if not (0 < self.scale < math.inf and 0 <= self.plateau < 1 and 0 < self.step_size < math.inf and self.tolerance >= 0):
            raise SpecError(f"energy needs scale > 0, plateau in [0, 1), step_size > 0 and tolerance >= 0; given {self.scale}, "
                            f"{self.plateau}, {self.step_size} and {self.tolerance}")


class Descent(NamedTuple):
    """Where gradient descent came to, with what was found at each sample's last gradient."""

    x: Tensor
    """(R, H, A) chunks, not limited to [-1, 1]."""
    slope: Tensor
    """(R,) root mean square of the last gradient."""
    hidden: Tensor
    """(R, F) hidden units there."""
    evaluations: Tensor
    """(R,) int64 gradients taken."""


@register("energy")
class EnergyPolicy(ConditionedPolicy):
    """Gradient descent on a learned energy of action chunks, each sample for as long as it needs.

    Args:
        spec: observation, action, horizon and n_obs_steps.
        config: settings.

    Source: equilibrium matching of Wang and Du 2025, arXiv:2510.02300; as a policy Davies et al. 2025, arXiv:2510.27545.
    """

    Config = EnergyConfig

    def __init__(self, spec: PolicySpec, config: EnergyConfig) -> None:
        encoder = ObservationEncoder(spec.observation, spec.n_obs_steps, config.image)
        net = make_network(config, spec.horizon, spec.action_dim, encoder.dim)
        complete = replace(
            spec,
            noise_shape=(spec.horizon, spec.action_dim),
            feature_dim=net.feature_dim,
            capabilities=("noise", "energy", "features", "observe"),
        )
        super().__init__(complete, config, encoder, config.image)
        self.net = net

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

    def encode(self, obs: Mapping[str, Tensor]) -> EmbeddingContext:
        """{key: (B, To, ...)} → context with all that the energy needs of the observation."""
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
        """Chunks (B, n, H, A) by at most `steps` gradients each, without gradient to noise or weights.

        `energy` is what `EnergyPolicy.energy` gives at each sample's last gradient, `features` the hidden units there.

        Raises:
            SpecError: guidance is given, or steps is below 1.
        """
        if guidance:
            raise SpecError("an energy policy takes no guidance: its gradient belongs to no noise level; choose among its samples instead")
        noise = noise_for(self.spec, ctx, n, noise, generator, ctx.embedding.device)
        condition = ctx.embedding.repeat_interleave(ctx.candidates * n, 0)
        found = self.descend(noise.flatten(0, 1), condition, steps)
        return Chunk(
            actions=found.x.clamp(-1, 1).view_as(noise),
            noise=noise,
            features=found.hidden.unflatten(0, noise.shape[:2]) if features else None,
            energy=found.slope.view(noise.shape[:2]),
        )

    def descend(self, x: Tensor, condition: Tensor, steps: int | None = None) -> Descent:
        """Gradient descent from chunks x (R, H, A) under embedded conditions (R, E).

        A sample whose gradient is below the tolerance stays where it is and is evaluated no more.
        """
        limit: int = self.config.steps if steps is None else steps
        if limit < 1:
            raise SpecError(f"an energy policy samples in at least 1 step, not {limit}")
        x, active = x.detach().clone(), torch.arange(len(x), device=x.device)
        slope, hidden = x.new_zeros(len(x)), x.new_zeros(len(x), self.spec.feature_dim)
        evaluations = torch.zeros_like(active)
        for _ in range(limit):
            gradient, seen = self.gradient(x[active], condition[active])
            size = gradient.square().mean((1, 2)).sqrt()
            slope[active], hidden[active] = size, seen
            evaluations[active] += 1
            moving = size >= self.config.tolerance
            active = active[moving]
            if not len(active):
                break
            x[active] -= self.config.step_size * gradient[moving]
        return Descent(x, slope, hidden, evaluations)

    def gradient(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the energy (R, H, A) at x (R, H, A) under embedded conditions (R, E), and hidden units (R, F); works
        under no_grad and inference_mode too.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x, condition = x.detach().clone().requires_grad_(), condition.detach().clone()
            energy, hidden = self.net(x, condition)
            return torch.autograd.grad(energy.sum(), x)[0], hidden.detach()

    def energy(self, x: Tensor, ctx: Any) -> Tensor:
        """How far chunks x (B, H, A) are from an equilibrium (B,): the root mean square of the gradient.

        Training determines the gradient only, and the scalar E up to a constant of the observation, so that E cannot compare
        observations. The size of the gradient does not tell known observations from unknown ones either: it ranks chunks for one
        observation, lower being better. It does so best on the way (on a problem with two known modes its rank correlation with the
        true error was 0.7 after 6 steps) and hardly once all samples have stopped (0.2).
        """
        condition = ctx.embedding.repeat_interleave(ctx.candidates, 0)
        return self.gradient(x, condition)[0].square().mean((1, 2)).sqrt()

    # ------------------------------------------------------------ learning

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Squared error of the energy's gradient, over the actions within the episode; differentiates twice.

        Args:
            batch: {key: (B, To, ...)}, "action" (B, H, A) in [-1, 1], "action_is_pad" (B, H) bool, "weight" (B,) or none.
            t: (B,) gamma in [0, 1], the share of the demonstration; drawn where None.
            noise: (B, H, A); drawn where None.
        """
        action = batch[ACTION]
        if t is None or noise is None:
            drawn = {k: v.to(action.device) for k, v in self.draw(action.shape[0]).items()}
            t, noise = drawn["t"] if t is None else t, drawn["noise"] if noise is None else noise
        gamma = t[:, None, None]
        target = self.pull(gamma) * (noise - action)
        condition, learning = self.encode(batch).embedding, torch.is_grad_enabled()
        with torch.enable_grad():
            x = (gamma * action + (1 - gamma) * noise).detach().requires_grad_()
            energy, _ = self.net(x, condition)
            gradient = torch.autograd.grad(energy.sum(), x, create_graph=learning)[0]
        error = (gradient - target).square().mean(-1)
        return weighted_loss(per_chunk(error, batch, self.config.mask_padding), batch)

    def pull(self, gamma: Tensor) -> Tensor:
        """c(gamma), the taught gradient per distance between noise and demonstration."""
        return self.config.scale * ((1 - gamma) / (1 - self.config.plateau)).clamp(max=1)


def make_network(config: EnergyConfig, horizon: int, action_dim: int, condition_dim: int) -> Any:
    """The energy that `config` names."""
    if config.backbone == "mlp":
        return MlpEnergy(horizon, action_dim, condition_dim, config.hidden, config.scale)
    return TransformerEnergy(horizon, action_dim, condition_dim, config.embedding_dim, config.layers, config.heads, config.scale)
