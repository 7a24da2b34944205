"""Samples of several clients in one: the same answers, nobody spoils them for others, and nothing waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from policies.remote import connect
from policies.wire import BusyError
from robot_bridge.server.batching import Worker
from robot_bridge.server.limits import Limits
from robot_bridge.server.metrics import Metrics
from robot_bridge.server.requests import Kept, Sample
from sinew.errors import InputError, SpecError
from sinew.specs import STATE


class Gated:
    """A policy that begins to sample when it is let, and remembers how many observations it was given at once."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.spec, self.observation_dim = inner, inner.spec, 3
        self.open, self.begun, self.rows = threading.Event(), threading.Event(), []
        self.broken_rows = ()

    def encode(self, obs: Any) -> Any:
        return self.inner.encode(obs)

    def sample(self, ctx: Any, **options: Any) -> Any:
        self.begun.set()
        assert self.open.wait(60)
        self.rows.append(ctx.batch)
        if ctx.batch in self.broken_rows:
            raise SpecError(f"{ctx.batch} at once cannot be")
        return self.inner.sample(ctx, **options)


@pytest.fixture
def gated(kinds) -> Gated:
    return Gated(kinds.policy())


def work(seed: int, rows: int = 1, **fields: Any) -> Sample:
    stream = torch.Generator().manual_seed(seed)
    kept = Kept({STATE: torch.randn(rows, 1, 3, generator=stream)}, rows, 12 * rows)
    noise = torch.randn(rows, fields.get("n", 1), 4, 2, generator=stream)
    return replace(Sample(kept, 1, fields.get("n", 1), noise, None, False, False), **fields)


def asked_while_busy(
    gated: Gated, jobs: Sequence[Sample | tuple[Sample, float]], until, **limits: Any
) -> tuple[list[Any], Worker, Metrics]:
    """Answers or errors of jobs that all come while the policy works on another one."""
    metrics = Metrics()
    worker = Worker(gated, "p", Limits(window_s=0.1, **limits), metrics)
    worker.clients = len(jobs)
    with ThreadPoolExecutor(len(jobs) + 1) as pool:
        first = pool.submit(worker.answer, work(99), 60.0)
        assert gated.begun.wait(60)
        timed = [job if isinstance(job, tuple) else (job, 60.0) for job in jobs]
        asked = [pool.submit(worker.answer, work, wait_s) for work, wait_s in timed]
        until(lambda: worker.queued + sum(future.done() for future in asked) == len(jobs))
        gated.open.set()
        assert first.result(60)
        answers = [future.exception(60) or future.result() for future in asked]
    worker.close()
    return answers, worker, metrics


def alone(policy: Any, sample: Sample) -> dict[str, Any]:
    with torch.no_grad():
        return sample.work(policy)


def test_what_waits_is_sampled_in_one_with_the_answers_of_each_alone(gated, until):
    jobs = [work(seed, rows) for seed, rows in enumerate((1, 3, 2, 1))]
    answers, _, metrics = asked_while_busy(gated, jobs, until)
    assert gated.rows == [1, 7]
    for job, answer in zip(jobs, answers, strict=True):
        there, here = torch.from_numpy(answer["actions"]), torch.from_numpy(alone(gated.inner, job)["actions"])
        assert there.shape == here.shape
        torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
    assert 'sinew_batch_size_bucket{policy="p",le="4"} 2' in metrics.text({})


def test_what_may_not_be_together_is_not_and_keeps_its_bits(gated, until):
    odd = [work(1, alone=True), work(2, n=2), work(3, steps=2), work(4), work(5, candidates=2, noise=torch.zeros(2, 1, 4, 2)), work(6)]
    answers, _, _ = asked_while_busy(gated, odd, until)
    assert sorted(gated.rows) == [1, 1, 1, 1, 2, 2]  # 4 and 6 in one; the other 2 are the candidates of 5
    for job, answer in zip(odd, answers, strict=True):
        here = alone(gated.inner, job)["actions"]
        assert job.noise.shape[0] == here.shape[0]
        if job.alone:
            assert (answer["actions"] == here).all()


def test_no_batch_is_larger_than_it_may_be(gated, until):
    asked_while_busy(gated, [work(seed) for seed in range(7)], until, batch=3)
    assert gated.rows == [1, 3, 3, 1]
    gated.rows.clear()
    asked_while_busy(gated, [work(seed) for seed in range(3)], until, batch=1)
    assert gated.rows == [1, 1, 1, 1]


def test_who_spoils_a_batch_is_told_so_and_the_others_are_answered(gated, until):
    gated.broken_rows = (6, 3)  # together, and the second alone
    jobs = [work(1), work(2, rows=3), work(3, rows=2)]
    answers, _, _ = asked_while_busy(gated, jobs, until)
    assert isinstance(answers[1], SpecError)
    for i in (0, 2):
        assert (answers[i]["actions"] == alone(gated.inner, jobs[i])["actions"]).all()


