"""Features divided by statistics that are gathered while learning, as a part of the actor that is saved with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rl.group import ALONE, Group


class RunningNorm(nn.Module):
    """Mean and variance of all that was seen, as buffers; `forward` takes the one away and divides by the root of the other."""

    FLOOR = 1e-4
    """Added to the variance, so that features that hardly vary are not blown up."""
    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, group: Group = ALONE) -> None:
        """Take in x (B, size) of each learner of a group, by the parallel algorithm of Chan et al. 1979."""
        rows = len(x) * group.size
        share = (rows / (self.count + rows)).to(x.dtype)
        variance, mean = torch.var_mean(x, 0, correction=0)
        if group.size > 1:
            moments = torch.stack((mean, variance + mean.square()))
            group.average([moments])
            mean, variance = moments[0], moments[1] - moments[0].square()
        apart = mean - self.mean
        self.variance.lerp_(variance, share).addcmul_(apart.square(), share * (1 - share))
        self.mean.add_(apart * share)
        self.count.add_(rows)

    def scale(self) -> Tensor:
        """What is multiplied by."""
        return (self.variance + self.FLOOR).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        """(B, size) → (B, size)."""
        return (x - self.mean) * self.scale()


class NormalisedActor(nn.Module):
    """An actor that begins with a linear layer, behind running statistics."""

    def __init__(self, actor: nn.Module, feature_dim: int) -> None:
        super().__init__()
        self.actor = actor
        self.norm = RunningNorm(feature_dim).to(next(actor.parameters()).device)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) → actions (N, A) in [-1, 1]."""
        return self.actor(self.norm(features))

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """The actor alone with the statistics in its first layer: the same function; this one is used up."""
        first = next(m for m in self.actor.modules() if isinstance(m, nn.Linear))
        first.weight.mul_(self.norm.scale())
        first.bias.sub_(first.weight @ self.norm.mean)
        return self.actor
