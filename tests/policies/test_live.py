"""The live executor, with a pool that computes when the test says so, and with its own thread."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future

import pytest
import torch

from policies.executor import ChunkExecutor
from policies.live import LiveExecutor, measure_latency
from policies.wire import LinkError
from sinew.errors import InputError, SafetyStop, SpecError
from sinew.specs import STATE


class Held(Executor):
    """Computes what was asked for when `finish` is called."""

    def __init__(self) -> None:
        self.jobs: list = []

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self.jobs.append((future, lambda: future.set_result(fn(*args, **kwargs))))
        return future

    def finish(self) -> None:
        self.jobs.pop(0)[1]()


def observed(value):
    return {STATE: torch.tensor([[float(value), 0.0]])}


def value(action):
    return None if action is None else round(float(action[0, 0]), 6)


def test_it_holds_until_the_first_chunk_is_there_and_then_starts_at_its_beginning(toys):
    pool = Held()
    live = LiveExecutor(toys.ScriptedPolicy(horizon=6), mode="async", delay=2, act_steps=3, pool=pool)
    live._fixed_noise = torch.zeros(1)
    live.reset(seeds=[0])
    assert [value(live.act(observed(t))) for t in range(3)] == [None] * 3
    pool.finish()
    assert [value(live.act(observed(9))) for _ in range(3)] == pytest.approx([0.0, 0.01, 0.02])  # asked for at x = 0
    assert live.held_ticks == 3 and len(pool.jobs) == 0


def test_in_time_it_does_what_the_simulated_delay_does(toys):
    """A chunk that is there one tick after it was asked for is entered after two, as agreed."""
    pool, policy = Held(), toys.ScriptedPolicy(horizon=6)
    live = LiveExecutor(policy, mode="async", delay=2, act_steps=3, pool=pool)
    simulated = ChunkExecutor(policy, 1, mode="async", delay=2, act_steps=3)
    for executor in (live, simulated):
        executor.reset(seeds=[4])
    assert live.act(observed(0)) is None
    pool.finish()
    for t in range(14):
        given, expected = live.act(observed(t)), simulated.act(observed(t))
        assert value(given) == value(expected)
        if pool.jobs:
            pool.finish()


def test_a_late_chunk_is_entered_where_it_stands_and_a_very_late_one_holds(toys):
    pool = Held()
    live = LiveExecutor(toys.ScriptedPolicy(horizon=6), mode="async", delay=1, act_steps=3, pool=pool)
    live._fixed_noise = torch.zeros(1)
    live.reset(seeds=[0])
    live.act(observed(0))
    pool.finish()
    given = [value(live.act(observed(10 * t))) for t in range(5)]
    assert given == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04])  # the next was asked for at x = 30, before the fourth
    pool.finish()
    assert value(live.act(observed(50))) == pytest.approx(3.0 + 0.02)  # two actions were given meanwhile
    assert value(live.act(observed(60))) == pytest.approx(3.0 + 0.03)  # and the one after it is asked for at x = 60
    assert [value(live.act(observed(70))) for _ in range(4)] == [pytest.approx(3.04), pytest.approx(3.05), None, None]
    pool.finish()
    assert value(live.act(observed(80))) == pytest.approx(6.0 + 0.03)  # the two ticks of standing do not count
    assert live.held_ticks == 3


def test_rtc_continues_what_is_left_when_it_is_asked_for(toys):
    policy, data = toys.make("flow-mlp")
    pool, guides = Held(), []
    sample = policy.sample
    policy.sample = lambda context, **options: (guides.append(options["guidance"]), sample(context, **options))[1]
    live = LiveExecutor(policy, mode="rtc", delay=1, act_steps=2, pool=pool)
    live.reset(seeds=[0])
    obs = {key: torch.from_numpy(data.frames[key][:1]) for key in policy.spec.observation}
    assert live.act(obs) is None
    pool.finish()
    first = [live.act(obs) for _ in range(3)]
    chunk = live._chunk
    assert chunk is not None and torch.equal(torch.cat(first), chunk[:3]) and guides == [()]
    pool.finish()
    assert torch.equal(guides[1][0].previous[0, :3], chunk[2:]) and guides[1][0].weight[0, :, 0].tolist()[0] == 1
    entered = live.act(obs)
    assert live._chunk is not None and torch.equal(entered, live._chunk[1:2])


def test_with_its_own_thread_no_tick_waits_and_reset_does(toys):
    gate, policy = threading.Event(), toys.ScriptedPolicy()
    sample = policy.sample
    policy.sample = lambda *args, **options: (gate.wait(), sample(*args, **options))[1]
    live = LiveExecutor(policy, mode="async", delay=1)
    try:
        live.reset(seeds=[0])
        assert live.act(observed(1)) is None and live.act(observed(2)) is None
        gate.set()
        live.reset(seeds=[1])
        while (action := live.act(observed(3))) is None:
            pass
        assert float(action[0, 0]) == pytest.approx(0.3, abs=0.01)
    finally:
        live.close()


def test_the_latency_is_measured_and_decides_the_delay(toys):
    policy, _ = toys.make("edm-mlp")
    assert 0 < measure_latency(policy, mode="rtc") < 10
    live = LiveExecutor(policy, mode="async", pool=Held())
    assert live.latency_s is not None and live.delay >= 1
    assert live.delay - 1 < live.latency_s * policy.spec.rate_hz <= live.delay


def test_errors_of_the_thread_and_actions_that_are_not_finite_reach_the_tick(toys):
    policy = toys.ScriptedPolicy()
    live = LiveExecutor(policy, mode="async", delay=1)
    try:
        live.reset(seeds=[0])
        with pytest.raises(SafetyStop, match=r"non-finite action in world 0"):
            while live.act(observed(float("nan"))) is None:
                pass
        policy.sample = None
        live.reset(seeds=[0])
        with pytest.raises(TypeError):
            while live.act(observed(0)) is None:
                pass
    finally:
        live.close()


def test_what_cannot_be_is_told(toys):
    policy = toys.ScriptedPolicy()
    with pytest.raises(InputError, match="executor 'sync' computes in the tick itself: known for a live robot are async, rtc"):
        LiveExecutor(policy, mode="sync")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="a delay of 9 ticks does not fit chunks of 4 actions"):
        LiveExecutor(policy, mode="async", delay=9)
    with pytest.raises(SpecError, match="executor rtc needs a policy with capability 'denoise'"):
        LiveExecutor(policy, mode="rtc", delay=1)
    live = LiveExecutor(policy, mode="async", delay=1, pool=Held())
    with pytest.raises(InputError, match="cannot tell what it would do next"):
        live.peek(observed(0), [0])


def test_a_chunk_that_comes_after_a_partition_is_not_replayed(toys):
    """Asked for at x = 0, there eight ticks later: the actions for x = 0 are never given."""
    pool = Held()
    live = LiveExecutor(toys.ScriptedPolicy(horizon=6), mode="async", delay=1, act_steps=3, pool=pool)
    live._fixed_noise = torch.zeros(1)
    live.reset(seeds=[0])
    assert [value(live.act(observed(t))) for t in range(8)] == [None] * 8
    pool.finish()
    assert value(live.act(observed(50))) is None and live.old_chunks == 1 and len(pool.jobs) == 1  # asked for anew
    pool.finish()
    assert value(live.act(observed(60))) == pytest.approx(5.0)  # what was seen when it was asked for again


def test_a_chunk_that_was_lost_with_its_connection_is_asked_for_again(toys):
    pool, policy = Held(), toys.ScriptedPolicy(horizon=6)
    live = LiveExecutor(policy, mode="async", delay=1, act_steps=3, pool=pool)
    live._fixed_noise = torch.zeros(1)
    live.reset(seeds=[0])
    live.act(observed(0))
    future, _ = pool.jobs.pop(0)
    future.set_exception(LinkError("the server went away"))
    assert value(live.act(observed(10))) is None and live.lost_chunks == 1
    pool.finish()
    assert value(live.act(observed(20))) == pytest.approx(1.0)


def test_the_delay_follows_what_chunks_take(toys):
    """20 Hz: chunks of 10 ms need one tick, of 120 ms three, and a chunk of 8 leaves room for four."""
    clock, taken, pool = [0.0], [0.0], Held()
    policy = toys.ScriptedPolicy(horizon=8)
    live = LiveExecutor(policy, mode="async", pool=pool, now_s=lambda: clock[0])
    period_s = 1.0 / policy.spec.rate_hz
    live.delay, live.act_steps = 1, 7  # whatever this machine took
    query = live._query

    def slow(*args):
        clock[0] += taken[0]
        return query(*args)

    live._query = slow  # type: ignore[method-assign]
    live.reset(seeds=[0])

    def play(ticks: int) -> None:
        for _ in range(ticks):
            live.act(observed(0))
            while pool.jobs:
                pool.finish()

    taken[0] = 0.2 * period_s
    play(60)
    assert live.delay == 1
    taken[0] = 2.4 * period_s
    play(60)
    assert live.delay == 3 and live.act_steps == 5
    taken[0] = 9.0 * period_s
    play(60)
    assert live.delay == 4 == live.act_steps  # half of the horizon is the most
    taken[0] = 0.2 * period_s
    play(200)
    told = live.report()
    assert live.delay == 1 and told["delays"][-1] == 1 and told["chunks"] > 50
    assert told["latency_ms"]["max"] == pytest.approx(9e3 * period_s, rel=1e-3)
