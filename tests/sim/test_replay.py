import numpy as np
import pytest

import sim
from sim.replay import place, replay
from sinew.errors import SpecError
from sinew.specs import ENVIRONMENT_STATE, STATE


def recorded(task, seed):
    """An episode of the expert: observations, actions and whether it succeeded."""
    env, expert = sim.make_vec(task, 1), sim.make_expert(task, "clean", 1)
    obs = env.reset([seed])
    expert.reset([0], [seed])
    seen, done, success, ended = {STATE: [], ENVIRONMENT_STATE: []}, [], False, False
    while not ended:
        action = expert.act(obs)
        for key, value in seen.items():
            value.append(obs[key][0].numpy().copy())
        done.append(action[0].numpy().copy())
        obs, _, terminated, truncated, info = env.step(action)
        success, ended = bool(info["success"][0]), bool(terminated[0] | truncated[0])
    env.close()
    return {key: np.stack(value) for key, value in seen.items()}, np.stack(done), success


@pytest.mark.parametrize("task", ["lift", "push", "peg", "drawer", "handover", "reach"])
def test_a_world_is_placed_as_an_observation_shows_it(task):
    env = sim.make_vec(task, 2)
    wanted = {key: value.clone() for key, value in env.reset([11, 12]).items()}
    env.reset([21, 22])
    place(env, 1, {key: value[1].numpy() for key, value in wanted.items()})
    now, _ = env._observe(np.array([1]))
    for key, value in wanted.items():
        assert np.allclose(now[key][0], value[1], atol=1e-5), key
    env.close()


@pytest.mark.parametrize("task", ["lift", "drawer"])
def test_an_episode_goes_as_it_went(task):
    seen, actions, success = recorded(task, 5)
    env = sim.make_vec(task, 2)
    again = replay(env, seen, actions)
    env.close()
    assert success and again.success and again.steps == len(actions)
    assert again.tool_m.max() < 2e-3 and again.objects_m.max() < 5e-3


def test_an_episode_of_another_task_is_refused():
    seen, actions, _ = recorded("handover", 1)
    env = sim.make_vec("lift", 1)
    with pytest.raises(SpecError, match="another task"):
        replay(env, seen, actions)
    env.close()
