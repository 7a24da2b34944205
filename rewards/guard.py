"""A guard against reward hacking: how far what a policy visits has gone from what it knew, and what that costs it.

A reward that is only like the true one is right where demonstrations and the policy before it learned went, and may be anything elsewhere.
A discriminator tells the logarithm of the occupancy ratio, d = log μ_policy / μ_known; χ² = E_policy[e^d − 1] of it reacts long before the
policy is somewhere else altogether, where a KL divergence would hardly have moved. It is told of steps that no lesson was about yet, and
d is made smaller by what factor it is too sure of itself there: a discriminator of many numbers finds far away what it learned by heart.

Sources: Laidlaw et al. 2024, arXiv:2403.03185 (occupancy-regularised policy optimisation with χ²); Guo et al. 2017, arXiv:1706.04599
(one temperature for what is too sure).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.files import KINDS, Kind, RewardUnavailable, Situation, load
from rewards.latent import load_tensors
from rewards.learned import check_beside
from rewards.shaping import After
from sinew.errors import DataError, InputError
from sinew.protocols import Reward

CLIP = 5.0
"""The logarithm of a ratio is cut off here on both sides: the tail of e^d is heavy, and a few states would be all of χ²."""
TRIM = 0.01
"""Share of the ratios that is left out of the mean on both sides."""
HELD_OUT, SHARES = 5, 51
"""One in so many demonstrated states is never learned from; and so many shares of d are tried."""


class Discriminator(nn.Module):
    """Tells states of the policy from states of demonstrations; at its best it is the logarithm of their ratio.

    Args:
        reference: (R, D) states of demonstrations, of which it is not shown every fifth; elements that hardly vary among them are divided
            by a small fixed amount.
        hidden: width of its two layers.
        seed: of its weights and batches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, reference: Tensor, hidden: int = 256, seed: int = 0) -> None:
        super().__init__()
        if len(reference) < 2 or not bool(torch.isfinite(reference).all()):
            raise DataError(f"{len(reference)} states of demonstrations, all finite ones are needed and at least 2: run sinew data check")
        rows = torch.arange(len(reference)) % HELD_OUT == HELD_OUT - 1
        self.reference, self.held_out = reference.float()[~rows], reference.float()[rows]
        self.share = 1.0
        """What remains of d once it is as sure as it may be."""
        self.register_buffer("mean", reference.float().mean(0))
        self.register_buffer("std", reference.float().std(0).clamp(min=1e-3))
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(reference.shape[1], hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden), nn.LeakyReLU(), nn.Linear(hidden, 1)
            )
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-3, weight_decay=1e-4)

    def forward(self, states: Tensor) -> Tensor:
        """States (N, D) → (N,) d, not clipped."""
        return self.net(((states - self.mean) / self.std).clamp(-10.0, 10.0))[:, 0]

    def learn(self, states: Tensor, updates: int, batch_size: int = 256) -> None:
        """Learn to tell states (N, D) of the policy from the demonstrations': softplus(−d) on the former, softplus(d) on the latter."""
        for _ in range(updates):
            ours = states[torch.randint(len(states), (batch_size,), generator=self.generator)]
            theirs = self.reference[torch.randint(len(self.reference), (batch_size,), generator=self.generator)]
            loss = functional.softplus(-self(ours)).mean() + functional.softplus(self(theirs)).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def calibrate(self, states: Tensor) -> None:
        """Find the share of d that tells states (N, D) best from demonstrations; it has learned from neither."""
        if not len(states) or not len(self.held_out):
            return
        shares = torch.linspace(0.0, 1.0, SHARES)[:, None]
        ours, theirs = (self(x).clamp(-CLIP, CLIP)[None] * shares for x in (states, self.held_out))
        loss = functional.softplus(-ours).mean(1) + functional.softplus(theirs).mean(1)
        self.share = float(shares[int(loss.argmin()), 0])

    @torch.no_grad()
    def log_ratio(self, states: Tensor) -> Tensor:
        """States (N, D) → (N,) d in [-5, 5]; 0 where a state is not finite."""
        d = self.share * self(states)
        return torch.where(torch.isfinite(d), d, torch.zeros_like(d)).clamp(-CLIP, CLIP)


