"""PPO from scratch: advantages against closed forms, the update against its parts, a small task learned, resumed to the bit."""

import math
from dataclasses import replace
from functools import partial

import point_mass
import pytest
import torch
from ppo_toys import made_up, make_actor, make_learner, success
from tape import Tape

from rl.graph import copy_batch
from rl.ppo import PpoConfig, PpoUpdateConfig, train_ppo
from rl.ppo_update import Sample, divergence, log_density
from rl.rollout import Rollouts, advantages
from rl.surrogate import generalised_advantage
from rl.worlds import Step
from sinew.errors import InputError
from sinew.rundir import RunDir

WORLDS = 32


def config(**settings) -> PpoConfig:
    values = {"steps": 1_536, "rollout_steps": 8, "critic_hidden": (16,), "evaluate_every": 10**6, "checkpoint_every": 10**6}
    return PpoConfig(**{**values, **settings})


# ---------------------------------------------------------------- advantages


def drawn(T: int = 9, N: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ended = torch.rand(T, N, generator=g) < 0.3
    terminated = ended & (torch.rand(T, N, generator=g) < 0.5)
    names = ("reward", "value", "next_value")
    return {name: torch.randn(T, N, generator=g) for name in names} | {"terminated": terminated, "ended": ended}


def test_advantages_are_the_discounted_sums_of_what_was_not_expected():
    """A_t = sum_k (gamma lambda)^k delta_{t+k} up to the end of the episode, summed here one by one."""
    gamma, decay, it = 0.9, 0.8, drawn()
    made, wanted = advantages(**it, gamma=gamma, decay=decay)
    T, N = made.shape
    for n in range(N):
        for t in range(T):
            expected, factor = 0.0, 1.0
            for k in range(t, T):
                bootstrap = 0.0 if it["terminated"][k, n] else gamma * float(it["next_value"][k, n])
                expected += factor * (float(it["reward"][k, n]) + bootstrap - float(it["value"][k, n]))
                if it["ended"][k, n]:
                    break
                factor *= gamma * decay
            assert float(made[t, n]) == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(wanted, made + it["value"])


def test_two_implementations_of_advantages_agree():
    gamma, it = 0.95, drawn(seed=1)
    ours, _ = advantages(**it, gamma=gamma, decay=0.9)
    flat = {k: v.t().flatten() for k, v in it.items()}  # one world after the other
    follows = ~flat["ended"]
    follows.view(-1, len(it["reward"]))[:, -1] = False
    discount = gamma * (~flat["terminated"]).float()
    theirs, _ = generalised_advantage(flat["reward"], discount, flat["value"], flat["next_value"], follows, 0.9)
    torch.testing.assert_close(ours.t().flatten(), theirs, atol=1e-5, rtol=1e-5)


def test_with_lambda_one_returns_are_monte_carlo_and_time_outs_bootstrap():
    reward = torch.tensor([[1.0], [2.0], [4.0]])
    value, after = torch.full((3, 1), 10.0), torch.tensor([[10.0], [10.0], [100.0]])
    none, last = torch.zeros(3, 1, dtype=torch.bool), torch.tensor([[False], [False], [True]])
    _, out_of_time = advantages(reward, value, after, none, last, gamma=0.5, decay=1.0)
    _, terminal = advantages(reward, value, after, last, last, gamma=0.5, decay=1.0)
    assert terminal[0].item() == pytest.approx(1 + 0.5 * 2 + 0.25 * 4)
    assert out_of_time[0].item() == pytest.approx(1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 100)
    assert terminal[2].item() == 4.0 and out_of_time[2].item() == 54.0


def test_the_state_after_an_episode_is_its_own_last_and_not_the_next_ones_first():
    memory, worlds = Rollouts(torch.device("cpu")), 3

    def frame(t: int) -> dict[str, torch.Tensor]:
        return {"features": torch.tensor([[10.0 * t + w] for w in range(worlds)])}

    memory.start(0, frame(0))
    ends = {1: [1], 2: [0, 2]}
    for t in range(3):
        over = torch.tensor([w in ends.get(t, []) for w in range(worlds)])
        final = {"features": torch.tensor([[1000.0 + 10 * t + w] for w in ends[t]])} if t in ends else None
        none = torch.zeros(worlds, dtype=torch.bool)
        memory.add(0, Step(torch.zeros(worlds, 1), torch.zeros(worlds), none, over, 1, frame(t + 1), final, [0.0] * int(over.sum())))
    assert len(memory) == 9
    rollout = memory.taken()
    assert len(memory) == 0
    value = rollout.frames["features"][..., 0]
    after = rollout.next_values(value, rollout.last["features"][:, 0], rollout.final["features"][:, 0])
    assert after.tolist() == [[10, 11, 12], [20, 1011, 22], [1020, 31, 1022]]


# ---------------------------------------------------------------- update


def test_density_and_divergence_are_those_of_torch():
    g = torch.Generator().manual_seed(0)
    u, mean, old = (torch.randn(7, 3, generator=g) for _ in range(3))
    log_std, old_log_std = torch.randn(3, generator=g) * 0.3, torch.randn(3, generator=g) * 0.3
    now, before = torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(old, old_log_std.exp())
    torch.testing.assert_close(log_density(u, mean, log_std), now.log_prob(u).sum(-1))
    torch.testing.assert_close(divergence(mean, log_std, old, old_log_std), torch.distributions.kl_divergence(before, now).sum(-1))


def test_ratios_begin_at_one_and_what_paid_better_becomes_likelier():
    learner = make_learner(target_divergence=None, learning_rate=1e-3, entropy_weight=0.0, batches=1, epochs=1)
    whole = learner.judged(made_up(learner))
    _, told = learner._loss(whole)
    assert abs(float(told[0])) < 1e-6 and float(told[1]) == 0.0
    assert abs(float(whole.gain.mean())) < 1e-6 and float(whole.gain.std(correction=0)) == pytest.approx(1.0)
    before = log_density(whole.u, whole.mean, whole.log_std)
    for _ in range(20):
        learner._step(whole)
    with torch.no_grad():
        moved = log_density(whole.u, learner.actor(whole.features), learner.actor.log_std) - before
    assert float((moved * whole.gain).mean()) > 0
    assert float(moved[whole.gain > 1].mean()) > 0 > float(moved[whole.gain < -1].mean())


def test_the_step_size_follows_the_divergence_within_bounds():
    learner = make_learner(learning_rate=1e-3, target_divergence=0.01, lowest_rate=5e-4, highest_rate=2e-3)
    told = ((0.05, 1e-3 / 1.5), (0.05, 5e-4), (0.05, 5e-4), (0.01, 5e-4), (0.001, 7.5e-4), (0.0, 1.125e-3), (0.0, 1.6875e-3), (0.0, 2e-3))
    for apart, rate in told:
        learner._follow(torch.tensor(apart))
        assert float(learner.rate) == pytest.approx(rate, rel=1e-5)
    assert learner.optimizer.param_groups[0]["lr"] is learner.rate
    fixed = make_learner(target_divergence=None)
    fixed._follow(torch.tensor(10.0))
    assert float(fixed.rate) == pytest.approx(1e-3)


def test_the_first_rollout_only_tells_what_there_is_to_see():
    learner, g = make_learner(), torch.Generator().manual_seed(0)
    before = {k: v.clone() for k, v in learner.actor.state_dict().items()}
    first = made_up(learner)
    learner.learn(first, g)
    assert learner.updates == 0 and float(learner.norm.count) == first.reward.numel()
    assert all(torch.equal(v, before[k]) for k, v in learner.actor.state_dict().items() if "norm" not in k)
    learner.learn(made_up(learner, seed=1), g)
    assert learner.updates == 20 and float(learner.norm.count) == 2 * first.reward.numel()


def test_values_that_leave_their_range_count_no_less():
    """The clipped error is never below the plain one."""
    learner = make_learner(value_clip=0.01)
    whole = learner.judged(made_up(learner))
    plain = (learner._value(whole.features) - whole.wanted).square().mean().item()
    moved = replace(whole, value=whole.value + 1.0)
    assert learner._loss(moved)[1][2].item() >= plain
    assert learner._loss(whole)[1][2].item() == pytest.approx(plain, rel=1e-5)


def test_compiled_updates_are_the_same(monkeypatch):
    """Traced as for the compiler, run without its code generation, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    g = torch.Generator().manual_seed(0)
    learners = [make_learner(engine=engine) for engine in ("autograd", "compile")]
    for learner in learners:
        for seed in range(3):
            learner.learn(made_up(learners[0] if seed == 0 else learner, seed=seed), g.manual_seed(seed))
    for a, b in zip(learners[0].parameters, learners[1].parameters, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-3)


def test_an_update_can_be_recorded_and_replayed():
    """Nothing of an update lives on the host: repeated on the same memory, what was done once is the next update, step size included."""
    eager, recorded = make_learner(highest_rate=1e-2), make_learner(highest_rate=1e-2)
    whole = eager.judged(made_up(eager))
    samples = [whole.map(lambda x, rows=rows: x[rows]) for rows in torch.randperm(len(whole.gain)).repeat(6).split(32)]
    static, tape = samples[0].map(torch.clone), None
    for i, sample in enumerate(samples):
        eager._step(sample)
        if i < 3:  # the optimiser makes its moments
            recorded._step(sample)
            continue
        copy_batch(static, sample)
        if tape is not None:
            tape.replay()
            continue
        tape = Tape()
        with tape:
            recorded._step(static)
    assert all(torch.equal(a, b) for a, b in zip(eager.parameters, recorded.parameters, strict=True))
    assert torch.equal(eager.rate, recorded.rate) and torch.equal(eager._sums, recorded._sums) and float(eager.rate) != 1e-3
    assert tape is not None and not [o for o, *_ in tape.operations if "_local_scalar_dense" in str(o) or "nonzero" in str(o)]


def test_a_sample_keeps_its_parts_in_order():
    rows = torch.arange(3.0)
    sample = Sample(*(rows + i for i in range(7)))
    assert sample.map(lambda x: x[1:]).wanted.tolist() == [7.0, 8.0]


# ---------------------------------------------------------------- loop


def test_a_small_task_is_learned_from_scratch(tmp_path):
    actor = make_actor()
    cfg = config(steps=40_000, rollout_steps=16, critic_hidden=(64, 64), gamma=0.95)
    before = success(actor)
    result = train_ppo(point_mass.PointMass(WORLDS, radius_m=0.12), actor, point_mass.observe, RunDir.create(tmp_path / "run", cfg), cfg)
    assert before < 0.4 and success(actor) > 0.9
    assert result.steps >= 40_000 and result.updates == 20 * (math.ceil(40_000 / (16 * WORLDS)) - 1)


def test_resuming_computes_what_an_uninterrupted_run_computes(tmp_path):
    cfg = config(checkpoint_every=512)  # every second rollout
    whole = make_actor()
    train_ppo(point_mass.PointMass(WORLDS), whole, point_mass.observe, RunDir.create(tmp_path / "a", cfg), cfg)
    env, run = point_mass.Fragile(WORLDS), RunDir.create(tmp_path / "b", cfg)
    env.left = 43  # of 48 steps; the last checkpoint is at 32
    with pytest.raises(point_mass.BrokenOffError):
        train_ppo(env, make_actor(), point_mass.observe, run, cfg)
    resumed = make_actor()
    train_ppo(point_mass.PointMass(WORLDS), resumed, point_mass.observe, run, cfg)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert not torch.equal(whole.state_dict()["log_std"], make_actor().state_dict()["log_std"])


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="epochs"):
        PpoUpdateConfig(epochs=0)
    with pytest.raises(InputError, match="target_divergence"):
        PpoUpdateConfig(target_divergence=0.0)
    with pytest.raises(InputError, match="rollout_steps"):
        PpoConfig(rollout_steps=0)
    with pytest.raises(InputError, match="random_steps"):
        PpoConfig(random_steps=10)
    with pytest.raises(InputError, match="does not compute PPO on cpu"):
        make_learner(engine="graph")
    with pytest.raises(InputError, match="cannot be cut into 4"):
        learner = make_learner()
        learner.rounds = 1
        learner.learn(made_up(learner, T=1, N=3), torch.Generator())
