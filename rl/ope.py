"""What a policy is worth by data alone, and a gate that holds it to that.

Critics are fitted to what was done (implicit Q-learning): a chunk's value bootstraps on a value function of states that is an
upper expectile of the values of recorded chunks, so no critic is ever asked about a chunk that nobody did while it is fitted.

A policy that climbs a critic finds where the critic is wrong: the value it is judged by rises while success falls. So the gate
takes its evidence from episodes that the climbed critics never saw, and asks four things of a candidate:

1. value: critics of those episodes, by their lower bound over the ensemble, say with confidence that it is better than the best
   so far, state by state and noise by noise. A critic's own error is not shared by others.
2. bounds: they do not say more than any return can be.
3. reach: its chain diverges from the base's by no more than a limit. No critic can be wrong about this, and it keeps the
   candidate where the data are.
4. returns: what the base's own chains really earned, weighted by how likely the candidate is to walk them, does not say that
   it is worse. This asks no critic of actions.

None of them sees what happens outside of the data: rewards that are wrong in all episodes alike, or states that only the
candidate gets into, need an evaluation in the environment, which is the caller's.

Source: IQL, Kostrikov et al. 2021, arXiv:2110.06169; a gate by off-policy evaluation in RL-100, Lei et al. 2025,
arXiv:2510.14830 (there on rollouts of a learned model, here on held-out states); weighted importance sampling Precup et al. 2000.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rl.critic import Critic, polyak
from rl.decisions import ChainActor, Decisions
from rl.surrogate import generalised_advantage
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Settings of critics that are fitted to data."""

    updates: int = 1_500
    """Adam steps."""
    batch_size: int = 256
    """Decisions per step."""
    learning_rate: float = 3e-4
    """Adam step size."""
    expectile: float = 0.7
    """Of recorded chunks' values that a state is worth; 0.5 is their mean."""
    tau: float = 0.005
    """Share by which the target follows."""
    heads: int = 3
    """Size of the ensemble."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of hidden layers."""
    low: float | None = 0.0
    """Least return there can be, for a sparse reward of success; None where that is not known …"""
    high: float | None = 1.0
    """… and the largest."""

    def __post_init__(self) -> None:
        if not 0 < self.expectile < 1 or min(self.updates, self.batch_size, self.heads) < 1:
            raise InputError(
                f"critics need expectile in (0, 1), and updates, batch_size and heads of at least 1; given {self.expectile}, "
                f"{self.updates}, {self.batch_size} and {self.heads}"
            )

    def limited(self, returns: Tensor) -> Tensor:
        """Returns within what they can be."""
        return returns if self.low is None and self.high is None else returns.clamp(self.low, self.high)

    def possible(self, value: float) -> bool:
        """Whether a mean return can be that, but for a tenth."""
        return (self.low is None or value >= self.low - 0.1) and (self.high is None or value <= self.high + 0.1)


