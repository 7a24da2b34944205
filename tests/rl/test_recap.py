"""Improvement by experience: returns, values of a known process, labels, and rounds that resume, improve and never hand back worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rl.recap import RecapConfig, improve_by_experience, label
from rl.recap_value import Experience, ValueConfig, ValueDistribution, advantages, fit_value, labels, returns
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir


def experience(lengths, success, features=None, task=None, human=None) -> Experience:
    frames = int(np.sum(lengths))
    return Experience(
        torch.zeros(frames, 1) if features is None else features,
        np.asarray(lengths),
        np.asarray(success, bool),
        np.zeros(frames, np.int64) if task is None else np.asarray(task),
        np.zeros(frames, bool) if human is None else np.asarray(human),
    )


# ---------------------------------------------------------------- values


def test_returns_count_the_steps_to_success():
    known = experience([3, 2], [True, False])
    assert known.left.tolist() == [3, 2, 1, 2, 1]
    assert known.scale(ValueConfig()) == 6
    torch.testing.assert_close(returns(known, 6), torch.tensor([-3 / 6, -2 / 6, -1 / 6, -1.0, -1.0]))
    with pytest.raises(InputError, match="a failure must count more"):
        known.scale(ValueConfig(failure_steps=3))


def test_two_hot_distributions_have_the_mean_they_stand_for():
    made = ValueDistribution(1, ValueConfig(bins=11))
    values = torch.tensor([-1.0, -0.97, -0.5, -0.333, -0.05, 0.0])
    spread = made.two_hot(values)
    torch.testing.assert_close(spread.sum(1), torch.ones(6))
    torch.testing.assert_close(spread @ made.centres, values)
    assert (spread > 0).sum(1).max() == 2
    torch.testing.assert_close(made.two_hot(torch.tensor([-3.0, 2.0])) @ made.centres, torch.tensor([-1.0, 0.0]))


@pytest.mark.parametrize("folds", [1, 3])
def test_expected_steps_of_a_known_process(folds):
    """Half of the episodes from state A end in success after 4 steps and half fail; from state B all succeed after 2."""
    kinds = [("A", 4, True), ("A", 4, False), ("B", 2, True)] * 20
    rows = [[1.0, 0.0] if name == "A" else [0.0, 1.0] for name, length, _ in kinds for _ in range(length)]
    place = [[t / 4] for _, length, _ in kinds for t in range(length)]
    known = experience([k[1] for k in kinds], [k[2] for k in kinds], torch.tensor(np.hstack([rows, place]), dtype=torch.float32))
    config = ValueConfig(bins=21, hidden=(32,), folds=folds, updates=500, batch_size=128, learning_rate=3e-3, failure_steps=10)
    made, _ = fit_value(known, config)
    start = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(made.value(start), torch.tensor([(-0.4 - 1.0) / 2, -0.2]), atol=0.05, rtol=0)
    # the outcomes themselves are told apart: half of the weight at a failure, half near four steps
    weight = made(start[:1]).mean(0)[0]
    assert weight[0].item() == pytest.approx(0.5, abs=0.1) and weight[10:15].sum().item() == pytest.approx(0.5, abs=0.1)


def test_no_episode_is_judged_by_a_network_that_saw_it():
    """Outcomes that only the episode's number tells: judged by others, the value cannot know them; judged by itself it does."""
    episodes = 24
    number = torch.eye(episodes).repeat_interleave(3, 0)
    won = np.arange(episodes) % 2 == 0
    known = experience([3] * episodes, won, number)
    shared = {"hidden": (64,), "updates": 300, "batch_size": 72, "learning_rate": 3e-3, "weight_decay": 0.0}
    errors = {}
    for folds in (1, 4):
        _, value = fit_value(known, ValueConfig(folds=folds, **shared))
        errors[folds] = (value - returns(known, 6)).square().mean().item()
    assert errors[1] < 0.01 and errors[4] > 0.1


def test_fitting_is_reproducible_and_leaves_the_global_generator_alone():
    known = experience([3, 2, 4], [True, False, True], torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))
    config = ValueConfig(hidden=(8,), updates=20, batch_size=8, folds=2)
    state = torch.get_rng_state()
    one, two, other = (fit_value(known, config, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two) and not torch.equal(one, other)


# ---------------------------------------------------------------- labels


def test_advantage_is_what_the_next_steps_were_better_than_expected():
    known = experience([4, 3], [True, False])
    value = torch.tensor([-0.5, -0.3, -0.25, -0.1, -0.6, -0.9, -1.0])
    found = advantages(known, value, 2, 10)
    # two steps on: -2/10 + V(s + 2) - V(s); where the episode ends before, its return
    wanted = [-0.2 - 0.25 + 0.5, -0.2 - 0.1 + 0.3, -0.2 + 0.25, -0.1 + 0.1, -0.2 - 1.0 + 0.6, -1.0 + 0.9, 0.0]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_a_perfect_value_finds_nothing_better_than_expected():
    known = experience([5, 5], [True, True])
    assert advantages(known, returns(known, 10), 3, 10).abs().max() < 1e-6


def test_labels_are_the_best_of_each_task_and_whatever_humans_did():
    task = np.array([0] * 10 + [1] * 10)
    advantage = torch.cat([torch.arange(10.0), torch.arange(10.0) - 100])  # one task is harder; both have good steps
    human = np.zeros(20, bool)
    human[[0, 11]] = True
    known = experience([10, 10], [True, True], task=task, human=human)
    good = labels(known, advantage, 0.3)
    assert np.flatnonzero(good).tolist() == [0, 7, 8, 9, 11, 17, 18, 19]


def test_experience_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="2 episodes of 5 frames do not fit 4 features"):
        experience([3, 2], [True, True], features=torch.zeros(4, 1))


