"""What the outputs of a value network mean: the "critic head" slot.

A head owns the whole way from outputs to learning: the value that an actor climbs, the target that rewards and the outputs at
the next state make, and the loss between the two with its gradient written out, so that every engine serves every head. Each
network of an ensemble learns on its own: a loss is a mean over networks of each one's loss, never a loss of their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sinew.errors import InputError

HeadName = Literal["scalar", "c51", "hl-gauss", "gaussian"]
Reduce = Literal["min", "mean"]


@dataclass(frozen=True, kw_only=True)
class Backup:
    """What a target is made of beside the outputs at the next state."""

    reward: Tensor
    """(B,), or (B, R) for several rewards: sum over the span, discounted."""
    discount: Tensor
    """(B,): discount of the next value, 0 after a terminal state."""
    reduce: Reduce = "min"
    """How several networks become one."""
    low: float | None = None
    """Targets are clipped from below."""
    high: float | None = None
    """Targets are clipped from above."""
    bonus: Tensor | None = None
    """(B,) added to the next value, an entropy."""
    generator: torch.Generator | None = None
    """Of the heads that draw."""

    def returns(self, value: Tensor) -> Tensor:
        """Next values (B,), or (B, N) for N possible ones of each transition → clipped targets of the same shape."""
        extra = (1,) * (value.dim() - 1)
        if self.bonus is not None:
            value = value + self.bonus.view(-1, *extra)
        reward = self.reward if self.reward.dim() == value.dim() else self.reward.view(-1, *extra)
        target = torch.addcmul(reward, self.discount.view(-1, *extra), value)
        return target if self.low is None and self.high is None else target.clamp_(self.low, self.high)


class ValueHead(Protocol):
    """Meaning of the outputs (K, B, out_dim) of K networks for B inputs. What it keeps in buffers is saved with the critic."""

    out_dim: int

    def value(self, out: Tensor) -> Tensor:
        """Outputs → values (K, B), differentiable."""
        ...

    def target(self, out: Tensor, backup: Backup) -> Tensor:
        """Outputs of the drawn target networks at the next state → what `loss` takes."""
        ...

    def target_mean(self, target: Tensor) -> Tensor:
        """Mean return () that a target stands for, to be shown."""
        ...

    def loss(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (E, B, out_dim) of all networks and their target → loss () and its gradient (E, B, out_dim)."""
        ...


def make_head(name: HeadName, heads: int, low: float = 0.0, high: float = 1.0, bins: int = 51) -> ValueHead:
    """The head called `name` for an ensemble of `heads` networks; returns lie in [low, high], which "c51" and "hl-gauss" divide.

    Raises:
        InputError: no such head, or the bounds and bins make no histogram.
    """
    if name == "scalar":
        return ScalarHead()
    if name == "c51":
        return CategoricalHead(low, high, bins)
    if name == "hl-gauss":
        return HistogramHead(low, high, bins)
    if name == "gaussian":
        return GaussianHead(heads)
    raise InputError(f"unknown critic head {name!r}: known are scalar, c51, hl-gauss, gaussian")


def reduce_values(values: Tensor, how: Reduce) -> Tensor:
    """Values (K, B) → (B,)."""
    return values.amin(0) if how == "min" else values.mean(0)


def _reduce_rows(rows: Tensor, values: Tensor, how: Reduce) -> Tensor:
    """(K, B, N) → (B, N): the mean, or for each input the row of the network whose value (K, B) is the lowest."""
    if how == "mean":
        return rows.mean(0)
    lowest = values.argmin(0)[None, :, None].expand(1, -1, rows.shape[-1])
    return rows.gather(0, lowest)[0]


