"""A chunked policy on a robot that does not wait: chunks are computed by a thread of their own while the last one is executed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from policies.executor import ChunkExecutor
from policies.realtime import check_delay
from policies.wire import LinkError
from sinew.errors import InputError
from sinew.protocols import Obs, Policy
from sinew.specs import PolicySpec

WARM_UP = 3
"""Chunks computed before the latency is measured: the first ones are slow."""
MEASURED = 20
"""Chunks whose latency is measured before the first episode, and the newest ones that it is taken from later."""
TRUSTED = 5
"""Chunks that have come before the delay is changed."""


class LiveExecutor(ChunkExecutor):
    """Executes a chunked policy in one world, in real time.

    `act` never computes a chunk. It asks for the next one `act_steps` ticks after the last, goes on with the old one
    meanwhile, and enters the new one where it stands by then. When nothing is left to be executed it gives None, and the
    robot is to hold: at the start of an episode, or when a chunk is late. Time that is held does not count: the new chunk
    is entered as if it had not passed. A chunk that comes more ticks after it was asked for than it lasts is dropped, and
    so is one that was lost with its connection: the next is asked for from what is seen then.

    Args:
        policy: a policy.
        mode: "async", or "rtc" for chunks that continue one another; see `ChunkExecutor`.
        delay: ticks that a chunk may take; None measures it, before the first episode and with every chunk: the 95 % quantile
            of the latency, in whole ticks.
        act_steps: ticks between two chunks; None for the most.
        seed: noise of episodes that are reset without a seed.
        steps: sampling steps; None for the policy's own.
        device: where the policy is.
        instruction: what a language policy shall do.
        pool: what computes chunks, one at a time; None for a thread of its own.
        now_s: monotonic clock.

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
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if mode not in ("async", "rtc"):
            raise InputError(f"executor {mode!r} computes in the tick itself: known for a live robot are async, rtc")
        settings: dict[str, Any] = {"mode": mode, "seed": seed, "steps": steps, "device": device, "instruction": instruction}
        self.latency_s: float | None = None
        """95 % quantile of the time that a chunk took before the first episode, where it was measured."""
        self._follows_latency, self._wanted_steps = delay is None, act_steps
        if delay is None:
            self.latency_s = measure_latency(policy, **settings)
            delay = math.ceil(self.latency_s * policy.spec.rate_hz)
        super().__init__(policy, 1, act_steps=act_steps, delay=delay, **settings)
        self._pool = pool or ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._now_s = now_s
        self._asked: Future[tuple[Tensor, float]] | None = None
        self._asked_s, self._waited = 0.0, 0
        self._latencies_s: deque[float] = deque(maxlen=MEASURED)
        self._slowest_s = 0.0
        self._delays = [self.delay]
        self.chunks = self.late_chunks = self.lost_chunks = self.old_chunks = 0
        """Chunks that came; those that came when nothing was left to do, with their connection never, or too old."""
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
        self._waited += 1
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
        self._asked_s, self._waited = self._now_s(), 0
        self._asked = self._pool.submit(self._timed, self._told(window, [0]), self._noise([0]), guidance)
        self._since = 0
        self._queries[0] += 1

    def _enter(self) -> None:
        """Go over to the chunk under way when it is there, and not before its time unless nothing else is left."""
        if self._asked is None or not self._asked.done():
            return
        spent = self._chunk is None or self._next >= len(self._chunk)
        if self._since < self.delay and not spent:
            return
        asked, self._asked = self._asked, None
        try:
            chunks, finished_s = asked.result()
        except LinkError:
            self.lost_chunks += 1
            return
        self._measure(finished_s - self._asked_s, late=spent and self._chunk is not None)
        if self._waited > self.policy.spec.horizon:
            self.old_chunks += 1
            return
        self._chunk, self._next = chunks[0], self._since

    def _timed(self, window: Mapping[str, Any], noise: Tensor, guidance: Sequence[Any]) -> tuple[Tensor, float]:
        """Chunks as of `_query`, and when they were there."""
        return self._query(window, noise, guidance), self._now_s()

    # ------------------------------------------------------------ latency

    def _measure(self, latency_s: float, late: bool) -> None:
        """A chunk took this long: allow the next ones as much as the newest ones needed."""
        self.chunks += 1
        self.late_chunks += late
        self._latencies_s.append(latency_s)
        self._slowest_s = max(self._slowest_s, latency_s)
        if not self._follows_latency or len(self._latencies_s) < TRUSTED:
            return
        horizon = self.policy.spec.horizon
        needed = math.ceil(float(np.quantile(self._latencies_s, 0.95)) * self.policy.spec.rate_hz)
        delay = min(max(needed, 0), horizon // 2)
        if delay > self.delay or (delay < self.delay and len(self._latencies_s) == MEASURED):
            low, high = max(delay, 1), horizon - delay
            steps = None if self._wanted_steps is None else min(max(self._wanted_steps, low), high)
            self.act_steps, self.delay = check_delay(horizon, delay, steps), delay
            self._delays.append(delay)

    def report(self) -> dict[str, Any]:
        """JSON-able: delays in ticks, measured latency in milliseconds, chunks and what became of them."""
        taken = np.array(self._latencies_s) * 1e3
        p50, p95 = (round(float(np.quantile(taken, q)), 2) if len(taken) else None for q in (0.5, 0.95))
        return {
            "delay": self.delay,
            "delays": self._delays[-20:],
            "latency_ms": {"p50": p50, "p95": p95, "max": round(1e3 * self._slowest_s, 2) if self.chunks else None},
            "chunks": self.chunks,
            "late_chunks": self.late_chunks,
            "lost_chunks": self.lost_chunks,
            "old_chunks": self.old_chunks,
            "held_ticks": self.held_ticks,
        }


def measure_latency(policy: Policy, **settings: Any) -> float:
    """95 % quantile of the seconds from an observation to its chunk, guided as in the live loop, on empty observations.

    Args:
        policy: the policy.
        settings: arguments of `ChunkExecutor`.
    """
    probe, obs, taken = ChunkExecutor(policy, 1, act_steps=1, **settings), empty_observation(policy.spec), []
    for _ in range(WARM_UP + MEASURED):
        begin = time.perf_counter()
        probe.plan(obs)
        taken.append(time.perf_counter() - begin)
    return float(np.quantile(taken[WARM_UP:], 0.95))


def empty_observation(spec: PolicySpec) -> dict[str, Tensor]:
    """{key: (1, ...)} zeros of everything that a policy looks at."""
    return {key: torch.zeros(1, *tensor.shape, dtype=getattr(torch, tensor.dtype)) for key, tensor in spec.observation.tensors.items()}


def probe_of(executor: ChunkExecutor) -> ChunkExecutor:
    """An executor of the same policy in one world whose every `plan` computes a chunk as that one would."""
    instruction = executor.instructions[0] if executor.instructions else None
    options: dict[str, Any] = {"mode": executor.mode, "steps": executor.steps, "device": executor.device, "instruction": instruction}
    return ChunkExecutor(executor.policy, 1, act_steps=1, **options)
