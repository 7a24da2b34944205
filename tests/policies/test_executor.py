"""The chunk executor against loops written by hand."""

from __future__ import annotations

import math

import pytest
import torch

from policies.executor import ChunkExecutor, CorrectedPlans
from sinew.errors import InputError, SafetyStop, SpecError
from sinew.specs import STATE


def observed(*values):
    """Observations whose first state element is given for each world."""
    return {STATE: torch.tensor([[float(v), 0.0] for v in values])}


def test_sync_executes_act_steps_of_each_chunk(toys):
    """Chunk from x: 0.1 x + 0.01 h. Worlds 0 and 1 see x = t and x = 10 + t; a chunk is taken at t = 0, 3, 6."""
    executor = ChunkExecutor(toys.ScriptedPolicy(horizon=4), 2, act_steps=3, noise="zero")
    executor.reset(seeds=[0, 1])
    for t in range(8):
        queried = t // 3 * 3
        expected = [0.1 * queried + 0.01 * (t - queried), 0.1 * (10 + queried) + 0.01 * (t - queried)]
        actions = executor.plan(observed(t, 10 + t))
        torch.testing.assert_close(actions, torch.tensor(expected)[:, None].expand(2, 3))


def test_whole_chunk_is_executed_by_default_and_worlds_run_out_of_step(toys):
    policy = toys.ScriptedPolicy(horizon=3)
    executor = ChunkExecutor(policy, 2, noise="zero")
    executor.plan(observed(0, 0))
    executor.reset([1], seeds=[5])  # truncated or terminated alike: the old chunk is gone
    torch.testing.assert_close(executor.plan(observed(1, 7))[:, 0], torch.tensor([0.01, 0.7]))
    torch.testing.assert_close(executor.plan(observed(2, 8))[:, 0], torch.tensor([0.02, 0.71]))
    torch.testing.assert_close(executor.plan(observed(3, 9))[:, 0], torch.tensor([0.3, 0.72]))
    assert [len(w) for w in policy.windows] == [2, 1, 1]  # only worlds that need a chunk are encoded


def test_ensemble_weights_the_oldest_prediction_most(toys):
    """At t, the chunk from time s <= t predicts 0.1 x_s + 0.01 (t - s); weights exp(-0.01 i), i = 0 for the oldest."""
    horizon = 4
    executor = ChunkExecutor(toys.ScriptedPolicy(horizon=horizon), 1, mode="ensemble", noise="zero")
    executor.reset(seeds=[0])
    seen = [3.0, -1.0, 4.0, 1.0, 5.0, -9.0, 2.0]
    for t, x in enumerate(seen):
        sources = range(max(0, t - horizon + 1), t + 1)
        weights = [math.exp(-0.01 * i) for i in range(len(sources))]
        predictions = [0.1 * seen[s] + 0.01 * (t - s) for s in sources]
        expected = sum(w * p for w, p in zip(weights, predictions, strict=True)) / sum(weights)
        assert float(executor.plan(observed(x))[0, 0]) == pytest.approx(expected, abs=1e-6)
    executor.reset([0], seeds=[1])
    assert float(executor.plan(observed(6.0))[0, 0]) == pytest.approx(0.6, abs=1e-6)


def test_async_goes_on_with_the_old_chunk_until_the_new_one_is_there(toys):
    """Chunks are asked for at 0, 3, 6, … and are there two ticks later, the first at once."""
    executor = ChunkExecutor(toys.ScriptedPolicy(horizon=6), 2, mode="async", delay=2, act_steps=3, noise="zero")
    executor.reset(seeds=[0, 1])
    for t in range(14):
        asked = max(q for q in range(0, 15, 3) if q == 0 or q + 2 <= t)
        expected = [0.1 * (x + asked) + 0.01 * (t - asked) for x in (0, 10)]
        torch.testing.assert_close(executor.plan(observed(t, 10 + t)), torch.tensor(expected)[:, None].expand(2, 3))


@pytest.mark.parametrize("act_steps", [None, 1, 3])
@pytest.mark.parametrize("mode", ["async", "rtc"])
def test_without_delay_it_is_sync(toys, mode, act_steps):
    """RTC too where whole chunks are executed: nothing overlaps then."""
    policy, data = toys.make("flow-mlp")
    if mode == "rtc" and act_steps is not None:
        return
    late, sync = ChunkExecutor(policy, 3, mode=mode, act_steps=act_steps), ChunkExecutor(policy, 3, act_steps=act_steps)
    for executor in (late, sync):
        executor.reset(seeds=[4, 5, 6])
    for t in range(9):
        obs = frames(data, policy, [t, 2 * t, 9])
        assert torch.equal(late.act(obs), sync.act(obs))


