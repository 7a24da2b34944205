"""Success of a policy over given seeds, one episode each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policies.executor import ChunkExecutor
from sinew.errors import InputError, SinewError
from sinew.progress import SILENT, Progress
from sinew.protocols import Policy, VecEnv
from sinew.specs import check_action_join, check_observation_join

FrameCallback = Callable[[int, int, dict[str, Tensor]], None]
"""on_frame(seed, step, {key: (...)}): observation of one world; step 0 is the first of the episode."""

Goals = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""goals(seeds) → {observation key: (len(seeds), D)}."""


@dataclass(frozen=True)
class Evaluation:
    """What came of every seed."""

    seeds: tuple[int, ...]
    success: tuple[bool, ...]
    """Whether the episode of each seed succeeded."""
    lengths: tuple[int, ...]
    """Steps of each episode."""
    wall_s: float
    """Duration of the whole evaluation."""

    @property
    def k(self) -> int:
        """Number of successes."""
        return sum(self.success)

    @property
    def n(self) -> int:
        """Number of episodes."""
        return len(self.seeds)

    def summary(self) -> dict[str, Any]:
        """k, n, seeds, success and lengths per seed, and the wall time, for eval/*.json."""
        return {"k": self.k, "n": self.n, "seeds": list(self.seeds), "success": list(self.success),
                "lengths": list(self.lengths), "wall_s": self.wall_s}


def evaluate(
    policy: Policy,
    env: VecEnv,
    seeds: Sequence[int],
    *,
    executor_kwargs: Mapping[str, Any] | None = None,
    goals: Goals | None = None,
    progress: Progress = SILENT,
    on_frame: FrameCallback | None = None,
) -> Evaluation:
    """Run one episode per seed, in waves over the environment's worlds.

    The seed fixes scene, environment noise and policy noise, so the result does not depend on the number of worlds.
    A world whose episode is over rests, where the environment has `rest(ids)`, or receives mid-range actions; it is looked at no more
    until the wave ends.

    Args:
        policy: its specs must fit the environment.
        env: worlds stepped together.
        seeds: one episode each, in this order.
        executor_kwargs: arguments of `ChunkExecutor` beside policy and num_envs.
        goals: what is to be reached in the scenes of given seeds, for a policy with capability "goal"; None for no goals.
        progress: told every finished episode.
        on_frame: called with every observation of every world that still runs.

    Raises:
        InputError: no seeds.
        SpecError: policy and environment do not fit.
    """
    seeds = [int(s) for s in seeds]
    if not seeds:
        raise InputError("evaluation needs at least one seed")
    check_observation_join("the environment", env.observation_spec, "the policy", policy.spec.observation)
    check_action_join("the policy", policy.spec.action, "the environment", env.action_spec)
    begin = time.monotonic()
    executor = ChunkExecutor(policy, env.num_envs, **dict(executor_kwargs or {}))
    success, lengths = [], []
    progress.start("evaluate", len(seeds))
    for first in range(0, len(seeds), env.num_envs):
        wave = seeds[first : first + env.num_envs]
        won, steps = _wave(env, executor, wave, goals, progress, on_frame)
        success += won
        lengths += steps
    return Evaluation(tuple(seeds), tuple(success), tuple(lengths), time.monotonic() - begin)


def _wave(
    env: VecEnv,
    executor: ChunkExecutor,
    seeds: Sequence[int],
    goals: Goals | None,
    progress: Progress,
    on_frame: FrameCallback | None,
) -> tuple[list[bool], list[int]]:
    """One episode for each of at most num_envs seeds; spare worlds repeat the last seed and stay idle."""
    spare = env.num_envs - len(seeds)
    everywhere = [*seeds, *[seeds[-1]] * spare]
    obs = env.reset(seed=everywhere)
    executor.reset(None, everywhere, None if goals is None else goals(everywhere))
    success, lengths = [False] * len(seeds), [0] * len(seeds)
    active = list(range(len(seeds)))
    idle = torch.zeros(env.num_envs, env.action_spec.dim)
    rest = getattr(env, "rest", lambda ids: None)
    rest(range(len(seeds), env.num_envs))
    for step in range(env.max_episode_steps + 1):
        _show(on_frame, active, seeds, step, obs)
        whole = len(active) == env.num_envs
        chosen = executor.act(obs if whole else {key: obs[key][active] for key in executor.policy.spec.observation}, active)
        normalized = idle.to(chosen.device).index_put((torch.tensor(active, device=chosen.device),), chosen)
        obs, _, terminated, truncated, info = env.step(env.action_spec.denormalize(normalized))
        over = (terminated | truncated).tolist()
        ended = [world for world in active if over[world]]
        _show(on_frame, ended, seeds, step + 1, info.get("final_observation", obs))
        for world in ended:
            success[world], lengths[world] = bool(info["success"][world]), step + 1
            progress.advance(1, success=sum(success) / len(seeds))
        active = [world for world in active if not over[world]]
        if not active:
            return success, lengths
        rest(ended)
    raise SinewError(f"the environment runs on after its max_episode_steps = {env.max_episode_steps}: episodes of seeds "
                     f"{[seeds[world] for world in active]} neither terminated nor truncated")


def _show(on_frame: FrameCallback | None, worlds: Sequence[int], seeds: Sequence[int], step: int, obs: Mapping[str, Tensor]) -> None:
    if on_frame is not None:
        for world in worlds:
            on_frame(seeds[world], step, {key: value[world] for key, value in obs.items()})
