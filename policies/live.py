"""A chunked policy on a robot that does not wait: chunks are computed by a thread of their own while the last one is executed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from policies.executor import ChunkExecutor
from sinew.errors import InputError
from sinew.protocols import Obs, Policy

WARM_UP = 3
"""Chunks computed before the latency is measured: the first ones are slow."""
MEASURED = 20
"""Chunks whose latency is measured."""


class LiveExecutor(ChunkExecutor):
    """Executes a chunked policy in one world, in real time.

    `act` never computes a chunk. It asks for the next one `act_steps` ticks after the last, goes on with the old one
    meanwhile, and enters the new one where it stands by then. When nothing is left to be executed it gives None, and the
    robot is to hold: at the start of an episode, or when a chunk is late. Time that is held does not count: the new chunk
    is entered as if it had not passed.

    Args:
        policy: a policy.
        mode: "async", or "rtc" for chunks that continue one another; see `ChunkExecutor`.
        delay: ticks that a chunk may take; None measures it: the 95 % quantile of the latency, in whole ticks.
        act_steps: ticks between two chunks; None for the most.
        seed: noise of episodes that are reset without a seed.
        steps: sampling steps; None for the policy's own.
        device: where the policy is.
        instruction: what a language policy shall do.
        pool: what computes chunks, one at a time; None for a thread of its own.

    Raises:
        InputError: the delay does not fit the horizon: d <= act_steps <= H - d.
        SpecError: rtc with a policy that gives no denoiser.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        mode: Literal["async", "rtc"],
        delay: int | None = None,
        act_steps: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        device: torch.device | str = "cpu",
        instruction: str | None = None,
        pool: Pool | None = None,
    ) -> None:
        if mode not in ("async", "rtc"):
            raise InputError(f"executor {mode!r} computes in the tick itself: known for a live robot are async, rtc")
        settings: dict[str, Any] = {"mode": mode, "seed": seed, "steps": steps, "device": device, "instruction": instruction}
        self.latency_s: float | None = None
        """95 % quantile of the time that a chunk takes, where it was measured."""
        if delay is None:
            self.latency_s = measure_latency(policy, **settings)
            delay = math.ceil(self.latency_s * policy.spec.rate_hz)
        super().__init__(policy, 1, act_steps=act_steps, delay=delay, **settings)
        self._pool = pool or ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._asked: Future[Tensor] | None = None
        self._since = 0  # actions given since the chunk under way was asked for
        self._chunk: Tensor | None = None
        self._next = 0
        self.held_ticks = 0
        """Ticks without an action since the executor was made, the wait for the first chunk of each episode among them."""

    def reset(
        self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None, goals: Mapping[str, Tensor] | None = None
    ) -> None:
        """Wait for the chunk under way and forget everything; see `ChunkExecutor.reset`."""
        if self._asked is not None:
            self._asked.exception()
        self._asked, self._chunk = None, None
        super().reset(ids, seeds, goals)

    def plan(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor | None:  # type: ignore[override]
        """Next planned action (1, A) in [-1, 1], or None when there is none yet; never waits.

        Raises:
            SpecError: an observation is missing or has another shape.
            SafetyStop: a planned action is not finite.
        """
        device = self._check(obs, [0])
        window = self._window(obs, [0])
        self._remember(window, [0])
        self._enter()
        if self._asked is None and (self._chunk is None or self._next >= self.act_steps):
            self._ask(window)
            self._enter()
        if self._chunk is None or self._next >= len(self._chunk):
            self.held_ticks += 1
            return None
        action = self._chunk[self._next][None]
        self._next += 1
        self._since += 1
        return self._finite(action, obs, [0]).to(device)

    def act(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor | None:  # type: ignore[override]
        """Next action (1, A), corrected where the policy corrects, or None when there is none yet; errors as `plan`."""
        planned = self.plan(obs)
        return None if planned is None else self.corrected(obs, planned)

    def peek(self, obs: Obs, ids: Sequence[int]) -> Tensor:
        """Refused: what comes next depends on when it comes."""
        raise InputError("a live executor cannot tell what it would do next: use ChunkExecutor")

    def close(self) -> None:
        """Wait for the chunk under way and end the thread."""
        self._pool.shutdown()

    def _ask(self, window: Mapping[str, Tensor]) -> None:
        """Have the next chunk computed from this observation, as a continuation of what is left of the current one."""
        guidance = () if self._chunk is None else self._guidance(self._chunk[None, self._next :], np.array([True]))
        self._asked = self._pool.submit(self._query, self._told(window, [0]), self._noise([0]), guidance)
        self._since = 0
        self._queries[0] += 1

    def _enter(self) -> None:
        """Go over to the chunk under way when it is there, and not before its time unless nothing else is left."""
        if self._asked is None or not self._asked.done():
            return
        spent = self._chunk is None or self._next >= len(self._chunk)
        if self._since >= self.delay or spent:
            self._chunk, self._next, self._asked = self._asked.result()[0], self._since, None


def measure_latency(policy: Policy, **settings: Any) -> float:
    """95 % quantile of the seconds from an observation to its chunk, guided as in the live loop, on empty observations.

    Args:
        policy: the policy.
        settings: arguments of `ChunkExecutor`.
    """
    horizon = policy.spec.horizon
    probe = ChunkExecutor(policy, 1, act_steps=min(1, horizon), **settings)
    obs = {
        key: torch.zeros(1, *spec.shape, dtype=getattr(torch, spec.dtype)) for key, spec in policy.spec.observation.tensors.items()
    }
    taken = []
    for _ in range(WARM_UP + MEASURED):
        begin = time.perf_counter()
        probe.plan(obs)
        taken.append(time.perf_counter() - begin)
    return float(np.quantile(taken[WARM_UP:], 0.95))