@pytest.mark.parametrize("jacobian", ["vjp", "identity"])
def test_rtc_executes_exactly_the_committed_actions_and_then_the_chunk_that_continues_them(toys, monkeypatch, jacobian):
    policy, data = toys.make("flow-mlp")
    horizon, delay, steps = policy.spec.horizon, 2, 3
    executor = ChunkExecutor(policy, 1, mode="rtc", delay=delay, act_steps=steps, jacobian=jacobian)
    executor.reset(seeds=[7])
    sample, chunks, guides = policy.sample, [], []

    def spy(context, **options):
        guides.append(options["guidance"])
        chunks.append(sample(context, **options).actions[0, 0])
        return sample(context, **options)

    monkeypatch.setattr(policy, "sample", spy)
    executed = torch.cat([executor.plan(frames(data, policy, [t])) for t in range(3 * steps + delay)])
    assert guides[0] == () and len(chunks) == 4
    torch.testing.assert_close(executed[: steps + delay], chunks[0][: steps + delay], rtol=0, atol=0)
    for k in (1, 2):
        asked = k * steps
        assert torch.equal(guides[k][0].previous[0, : horizon - steps], chunks[k - 1][steps:])
        assert torch.equal(guides[k][0].previous[0, :delay], executed[asked : asked + delay])
        assert torch.equal(executed[asked + delay : asked + delay + steps], chunks[k][delay : delay + steps])


def test_rtc_needs_a_denoiser(toys):
    with pytest.raises(SpecError, match="executor rtc needs a policy with capability 'denoise'"):
        ChunkExecutor(toys.ScriptedPolicy(), 1, mode="rtc", delay=1)


def test_history_repeats_the_first_observation_and_then_slides(toys):
    policy = toys.ScriptedPolicy(horizon=2, n_obs_steps=3)
    executor = ChunkExecutor(policy, 2, act_steps=1)
    executor.reset(seeds=[0, 1])
    for t in range(3):
        executor.plan(observed(t, 10 + t))
    executor.reset([0], seeds=[2])
    executor.plan(observed(50, 13))
    windows = [w[:, :, 0].tolist() for w in policy.windows]
    assert windows[0] == [[0, 0, 0], [10, 10, 10]]
    assert windows[1] == [[0, 0, 1], [10, 10, 11]]
    assert windows[2] == [[0, 1, 2], [10, 11, 12]]
    assert windows[3] == [[50, 50, 50], [11, 12, 13]]


WAYS = {
    "sync": {"mode": "sync", "act_steps": 2},
    "ensemble": {"mode": "ensemble"},
    "async": {"mode": "async", "delay": 1, "act_steps": 2},
    "rtc": {"mode": "rtc", "delay": 2, "act_steps": 2},
    "rtc-identity": {"mode": "rtc", "delay": 1, "act_steps": 1, "jacobian": "identity"},
}


@pytest.mark.parametrize("way", ["sync", "ensemble", "async"])
@pytest.mark.parametrize("n_obs_steps", [1, 2])
def test_peek_tells_the_next_plan_and_changes_nothing(toys, way, n_obs_steps):
    settings = WAYS[way]
    peeking, plain = (ChunkExecutor(toys.ScriptedPolicy(n_obs_steps=n_obs_steps), 3, **settings) for _ in range(2))
    for executor in (peeking, plain):
        executor.reset(seeds=[4, 5, 6])
    for t in range(6):
        obs = observed(t, 2 * t, -t)
        told = peeking.peek({STATE: obs[STATE][[2, 0]]}, [2, 0])
        peeking.peek(observed(99, 98), [1, 2])
        planned = peeking.plan(obs)
        assert torch.equal(planned, plain.plan(obs))
        torch.testing.assert_close(told, planned[[2, 0]], rtol=0, atol=1e-6)
        if t == 3:
            for executor in (peeking, plain):
                executor.reset([1], seeds=[77])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["flow-mlp-camera", "residual-flow-mlp"])
