"""Flow matching on straight paths: noise is carried to an action chunk along a learned velocity field."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from policies.catalog import register
from policies.denoising import Coefficients, Corrupted, DenoisingConfig, DenoisingPolicy
from policies.sampling import sigma_to_time, time_to_sigma
from sinew.errors import SpecError

SIGMA_MAX = 1000.0
"""Noise level at which sampling starts; the data are bounded by 1, so nothing of them is left there."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(DenoisingConfig):
    """Settings of the flow policy."""

    time_sampling: str = "uniform"
    """Training times: "uniform", or "beta" for Beta(1.5, 1), which looks more at noisy chunks (arXiv:2410.24164)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_sampling not in ("uniform", "beta"):
            raise SpecError(f"flow time_sampling {self.time_sampling!r} is unknown: known are uniform, beta")


@register("flow")
class FlowPolicy(DenoisingPolicy):
    """Rectified flow with t = 1 for noise: y = t eps + (1 - t) a, and the network learns the velocity eps - a.

    In the common frame t = sigma / (1 + sigma), y = (1 - t) x and D = y - t F. Sampling takes equal steps in t from
    t = SIGMA_MAX / (1 + SIGMA_MAX) to 0.

    Source: Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.
    """

    Config = FlowConfig

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `DenoisingPolicy.coefficients`."""
        t = sigma_to_time(sigma)
        return Coefficients(scale=1 / (1 + sigma), skip=torch.ones_like(t), out=-t, level=t)

    def corrupt(self, action: Tensor, noise: Tensor, t: Tensor) -> Corrupted:
        """See `DenoisingPolicy.corrupt`."""
        weight = t[:, None, None]
        return Corrupted(weight * noise + (1 - weight) * action, noise - action, t)

    def levels(self, steps: int) -> Tensor:
        """Equidistant in t."""
        start = float(sigma_to_time(torch.tensor(SIGMA_MAX, dtype=torch.float64)))
        return time_to_sigma(torch.linspace(start, 0, steps + 1, dtype=torch.float64))

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Times by the setting `time_sampling`, and the rest."""
        drawn = super().draw(rows, generator)
        if self.config.time_sampling == "beta":
            drawn["t"] = drawn["t"].pow(1 / 1.5)  # inverse of the distribution function t^1.5 of Beta(1.5, 1)
        return drawn
