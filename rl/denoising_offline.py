"""The offline stage: rounds of PPO in the denoising chain on what critics of the data say, each accepted by the gate or undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl.checkpoint import load_module_state, module_state
from rl.chunk_critics import ChunkCritics, CriticConfig
from rl.decisions import ChainActor, Decisions, concatenate
from rl.denoising_ppo import ChainLearner, PpoConfig
from rl.ope import OffPolicyGate, OpeConfig
from rl.snapshot import Snapshot
from sinew.errors import InputError

Stream = Callable[..., torch.Generator]
"""(names or numbers) → the random stream that they fix."""


@dataclass(frozen=True, kw_only=True)
class OfflineConfig:
    """Settings of the stage."""

    rounds: int = 15
    """Rounds at most."""
    round_states: int = 1_024
    """Recorded states in a round; the policy's own chunk in each is judged."""
    held_out: float = 0.5
    """Share of the episodes that the gate's critics learn from; those that the policy climbs learn from the others."""
    retreat: float = 0.5
    """The step size is multiplied by this after a round that was undone …"""
    patience: int = 4
    """… and the stage ends when this many in a row were."""
    gated: bool = True
    """False keeps every round, whatever the gate says: for comparison."""
    critics: CriticConfig = field(default_factory=CriticConfig)
    """Settings of both sets of critics."""
    gate: OpeConfig = field(default_factory=OpeConfig)
    """Settings of the gate."""
    ppo: PpoConfig = field(default_factory=lambda: PpoConfig(learning_rate=3e-5, epochs=2, batch_size=256, target_divergence=0.05))
    """Settings of the updates."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.round_states, self.patience) < 1 or not 0 < self.held_out < 1 or not 0 < self.retreat <= 1:
            raise InputError(
                f"rounds {self.rounds}, round_states {self.round_states} and patience {self.patience} must be at least 1, "
                f"held_out {self.held_out} in (0, 1), retreat {self.retreat} in (0, 1]"
            )


def split(table: Decisions, share: float, generator: torch.Generator) -> tuple[Decisions, Decisions]:
    """A table in two by whole episodes: those to learn from, and the `share` that is held out, at least one of each.

    Raises:
        InputError: there is one episode only.
    """
    episodes = table.episode.unique()
    if len(episodes) < 2:
        raise InputError(f"{len(episodes)} episode cannot be held out and learned from: give more demonstrations or rollout_steps")
    count = min(max(1, round(share * len(episodes))), len(episodes) - 1)
    chosen = episodes[torch.randperm(len(episodes), generator=generator)[:count].to(episodes.device)]
    held = torch.isin(table.episode, chosen)
    return table[~held], table[held]


class OfflineStage:
    """The stage and its state.

    Args:
        actor: the policy, at first the base; trained in place.
        demos: recorded decisions without chains; None for none.
        played: decisions of the base; None for none.
        config: settings.
        stream: everything random comes from it.

    Raises:
        InputError: there is nothing to learn from.
    """

    def __init__(self, actor: ChainActor, demos: Decisions | None, played: Decisions | None, config: OfflineConfig, stream: Stream) -> None:
        self.actor, self.config, self.stream = actor, config, stream
        parts = [split(t, config.held_out, stream("split", i)) for i, t in enumerate((demos, played)) if t is not None and len(t)]
        if not parts:
            raise InputError("the offline stage has neither demonstrations nor rollouts: give --demos DIR, or rollout_steps above 0")
        self.train, held = (concatenate([part[i].without_chains() for part in parts]) for i in (0, 1))
        self.learner = ChainLearner(actor, config.ppo, stream("offline weights"))
        self.judge, critics = self._critics("judge"), self._critics("gate")
        self.gate = OffPolicyGate(
            actor, critics, held, parts[-1][1] if played is not None and len(played) else None, config.gate, stream("gate states")
        )
        self.held, self.snapshot = held, Snapshot(actor.policy, self.learner.optimizer)
        self.round = self.rejected = self.accepted = 0

    def _critics(self, name: str) -> ChunkCritics:
        size = self.actor.shape[0] * self.actor.shape[1]
        made = ChunkCritics(self.actor.feature_dim, size, self.config.critics, self.stream("critics", name))
        return made.to(self.train.reward.device)

    def fit(self) -> dict[str, float]:
        """Fit both sets of critics, each to its part of the episodes; their errors."""
        judge, gate = self.judge.fit(self.train, self.stream("fit judge")), self.gate.critics.fit(self.held, self.stream("fit gate"))
        self.gate.begin()
        return {"judge_error": judge, "gate_error": gate}

    @property
    def over(self) -> bool:
        """Whether the rounds are done, or none is accepted any more."""
        return self.round >= self.config.rounds or self.rejected >= self.config.patience

    def step(self) -> dict[str, Any]:
        """One round; what came of it."""
        config, actor, generator = self.config, self.actor, self.stream("round", self.round)
        rows = torch.randint(len(self.train), (config.round_states,), generator=generator).to(self.train.reward.device)
        frames = {k: v[rows] for k, v in self.train.frames.items()}
        chain, means = actor.draw(frames, generator)
        advantage = self.judge.advantage(frames["features"], chain[:, -1].clamp(-1, 1))
        metrics = self.learner.improve(frames, chain, means, advantage, generator)
        verdict = self.gate.judge()
        self.round += 1
        if verdict.accepted or not config.gated:
            self.snapshot.take()
            self.accepted, self.rejected = self.accepted + 1, 0
        else:
            rate = self.learner.learning_rate
            self.snapshot.restore()
            self.learner.learning_rate = config.retreat * rate
            self.rejected += 1
        step = {f"step_{k}": v for k, v in metrics.items()}
        return {"round": self.round, **asdict(verdict), "climbed": float(advantage.mean()), **step}

    # ------------------------------------------------------------ saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers that `load_state` needs; between rounds the policy is the snapshot."""
        tensors, numbers = self.learner.state()
        tensors |= module_state("judge", self.judge) | module_state("gate_critics", self.gate.critics)
        tensors |= {f"gate.{k}": v for k, v in self.gate.state().items()}
        return tensors, numbers | {name: getattr(self, name) for name in ("round", "rejected", "accepted")}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Become the stage that `state` was taken from; made of the same data."""
        self.learner.load_state(tensors, numbers)
        load_module_state("judge", self.judge, tensors)
        load_module_state("gate_critics", self.gate.critics, tensors)
        self.gate.begin()
        self.gate.load_state({k.removeprefix("gate."): v for k, v in tensors.items() if k.startswith("gate.")})
        self.round, self.rejected, self.accepted = (numbers[k] for k in ("round", "rejected", "accepted"))
        self.snapshot.take()
