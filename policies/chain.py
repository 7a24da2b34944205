"""Denoising as a chain of random steps, each with a density: what policy gradients through a sampler need.

The native sampler of every denoising policy is a step of the probability flow, x' = D + (x - D) sigma' / sigma. Noise of
standard deviation s can be put in while the share that is kept of x - D is lessened to sqrt(sigma'^2 - s^2) / sigma: the
marginals stay those of the flow, for s up to sigma'. With s = eta (sigma' / sigma) sqrt(sigma^2 - sigma'^2) this is DDIM with
that eta, and the same expression serves flow and EDM policies, which differ from diffusion in D and in their levels alone.

Chunks of the chain are in the unit u = x / sqrt(1 + sigma^2), in which every level has about unit variance; the standard
deviation is limited in this unit, from below so that the last steps explore and have a density at all.

Source: Song et al. 2020, arXiv:2010.02502 (eta); DPPO, Ren et al. 2024, arXiv:2409.00588 (limits, last steps alone); RL-100,
Lei et al. 2025, arXiv:2510.14830.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from policies.base import PolicyModule, capability
from policies.language import instructions
from sinew.errors import SpecError
from sinew.protocols import Obs
from sinew.specs import TASK

OBSERVED = "observed."
"""Prefix of the observations in the frames of a chain."""


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Settings of the random sampler."""

    steps: int | None = None
    """Steps of a sample, K; None for the policy's own."""
    trained_steps: int | None = None
    """The last steps that are random and have a density, K'; those before are the flow's. None for all."""
    eta: float = 1.0
    """0 puts in no more noise than `std_low`, 1 as much as the ancestral sampler."""
    std_low: float = 0.05
    """Least standard deviation of a random step, in the unit of the chain; 0 only for a chain that is not trained. It is the
    exploration of the action itself: on a cloned policy for lift, 0.05 cost no success, 0.1 some and 0.2 half of it."""
    std_high: float = 1.0
    """Largest standard deviation of a random step."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1 or not 0 <= self.std_low <= self.std_high or not self.std_high > 0:
            raise SpecError(
                f"a denoising chain needs eta in [0, 1] and 0 <= std_low <= std_high, given {self.eta}, {self.std_low} and {self.std_high}"
            )


class DenoisingChain:
    """The random sampler of a policy with capability "denoise".

    Args:
        policy: the policy; its weights may change.
        config: settings.

    Raises:
        SpecError: the policy is no denoiser, or there are not that many steps to train.
    """

    def __init__(self, policy: PolicyModule, config: ChainConfig | None = None) -> None:
        config = config or ChainConfig()
        self.policy, self.config = capability(policy, "denoise"), config
        sigma = self.policy.sigmas(config.steps).double()
        total = len(sigma) - 1
        self.steps = total if config.trained_steps is None else config.trained_steps
        """Random steps, K'."""
        if not 1 <= self.steps <= total:
            raise SpecError(f"{self.steps} steps of the chain cannot be trained: this policy samples in {total}")
        now, later = sigma[:-1], sigma[1:]
        unit_now, unit = (1 + now.square()).sqrt(), (1 + later.square()).sqrt()
        std = (config.eta * later / now * (now.square() - later.square()).sqrt() / unit).clamp(config.std_low, config.std_high)
        std[: total - self.steps] = 0
        share = (later.square() - (std * unit).square()).clamp(min=0).sqrt() / now
        device = policy.device
        self.sigma = now.float().to(device)
        self._unit, self._keep, self._pull, self.std = (
            value.float().to(device) for value in (unit_now, share * unit_now / unit, (1 - share) / unit, std)
        )
        self._first = float(now[0] / unit_now[0])
        self._before = total - self.steps

    def chain(self, ctx: Any, noise: Tensor) -> Tensor:
        """Walk the chain; see `walk`."""
        return self.walk(ctx, noise)[0]

    def walk(self, ctx: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Walk the chain.

        Args:
            ctx: what the policy's `encode` gave, of B rows.
            noise: (B, K' + 1, H, A), N(0, I): where the sample starts, then one for each random step.

        Returns:
            (B, K' + 1, H, A): the chunk before the first random step and after each; the last one, limited to [-1, 1], is the
            action. And (B, K', H, A): where each random step led without its noise.
        """
        u = self._first * noise[:, 0]
        for index in range(self._before):
            u = self._mean(ctx, u, torch.full((len(u),), index, device=u.device))
        walked, means = [u], []
        for k in range(self.steps):
            means.append(self._mean(ctx, u, torch.full((len(u),), self._before + k, device=u.device)))
            u = means[-1] + self.std[self._before + k] * noise[:, k + 1]
            walked.append(u)
        return torch.stack(walked, 1), torch.stack(means, 1)

    def means(self, ctx: Any, chain: Tensor) -> Tensor:
        """Where each random step of chains (B, K' + 1, H, A) leads without its noise, (B, K', H, A); one call of the network."""
        rows = chain[:, :-1].flatten(0, 1)
        index = torch.arange(self._before, self._before + self.steps, device=chain.device).repeat(len(chain))
        return self._mean(ctx.expand(self.steps), rows, index).view(len(chain), self.steps, *chain.shape[2:])

    def log_prob(self, means: Tensor, chain: Tensor) -> Tensor:
        """Logarithm of the density of each random step (B, K'), given where it would have led (B, K', H, A)."""
        return _log_normal(chain[:, 1:], means, self.std[self._before :].view(-1, 1, 1)).flatten(2).sum(-1)

    def divergence(self, means: Tensor, others: Tensor) -> Tensor:
        """Kullback-Leibler divergence (B, K') of steps that lead to `means` from steps that lead to `others`, both (B, K', H, A)."""
        return ((means - others) / self.std[self._before :].view(-1, 1, 1)).square().flatten(2).sum(-1) / 2

    def step_logp(self, ctx: Any, x: Tensor, following: Tensor, k: int) -> Tensor:
        """Logarithm of the density (B,) of random step `k` from chunks x (B, H, A) to `following` (B, H, A)."""
        index = torch.full((len(x),), self._before + k, device=x.device)
        return _log_normal(following, self._mean(ctx, x, index), self.std[self._before + k]).flatten(1).sum(-1)

    def _mean(self, ctx: Any, u: Tensor, index: Tensor) -> Tensor:
        """Where steps `index` (R,) lead from u (R, H, A) without their noise."""
        unit, keep, pull = (value[index].view(-1, 1, 1) for value in (self._unit, self._keep, self._pull))
        return keep * u + pull * self.policy.denoise(unit * u, self.sigma[index], ctx)


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


class ChainActor:
    """A denoising policy in N worlds, as learning through its chain sees it: frames, chains of them, and their densities.

    The observation encoder stays as it is; everything else of the policy that can be trained is.

    Args:
        policy: the policy; trained in place.
        num_envs: N.
        config: settings of the chain; its least standard deviation must not be 0.
        instruction: what a language policy shall do.

    Raises:
        SpecError: the policy is no denoiser or cannot observe, or a step would have no density.
    """

    def __init__(self, policy: PolicyModule, num_envs: int, config: ChainConfig, instruction: str | None = None) -> None:
        if not config.std_low > 0:
            raise SpecError("learning through the denoising chain needs std_low > 0: a step without noise has no density")
        self.policy, self.num_envs = capability(policy, "observe"), num_envs
        self.sampler = DenoisingChain(policy, config)
        self.steps, self.shape = self.sampler.steps, (policy.spec.horizon, policy.spec.action_dim)
        told = instructions(instruction, 1, policy.spec)
        self._told = told[0] if told else None
        for module in policy.modules():
            encoder = getattr(module, "encoder", None) if isinstance(module, PolicyModule) else None
            if isinstance(encoder, nn.Module):
                encoder.requires_grad_(False)
        policy.eval()
        self._past: dict[str, Tensor] = {}
        self._begun = torch.zeros(num_envs, dtype=torch.bool)

    @property
    def feature_dim(self) -> int:
        """Length D of the features."""
        return self.policy.observation_dim

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """Worlds `ids` (None for all) begin new episodes."""
        self._begun[slice(None) if ids is None else list(ids)] = False

    def look(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """Take in the newest observations {key: (N, ...)} of all worlds; frames of worlds `ids`, empty for none.

        Returns:
            "features" (n, D), what a critic looks at; "observed.<key>" (n, To, ...), what the policy looks at.
        """
        window = self._window(obs)
        if not len(ids):
            return {}
        chosen = torch.as_tensor(list(ids))
        return {"features": self.features({k: v[chosen, -1] for k, v in window.items()})} | {
            OBSERVED + key: value[chosen] for key, value in window.items()
        }

    def features(self, obs: Obs) -> Tensor:
        """Observations {key: (n, ...)} → (n, D), without gradient."""
        with torch.no_grad():
            return self.policy.observe({key: obs[key].to(self.policy.device) for key in self.policy.spec.observation})

    def frames(self, windows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Recorded windows {key: (n, To, ...)} as `look` gives them."""
        keys = self.policy.spec.observation
        on_device = {key: windows[key].to(self.policy.device) for key in keys}
        return {"features": self.features({k: v[:, -1] for k, v in on_device.items()})} | {OBSERVED + k: v for k, v in on_device.items()}

    def _window(self, obs: Obs) -> dict[str, Tensor]:
        """The To observations (N, To, ...) that end with `obs`; an episode's first one is repeated."""
        past, windows = self.policy.spec.n_obs_steps - 1, {}
        for key in self.policy.spec.observation:
            newest = obs[key].to(self.policy.device).unsqueeze(1)
            before = newest.expand(-1, past, *newest.shape[2:])
            if past and key in self._past:
                begun = self._begun.to(newest.device).view(-1, *[1] * (newest.ndim - 1))
                before = torch.where(begun, self._past[key], before)
            windows[key] = torch.cat((before, newest), 1)
            self._past[key] = windows[key][:, 1:]
        self._begun[:] = True
        return windows

    # ------------------------------------------------------------ chains

    def encode(self, frames: Mapping[str, Tensor]) -> Any:
        """The policy's context of frames."""
        seen: dict[str, Any] = {k.removeprefix(OBSERVED): v for k, v in frames.items() if k.startswith(OBSERVED)}
        if self._told is not None:
            seen[TASK] = [self._told] * len(frames["features"])
        return self.policy.encode(seen)

    def draw(self, frames: Mapping[str, Tensor], generator: Generator | None = None, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A chain (n, K' + 1, H, A) for each frame, and where its steps led without noise (n, K', H, A); without gradient."""
        rows = frames["features"]
        if noise is None:
            noise = torch.randn(len(rows), self.steps + 1, *self.shape, generator=generator).to(rows)
        with torch.no_grad():
            return self.sampler.walk(self.encode(frames), noise)

    def means(self, frames: Mapping[str, Tensor], chain: Tensor) -> Tensor:
        """Where the steps of chains lead now, without noise, (n, K', H, A); with gradient."""
        return self.sampler.means(self.encode(frames), chain)

    def log_prob(self, means: Tensor, chain: Tensor) -> Tensor:
        """See `DenoisingChain.log_prob`."""
        return self.sampler.log_prob(means, chain)

    def divergence(self, means: Tensor, others: Tensor) -> Tensor:
        """See `DenoisingChain.divergence`."""
        return self.sampler.divergence(means, others)
