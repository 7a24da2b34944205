"""The objective of proximal policy optimisation on a policy whose every action is a chain of K random steps.

Each step has a ratio of its own, new density over old; all K share the advantage of the action they led to. How far a step
may move and how much it counts are schedules over the chain, made once as tensors.

Source: PPO, Schulman et al. 2017, arXiv:1707.06347; in the denoising chain DPPO, Ren et al. 2024, arXiv:2409.00588, and
RL-100, Lei et al. 2025, arXiv:2510.14830; estimator of the divergence Schulman 2020, joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sinew.errors import InputError

CLIP_RATE = 3.0
"""Of the exponential from the first step's clip to the last one's."""


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig:
    """Settings of the objective."""

    clip: float = 0.2
    """Ratios of the last step of the chain count within 1 - clip and 1 + clip."""
    clip_first: float | None = None
    """That of the first step, from which it grows exponentially to `clip`; None for the same at all steps."""
    denoising_discount: float = 1.0
    """The advantage of a step is discounted by this for each step that follows it in the chain; 1 shares it alike (RL-100),
    0.99 is DPPO's."""
    reduce: Literal["sum", "mean"] = "sum"
    """Log probability of a step: the sum over its elements, which is the density's (RL-100), or their mean (DPPO), which
    tolerates larger steps."""
    ratio: Literal["step", "chain"] = "step"
    """One ratio for each step, or one for the whole chain, the product of them."""
    log_ratio_limit: float = 10.0
    """Logarithms of ratios are limited to plus or minus this, so that no single sample overflows."""

    def __post_init__(self) -> None:
        first = self.clip if self.clip_first is None else self.clip_first
        if not 0 < first <= self.clip or not 0 < self.denoising_discount <= 1 or not self.log_ratio_limit > 0:
            raise InputError(
                f"clip {self.clip} and clip_first {self.clip_first} must be above 0 and the first not the larger, "
                f"denoising_discount {self.denoising_discount} in (0, 1], log_ratio_limit {self.log_ratio_limit} above 0"
            )


def clip_schedule(steps: int, config: SurrogateConfig, like: Tensor) -> Tensor:
    """Clip (K,) of every step of a chain of `steps`, of the kind of `like`."""
    if config.clip_first is None or steps == 1:
        return like.new_full((steps,), config.clip)
    share = torch.expm1(CLIP_RATE * torch.linspace(0, 1, steps)) / math.expm1(CLIP_RATE)
    return (config.clip_first + (config.clip - config.clip_first) * share).to(like)


def discount_schedule(steps: int, config: SurrogateConfig, like: Tensor) -> Tensor:
    """What the advantage is multiplied by at every step (K,); 1 at the last."""
    return (config.denoising_discount ** torch.arange(steps - 1, -1, -1)).to(like)


@dataclass(frozen=True)
class Surrogate:
    """The objective and what it was made of."""

    loss: Tensor
    """() to be minimised."""
    divergence: Tensor
    """() estimate of KL(old, new) per step of the chain, without gradient."""
    clipped: Tensor
    """() share of ratios outside their clip, without gradient."""


def surrogate(log_p: Tensor, old_log_p: Tensor, advantage: Tensor, elements: int, config: SurrogateConfig) -> Surrogate:
    """The clipped objective, minus the mean over decisions and steps.

    Args:
        log_p: (B, K) log densities of the steps now, summed over their elements; differentiable.
        old_log_p: (B, K) those of the policy that walked the chains.
        advantage: (B,) of the action that each chain led to.
        elements: of a step, H * A; used by the mean.
        config: settings.
    """
    log_ratio = log_p - old_log_p
    if config.reduce == "mean":
        log_ratio = log_ratio / elements
    clip, weight = clip_schedule(log_p.shape[1], config, log_p), discount_schedule(log_p.shape[1], config, log_p)
    if config.ratio == "chain":
        log_ratio, clip, weight = log_ratio.sum(1, keepdim=True), clip[-1:], weight[-1:]
    log_ratio = log_ratio.clamp(-config.log_ratio_limit, config.log_ratio_limit)
    ratio, gain = log_ratio.exp(), advantage[:, None] * weight
    limited = torch.maximum(torch.minimum(ratio, 1 + clip), 1 - clip)
    loss = -torch.minimum(ratio * gain, limited * gain).mean()
    with torch.no_grad():
        divergence = (ratio - 1 - log_ratio).mean()
        clipped = ((ratio - 1).abs() > clip).float().mean()
    return Surrogate(loss, divergence, clipped)


def generalised_advantage(
    reward: Tensor, discount: Tensor, value: Tensor, next_value: Tensor, follows: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """GAE over decisions of any length, in the order in which each world made them.

    Args:
        reward: (M,) discounted within the decision.
        discount: (M,) gamma^span, 0 where the episode terminated (a time-out bootstraps).
        value: (M,) of the state that was decided in.
        next_value: (M,) of the state after it.
        follows: (M,) bool: the next row is the next decision of the same episode.
        decay: lambda.

    Returns:
        (M,) advantages; (M,) returns, advantage plus value.

    Source: Schulman et al. 2015, arXiv:1506.02438.
    """
    delta = (reward + discount * next_value - value).tolist()
    carry = (decay * discount * follows).tolist()
    total, advantage = 0.0, [0.0] * len(delta)
    for i in range(len(delta) - 1, -1, -1):
        total = delta[i] + carry[i] * total
        advantage[i] = total
    made = reward.new_tensor(advantage)
    return made, made + value


def normalised(advantage: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1; unchanged in direction where all are alike."""
    return (advantage - advantage.mean()) / advantage.std(correction=0).clamp(min=1e-6)
