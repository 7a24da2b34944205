"""Goals of training samples come from the sample's own future."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import policies
from policies.batches import Windows
from policies.goals import GoalSettings, Hindsight
from policies.parallel import Group
from sinew.errors import DataError, SpecError
from sinew.specs import ENVIRONMENT_STATE


@pytest.mark.parametrize("when", ["end", "future"])
def test_goal_lies_in_the_future_of_the_same_episode(toys, when):
    data = toys.ToyData(episodes=3, length=20)
    hindsight = Hindsight(data, GoalSettings(keys=(ENVIRONMENT_STATE,), when=when))
    indices = np.array([0, 7, 19, 20, 39, 45])
    where = {tuple(row): i for i, row in enumerate(data.frames[ENVIRONMENT_STATE].tolist())}
    seen = set()
    for share in (0.0, 0.5, 0.999):
        goals = hindsight(indices, np.full(6, share))["goal." + ENVIRONMENT_STATE]
        chosen = np.array([where[tuple(row)] for row in goals.tolist()])
        assert (chosen // 20 == indices // 20).all() and (chosen >= indices).all()
        assert ((chosen > indices) | (indices % 20 == 19)).all()
        seen.add(tuple(chosen))
        if when == "end":
            assert (chosen % 20 == 19).all()
    assert len(seen) == (1 if when == "end" else 3)


def test_batches_of_a_policy_with_goals_hold_them_and_are_functions_of_seed_and_step(toys):
    data = toys.ToyData()
    settings = GoalSettings(keys=(ENVIRONMENT_STATE,), when="future")
    policy = policies.make("edm", toys.policy_spec(), data.stats(), policies.EdmConfig(hidden=(8,), goal=settings))

    def windows(seed):
        return Windows(data, policy.spec, 16, seed, Group(), goal=settings)

    whole = [batch for _, batch in windows(1)(0, 4)]
    later = [batch for _, batch in windows(1)(2, 4)]
    key = "goal." + ENVIRONMENT_STATE
    assert whole[0][key].shape == (16, 3)
    assert torch.equal(whole[2][key], later[0][key]) and torch.equal(whole[3][key], later[1][key])
    assert not torch.equal(whole[0][key], next(iter(windows(2)(0, 1)))[1][key])


def test_wrong_goals_are_told(toys):
    with pytest.raises(SpecError, match="goal when 'middle' is unknown: known are end, future"):
        GoalSettings(when="middle")

    class Bare:
        pass

    with pytest.raises(DataError, match="learns from goals and Bare tells no columns"):
        Hindsight(Bare(), GoalSettings(keys=(ENVIRONMENT_STATE,)))