def test_beyond_what_may_wait_is_busy_at_once_and_what_is_late_is_not_computed(gated, until):
    answers, _, _ = asked_while_busy(gated, [work(seed, alone=True) for seed in range(6)], until, waiting=4)
    told = [answer for answer in answers if isinstance(answer, BusyError)]
    assert len(told) == 2 and "4 requests wait for policy p already" in str(told[0])
    gated.rows.clear()
    gated.open.clear()
    gated.begun.clear()
    late = [(work(1), 1e-6), (work(2), 60.0)]
    answers, _, _ = asked_while_busy(gated, late, until)
    assert isinstance(answers[0], BusyError) and "did not come to the request in time" in str(answers[0])
    assert gated.rows == [1, 1]


def test_a_worker_that_is_closed_answers_everybody(gated):
    worker = Worker(gated, "p", Limits(), Metrics())
    with ThreadPoolExecutor(2) as pool:
        under_way = pool.submit(worker.answer, work(0), 60.0)
        assert gated.begun.wait(60)
        waiting = pool.submit(worker.answer, work(1), 60.0)
        worker.close()
        for future in (under_way, waiting):
            with pytest.raises(BusyError, match="is being closed"):
                future.result(60)
    with pytest.raises(BusyError, match="is being closed"):
        worker.answer(work(2), 60.0)
    gated.open.set()


def test_clients_of_a_server_are_batched_and_a_client_may_want_exact_answers(gated, serving, until):
    server = serving(gated, limits=Limits(window_s=1.0))
    gated.open.set()
    remotes = [connect(server.url, exact=exact) for exact in (False, False, True)]
    obs = [torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    noise = torch.zeros(2, 1, 4, 2)
    for remote in remotes:  # every client is known to be there
        remote.sample(remote.encode({STATE: torch.zeros(2, 1, 3)}), noise=noise)
    gated.rows.clear()
    gated.open.clear()
    gated.begun.clear()
    with ThreadPoolExecutor(3) as pool:
        exact = pool.submit(lambda: remotes[2].sample(remotes[2].encode({STATE: obs[2]}), noise=noise))
        assert gated.begun.wait(60)
        others = [pool.submit(lambda i=i: remotes[i].sample(remotes[i].encode({STATE: obs[i]}), noise=noise)) for i in range(2)]
        until(lambda: server._workers["policy"].queued == 2)
        gated.open.set()
        answers = [future.result(60).actions for future in (*others, exact)]
    assert gated.rows == [2, 4]
    with torch.no_grad():
        here = [gated.inner.sample(gated.inner.encode({STATE: o}), noise=noise).actions for o in obs]
    assert torch.equal(answers[2], here[2])
    for i in range(2):
        torch.testing.assert_close(answers[i], here[i], rtol=0, atol=1e-5)
    for remote in remotes:
        remote.close()


def test_a_busy_server_says_so_and_the_connection_lives_on(gated, serving, until):
    server = serving(gated, limits=Limits(waiting=1))
    remotes = [connect(server.url, timeout_s=60) for _ in range(3)]
    obs, noise = {STATE: torch.ones(1, 1, 3)}, torch.zeros(1, 1, 4, 2)
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(lambda r=remotes[0]: r.sample(r.encode(obs), noise=noise))]
        assert gated.begun.wait(60)
        held.append(pool.submit(lambda r=remotes[1]: r.sample(r.encode(obs), noise=noise)))
        until(lambda: server._workers["policy"].queued == 1)
        with pytest.raises(BusyError, match="ask again later, or less often"):
            remotes[2].sample(remotes[2].encode(obs), noise=noise)
        gated.open.set()
        answers = [future.result(60).actions for future in held]
    assert torch.equal(remotes[2].sample(remotes[2].encode(obs), noise=noise).actions, answers[0])
    assert server.clients == 3
    for remote in remotes:
        remote.close()


def test_what_is_under_way_is_answered_before_the_server_closes(gated, serving):
    server = serving(gated)
    remote = connect(server.url, timeout_s=60)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(lambda: remote.sample(remote.encode({STATE: torch.ones(1, 1, 3)})))
        assert gated.begun.wait(60)
        closing = pool.submit(server.close)
        gated.open.set()
        assert answer.result(60).actions.shape == (1, 1, 4, 2)
        closing.result(60)
    with pytest.raises(InputError, match="nothing can be reached"):
        remote.sample(remote.encode({STATE: torch.ones(1, 1, 3)}))


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("window_s", -1), ("idle_s", 0), ("max_clients", 0), ("max_bytes", 3)])
def test_limits_that_cannot_be(name, value):
    with pytest.raises(InputError, match=f"a policy server's {name} must be in"):
        Limits(**{name: value})
