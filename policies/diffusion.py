"""Diffusion Policy: a network that predicts the noise in a chunk, sampled by DDIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from policies.catalog import register
from policies.denoising import Coefficients, Corrupted, DenoisingConfig, DenoisingPolicy
from sinew.errors import InputError, SpecError
from sinew.specs import PolicySpec


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(DenoisingConfig):
    """Settings of the diffusion policy."""

    schedule: str = "squaredcos_cap_v2"
    """Noise schedule, by its name in diffusers' DDPMScheduler."""
    train_levels: int = 100
    """Noise levels of the schedule."""
    clip_sample: bool = True
    """Limit clean estimates to [-1, 1] while sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_levels < 2 or self.steps > self.train_levels:
            raise SpecError(f"diffusion needs 2 or more train_levels, not fewer than its steps; given {self.train_levels} and {self.steps}")


@register("diffusion")
class DiffusionPolicy(DenoisingPolicy):
    """DDPM with the noise as target: y = sqrt(abar) a + sqrt(1 - abar) eps, and the network learns eps.

    In the common frame abar = 1 / (1 + sigma^2) and D = (y - sqrt(1 - abar) F) / sqrt(abar). Sampling is DDIM with
    trailing spacing, so that it starts at the noisiest level. Between the levels of the schedule the network is told
    the interpolated one.

    Source: Chi et al. 2023, arXiv:2303.04137; Ho et al. 2020, arXiv:2006.11239; Song et al. 2020, arXiv:2010.02502;
    trailing spacing of Lin et al. 2023, arXiv:2305.08891.
    """

    Config = DiffusionConfig
    log_sigma: Tensor

    def __init__(self, spec: PolicySpec, config: Any) -> None:
        super().__init__(spec, config)
        self.clip = config.clip_sample
        self.register_buffer("log_sigma", log_sigmas(config.schedule, config.train_levels), persistent=False)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `DenoisingPolicy.coefficients`."""
        skip = (1 + sigma.square()).sqrt()
        return Coefficients(scale=1 / skip, skip=skip, out=-sigma, level=self._index(sigma) / self.config.train_levels)

    def _index(self, sigma: Tensor) -> Tensor:
        """Position of `sigma` in the schedule, linear in log sigma between levels, limited to the first and last."""
        table = self.log_sigma.to(sigma)
        wanted = sigma.clamp(min=1e-12).log().clamp(table[0], table[-1])
        above = torch.searchsorted(table, wanted.contiguous()).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return above - 1 + (wanted - low) / (high - low)

    def corrupt(self, action: Tensor, noise: Tensor, t: Tensor) -> Corrupted:
        """See `DenoisingPolicy.corrupt`; the time is rounded down to a level of the schedule."""
        count = self.config.train_levels
        index = (t * count).long().clamp(0, count - 1)
        sigma = self.log_sigma.to(t).exp()[index][:, None, None]
        scale = 1 / (1 + sigma.square()).sqrt()
        return Corrupted(scale * action + scale * sigma * noise, noise, index.to(t.dtype) / count)

    def levels(self, steps: int) -> Tensor:
        """DDIM's, equidistant in the index of the schedule from its noisiest level on.

        Raises:
            SpecError: more steps than the schedule has levels.
        """
        count = self.config.train_levels
        if steps > count:
            raise SpecError(f"this diffusion policy samples in at most {count} steps, the levels of its schedule, not {steps}")
        index = (torch.arange(steps, 0, -1, dtype=torch.float64) * count / steps).round().long() - 1
        return torch.cat([self.log_sigma[index.to(self.log_sigma.device)].cpu().exp(), torch.zeros(1, dtype=torch.float64)])


def log_sigmas(schedule: str, count: int) -> Tensor:
    """Logarithm of the noise level sqrt((1 - abar) / abar) of every level (count,) float64, rising.

    Raises:
        InputError: diffusers knows no such schedule.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    try:
        products = cast(Any, DDPMScheduler)(num_train_timesteps=count, beta_schedule=schedule).alphas_cumprod.double()
    except NotImplementedError:
        raise InputError(f"noise schedule {schedule!r} is unknown to diffusers: squaredcos_cap_v2, linear, scaled_linear "
                         "and sigmoid are known") from None
    return ((1 - products) / products).sqrt().log()
