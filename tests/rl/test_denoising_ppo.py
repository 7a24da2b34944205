"""PPO in the denoising chain: the objective worked by hand, a bandit, decisions of worlds, stages that go on where they were killed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from chain_toys import STATE, actor_of, cloned, fresh, success, windows, worlds
from torch.utils._python_dispatch import TorchDispatchMode

from rl.chunk_critics import CriticConfig
from rl.decisions import Collector, Decisions, concatenate
from rl.denoising_offline import OfflineConfig
from rl.denoising_online import OnlineConfig
from rl.denoising_ppo import ChainLearner, PpoConfig
from rl.rl100 import train_rl100
from rl.rl100_config import Rl100Config
from rl.snapshot import Snapshot
from rl.stages import Stages
from rl.surrogate import SurrogateConfig, clip_schedule, discount_schedule, generalised_advantage, surrogate
from sinew.errors import InputError
from sinew.rundir import RunDir


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the objective


def test_before_the_first_update_every_ratio_is_one():
    """Then the objective is the discounted advantage, and its gradient the policy gradient's: -A_b d_k / (B K)."""
    config = SurrogateConfig(denoising_discount=0.5)
    log_p, advantage = torch.randn(2, 3, requires_grad=True), torch.tensor([2.0, -1.0])
    made = surrogate(log_p, log_p.detach().clone(), advantage, 8, config)
    made.loss.backward()
    weight = torch.tensor([0.25, 0.5, 1.0])
    assert made.loss.item() == pytest.approx(-float((advantage[:, None] * weight).mean()))
    torch.testing.assert_close(log_p.grad, -advantage[:, None] * weight / 6)
    assert float(made.divergence) == 0 and float(made.clipped) == 0


def test_objective_worked_by_hand():
    """Ratios 1.5 and 0.5, clip 0.2. A = 1: min(1.5, 1.2) and min(.5, .8); A = -1: min(-1.5, -1.2) and min(-.5, -.8)."""
    log_p = torch.log(torch.tensor([[1.5, 0.5], [1.5, 0.5]]))
    made = surrogate(log_p, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), 1, SurrogateConfig(clip=0.2))
    assert float(made.loss) == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8) / 4)
    assert float(made.clipped) == 1.0
    chain = surrogate(log_p, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), 1, SurrogateConfig(clip=0.2, ratio="chain"))
    assert float(chain.loss) == pytest.approx(-(0.75 - 0.8) / 2)  # one ratio of 0.75 for both chains
    mean = surrogate(3 * log_p, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), 3, SurrogateConfig(clip=0.2, reduce="mean"))
    assert float(mean.loss) == pytest.approx(float(made.loss))  # three elements of each such ratio


def test_schedules_of_clip_and_discount():
    """DPPO's clip grows from the first to the last step as expm1(3 t) / expm1(3), its discount is 0.99^(K - 1 - k)."""
    config, like = SurrogateConfig(clip=0.01, clip_first=0.001, denoising_discount=0.99), torch.zeros(1)
    wanted = [0.001 + 0.009 * math.expm1(3 * k / 4) / math.expm1(3) for k in range(5)]
    torch.testing.assert_close(clip_schedule(5, config, like), torch.tensor(wanted))
    torch.testing.assert_close(discount_schedule(5, config, like), torch.tensor([0.99**4, 0.99**3, 0.99**2, 0.99, 1.0]))
    assert clip_schedule(1, config, like).tolist() == pytest.approx([0.01])


def test_the_objective_takes_as_many_operations_for_many_decisions_as_for_few():
    """DPPO's release walks through the denoising steps of a batch one by one to discount them."""

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for rows, steps in ((4, 5), (400, 5), (400, 50)):
        with Count() as count:
            config = SurrogateConfig(denoising_discount=0.99, clip_first=0.01)
            surrogate(torch.zeros(rows, steps), torch.zeros(rows, steps), torch.ones(rows), 8, config)
        counts.append(count.calls)
    assert counts[0] == counts[1] == counts[2]


def test_overflowing_ratios_stay_finite():
    made = surrogate(torch.full((2, 3), 1e4), torch.zeros(2, 3), torch.tensor([1.0, -1.0]), 8, SurrogateConfig())
    assert math.isfinite(float(made.loss))


