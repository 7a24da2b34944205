"""Decisions of a chunked policy as learning through its chain needs them: what was seen, the chain, what came of its action.

A decision lasts for the actions of its chunk, or until the episode ends. One table serves the critics, which look at the
executed chunk whoever chose it, and policy gradients, which need the chain that led to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sinew.errors import DataError, InputError
from sinew.protocols import Obs, VecEnv


class ChainActor(Protocol):
    """A policy with a stochastic chain in N worlds; `policies.chain.ChainActor` is one, and tells what its methods do."""

    policy: Any
    steps: int
    """Random steps of a chain, K."""
    shape: tuple[int, int]
    """Actions of a chunk and their elements, (H, A)."""

    @property
    def feature_dim(self) -> int: ...

    def reset(self, ids: Sequence[int] | None = None) -> None: ...

    def look(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]: ...

    def features(self, obs: Obs) -> Tensor: ...

    def draw(self, frames: Mapping[str, Tensor], generator: Any = None, noise: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def means(self, frames: Mapping[str, Tensor], chain: Tensor) -> Tensor: ...

    def log_prob(self, means: Tensor, chain: Tensor) -> Tensor: ...

    def divergence(self, means: Tensor, others: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Decisions:
    """M decisions, each world's in the order in which it made them."""

    frames: dict[str, Tensor]
    """{key: (M, ...)} before each; "features" (M, D) is what critics look at."""
    action: Tensor
    """(M, H, A) executed, in [-1, 1]; after the episode's end as it was planned."""
    reward: Tensor
    """(M,) discounted within the decision."""
    discount: Tensor
    """(M,) gamma^span, 0 where the episode terminated; a time-out bootstraps."""
    next_features: Tensor
    """(M, D) after the decision; meaningless where `discount` is 0."""
    follows: Tensor
    """(M,) bool: the next row is the next decision of the same episode."""
    episode: Tensor
    """(M,) int64."""
    chain: Tensor
    """(M, K + 1, H, A) that led to the action; (M, 0, H, A) of recorded demonstrations."""
    means: Tensor
    """(M, K, H, A) where its steps led without noise."""
    own: Tensor
    """(M,) bool: the chain's action was executed and nobody took over."""

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, rows: Tensor) -> Decisions:
        """Rows by index or mask; `follows` is of the table that it was taken from."""
        rows_of: dict[str, Any] = {name: value[rows] for name, value in self._parts() if name != "frames"}
        return Decisions({key: value[rows] for key, value in self.frames.items()}, **rows_of)

    def _parts(self) -> Iterator[tuple[str, Any]]:
        return ((f.name, getattr(self, f.name)) for f in fields(self))

    def without_chains(self) -> Decisions:
        """The same for critics alone."""
        return replace(self, chain=self.chain[:, :0], means=self.means[:, :0])

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a safetensors file."""
        flat = {name: value for name, value in self._parts() if isinstance(value, Tensor)}
        return flat | {f"frames.{k}": v for k, v in self.frames.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Decisions:
        """What `tensors` gave.

        Raises:
            DataError: some are missing.
        """
        frames = {k.removeprefix("frames."): v for k, v in tensors.items() if k.startswith("frames.")}
        try:
            return cls(frames, **{f.name: tensors[f.name] for f in fields(cls) if f.name != "frames"})
        except KeyError as e:
            raise DataError(f"saved decisions lack {e}; delete the file to collect them again") from None


def concatenate(tables: Sequence[Decisions]) -> Decisions:
    """Tables of the same frames and chains one after the other; episodes are numbered on."""
    numbered, first = [], 0
    for table in tables:
        numbered.append(table.episode + first)
        first = int(numbered[-1].max()) + 1 if len(table) else first
    parts = {name: torch.cat([getattr(t, name) for t in tables]) for name, x in tables[0]._parts() if isinstance(x, Tensor)}
    frames = {key: torch.cat([t.frames[key] for t in tables]) for key in tables[0].frames}
    return Decisions(frames, **parts | {"episode": torch.cat(numbered)})


@dataclass(frozen=True)
class Collected:
    """What worlds went through."""

    decisions: Decisions
    steps: int
    """Environment steps, over all worlds."""
    episodes: int
    """Episodes that ended."""
    successes: int
    """Of these."""


class Collector:
    """Runs a policy's chain in worlds and keeps its decisions.

    Args:
        env: the worlds.
        actor: the policy.
        gamma: discount per environment step.
    """

    def __init__(self, env: VecEnv, actor: ChainActor, gamma: float) -> None:
        self.env, self.actor, self.gamma = env, actor, gamma

    def collect(self, ticks: int, seeds: Sequence[int], generator: torch.Generator) -> Collected:
        """Step all worlds `ticks` times from new episodes on; what is unfinished then is dropped, and its value bootstrapped.

        Args:
            ticks: steps of every world.
            seeds: one per world, of its first episode.
            generator: of the chains' noise.

        Raises:
            InputError: a reward or observation is not finite, or no decision was finished.
        """
        env, actor, N, H = self.env, self.actor, self.env.num_envs, self.actor.shape[0]
        self._begin()
        obs = env.reset(list(seeds))
        actor.reset()
        used, rows = torch.full((N,), H), torch.zeros(N, dtype=torch.int64)
        plan, tally = torch.zeros(N, *actor.shape), [0, 0]
        for _ in range(ticks):
            due = torch.nonzero(used >= H)[:, 0].tolist()
            plan[due], rows[due], used[due] = self._decide(obs, due, rows, generator).cpu(), self._rows(len(due)), 0
            normalised = plan[torch.arange(N), used]
            obs, reward, terminated, truncated, info = env.step(env.action_spec.denormalize(normalised))
            self._refuse_non_finite(reward, obs)
            self._note(rows.tolist(), used.tolist(), reward, info, normalised)
            used += 1
            ended = torch.nonzero(terminated | truncated)[:, 0].tolist()
            if ended:
                self._end(rows[ended].tolist(), ended, terminated, info)
                won = info.get("success", reward > 0)[ended]
                tally = [tally[0] + len(ended), tally[1] + int(won.sum())]
                actor.reset(ended)
                used[ended] = H
        self._decide(obs, torch.nonzero(used >= H)[:, 0].tolist(), rows, generator)
        return Collected(self._table(), ticks * N, *tally)

    # ------------------------------------------------------------ rows

    def _begin(self) -> None:
        self._parts: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
        self._count = self._episodes = 0
        self._reward: list[float] = []
        self._span: list[int] = []
        self._after: list[int] = []  # row of the next decision; -1 for none yet, -2 where the episode ended
        self._terminated: list[bool] = []
        self._world: list[int] = []
        self._episode: list[int] = []
        self._finals: dict[int, Tensor] = {}
        self._executed: dict[int, dict[int, Tensor]] = {}

    def _rows(self, number: int) -> Tensor:
        return torch.arange(self._count - number, self._count)

    def _decide(self, obs: Obs, due: list[int], rows: Tensor, generator: torch.Generator) -> Tensor:
        """New chunks (n, H, A) for worlds `due`; the decisions before them are finished."""
        frames = self.actor.look(obs, due)
        if not due:
            return torch.zeros(0, *self.actor.shape)
        chain, means = self.actor.draw(frames, generator)
        for place, world in enumerate(due):
            before = int(rows[world])
            running = bool(self._world) and self._world[before] == world and self._after[before] == -1
            if running:
                self._after[before] = self._count + place
            self._world.append(world)
            self._episode.append(self._episode[before] if running else self._episodes)
            self._episodes += not running
        self._parts.append((frames, chain, means))
        self._count += len(due)
        for column, fill in ((self._reward, 0.0), (self._span, 0), (self._after, -1), (self._terminated, False)):
            column.extend([fill] * len(due))  # type: ignore[list-item]
        return chain[:, -1].clamp(-1, 1)

    def _note(self, rows: list[int], used: list[int], reward: Tensor, info: Mapping[str, Any], planned: Tensor) -> None:
        executed = info.get("executed_action")
        if executed is not None:
            executed = self.env.action_spec.normalize(executed).to(planned).clamp(-1, 1)
        for world, value in enumerate(reward.tolist()):
            row = rows[world]
            self._reward[row] += self.gamma ** used[world] * value
            self._span[row] += 1
            if executed is not None and not torch.allclose(executed[world], planned[world], atol=1e-4):
                self._executed.setdefault(row, {})[used[world]] = executed[world]

    def _end(self, rows: list[int], worlds: list[int], terminated: Tensor, info: Mapping[str, Any]) -> None:
        final = self.actor.features({k: v[worlds] for k, v in info["final_observation"].items()})
        for place, (row, world) in enumerate(zip(rows, worlds, strict=True)):
            self._after[row], self._terminated[row], self._finals[row] = -2, bool(terminated[world]), final[place]

    def _refuse_non_finite(self, reward: Tensor, obs: Obs) -> None:
        for what, value in (("reward", reward), *(("observation", v) for v in obs.values() if v.is_floating_point())):
            good = torch.isfinite(value.reshape(len(value), -1)).all(1)
            if not bool(good.all()):
                raise InputError(
                    f"world {int(torch.nonzero(~good)[0])}: the {what} is not finite; check the task's simulation for divergence "
                    "(smaller time step, bounded actions); the last checkpoint is kept"
                )

    def _table(self) -> Decisions:
        """The finished decisions, by world."""
        frames = {key: torch.cat([part[0][key] for part in self._parts]) for key in self._parts[0][0]}
        chain, means = torch.cat([part[1] for part in self._parts]), torch.cat([part[2] for part in self._parts])
        features, after = frames["features"], torch.tensor(self._after)
        following = features[after.clamp(min=0)].clone()
        for row, value in self._finals.items():
            following[row] = value
        action, own = chain[:, -1].clamp(-1, 1).clone(), torch.ones(self._count, dtype=torch.bool)
        for row, steps in self._executed.items():
            own[row] = False
            for step, value in steps.items():
                action[row, step] = value.to(action)
        order = torch.argsort(torch.tensor(self._world), stable=True)
        order = order[after[order] != -1]
        if not len(order):
            raise InputError(f"no decision of {self.actor.shape[0]} steps was finished: collect more steps per world")
        span, terminated = torch.tensor(self._span), torch.tensor(self._terminated)
        follows = after[order] >= 0
        follows[:-1] &= after[order][:-1] == order[1:]
        follows[-1] = False
        where = features.device
        return Decisions(
            frames={k: v[order] for k, v in frames.items()},
            action=action[order],
            reward=torch.tensor(self._reward)[order].to(where),
            discount=(self.gamma ** span.float() * ~terminated)[order].to(where),
            next_features=following[order],
            follows=follows.to(where),
            episode=torch.tensor(self._episode)[order].to(where),
            chain=chain[order],
            means=means[order],
            own=own[order].to(where),
        )
