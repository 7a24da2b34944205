"""Styles of the scripted experts: each knob does what it says, and an episode's deviations follow from its seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sim
from sinew.errors import InputError
from sinew.specs import ENVIRONMENT_STATE


def run(style: sim.ExpertStyle, seeds: list[int], rows: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Actions (T, N, A) and success (N,) of lift episodes."""
    env, expert = sim.make_vec("lift", len(seeds)), sim.make_expert("lift", num_envs=len(seeds), style=style)
    observation = env.reset(seeds)
    expert.reset(seeds=seeds)
    actions, success = [], np.zeros(len(seeds), bool)
    running = np.ones(len(seeds), bool)
    for _ in range(env.max_episode_steps):
        action = expert.act(observation)
        actions.append(action.numpy())
        observation, _, terminated, truncated, _ = env.step(action)
        success |= running & terminated.numpy()
        running &= ~(terminated | truncated).numpy()
    return np.stack(actions), success


def test_the_human_succeeds_about_half_the_time_and_not_because_of_white_noise() -> None:
    _, human = run(sim.HUMAN, list(range(100)))
    assert 45 <= human.sum() <= 70
    _, without_aim = run(replace(sim.HUMAN, aim_error_probability=0.0), list(range(100)))
    assert without_aim.sum() >= 95


def test_an_episode_depends_on_its_seed_alone() -> None:
    many, _ = run(replace(sim.HUMAN, noise=0.1), list(range(8)))
    one, _ = run(replace(sim.HUMAN, noise=0.1), [5])
    np.testing.assert_array_equal(many[:20, 5], one[:20, 0])


def test_white_noise_has_the_size_that_was_asked_for() -> None:
    clean, _ = run(sim.CLEAN, list(range(40)))
    noisy, _ = run(replace(sim.CLEAN, noise=0.05), list(range(40)))
    # the first action answers the same observation in both; the gripper element is clipped at its bound on one side
    difference = (noisy[0] - clean[0])[:, :2] / 0.025
    assert 0.03 < difference.std() < 0.07


def test_pauses_stop_the_hand_but_keep_the_grip() -> None:
    actions, _ = run(replace(sim.CLEAN, pause_probability=1.0, pause_steps=(100, 100)), [0])
    assert (actions[:50, 0, :3] == 0).all() and (actions[:50, 0, 3] == np.float32(0.08)).all()


def test_speed_limits_the_largest_step() -> None:
    actions, success = run(replace(sim.CLEAN, speed=(0.5, 0.5)), list(range(10)))
    assert np.abs(actions[..., :3]).max() <= 0.0125 + 1e-6
    assert success.all()


def test_experts_want_end_effector_actions() -> None:
    with pytest.raises(InputError, match="act in ee_delta, not joint_position"):
        sim.Expert(sim.make_interface("lift", action="joint_position"))
    with pytest.raises(InputError, match="unknown expert quality 'humna': did you mean 'human'"):
        sim.make_expert("lift", "humna")


def test_reset_of_one_world_begins_its_plan_again() -> None:
    env, expert = sim.make_vec("lift", 2), sim.make_expert("lift", num_envs=2)
    observation = env.reset([0, 1])
    expert.reset(seeds=[0, 1])
    for _ in range(12):
        observation, *_ = env.step(expert.act(observation))
    assert (expert.phase > 0).all()
    expert.reset(ids=[1], seeds=[7])
    assert expert.phase[0] > 0 and expert.phase[1] == 0
    assert isinstance(expert.act(observation), torch.Tensor)


def test_what_the_expert_reaches_is_a_function_of_the_scene():
    both = sim.reached("lift", (ENVIRONMENT_STATE,), [20_000_000, 20_000_007])[ENVIRONMENT_STATE]
    torch.testing.assert_close(sim.reached("lift", (ENVIRONMENT_STATE,), [20_000_007])[ENVIRONMENT_STATE], both[1:])
    start = sim.make_vec("lift", 2).reset([20_000_000, 20_000_007])[ENVIRONMENT_STATE]
    height = 2  # of the cube
    assert (both[:, height] > start[:, height] + 0.05).all()
