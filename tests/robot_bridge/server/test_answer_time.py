"""How long a deployment waits for a policy server: long for the first answer, later no longer than actions are of use."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from policies import ChunkExecutor
from policies.remote import connect
from policies.wire import LinkError
from robot_bridge.readiness import limit_answers, warm_up
from sinew.errors import InputError
from sinew.specs import STATE


class Slow:
    """A policy whose samples come when they are let."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.spec, self.observation_dim = inner, inner.spec, 3
        self.let = threading.Event()

    def encode(self, obs: Any) -> Any:
        return self.inner.encode(obs)

    def sample(self, ctx: Any, **options: Any) -> Any:
        assert self.let.wait(60)
        return self.inner.sample(ctx, **options)


@pytest.fixture
def slow(kinds) -> Slow:
    return Slow(kinds.policy())


OBSERVATION = {STATE: torch.zeros(1, 1, 3)}


def test_the_first_answer_may_take_long_and_the_next_may_not(serving, slow):
    server = serving(slow)
    remote = connect(server.url, timeout_s=1.0, warmup_s=60.0)
    threading.Timer(2.5, slow.let.set).start()
    first = remote.sample(remote.encode(OBSERVATION))
    assert first.actions.shape == (1, 1, 4, 2)
    slow.let.clear()
    with pytest.raises(LinkError, match=r"did not answer within (1|0\.\d+) s"):
        remote.sample(remote.encode(OBSERVATION))
    slow.let.set()
    remote.close()
    with pytest.raises(InputError, match="time-out above 0 s, not -1"):
        connect(server.url, warmup_s=-1.0)


def test_a_warm_deployment_waits_as_long_as_the_actions_last(serving, slow):
    server = serving(slow)
    slow.let.set()
    remote = connect(server.url, timeout_s=120.0)
    executor = ChunkExecutor(remote, 1)
    assert warm_up(executor).chunks > 0
    told = limit_answers(executor)
    assert told == "answers of the policy server are waited for 1 s at most, since its actions last 0.4 s; the robot holds then"
    slow.let.clear()
    with pytest.raises(LinkError, match=r"did not answer within (1|0\.\d+) s"):  # and not 120
        executor.act({STATE: torch.zeros(1, 3)})
    slow.let.set()
    remote.close()


@pytest.mark.parametrize(("horizon", "rate_hz", "limit_s"), [(8, 20.0, 1.0), (30, 20.0, 1.5), (50, 10.0, 2.0)])
def test_the_limit_follows_the_chunk_within_one_and_two_seconds(horizon, rate_hz, limit_s):
    given: list[float] = []
    inner = SimpleNamespace(spec=SimpleNamespace(horizon=horizon, rate_hz=rate_hz), answer_within=given.append)
    wrapped: Any = SimpleNamespace(policy=SimpleNamespace(base=SimpleNamespace(base=inner)))
    assert "the robot holds then" in limit_answers(wrapped) and np.allclose(given, limit_s)


def test_policies_of_this_process_are_not_limited(slow):
    assert limit_answers(ChunkExecutor(slow, 1)) == "" and limit_answers(SimpleNamespace()) == ""  # type: ignore[arg-type]
