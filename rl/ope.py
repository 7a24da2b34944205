"""What a policy is worth by data alone, and a gate that holds it to that.

A policy that climbs a critic finds where the critic is wrong: the value it is judged by rises while success falls. So the gate
takes its evidence from episodes that the climbed critics never saw, and asks four things of a candidate:

1. value: critics of those episodes, by their lower bound over the ensemble, say with confidence that it is better than the best
   so far, state by state and noise by noise. A critic's own error is not shared by others.
2. bounds: they do not say more than any return can be.
3. reach: its chain diverges from the base's by no more than a limit. No critic can be wrong about this, and it keeps the
   candidate where the data are.
4. returns: what the base's own chains really earned, weighted by how likely the candidate is to walk them, does not say that
   it is worse. This asks no critic of actions, and says less the further the candidate is from the base.

None of them sees what happens outside of the data: rewards that are wrong in all episodes alike, or states that only the
candidate gets into, need an evaluation in the environment, which is the caller's.

Source: a gate by off-policy evaluation in RL-100, Lei et al. 2025, arXiv:2510.14830 (there on rollouts of a learned model, here on
held-out states); weighted importance sampling, Precup et al. 2000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.chunk_critics import ChunkCritics
from rl.decisions import ChainActor, Decisions
from rl.surrogate import generalised_advantage
from sinew.errors import InputError


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
