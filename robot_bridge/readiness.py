"""Is the policy ready? Loaded, compiled and warm, and how long it takes: asked before any robot is touched."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from sinew.protocols import Executor

UNMEASURED = 2
"""Chunks computed before the latency is measured: the first ones are slow."""
MEASURED = 20
"""Chunks whose latency is measured, at most."""
MEASURED_S = 2.0
"""No longer than this, after the third."""


ANSWER_S = (1.0, 2.0)
"""A policy server is waited for as long as its actions last, but no shorter and no longer than this."""


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """How a policy did before the robot was commanded."""

    chunks: int = 0
    """Chunks that were timed; 0 for an executor that is not of a chunked policy, which is warmed by the first observation."""
    first_ms: float | None = None
    """The very first, with everything that is only done once."""
    p50_ms: float | None = None
    p95_ms: float | None = None
    budget_ms: float | None = None
    """What a chunk may take without holding the robot: a policy's period where the executor waits, else its delay."""

    @property
    def slow(self) -> str:
        """One line where the policy will hold the robot; empty where it is fast enough."""
        if self.p95_ms is None or self.budget_ms is None or self.p95_ms <= self.budget_ms:
            return ""
        return f"a chunk takes {self.p95_ms:.0f} ms and {self.budget_ms:.0f} ms are allowed: the robot will hold while it is computed"


def warm_up(executor: Executor) -> Readiness:
    """Compute chunks on empty observations until their latency is known; the executor's own state is not touched.

    Args:
        executor: of a chunked policy; nothing is done for any other.

    Raises:
        InputError: the policy cannot compute, for example because its server cannot be reached.
    """
    from policies.executor import ChunkExecutor
    from policies.live import empty_observation, probe_of

    if not isinstance(executor, ChunkExecutor):
        return Readiness()
    probe = probe_of(executor)
    obs = empty_observation(executor.policy.spec)
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < UNMEASURED + MEASURED and (len(taken) < UNMEASURED + 3 or time.perf_counter() - began < MEASURED_S):
        begin = time.perf_counter()
        probe.plan(obs)
        taken.append(1e3 * (time.perf_counter() - begin))
    timed = np.array(taken[UNMEASURED:])
    period_ms = 1e3 / executor.policy.spec.rate_hz
    ticks = 1 if executor.mode in ("sync", "ensemble") else executor.delay
    p50, p95 = (round(float(np.quantile(timed, q)), 2) for q in (0.5, 0.95))
    return Readiness(chunks=len(timed), first_ms=round(taken[0], 2), p50_ms=p50, p95_ms=p95, budget_ms=round(ticks * period_ms, 2))


def limit_answers(executor: Executor) -> str:
    """Have a policy server's answers waited for no longer than they are of use: what comes after its actions would be over is old.

    Args:
        executor: warm; nothing is done for one whose policy is not behind a server.

    Returns:
        One line for the person beside the robot, empty where nothing is limited.
    """
    policy = getattr(executor, "policy", None)
    while policy is not None and not hasattr(policy, "answer_within"):
        policy = getattr(policy, "base", None)
    if policy is None:
        return ""
    lasts_s = policy.spec.horizon / policy.spec.rate_hz
    limit_s = min(max(lasts_s, ANSWER_S[0]), ANSWER_S[1])
    policy.answer_within(limit_s)
    return (
        f"answers of the policy server are waited for {limit_s:.3g} s at most, since its actions last {lasts_s:.3g} s; the robot holds then"
    )


def told(readiness: Readiness) -> dict[str, Any]:
    """JSON-able, with the warning."""
    return {**vars(readiness), "slow": readiness.slow}
