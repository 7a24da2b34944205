"""Real-time chunking: the next chunk is sampled while the current one is executed, as a continuation of it.

A chunk that is asked for at one tick is there d ticks later. The d actions until then are already decided, and those after
them are best kept in mind, so that the new chunk goes on where the old one was going: it is sampled under the guidance that
its overlap with the old chunk be the old chunk.

Source: Black et al. 2025, arXiv:2506.07339; its guidance is that of Song et al. 2023 (pseudo-inverse guidance) and Pokle et
al. 2023, arXiv:2310.04432 (on flows).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from sinew.errors import InputError, SpecError

BETA = 5.0
"""Largest weight of the guidance in terms of the velocity, as in the paper."""


class RealTimeGuidance:
    """Draws a sample to a previous chunk: D' = D + min(1 + sigma^2, beta sigma) J^T [w (Y - D)], J = dD/dx.

    The published form is on the flow y = t eps + (1 - t) a with velocity v, where a is estimated as D = y - t v:

        v' = v - g J_y^T e,   e = w (Y - D),   g = min((1 - tau) / tau * ((1 - tau)^2 + tau^2) / (1 - tau)^2, beta),

    with tau = 1 - t. In the common form t = sigma / (1 + sigma) and y = x / (1 + sigma), hence (1 - tau) / tau = sigma and
    (1 - tau)^2 / ((1 - tau)^2 + tau^2) = sigma^2 / (1 + sigma^2), so that g = min((1 + sigma^2) / sigma, beta). The estimate
    moves by t times what the velocity does, and J_y = (1 + sigma) J since x = (1 + sigma) y: together t (1 + sigma) g =
    sigma g, which is the factor above. Nothing of a flow is left in it, so it guides any denoiser.

    With jacobian="identity", J_y is taken to be 1, that is D' = D + t g e: no backward pass, and no longer the gradient of
    anything; it is what LeRobot's implementation computes.

    Args:
        previous: (B, H, A) what is left of the old chunk, from the tick of the observation on; any value where it has ended.
        weight: (H,) or (B, H) how much each action counts, 0 to 1; see `overlap_weight`.
        beta: largest g.
        jacobian: "vjp" for the product with J^T, "identity" for the shortcut.
    """

    def __init__(
        self, previous: Tensor, weight: Tensor, *, beta: float = BETA, jacobian: Literal["vjp", "identity"] = "vjp"
    ) -> None:
        if jacobian not in ("vjp", "identity"):
            raise SpecError(f"jacobian {jacobian!r} is unknown: known are vjp, identity")
        if not beta >= 0:
            raise SpecError(f"real-time guidance needs beta >= 0, not {beta:g}")
        if previous.ndim != 3 or weight.shape not in (previous.shape[:2], previous.shape[1:2]):
            raise SpecError(f"weights {tuple(weight.shape)} do not fit a previous chunk {tuple(previous.shape)}: give (H,) or (B, H)")
        self.previous = previous
        self.weight = weight.expand(previous.shape[:2]).unsqueeze(-1)
        self.beta, self.jacobian = beta, jacobian
        self.differentiates = jacobian == "vjp"

    def __call__(self, x: Tensor, clean: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """The guided estimate (B * n, H, A); the n candidates of an observation follow the same previous chunk."""
        n = len(x) // len(self.previous)
        weight, previous = (value.repeat_interleave(n, 0) for value in (self.weight, self.previous))
        error = (weight * (previous - clean)).detach()
        sigma = sigma[:, None, None]
        if self.jacobian == "identity":
            gain = ((1 + sigma.square()) / sigma).clamp(max=self.beta)
            return clean + sigma / (1 + sigma) * gain * error
        (pulled,) = torch.autograd.grad(clean, x, error, retain_graph=True)
        return clean + torch.minimum(1 + sigma.square(), self.beta * sigma) * pulled


def continuing(
    left: Tensor, horizon: int, delay: int, started: Tensor | None = None, jacobian: Literal["vjp", "identity"] = "vjp"
) -> RealTimeGuidance:
    """The guidance of chunks that go on from old ones.

    Args:
        left: (B, L, A) what is left of the old chunks, L <= H.
        horizon: H.
        delay: actions of `left` that are executed before the new chunk is there.
        started: (B,) bool, False where there is no old chunk; None for all True.
        jacobian: see `RealTimeGuidance`.
    """
    weight = overlap_weight(horizon, delay, left.shape[1]).to(left)
    weight = weight if started is None else started.to(left).unsqueeze(-1) * weight
    whole = torch.nn.functional.pad(left, (0, 0, 0, horizon - left.shape[1]))
    return RealTimeGuidance(whole, weight, jacobian=jacobian)


def overlap_weight(horizon: int, delay: int, left: int) -> Tensor:
    """How much each action (H,) of a new chunk is held to the old one.

    1 for the `delay` actions that are decided; then, over what else the old chunk still covers, c (e^c - 1) / (e - 1) with c
    falling linearly to 0 at its end; then 0.

    Args:
        horizon: H.
        delay: ticks d until the new chunk is there.
        left: actions that are left of the old chunk, H - s.
    """
    index = torch.arange(horizon, dtype=torch.float32)
    c = ((left - index) / max(left - delay + 1, 1)).clamp(0, 1)
    fading = c * torch.expm1(c) / math.expm1(1)
    return torch.where(index < min(delay, left), 1.0, torch.where(index < left, fading, 0.0))


def check_delay(horizon: int, delay: int, act_steps: int | None) -> int:
    """The ticks between two chunks, `act_steps` or the most that there can be.

    Raises:
        InputError: the delay d leaves no room: d <= act_steps <= H - d is needed.
    """
    if not 0 <= 2 * delay <= horizon:
        raise InputError(
            f"a delay of {delay} ticks does not fit chunks of {horizon} actions, it may be 0 to {horizon // 2}: "
            "take fewer sampling steps, train a longer horizon, or use executor sync"
        )
    low, high = max(delay, 1), horizon - delay
    chosen = high if act_steps is None else act_steps
    if not low <= chosen <= high:
        raise InputError(
            f"act_steps {chosen} is not within {low}..{high}, which a delay of {delay} ticks leaves of chunks of {horizon} actions"
        )
    return chosen