def test_advantages_against_their_sum():
    """sum_l lambda^l prod discount * delta, within an episode; time-outs bootstrap, terminations do not."""
    reward, value = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    after = torch.tensor([0.2, 0.3, 9.0, 0.5, 0.6])  # the third terminated, the fifth timed out
    discount = torch.tensor([0.9, 0.8, 0.0, 0.9, 0.7])
    follows = torch.tensor([True, True, False, True, False])
    delta = reward + discount * after - value
    wanted = []
    for i in range(5):
        total, factor, j = 0.0, 1.0, i
        while True:
            total += factor * float(delta[j])
            if not follows[j]:
                break
            factor *= 0.95 * float(discount[j])
            j += 1
        wanted.append(total)
    advantage, returns = generalised_advantage(reward, discount, value, after, follows, 0.95)
    torch.testing.assert_close(advantage, torch.tensor(wanted))
    torch.testing.assert_close(returns, advantage + value)
    assert float(delta[2]) == pytest.approx(0.7) and float(delta[4]) == pytest.approx(0.7 * 0.6 - 0.5)


# ---------------------------------------------------------------- the learner


def bandit(learner, actor, frames, rounds):
    """Reward 1 for chunks whose mean first element is positive."""
    generator = stream(1)
    for _ in range(rounds):
        chain, means = actor.draw(frames, generator)
        reward = (chain[:, -1, :, 0].clamp(-1, 1).mean(-1) > 0).float()
        learner.improve(frames, chain, means, reward - reward.mean(), generator)


def test_a_bandit_moves_the_policy_to_the_mode_that_is_paid():
    """Two modes, at +0.5 and -0.5 of the first element, cloned half and half."""
    policy = fresh()
    optimizer, generator = torch.optim.Adam(policy.parameters(), lr=2e-3), stream()
    for _ in range(300):
        chunk = (torch.randint(0, 2, (256, 1, 1), generator=generator) - 0.5) * torch.tensor([1.0, 0.0]).expand(256, 4, 2)
        drawn = policy.draw(256, generator)
        loss = policy.loss({**windows(torch.zeros(256, 4)), "action": chunk}, t=drawn["t"], noise=drawn["noise"]).scalar
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    actor = actor_of(policy)
    frames = actor.frames(windows(torch.zeros(256, 4)))

    def share():
        with torch.no_grad():
            chunks = policy.sample(actor.encode(frames), generator=stream(2)).actions[:, 0]
        return float((chunks[..., 0].mean(-1) > 0).float().mean())

    before = share()
    bandit(ChainLearner(actor, PpoConfig(learning_rate=5e-4, epochs=4, target_divergence=0.1), stream()), actor, frames, 12)
    assert 0.3 < before < 0.7
    assert share() > 0.9


def test_a_snapshot_reverts_weights_and_optimiser_bit_for_bit():
    """After a detour and back, learning goes on as if there had been none; moments that stayed would be seen in the next step."""
    runs = []
    for detour in (False, True):
        actor = actor_of(fresh())
        learner, frames = ChainLearner(actor, PpoConfig(epochs=1), stream()), actor.frames(windows(torch.rand(64, 4, generator=stream(3))))
        bandit(learner, actor, frames, 1)
        kept = Snapshot(actor.policy, learner.optimizer)
        if detour:
            bandit(learner, actor, frames, 3)
            learner.learning_rate = 1.0
            kept.restore()
        bandit(learner, actor, frames, 2)
        runs.append(
            {
                **actor.policy.state_dict(),
                **{f"o{i}{k}": v for i, s in learner.optimizer.state_dict()["state"].items() for k, v in s.items()},
            }
        )
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_round_ends_where_the_policy_has_moved_far_enough():
    actor = actor_of(fresh())
    frames = actor.frames(windows(torch.rand(128, 4, generator=stream(3))))
    chain, means = actor.draw(frames, stream())
    config = PpoConfig(learning_rate=1e-2, epochs=50, target_divergence=0.01)
    metrics = ChainLearner(actor, config, stream()).improve(frames, chain, means, torch.randn(128, generator=stream(4)), stream())
    assert 1 <= metrics["batches"] < 50


def test_the_normaliser_is_not_fitted_anew():
    """RL-100's replication found a policy that was fine-tuned under another normaliser than it was cloned with."""
    policy = fresh()
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    actor = actor_of(policy)
    bandit(ChainLearner(actor, PpoConfig(), stream()), actor, actor.frames(windows(torch.rand(64, 4))), 1)
    after = policy.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("encoder."))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("net."))


# ---------------------------------------------------------------- decisions


