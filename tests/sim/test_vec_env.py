"""On the CPU a trajectory depends on its seed and actions alone; the contract of all backends is in test_backends.py."""

import numpy as np
import pytest
import torch

import sim
from sinew.errors import InputError


def uniform_actions(env: sim.MujocoVecEnv, seeds: list[int], step: int) -> torch.Tensor:
    """Actions that depend on a world's seed and the step only."""
    low, high = np.array(env.action_spec.low), np.array(env.action_spec.high)
    rows = [np.random.default_rng((seed, step)).uniform(low, high) for seed in seeds]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def rollout(task: str, seeds: list[int], steps: int, threads: int | None, action: str = "ee_delta") -> list[dict[str, torch.Tensor]]:
    env = sim.make_vec(task, len(seeds), action=action, num_threads=threads)
    frames = [env.reset(seeds)]
    for step in range(steps):
        frames.append(env.step(uniform_actions(env, seeds, step))[0])
    env.close()
    return frames


@pytest.mark.parametrize(
    ("task", "action"), [("lift", "ee_delta"), ("lift", "joint_position"), ("peg", "ee_delta"), ("handover", "ee_delta")]
)
def test_a_world_is_the_same_alone_and_among_64(task: str, action: str) -> None:
    many = rollout(task, list(range(64)), 30, 2, action)
    for alone in (5, 63):
        one = rollout(task, [alone], 30, 1, action)
        assert all(torch.equal(a[key][alone], b[key][0]) for a, b in zip(many, one, strict=True) for key in a)


def test_the_same_seed_gives_the_same_trajectory_again() -> None:
    first, second = rollout("push", [3, 4], 20, 1), rollout("push", [3, 4], 20, 2)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)
    other = rollout("push", [5, 6], 0, 1)
    assert not torch.equal(first[0]["observation.environment_state"], other[0]["observation.environment_state"])


def test_shapes_dtypes_and_specs_agree() -> None:
    for task in sim.TASK_NAMES:
        env = sim.make_vec(task, 3)
        observation = env.reset(7)
        assert set(observation) == set(env.observation_spec)
        for key, value in observation.items():
            spec = env.observation_spec[key]
            assert value.shape == (3, *spec.shape) and value.dtype == getattr(torch, spec.dtype)
            assert len(spec.names) == spec.shape[0]
        _, reward, terminated, truncated, info = env.step(torch.zeros(3, env.action_spec.dim))
        assert reward.dtype == torch.float32 and reward.shape == (3,)
        assert terminated.dtype == truncated.dtype == torch.bool
        assert info["episode_length"].tolist() == [1, 1, 1] and info["seed"].tolist() == [7, 8, 9]
        env.close()


def test_the_stream_of_seeds_does_not_depend_on_the_number_of_worlds() -> None:
    few, many = sim.make_vec("reach", 1, seed=3), sim.make_vec("reach", 5, seed=0)
    for _ in range(2):
        few.reset()
        many.reset()
    assert few.seeds[0] == many.seeds[3]


def test_unknown_names_offer_near_ones() -> None:
    with pytest.raises(InputError, match="unknown task 'lfit': did you mean 'lift'"):
        sim.make_vec("lfit", 1)
    with pytest.raises(InputError, match="unknown action 'ee_dleta'"):
        sim.make_vec("lift", 1, action="ee_dleta")
    with pytest.raises(InputError, match="unknown camera 'frnt': did you mean 'front'"):
        sim.make_vec("lift", 1, cameras=("frnt",))
    with pytest.raises(InputError, match="at least one world"):
        sim.make_vec("lift", 0)