def test_a_world_does_not_depend_on_the_others(toys, way, name):
    """World with seed 9 alone, against the same world among seven that are reset at other times."""
    policy, data = toys.make(name)
    kwargs = WAYS[way]
    alone, among = ChunkExecutor(policy, 1, **kwargs), ChunkExecutor(policy, 7, **kwargs)
    alone.reset([0], seeds=[9])
    among.reset(seeds=range(100, 107))
    among.plan(frames(data, policy, range(7)))
    among.reset([3], seeds=[9])
    for t in range(5):
        rows = [11, 5, 7, 20 + t, 3, 2, t]
        one = alone.act(frames(data, policy, [20 + t]))
        many = among.act(frames(data, policy, rows))
        torch.testing.assert_close(many[3], one[0], rtol=0, atol=1e-5)
        among.reset([t], seeds=[t]) if t != 3 else None


def frames(data, policy, rows):
    return {key: torch.from_numpy(data.frames[key][list(rows)]) for key in policy.spec.observation}


def test_worlds_left_out_stay_as_they_are(toys):
    whole, partly = (ChunkExecutor(toys.ScriptedPolicy(), 3, act_steps=2) for _ in range(2))
    for executor in (whole, partly):
        executor.reset(seeds=[1, 2, 3])
    for t in range(4):
        expected = whole.plan(observed(t, 0, 2 * t))
        got = partly.plan({STATE: observed(t, 0, 2 * t)[STATE][[0, 2]]}, [0, 2])
        assert torch.equal(got, expected[[0, 2]])
    fresh = ChunkExecutor(toys.ScriptedPolicy(), 3, act_steps=2)
    fresh.reset(seeds=[1, 2, 3])
    assert torch.equal(partly.plan({STATE: observed(8)[STATE]}, [1]), fresh.plan({STATE: observed(8)[STATE]}, [1]))


def test_noise_is_that_of_the_episode_and_moves_with_every_chunk(toys):
    executor = ChunkExecutor(toys.ScriptedPolicy(), 2, act_steps=1)
    executor.reset(seeds=[3, 3])
    first, second = executor.plan(observed(0, 0)), executor.plan(observed(0, 0))
    assert torch.equal(first[0], first[1]) and not torch.equal(first, second)
    executor.reset([1], seeds=[3])
    assert torch.equal(executor.plan(observed(0, 0))[1], first[0])
    executor.reset()  # without seeds: new episodes of the worlds' own streams, which differ
    one = executor.plan(observed(0, 0))
    executor.reset()
    assert not torch.equal(one[0], one[1]) and not torch.equal(one, executor.plan(observed(0, 0)))


def test_fixed_noise_is_used_for_every_chunk(toys):
    executor = ChunkExecutor(toys.ScriptedPolicy(), 1, act_steps=1, noise=torch.tensor([2.0]))
    for _ in range(3):
        assert float(executor.plan(observed(0))[0, 0]) == pytest.approx(0.002)
    with pytest.raises(InputError, match=r"shape \(2,\), the policy's noise_shape is \(1,\)"):
        ChunkExecutor(toys.ScriptedPolicy(), 1, noise=torch.zeros(2))
    with pytest.raises(InputError, match="unknown noise 'none'"):
        ChunkExecutor(toys.ScriptedPolicy(), 1, noise="none")  # pyright: ignore[reportArgumentType]