class Logged:
    """Worlds that remember what went in and came out."""

    def __init__(self, env, hands_on=None):
        self.env, self.log, self.hands_on = env, [], hands_on
        self.num_envs, self.max_episode_steps, self.action_spec = env.num_envs, env.max_episode_steps, env.action_spec
        self.observation_spec = env.observation_spec

    def reset(self, seed=None, ids=None):
        self.obs = self.env.reset(seed, ids)
        return self.obs

    def step(self, action):
        told = {}
        if self.hands_on is not None:
            action = self.hands_on(len(self.log), action)
            told = {"executed_action": action}
        before = self.obs[STATE].clone()
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.log.append((before, self.action_spec.normalize(action), reward, terminated, truncated, info["final_observation"][STATE]))
        return self.obs, reward, terminated, truncated, info | told

    def close(self):
        pass


def test_decisions_are_what_happened():
    """Every decision against the log of its world: features, actions, reward, discount and what followed."""
    env, gamma = Logged(worlds(5)), 0.9
    actor = actor_of(cloned(), 5)
    got = Collector(env, actor, gamma).collect(33, [0, 100, 200, 300, 400], stream())
    table, row = got.decisions, 0
    for world in range(5):
        t = 0
        while t < 33:
            steps, ended = [], False
            while len(steps) < 4 and not ended and t < 33:
                steps.append([part[world] for part in env.log[t]])
                ended = bool(steps[-1][3] | steps[-1][4])
                t += 1
            if len(steps) < 4 and not ended:
                break  # cut: not in the table
            torch.testing.assert_close(table.frames[f"observed.{STATE}"][row, 0], steps[0][0])
            torch.testing.assert_close(table.action[row, : len(steps)], torch.stack([s[1] for s in steps]), atol=1e-5, rtol=0)
            assert float(table.reward[row]) == pytest.approx(sum(gamma**i * float(s[2]) for i, s in enumerate(steps)))
            terminated = bool(steps[-1][3])
            assert float(table.discount[row]) == pytest.approx(0.0 if terminated else gamma ** len(steps))
            torch.testing.assert_close(table.next_features[row], actor.features({STATE: steps[-1][5][None]})[0])
            if bool(table.follows[row]):
                assert not ended and int(table.episode[row + 1]) == int(table.episode[row])
            else:
                assert ended or t + 4 > 33
            row += 1
    assert row == len(table) and got.steps == 33 * 5
    assert got.episodes == sum(int((s[3] | s[4]).sum()) for s in env.log) and got.successes == sum(int(s[3].sum()) for s in env.log)
    back = Decisions.of_tensors(table.tensors())
    assert all(torch.equal(a, b) for a, b in zip(back.tensors().values(), table.tensors().values()))
    twice = concatenate([table, table])
    assert len(twice.episode.unique()) == 2 * len(table.episode.unique())


def test_what_a_human_did_trains_the_critics_and_not_the_chain():
    """In world 1 somebody moves at tick 2: that decision holds the executed action, and its chain is not learned from."""

    def hands_on(tick, action):
        action = action.clone()
        if tick == 2:
            action[1] = torch.tensor([0.15, -0.15])
        return action

    env, actor = Logged(worlds(2), hands_on), actor_of(cloned(), 2)
    table = Collector(env, actor, 0.9).collect(8, [3, 103], stream()).decisions
    assert int((~table.own).sum()) == 1
    row = int(torch.nonzero(~table.own)[0])
    torch.testing.assert_close(table.action[row, 2], torch.tensor([1.0, -1.0]))
    learner = ChainLearner(actor, PpoConfig(), stream())
    before = {k: v.clone() for k, v in actor.policy.state_dict().items()}
    learner.learn(table[~table.own], stream())
    assert all(torch.equal(before[k], v) for k, v in actor.policy.state_dict().items())


def test_a_reward_that_is_not_finite_is_told():
    env = Logged(worlds(2))
    step = env.env.step

    def broken(action):
        obs, reward, *rest = step(action)
        return obs, torch.where(torch.arange(2) == 1, torch.nan, reward), *rest

    env.env.step = broken
    with pytest.raises(InputError, match="world 1: the reward is not finite"):
        Collector(env, actor_of(fresh(), 2), 0.9).collect(5, [0, 1], stream())


# ---------------------------------------------------------------- the stages

SMALL = Rl100Config(
    steps=4_000,
    gamma=0.97,
    rollout_steps=800,
    offline=OfflineConfig(
        rounds=3, round_states=128, critics=CriticConfig(updates=30, hidden=(32,)), ppo=PpoConfig(learning_rate=1e-4, epochs=1)
    ),
    online=OnlineConfig(
        round_steps=800, value_only_steps=800, evaluate_every=800, ppo=PpoConfig(learning_rate=3e-4, epochs=2, value_hidden=(32,))
    ),
    stop_success=2.0,
)


class KilledError(Exception):
    pass


