"""Any Gymnasium environment under our interface."""

import gymnasium
import numpy as np
import pytest
import torch

import sim
from sinew.errors import InputError, SpecError


def test_pendulum_steps_as_it_does_alone() -> None:
    env = sim.from_gymnasium("Pendulum-v1", 3)
    alone = gymnasium.make("Pendulum-v1")
    observation = env.reset([4, 5, 6])
    expected, _ = alone.reset(seed=5)
    np.testing.assert_array_equal(observation["observation.state"][1], expected)
    for step in range(200):
        action = torch.full((3, 1), float(np.sin(step)))
        observation, reward, terminated, truncated, info = env.step(action)
        expected, value, *_ = alone.step(action[1].numpy())
        np.testing.assert_allclose(info["final_observation"]["observation.state"][1], expected, atol=1e-6)
        assert reward[1] == pytest.approx(float(value), abs=1e-6)
    assert truncated.all() and not terminated.any() and info["episode_length"].tolist() == [200] * 3
    assert not torch.equal(observation["observation.state"], info["final_observation"]["observation.state"])
    assert env.action_spec.low == (-2.0,) and env.max_episode_steps == 200
    env.close()


def test_our_own_tasks_come_back_with_their_keys() -> None:
    env, ours = sim.from_gymnasium("sinew/Lift-v0", 2), sim.make_vec("lift", 2)
    observation, expected = env.reset([1, 2]), ours.reset([1, 2])
    assert set(observation) == set(expected)
    for key, value in expected.items():
        assert torch.equal(observation[key], value)
    action = torch.full((2, 4), 0.01)
    after, reward, terminated, truncated, _ = env.step(action)
    wanted, *others, _ = ours.step(action)
    assert all(torch.equal(after[key], wanted[key]) for key in wanted)
    assert all(torch.equal(a, b) for a, b in zip((reward, terminated, truncated), others, strict=True))


def test_seeds_follow_the_same_stream_whatever_the_number() -> None:
    few, many = sim.from_gymnasium("Pendulum-v1", 1, seed=2), sim.from_gymnasium("Pendulum-v1", 3)
    few.reset()
    many.reset()
    assert few.seeds[0] == many.seeds[2]


def test_a_resting_world_stands_still_until_it_is_reset() -> None:
    env, awake = sim.from_gymnasium("Pendulum-v1", 2), sim.from_gymnasium("Pendulum-v1", 2)
    before = env.reset([1, 2])["observation.state"]
    awake.reset([1, 2])
    env.rest([0])
    stepped = []
    env._envs[0].step = stepped.append  # type: ignore[method-assign]
    for _ in range(3):
        after, _, terminated, truncated, info = env.step(torch.ones(2, 1))
        wanted = awake.step(torch.ones(2, 1))[0]
    assert torch.equal(after["observation.state"][0], before[0]) and not stepped and not (terminated | truncated).any()
    assert torch.equal(after["observation.state"][1], wanted["observation.state"][1])
    assert info["episode_length"].tolist() == [0, 3]
    del env._envs[0].step
    env.reset([1], ids=[0])
    assert not torch.equal(env.step(torch.ones(2, 1))[0]["observation.state"][0], before[0])


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(InputError, match="cannot make 'Pendulmu-v1'"):
        sim.from_gymnasium("Pendulmu-v1", 1)
    with pytest.raises(InputError, match="only bounded Box actions"):
        sim.from_gymnasium("CartPole-v1", 1)
    env = sim.from_gymnasium("Pendulum-v1", 2)
    with pytest.raises(SpecError, match=r"shape \(2, 1\) expected"):
        env.step(torch.full((2, 1), float("nan")))