def chi_square(log_ratio: Tensor) -> float:
    """χ² from the policy's (N,) log ratios: the mean of e^d − 1 without the largest and the smallest hundredth; never below 0."""
    ratio = torch.expm1(log_ratio.double()).sort().values
    cut = int(TRIM * len(ratio))
    return max(0.0, float(ratio[cut : len(ratio) - cut].mean())) if len(ratio) else 0.0


def chi_square_between(states: Tensor, reference: Tensor, updates: int = 300, seed: int = 0) -> float:
    """χ² of states (N, D) against reference (R, D), by a discriminator that learns on half of the states and is asked about the others."""
    generator = torch.Generator().manual_seed(seed)
    order, half = torch.randperm(len(states), generator=generator), len(states) // 2
    discriminator = Discriminator(reference, hidden=64, seed=seed)
    discriminator.learn(states[order[:half]], updates)
    discriminator.calibrate(states[order[half:]])
    return chi_square(discriminator.log_ratio(states[order[half:]]))


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Settings of a guard."""

    strength: float = 1.0
    """λ in units of the reward's own standard deviation over the first steps; 0 only watches."""
    alarm: float = 10.0
    """χ² above which is said, once, that the policy has left the demonstrations."""
    every: int = 500
    """Steps of all worlds between two lessons of the discriminator; χ² is told of these, before they are learned from. In many worlds it
    is as many as a whole episode of each has, since worlds that begin together are all at one moment of an episode."""
    updates: int = 50
    """Gradient steps of a lesson."""
    remember: int = 4000
    """Newest steps of the policy that a lesson is about; at least those since the last one."""
    hidden: int = 64
    """Width of the discriminator."""
    seed: int = 0
    """Of the discriminator."""

    def __post_init__(self) -> None:
        if self.strength < 0 or self.alarm <= 0 or min(self.every, self.updates, self.remember, self.hidden) < 1:
            raise InputError(
                f"strength {self.strength} must not be negative, alarm {self.alarm} above 0, every, updates, remember and hidden at least 1"
            )