class ScalarHead:
    """The output is the value; the loss is the mean over networks and batch of (Q_k - y)^2, target (B,)."""

    out_dim = 1

    def value(self, out: Tensor) -> Tensor:
        """(K, B, 1) → (K, B)."""
        return out[..., 0]

    def target(self, out: Tensor, backup: Backup) -> Tensor:
        """The lowest or mean value, one step on: (B,)."""
        return backup.returns(reduce_values(out[..., 0], backup.reduce))

    def target_mean(self, target: Tensor) -> Tensor:
        """Mean of the batch."""
        return target.mean()

    def loss(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error and its gradient, written out."""
        error = out - target[:, None]
        return error.square().mean(), error * (2.0 / error.numel())


class _Histogram(nn.Module):
    """Outputs are logits over returns at `support` (N,); targets are probabilities (B, N); the loss is their cross-entropy."""

    support: Tensor

    def __init__(self, support: Tensor) -> None:
        super().__init__()
        self.out_dim = len(support)
        self.register_buffer("support", support, persistent=False)

    def value(self, out: Tensor) -> Tensor:
        """Expected return of each."""
        return out.softmax(-1) @ self.support

    def target_mean(self, target: Tensor) -> Tensor:
        """Mean of the expected returns."""
        return (target @ self.support).mean()

    def loss(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, mean over networks and batch, and its gradient (softmax - target) / (E B)."""
        log_p = out.log_softmax(-1)
        rows = out.shape[0] * out.shape[1]
        return (target * log_p).sum() / -rows, (log_p.exp() - target).div_(rows)


class CategoricalHead(_Histogram):
    """A distribution over N returns from `low` to `high`; the distribution at the next state, moved and shrunk, is shared out again.

    Source: C51, Bellemare et al. 2017, arXiv:1707.06887; with two networks the one of the lower mean is taken (FastTD3, arXiv:2505.22642).
    """

    def __init__(self, low: float, high: float, bins: int = 51) -> None:
        if bins < 2 or not low < high:
            raise InputError(f"a critic of {bins} returns from {low} to {high} has no distribution: at least 2 and low < high are needed")
        super().__init__(torch.linspace(low, high, bins))
        self.low, self.width = low, (high - low) / (bins - 1)

    def target(self, out: Tensor, backup: Backup) -> Tensor:
        """Probabilities (B, N)."""
        p = out.softmax(-1)
        p = _reduce_rows(p, p @ self.support, backup.reduce)
        return self.project(backup.returns(self.support.expand_as(p)), p)

    def project(self, returns: Tensor, p: Tensor) -> Tensor:
        """Probabilities `p` (B, N) at `returns` (B, N) → at the support, each shared between its two neighbours."""
        place = ((returns - self.low) / self.width).clamp(0, self.out_dim - 1)
        below = place.floor().clamp_(max=self.out_dim - 2)
        upper = (place - below) * p
        index = below.long()
        return torch.zeros_like(p).scatter_add_(1, index, p - upper).scatter_add_(1, index + 1, upper)


class HistogramHead(_Histogram):
    """A histogram of N bins that learns a Gaussian around the target: regression made classification.

    Beyond `low` and `high` there are three bins more on each side (of the N), so that a Gaussian at the end is not cut off and
    its mean is the target.

    Source: HL-Gauss, Farebrother et al. 2024, arXiv:2403.03950: a standard deviation of 0.75 bins.
    """

    PADDING, SPREAD = 3, 0.75
    edges: Tensor

    def __init__(self, low: float, high: float, bins: int = 51) -> None:
        inner = bins - 1 - 2 * self.PADDING
        if inner < 1 or not low < high:
            raise InputError(f"a critic of {bins} bins from {low} to {high} has no histogram: at least 8 and low < high are needed")
        width = (high - low) / inner
        centres = low + width * (torch.arange(bins) - self.PADDING)
        super().__init__(centres)
        self.low, self.high, self.scale = low, high, self.SPREAD * width * math.sqrt(2)
        self.register_buffer("edges", torch.cat((centres - width / 2, centres[-1:] + width / 2)), persistent=False)

    def target(self, out: Tensor, backup: Backup) -> Tensor:
        """Probabilities (B, N)."""
        return self.probabilities(backup.returns(reduce_values(self.value(out), backup.reduce)))

    def probabilities(self, returns: Tensor) -> Tensor:
        """Returns (B,) → shares (B, N) of a Gaussian around each."""
        mass = torch.erf((self.edges - returns.clamp(self.low, self.high)[:, None]) / self.scale)
        return mass.diff(dim=-1) / (mass[:, -1:] - mass[:, :1])


class GaussianHead(nn.Module):
    """Mean and standard deviation of the return. The target is two numbers, (2, B): an expected return y that the mean learns
    from, and a drawn one y_z that the standard deviation does.

    Steps of both are as large as the usual standard deviation has it, its running mean (a buffer); y_z is kept within three of
    these of the mean. Errors above 50 pull no harder.

    Args:
        heads: networks of the ensemble.
        rate: of the running mean.

    Source: DSAC-T, Duan et al. 2023, arXiv:2310.05858. The published code takes half the squared error for the standard
    deviation, which then settles at 0.7 of what it is; here it is the whole, as in the paper.
    """

    out_dim = 2
    BIAS, LARGEST, DRAW = 0.1, 50.0, 3.0
    usual: Tensor

    def __init__(self, heads: int, rate: float = 0.005) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("usual", torch.full((heads, 1), math.nan))

    def value(self, out: Tensor) -> Tensor:
        """The means."""
        return out[..., 0]

    def target(self, out: Tensor, backup: Backup) -> Tensor:
        """(2, B): of the network with the lowest mean, or of the mean of all, the mean and a draw, one step on."""
        mean, sigma = out[..., 0], functional.softplus(out[..., 1])
        mean, sigma = _reduce_rows(torch.stack((mean, sigma), -1), mean, backup.reduce).unbind(-1)
        generator = backup.generator
        where = mean.device if generator is None else generator.device
        z = torch.randn(len(mean), generator=generator, device=where).to(mean).clamp_(-self.DRAW, self.DRAW)
        return torch.stack((backup.returns(mean), backup.returns(mean + z * sigma)))

    def target_mean(self, target: Tensor) -> Tensor:
        """Mean of the expected returns."""
        return target[0].mean()

    def loss(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted Huber loss of the mean and the standard deviation's share of the likelihood; moves the running mean."""
        mean, raw = out.detach().unbind(-1)
        sigma = functional.softplus(raw)
        now = sigma.mean(1, keepdim=True)
        self.usual.copy_(torch.where(self.usual.isnan(), now, self.usual.lerp(now, self.rate)))
        weight = (self.usual.square() / (sigma.square() + self.BIAS)).clamp_(0.1, 10.0)
        error = mean - target[0]
        drawn = (target[1] - mean).clamp(-3 * self.usual, 3 * self.usual)
        slope = (sigma.square() - 2 * _huber(drawn, self.LARGEST)) / (sigma + self.BIAS)
        loss = (weight * (_huber(error, self.LARGEST) + sigma * slope)).mean()
        grad = torch.stack((error.clamp(-self.LARGEST, self.LARGEST), slope * raw.sigmoid()), -1)
        return loss, grad * (weight / mean.numel())[..., None]


def _huber(error: Tensor, largest: float) -> Tensor:
    """e^2 / 2, and linear beyond `largest`."""
    size = error.abs()
    inner = size.clamp(max=largest)
    return inner * (size - 0.5 * inner)


class VectorHead(nn.Module):
    """One value for each of R rewards, under one discount; the actor climbs their weighted sum. The target is (B, R).

    Args:
        weights: (R,) of the sum; a cost has a negative one.
        normalise: divide each reward's values by how much they usually vary (a running buffer), in the sum and in the loss, so
            that no reward counts for more because its numbers are larger.
        rate: of the running buffer.
    """

    weights: Tensor
    scale: Tensor

    def __init__(self, weights: Sequence[float], *, normalise: bool = False, rate: float = 0.005) -> None:
        super().__init__()
        if not len(weights):
            raise InputError("a critic of several rewards needs a weight for each; none were given")
        self.out_dim, self.normalise, self.rate = len(weights), normalise, rate
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.full((self.out_dim,), math.nan))

    def _scale(self) -> Tensor:
        return torch.where(self.scale.isnan(), torch.ones_like(self.scale), self.scale)

    def value(self, out: Tensor) -> Tensor:
        """The weighted sum."""
        return out @ (self.weights / self._scale() if self.normalise else self.weights)

    def target(self, out: Tensor, backup: Backup) -> Tensor:
        """(B, R): for each input all values of the network with the lowest sum, or the mean of all networks, one step on."""
        if backup.bonus is not None:
            raise InputError("an entropy in the target belongs to no one of several rewards; set entropy_in_target to False")
        if backup.reward.dim() != 2 or backup.reward.shape[1] != self.out_dim:
            raise InputError(f"the critic has {self.out_dim} rewards but the batch's are of shape {tuple(backup.reward.shape)}")
        return backup.returns(_reduce_rows(out, self.value(out), backup.reduce))

    def target_mean(self, target: Tensor) -> Tensor:
        """Mean of the weighted sums."""
        return self.value(target).mean()

    def loss(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over networks, batch and rewards of the squared error, each reward in its own scale."""
        error = out.detach() - target
        if self.normalise:
            now = target.std(0).clamp_(min=1e-6)
            self.scale.copy_(torch.where(self.scale.isnan(), now, self.scale.lerp(now, self.rate)))
            error = error / self._scale()
        grad = error * (2.0 / error.numel())
        return error.square().mean(), grad / self._scale() if self.normalise else grad