# ---------------------------------------------------------------- rounds


class Coin(nn.Module):
    """A policy of one number: the chance to turn right at the one step that matters. Right succeeds."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = nn.Parameter(torch.tensor(0.3))


class CoinParts:
    """Episodes of a right or wrong first step, and four steps that tell which it was; teaching imitates the good first steps."""

    def __init__(self, seed: int = 0, worse_after: int = 99) -> None:
        self.policy, self.first = Coin(), 0.3
        self.rolled: dict[int, np.ndarray] = {}
        self.worse_after, self.seed, self.calls = worse_after, seed, []

    def collect(self, round):
        self.calls.append(("collect", round, round_off(self.policy)))
        right = np.random.default_rng([self.seed, round]).random(60) < self.policy.chance.item()
        self.rolled[round] = right
        return 300, int(right.sum())

    def experience(self, round):
        right = np.concatenate([self.rolled[r] for r in range(1, round + 1)])
        return experience([5] * len(right), right, torch.tensor([[float(t), float(r) if t else 0.5] for r in right for t in range(5)]))

    def teach(self, round, good):
        right = np.concatenate([self.rolled[r] for r in range(1, round + 1)])
        first = good[::5]
        learned = right[first].mean() if round < self.worse_after else 0.0
        with torch.no_grad():
            self.policy.chance.fill_(float(learned))
        return 10

    def evaluate(self):
        return {"k": round(100 * self.policy.chance.item()), "n": 100}


def round_off(policy):
    return round(policy.chance.item(), 6)


CONFIG = {
    "episodes": 60,
    "lookahead": 1,
    "positive_share": 0.2,
    "value": ValueConfig(hidden=(16,), updates=300, batch_size=64, learning_rate=3e-3),
}


def test_good_first_steps_are_found_and_imitated(tmp_path):
    parts = CoinParts()
    result = improve_by_experience(parts, RunDir.create(tmp_path / "a", {}), RecapConfig(rounds=1, **CONFIG), evaluate=parts.evaluate)
    assert (result.base.k, result.steps, result.updates) == (30, 300, 10)
    assert result.best.k == 100 and round_off(parts.policy) == 1.0
    (row,) = RunDir(tmp_path / "a").metrics()
    assert row["k"] == 100 and row["kept"] and row["value_explained"] > 0.5


def test_it_never_hands_back_worse_and_rolls_out_the_best(tmp_path):
    parts = CoinParts(worse_after=1)
    result = improve_by_experience(parts, RunDir.create(tmp_path / "a", {}), RecapConfig(rounds=2, **CONFIG), evaluate=parts.evaluate)
    assert [e.k for e in result.history] == [30, 0, 0] and result.best is result.history[0]
    assert round_off(parts.policy) == 0.3 and "none better" in result.reason
    assert [call[2] for call in parts.calls] == [0.3, 0.3]


def test_resuming_equals_not_being_interrupted(tmp_path):
    whole = CoinParts(worse_after=2)
    config = RecapConfig(rounds=3, stop_success=1.1, **CONFIG)
    wanted = improve_by_experience(whole, RunDir.create(tmp_path / "a", {}), config, evaluate=whole.evaluate)
    broken, run = CoinParts(worse_after=2), RunDir.create(tmp_path / "b", {})
    left = [2]

    def evaluate():
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return broken.evaluate()

    with pytest.raises(KeyboardInterrupt):
        improve_by_experience(broken, run, config, evaluate=evaluate)
    again = CoinParts(worse_after=2)
    again.rolled = {1: whole.rolled[1]}  # what the first sitting recorded is on disk
    found = improve_by_experience(again, run, config, evaluate=again.evaluate)
    assert found == wanted and torch.equal(again.policy.chance, whole.policy.chance)
    assert [call[1] for call in again.calls] == [2, 3]
    with pytest.raises(InputError, match="another run: lookahead is 1 there, 2 here"):
        improve_by_experience(again, run, RecapConfig(rounds=3, **{**CONFIG, "lookahead": 2}), evaluate=again.evaluate)


def test_without_any_success_it_says_so(tmp_path):
    parts = CoinParts()
    with torch.no_grad():
        parts.policy.chance.fill_(0.0)
    with pytest.raises(InputError, match="none of the recorded episodes succeeded"):
        improve_by_experience(parts, RunDir.create(tmp_path / "a", {}), RecapConfig(rounds=1, **CONFIG), evaluate=parts.evaluate)


def test_intervened_steps_are_good_even_in_failures():
    human = np.zeros(20, bool)
    human[12:15] = True
    known = experience([10, 10], [True, False], torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), human=human)
    good, told = label(known, RecapConfig(positive_share=0.3, value=ValueConfig(hidden=(8,), updates=20, folds=1)))
    assert good[12:15].all() and told["positive_in_failures"] >= 0.3


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"positive_share": 1.0}, {"lookahead": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError):
        RecapConfig(**bad)