class ChunkCritics(nn.Module):
    """Values of chunks, by an ensemble, and of states.

    Args:
        feature_dim: D of a state's features.
        elements: H * A of a chunk.
        config: settings.
        generator: of the initial weights.
    """

    def __init__(self, feature_dim: int, elements: int, config: CriticConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.q = Critic(feature_dim + elements, config.hidden, config.heads, generator=generator)
        self.v = Critic(feature_dim, config.hidden, 1, generator=generator)

    def values(self, features: Tensor, action: Tensor) -> Tensor:
        """Values (E, B) of chunks (B, H, A) in states (B, D)."""
        return self.q(torch.cat((features, action.flatten(1)), -1))

    @torch.no_grad()
    def advantage(self, features: Tensor, action: Tensor) -> Tensor:
        """(B,) by how much chunks are worth more than their states, by the mean of the ensemble."""
        return self.values(features, action).mean(0) - self.v(features)[0]

    def fit(self, table: Decisions, generator: torch.Generator) -> float:
        """Fit to decisions, whoever made them; the mean squared error of the last tenth of the updates."""
        config, target = self.config, copy.deepcopy(self.q).requires_grad_(False)
        optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate, fused=True)
        online, slow = list(self.q.parameters()), list(target.parameters())
        seen = torch.cat((table.frames["features"], table.action.flatten(1)), -1)
        tail = torch.zeros((), device=seen.device)
        last = config.updates - max(1, config.updates // 10)
        for step in range(config.updates):
            rows = torch.randint(len(table), (config.batch_size,), generator=generator).to(seen.device)
            with torch.no_grad():
                bootstrap = self.v(table.next_features[rows])[0]
                wanted = config.limited(table.reward[rows] + table.discount[rows] * bootstrap)
                above = target(seen[rows]).amin(0)
            gap = above - self.v(table.frames["features"][rows])[0]
            weight = torch.where(gap > 0, config.expectile, 1 - config.expectile)
            error = (self.q(seen[rows]) - wanted).square().mean()
            optimizer.zero_grad(set_to_none=True)
            (error + (weight * gap.square()).mean()).backward()
            optimizer.step()
            polyak(slow, online, config.tau)
            if step >= last:
                tail += error.detach()
        return float(tail / (config.updates - last))


@dataclass(frozen=True, kw_only=True)
class OpeConfig:
    """Settings of the gate."""

    states: int = 512
    """Held-out states that a candidate is judged in."""
    pessimism: float = 1.0
    """Standard deviations of the ensemble below its mean that a chunk is worth."""
    confidence: float = 1.645
    """Standard errors by which a gain must exceed what is asked, or a loss must be seen; one-sided 95 %."""
    delta: float = 0.0
    """Gain that is asked, as a share of the best value so far; RL-100 asks 0.05."""
    reach: float = 4.0
    """Largest divergence from the base that a candidate may have, summed over the chain and averaged over states, in nats."""
    effective: float = 20.0
    """Weighted returns say something as long as their weights are worth this many equal ones."""

    def __post_init__(self) -> None:
        if self.states < 2 or not self.reach > 0 or min(self.pessimism, self.confidence, self.delta) < 0:
            raise InputError("the gate needs states >= 2, reach > 0, and pessimism, confidence and delta not negative")


@dataclass(frozen=True)
class Verdict:
    """What the gate found."""

    accepted: bool
    reason: str
    """Why not; empty if accepted."""
    value: float
    """Mean lower bound of the candidate's value."""
    gain: float
    """Over the best so far."""
    gain_error: float
    """Standard error of the gain."""
    divergence: float
    """From the base."""
    returns_gain: float
    """By the weighted returns of the base's chains, over the base; 0 where they say nothing."""
    returns_error: float
    """Standard error of it."""


class OffPolicyGate:
    """Judges a policy against the best so far, at first the base: the policy as it is when `begin` is called.

    Args:
        actor: the policy.
        critics: fitted to `table`, and not those that the policy climbs.
        table: held-out decisions, whoever made them.
        played: those that the base made, with their chains; None where there are none.
        config: settings.
        generator: of states and noise, which are the same for every candidate.
    """

    def __init__(
        self,
        actor: ChainActor,
        critics: ChunkCritics,
        table: Decisions,
        played: Decisions | None,
        config: OpeConfig,
        generator: torch.Generator,
    ) -> None:
        self.actor, self.critics, self.played, self.config = actor, critics, played, config
        rows = torch.randperm(len(table), generator=generator)[: config.states]
        self.frames = {k: v[rows] for k, v in table.frames.items()}
        self.noise = torch.randn(len(rows), actor.steps + 1, *actor.shape, generator=generator).to(table.reward)

    def begin(self) -> None:
        """The critics are fitted, and the policy is the base."""
        self.base_chain, self.base_means = self.actor.draw(self.frames, noise=self.noise)
        self.best = self._lower(self.base_chain)
        played = self.played
        self.walked = None if played is None or not bool(played.own.any()) else self._walked(played)

    def judge(self) -> Verdict:
        """The policy as it is now; if accepted it is the best from now on, if not the caller reverts it."""
        config = self.config
        chain, _ = self.actor.draw(self.frames, noise=self.noise)
        value = self._lower(chain)
        difference = value - self.best
        gain, error = float(difference.mean()), float(difference.std() / len(difference) ** 0.5)
        with torch.no_grad():
            means = self.actor.means(self.frames, self.base_chain)
            divergence = float(self.actor.divergence(self.base_means, means).sum(1).mean())
        returns, returns_error = self._returns()
        reason = ""
        if not divergence <= config.reach:
            reason = f"it diverges from the base by {divergence:.2f} nats, more than {config.reach:g}"
        elif not self.critics.config.possible(float(value.mean())):
            reason = f"its value {float(value.mean()):.3f} is no return there can be"
        elif not gain - config.confidence * error > config.delta * abs(float(self.best.mean())):
            reason = f"a gain of {gain:.4f} +- {error:.4f} in value is not enough"
        elif returns + config.confidence * returns_error < 0:
            reason = f"returns say that it is worse than the base by {-returns:.3f} +- {returns_error:.3f}"
        if not reason:
            self.best = value
        return Verdict(not reason, reason, float(value.mean()), gain, error, divergence, returns, returns_error)

    def state(self) -> dict[str, Tensor]:
        """What `load_state` needs of a gate that was begun again, with the policy as it was later."""
        return {"base_chain": self.base_chain, "base_means": self.base_means, "best": self.best}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Judge against the base and the best so far of the gate that `state` was taken from."""
        self.base_chain, self.base_means, self.best = tensors["base_chain"], tensors["base_means"], tensors["best"]

    @torch.no_grad()
    def _lower(self, chain: Tensor) -> Tensor:
        """Lower bounds (M,) of the values of what chains lead to."""
        values = self.critics.values(self.frames["features"], chain[:, -1].clamp(-1, 1))
        return values.mean(0) - self.config.pessimism * values.std(0, correction=0)

    @torch.no_grad()
    def _walked(self, table: Decisions) -> tuple[Decisions, Tensor, Tensor]:
        """Held-out decisions that the base made, their chains' log probability, and what they earned above their state's value."""
        value, after = self.critics.v(table.frames["features"])[0], self.critics.v(table.next_features)[0]
        advantage, _ = generalised_advantage(table.reward, table.discount, value, after, table.follows, decay=1.0)
        mine = table[table.own]
        return mine, self.actor.log_prob(mine.means, mine.chain).sum(1), advantage[table.own]

    @torch.no_grad()
    def _returns(self) -> tuple[float, float]:
        """Gain over the base by weighted returns, and its standard error."""
        if self.walked is None:
            return 0.0, 0.0
        table, log_p, advantage = self.walked
        now = self.actor.log_prob(self.actor.means(table.frames, table.chain), table.chain).sum(1)
        share = (now - log_p).softmax(0)  # weights over their sum
        if float(share.square().sum()) * self.config.effective > 1:
            return 0.0, 0.0
        mean = (share * advantage).sum()
        spread = share * (advantage - mean) - (advantage - advantage.mean()) / len(advantage)
        _, episode = table.episode.unique(return_inverse=True)  # decisions of one episode are no independent evidence
        of_episodes = spread.new_zeros(int(episode.max()) + 1).index_add(0, episode, spread)
        return float(mean - advantage.mean()), float(of_episodes.square().sum().sqrt())
