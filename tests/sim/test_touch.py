"""The two touch tasks: one scene, told apart by the instruction alone."""

from __future__ import annotations

import numpy as np
import torch

import sim
from sim.scene import load_scene
from sim.tasks.touch_red import APART_M, HIGH_M, LOW_M

TASKS = ("touch_red", "touch_blue")


def test_both_tasks_show_the_same_scene_and_differ_in_their_text() -> None:
    one, other = (load_scene(task) for task in TASKS)
    for seed in range(20):
        np.testing.assert_array_equal(one.initial(seed), other.initial(seed))
    red, blue = (sim.make_interface(task) for task in TASKS)
    assert red.observation_spec == blue.observation_spec and red.action_spec == blue.action_spec
    assert red.task_text != blue.task_text


def test_buttons_stand_apart_on_their_place_of_the_table() -> None:
    scene = load_scene("touch_red")
    poses = scene.poses(np.stack([scene.initial(seed) for seed in range(500)]))
    red, blue = poses["red"][:, :2], poses["blue"][:, :2]
    assert np.linalg.norm(red - blue, axis=1).min() > APART_M
    for place in (red, blue):
        assert (place >= LOW_M).all() and (place <= HIGH_M).all()
    assert abs((red - blue).mean(0)).max() < 0.02, "where they stand must not tell which is which"


def test_touching_the_other_button_never_counts() -> None:
    for task, other in (TASKS, TASKS[::-1]):
        env, expert = sim.make_vec(task, 50), sim.make_expert(other, num_envs=50)
        observation = env.reset(list(range(50)))
        expert.reset(seeds=range(50))
        for _ in range(env.max_episode_steps):
            observation, _, terminated, _, _ = env.step(expert.act(observation))
            assert not terminated.any()
        env.close()


def test_passing_over_a_button_does_not_touch_it() -> None:
    env = sim.make_vec("touch_red", 1)
    view = env.interface.view({k: v.numpy() for k, v in env.reset(0).items()})
    above = torch.zeros(1, env.action_spec.dim)
    for _ in range(env.max_episode_steps - 1):
        offset = view.positions["red"][0] + np.array([0.0, 0.0, 0.06]) - view.tool[0]
        above[0, :3] = torch.from_numpy(np.clip(0.5 * offset, -0.025, 0.025))
        observation, _, terminated, _, _ = env.step(above)
        assert not terminated.any()
        view = env.interface.view({k: v.numpy() for k, v in observation.items()})
    assert np.linalg.norm(offset) < 0.01
    env.close()