class Guarded:
    """A reward less what leaving the demonstrations costs: r − λ (e^d − 1) / √χ², once it is known how sure the discriminator may be.

    What is demonstrated is not penalised, so that this is no potential: it holds the policy near demonstrations on purpose. χ² below 1
    counts as 1, since so little cannot be told from nothing.

    Args:
        reward: what is guarded.
        reference: (R, D) states of demonstrations.
        see: observations {key: (N, ...)} → states (N, D).
        config: settings.
        say: is told of the alarm, once for each time that χ² rises above it.
        log: takes "guard_chi_square" and "guard_penalty" before every lesson but the first, for the training log.
    """

    def __init__(
        self,
        reward: Reward,
        reference: Tensor,
        see: Callable[[Mapping[str, Tensor]], Tensor],
        config: GuardConfig,
        say: Callable[[str], None] = lambda text: None,
        log: Callable[[Mapping[str, float]], None] = lambda values: None,
    ) -> None:
        self.reward_inside, self.see, self.config, self.say, self.log = reward, see, config, say, log
        self.discriminator = Discriminator(reference, config.hidden, config.seed)
        self.states = torch.zeros(0, reference.shape[1])
        """Those that lessons were about."""
        self._fresh: list[Tensor] = []
        self.seen, self.lessons, self.chi2, self.alarmed = 0, 0, 0.0, False
        self._paid: list[Tensor] = []
        self._lambda = 0.0
        largest = float(np.expm1(CLIP))
        span = config.strength * (reward.high - reward.low)
        self.low, self.high = reward.low - span * largest, reward.high + span

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """New episodes, for the reward inside."""
        begin: Any = getattr(self.reward_inside, "begin", None)
        if begin is not None:
            begin(obs, ids)

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `sinew.protocols.Reward`; the state that a step led to is what is judged."""
        paid = self.reward_inside.reward(transition, context)
        states = self.see(After(transition)).float().cpu()  # where the discriminator is
        finite = torch.isfinite(states).all(1)
        self._remember(states[finite], paid)
        if self.lessons < 2 or not self.config.strength:
            return paid
        penalty = torch.expm1(self.discriminator.log_ratio(states)) / max(1.0, self.chi2) ** 0.5
        return paid - self._lambda * torch.where(finite, penalty, torch.zeros_like(penalty)).to(paid)

    def _remember(self, states: Tensor, paid: Tensor) -> None:
        config, before = self.config, self.seen
        self._fresh.append(states)
        self.seen += len(paid)
        if not self.lessons:
            self._paid.append(paid.detach().float())
        if before // config.every == self.seen // config.every or sum(map(len, self._fresh)) < 2:
            return
        if not self.lessons:
            self._lambda = config.strength * float(torch.cat(self._paid).std())
            self._paid = []
        fresh, self._fresh = torch.cat(self._fresh), []
        self.states = torch.cat((self.states, fresh))[-config.remember :]
        if self.lessons:
            self._tell(fresh)
        self.discriminator.learn(self.states, config.updates * (1 if self.lessons else 4))  # the first lesson is from nothing
        self.lessons += 1

    def _tell(self, states: Tensor) -> None:
        """How far states (N, D) are that no lesson was about."""
        config = self.config
        self.discriminator.calibrate(states)
        self.chi2 = chi_square(self.discriminator.log_ratio(states))
        self.log({"guard_chi_square": self.chi2, "guard_penalty": self._lambda * self.chi2 / max(1.0, self.chi2) ** 0.5})
        if self.chi2 > config.alarm and not self.alarmed:
            self.say(
                f"alarm: after {self.seen} steps the policy is where nothing was known (χ² {self.chi2:.1f}, alarm at {config.alarm:g});"
                " its reward may no longer mean success: look at its episodes"
            )
        self.alarmed = self.chi2 > config.alarm


@KINDS.add("guarded")
@dataclass(frozen=True, kw_only=True)
class GuardedSettings:
    """Settings: another reward, watched."""

    inside: str
    """Reward file beside this one that is guarded."""
    reference: str
    """File beside this one with the states of demonstrations."""
    keys: tuple[str, ...]
    """Observation vectors that a state is made of, in this order."""
    guard: GuardConfig = GuardConfig()
    """Settings of the guard."""

    def __post_init__(self) -> None:
        check_beside(self.inside)
        check_beside(self.reference)

    def build(self, situation: Situation) -> Reward:
        """See `rewards.files.Kind`."""
        path = situation.folder / self.inside
        _, settings = load(path)
        if isinstance(settings, GuardedSettings):
            raise InputError(f"{path} is guarded already")
        tensors, _ = load_tensors(situation.folder / self.reference)
        reference = tensors.get("states")
        missing = [key for key in self.keys if key not in situation.observation]
        if missing:
            raise RewardUnavailable(f"the guard looks at {missing[0]}, and there is only {', '.join(situation.observation)}")
        size = sum(int(np.prod(situation.observation[key].shape)) for key in self.keys)
        if reference is None or reference.ndim != 2 or reference.shape[1] != size:
            raise InputError(f"{self.reference} does not hold states of {size} elements ({', '.join(self.keys)}); make it again")
        inner: Kind = settings

        def see(obs: Mapping[str, Tensor]) -> Tensor:
            return torch.cat([obs[key].flatten(1).float() for key in self.keys], 1)

        every = max(self.guard.every, situation.num_envs * situation.max_episode_steps)
        if every > self.guard.every:
            situation.say(f"the guard counts from step {2 * every:,} on, after two episodes of each of {situation.num_envs} worlds")
        guard = replace(self.guard, every=every, remember=max(self.guard.remember, every))
        return Guarded(inner.build(replace(situation)), reference, see, guard, situation.say, situation.log)
