"""Our tasks under Gymnasium's interface."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import sim
from sim.gym_registration import environment_id, register

register()


@pytest.mark.parametrize("task", sim.TASK_NAMES)
def test_the_environment_checker_finds_nothing(task: str) -> None:
    env = gymnasium.make(environment_id(task), render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_it_is_the_same_world_as_in_the_batch() -> None:
    env, worlds = gymnasium.make("sinew/Push-v0"), sim.make_vec("push", 1)
    observation, info = env.reset(seed=11)
    batch = worlds.reset([11])
    assert info["seed"] == 11
    for step in range(70):
        action = np.array([0.01, 0.002 * (step % 3), -0.01, 0.05], np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        batch, rewards, ended, late, details = worlds.step(torch.from_numpy(action[None]))
        batch = details["final_observation"]
        for key, value in observation.items():
            np.testing.assert_array_equal(value, batch[key][0])
        assert (reward, terminated, truncated) == (float(rewards[0]), bool(ended[0]), bool(late[0]))
    assert truncated
    env.close()


def test_episodes_without_a_seed_differ_and_follow_from_the_first_seed() -> None:
    first, second = gymnasium.make("sinew/Lift-v0"), gymnasium.make("sinew/Lift-v0")
    for env in (first, second):
        env.reset(seed=3)
    a, b, c = first.reset()[0], second.reset()[0], first.reset()[0]
    np.testing.assert_array_equal(a["observation.state"], b["observation.state"])
    assert not np.array_equal(a["observation.state"], c["observation.state"])


@pytest.mark.parametrize("order", ["gymnasium, sim", "sim, gymnasium"])
def test_importing_sim_registers_the_tasks_in_either_order(order) -> None:
    code = f"import {order}; print(gymnasium.make('sinew/Reach-v0').action_space.shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(4,)", done.stderr


def test_import_of_the_package_stays_light() -> None:
    code = "import sim, sys; print([m for m in ('torch', 'mujoco', 'cv2', 'OpenGL') if m in sys.modules], sim.TASK_NAMES[2])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[] lift", done.stderr
    code = "import gymnasium, sim.gym_registration as g, sys; g.register(); print([m for m in ('torch', 'mujoco') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