def test_noise_of_one_stream_is_that_of_the_start_of_all_worlds(toys):
    """For learning in thousands of worlds: drawn at once, the same again after the same start, and a look ahead does not use it up."""
    executor = ChunkExecutor(toys.ScriptedPolicy(), 500, act_steps=1, noise="stream")
    runs = []
    for peeks in (False, True):
        executor.reset(seeds=range(500))
        first = executor.plan(observed(*[0] * 500))
        if peeks:
            executor.peek(observed(0, 0), [7, 8])
        executor.reset([3], seeds=[77])  # an episode ends; the stream goes on
        runs.append((first, executor.plan(observed(*[0] * 500))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    (first, second), noise = runs[0], runs[0][0][:, 0] * 1000
    assert not torch.equal(first, second) and len(first[:, 0].unique()) > 490
    assert abs(float(noise.mean())) < 0.2 and float(noise.std()) == pytest.approx(1.0, abs=0.15)
    executor.reset(seeds=range(1, 501))
    assert not torch.equal(executor.plan(observed(*[0] * 500)), first)


def test_no_action_that_is_not_finite_leaves(toys):
    executor = ChunkExecutor(toys.ScriptedPolicy(), 2)
    with pytest.raises(SafetyStop, match=r"world 1: its observation 'observation.state' is not finite"):
        executor.plan(observed(0, math.nan))
    with pytest.raises(SafetyStop, match="weights or noise"):
        ChunkExecutor(toys.ScriptedPolicy(), 1, noise=torch.tensor([math.inf])).act(observed(0))
    torch.testing.assert_close(executor.plan(observed(1, 1)).shape, torch.Size([2, 3]))


def test_broken_weights_of_the_correction_are_stopped_too(toys):
    policy, data = toys.make("residual-flow-mlp")
    torch.nn.init.constant_(policy.actor.layers[-1].bias, math.nan)
    executor = ChunkExecutor(policy, 2)
    assert torch.isfinite(executor.plan(frames(data, policy, [0, 1]))).all()
    with pytest.raises(SafetyStop, match="weights"):
        executor.act(frames(data, policy, [0, 1]))


def test_observations_that_do_not_fit_are_told(toys):
    executor = ChunkExecutor(toys.ScriptedPolicy(), 2)
    with pytest.raises(SpecError, match=r"needs observation 'observation.state'; given are other"):
        executor.plan({"other": torch.zeros(2, 2)})
    with pytest.raises(SpecError, match=r"has shape \(3, 2\), expected \(2, 2\)"):
        executor.plan({STATE: torch.zeros(3, 2)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "asynchronous"}, "unknown executor mode 'asynchronous': known are sync, ensemble, async, rtc"),
        ({"delay": 1}, "executor sync waits for its chunks and knows no delay, given 1: use async or rtc"),
        ({"mode": "async", "delay": 3}, r"a delay of 3 ticks does not fit chunks of 4 actions, it may be 0 to 2: take fewer"),
        ({"mode": "async", "delay": -1}, "a delay of -1 ticks does not fit"),
        ({"mode": "async", "delay": 2, "act_steps": 1}, r"act_steps 1 is not within 2\.\.2, which a delay of 2 ticks leaves"),
        ({"mode": "async", "delay": 1, "act_steps": 4}, r"act_steps 4 is not within 1\.\.3"),
        ({"act_steps": 5}, r"act_steps 5 is not within 1\.\.4"),
        ({"act_steps": 0}, r"act_steps 0 is not within 1\.\.4"),
        ({"mode": "ensemble", "act_steps": 2}, "ensemble samples a chunk at every tick"),
    ],
)
def test_wrong_settings_are_told(toys, settings, message):
    with pytest.raises(InputError, match=message):
        ChunkExecutor(toys.ScriptedPolicy(), 1, **settings)


def test_seeds_must_match_worlds(toys):
    with pytest.raises(InputError, match="3 seeds given for 2 worlds"):
        ChunkExecutor(toys.ScriptedPolicy(), 2).reset(seeds=[1, 2, 3])


def test_corrected_plans_are_what_act_gives_and_peek_changes_nothing(toys):
    policy, data = toys.make("residual-flow-mlp")
    window = toys.batch(data, policy.spec, rows=2)
    obs = {key: window[key][:, -1] for key in policy.spec.observation}
    expected = ChunkExecutor(policy, 2, seed=3).act(obs)
    planner = CorrectedPlans(ChunkExecutor(policy, 2, seed=3))
    assert torch.equal(planner.peek(obs, [0, 1]), expected) and torch.equal(planner.plan(obs), expected)
    assert not torch.allclose(ChunkExecutor(policy, 2, seed=3).plan(obs), expected)


def test_a_chunk_that_was_not_finite_does_not_outlive_the_stop(toys):
    """World 0 looks at a broken reading once; after the stop its next chunk is its own, not guided by the broken one."""
    policy, data = toys.make("flow-mlp")
    executor = ChunkExecutor(policy, 2, mode="rtc", delay=1, act_steps=2)
    good = frames(data, policy, [0, 1])
    for _ in range(2):
        executor.act(good)
    broken = {key: value.clone() for key, value in good.items()}
    broken[STATE][0] = math.nan
    executor.act(broken)  # the chunk that is asked for here is executed from the next tick on
    with pytest.raises(SafetyStop, match="world 0"):
        executor.act(good)
    for _ in range(6):
        assert torch.isfinite(executor.act(good)).all()