class Stop:
    """Progress that dies at its n-th advance."""

    def __init__(self, at):
        self.left = at

    def start(self, name, total, done=0):
        pass

    def advance(self, n=1, **values):
        self.left -= 1
        if not self.left:
            raise KilledError

    def note(self, text):
        pass


def learn(folder, progress=None, config=SMALL, episodes=20, base=cloned):
    policy = base()
    run = RunDir(folder)
    run.path.mkdir(exist_ok=True)
    extra = {} if progress is None else {"progress": progress}
    result = train_rl100(worlds(20), actor_of(policy, 20), run, config, evaluate=lambda: success(policy, episodes), **extra)
    lines = [{k: v for k, v in line.items() if k != "wall_s"} for line in run.metrics()]
    return policy.state_dict(), result, lines


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path):
    """KilledError in the offline stage, then in the online one; weights, evaluations and metrics are the uninterrupted run's."""
    whole, result, lines = learn(tmp_path / "whole")
    for at in (2, 3):
        with pytest.raises(KilledError):
            learn(tmp_path / "cut", Stop(at))
    again, resumed, told = learn(tmp_path / "cut")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert resumed == result and told == lines
    assert learn(tmp_path / "cut")[1] == result  # finished: nothing is done again


DIES = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_denoising_ppo as tests

class Dies(tests.Stop):
    def advance(self, n=1, **values):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

tests.learn(sys.argv[2], Dies(5), episodes=2, base=tests.fresh)
"""


def test_a_process_that_was_killed_goes_on_where_it_was(tmp_path):
    """kill -9 in the second round of the online stage, after its learning and before it is saved."""
    died = subprocess.run([sys.executable, "-c", DIES, str(Path(__file__).parent), str(tmp_path / "cut")], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    again, resumed, told = learn(tmp_path / "cut", episodes=2, base=fresh)
    whole, result, lines = learn(tmp_path / "whole", episodes=2, base=fresh)
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert resumed == result and told == lines


def test_learning_by_doing_mends_the_policy_and_keeps_the_best(tmp_path):
    """Half of the demonstrations aim beside the goal; the base reaches it in about six of ten episodes."""
    ppo = PpoConfig(learning_rate=3e-4, epochs=5, target_divergence=0.1)
    online = OnlineConfig(round_steps=1_500, value_only_steps=1_500, evaluate_every=3_000, ppo=ppo)
    config = replace(SMALL, stages=("online",), steps=12_000, online=online)
    state, result, _ = learn(tmp_path / "run", config=config, episodes=100)
    assert result.base is not None and 0.45 < result.base.rate < 0.75
    assert result.best is not None and result.best.rate > result.base.rate + 0.2
    policy = cloned()
    policy.load_state_dict(state)
    assert success(policy)["k"] == result.best.k  # what is handed back is what was measured
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["stage"] == "base"


def test_a_fall_goes_back_to_the_best_and_smaller_steps(tmp_path):
    """Evaluations that tell of a fall after every round: the policy ends as the base, and the step size has been lessened."""
    policy, rates = cloned(), iter([12, *[2] * 20])
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    run = RunDir(tmp_path)
    config = replace(SMALL, stages=("online",))
    result = train_rl100(worlds(20), actor_of(policy, 20), run, config, evaluate=lambda: {"k": next(rates), "n": 20})
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())
    reverts = [line for line in run.metrics() if line.get("reverted")]
    assert len(reverts) >= 2 and reverts[-1]["learning_rate"] == pytest.approx(3e-4 / 2 ** len(reverts))
    assert result.best == result.base


def test_another_config_or_no_data_is_refused(tmp_path):
    with pytest.raises(KilledError):
        learn(tmp_path / "run", Stop(1))
    with pytest.raises(InputError, match=r"another run: gamma is 0\.97 there, 0\.9 here"):
        learn(tmp_path / "run", config=replace(SMALL, gamma=0.9))
    with pytest.raises(InputError, match="neither demonstrations nor rollouts"):
        learn(tmp_path / "other", config=replace(SMALL, rollout_steps=0))
    with pytest.raises(InputError, match="name offline, online or both"):
        Rl100Config(stages=())


def test_lines_of_lost_work_go_and_what_rewards_said_before_it_stays(tmp_path):
    run = RunDir.create(tmp_path / "run", {})
    for line in (
        {"stage": "offline", "k": 3},
        {"stage": "reward", "note": "said"},
        {"stage": "offline", "k": 8},
        {"stage": "reward"},
        {"k": 1},
    ):
        run.log(**line)
    Stages._trim(SimpleNamespace(run=run, lines=2))  # type: ignore[arg-type]
    assert [line.get("k") for line in run.metrics()] == [3, None, 8, None]
