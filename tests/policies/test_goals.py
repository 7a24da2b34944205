"""Goals of training samples come from the sample's own future."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import policies
from policies.batches import Windows
from policies.distill import DistillConfig, distilling
from policies.executor import ChunkExecutor
from policies.goals import PREFIX, GoalSettings, Hindsight, goal_settings
from policies.parallel import Group
from policies.train import TrainConfig, train
from sinew.errors import DataError, InputError, SpecError
from sinew.rundir import RunDir
from sinew.specs import ENVIRONMENT_STATE, STATE


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


def test_an_executor_gives_every_world_its_own_goal_until_it_is_reset(toys):
    settings = GoalSettings(keys=(ENVIRONMENT_STATE,), scale=1.5)
    policy = policies.make("edm", toys.policy_spec(), toys.ToyData().stats(), policies.EdmConfig(hidden=(8,), goal=settings)).eval()
    with torch.no_grad():
        for weight in policy.net.parameters():
            weight.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    obs = {STATE: torch.ones(3, 4), ENVIRONMENT_STATE: torch.ones(3, 3)}
    goals = {ENVIRONMENT_STATE: torch.tensor([[1.0], [2.0], [2.0]]).expand(3, 3)}

    def acted(goals, seeds=(7, 7, 7), ids=None, executor=None):
        executor = executor or ChunkExecutor(policy, 3)
        executor.reset(ids, seeds, goals)
        return executor, executor.act(obs)

    executor, given = acted(goals)
    assert not torch.allclose(given[0], given[1], atol=1e-3)
    torch.testing.assert_close(given[1], given[2])
    _, moved = acted({ENVIRONMENT_STATE: goals[ENVIRONMENT_STATE][1:2]}, seeds=(7,), ids=[0], executor=executor)
    torch.testing.assert_close(moved[0], given[1])
    _, without = acted(None, executor=executor)
    torch.testing.assert_close(without, acted(None)[1], msg="a goal outlived the reset")
    assert not torch.allclose(without[0], given[0], atol=1e-3)


def test_goals_that_cannot_be_given_are_told(toys):
    policy = policies.make("edm", toys.policy_spec(), toys.ToyData().stats(), policies.EdmConfig(hidden=(8,)))
    with pytest.raises(SpecError, match="goal"):
        ChunkExecutor(policy, 1).reset(goals={ENVIRONMENT_STATE: torch.zeros(1, 3)})
    config = policies.EdmConfig(hidden=(8,), goal=GoalSettings(keys=(ENVIRONMENT_STATE,)))
    taught = ChunkExecutor(policies.make("edm", toys.policy_spec(), toys.ToyData().stats(), config), 2)
    with pytest.raises(InputError, match=r"1 goals .observation\.environment_state. given for 2 worlds"):
        taught.reset(goals={ENVIRONMENT_STATE: torch.zeros(1, 3)})
    with pytest.raises(InputError, match=r"goals for 1 of 2 worlds: give every world one first"):
        taught.reset([1], goals={ENVIRONMENT_STATE: torch.zeros(1, 3)})

    seen = {STATE: torch.ones(3, 1, 4), ENVIRONMENT_STATE: torch.ones(3, 1, 3)}
    with pytest.raises(SpecError, match=r"'goal\.observation\.environment_state' has shape \(3, 1\), expected \(batch, 3\)"):
        taught.policy.encode({**seen, PREFIX + ENVIRONMENT_STATE: torch.ones(3, 1)})


def test_one_step_policies_are_taught_with_goals_too(toys, tmp_path):
    """Whose goal it is stands in the config of the policy inside: of the student, or of the network made from scratch."""
    teacher, data = toys.make("edm-transformer")
    made = policies.make("consistency", teacher.spec, data.stats(), {"network": {"goal": {"keys": [ENVIRONMENT_STATE]}}})
    for name, trained in (("distilled", distilling(teacher, DistillConfig(), data.stats())), ("made", made)):
        seen, encode = {}, trained.product().encode
        trained.product().encode = lambda batch, seen=seen, encode=encode: (seen.update(batch), encode(batch))[1]
        train(trained, data, RunDir.create(tmp_path / name, {}), TrainConfig(steps=1, batch_size=8))
        assert "goal" in trained.product().spec.capabilities and seen[PREFIX + ENVIRONMENT_STATE].shape == (8, 3)
    assert goal_settings(toys.make("residual-flow-mlp")[0]) is None
