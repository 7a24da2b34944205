"""The contract of every registered task, and that its scripted expert solves it."""

import numpy as np
import pytest
import torch

import sim
from sim.scene import load_scene
from sim.tasks import TASKS, Task
from sinew.errors import InputError

EPISODES = 200


def solved(task: str, quality: str, episodes: int, **knobs: object) -> np.ndarray:
    """(episodes,) bool, episode i with seed i."""
    env, expert = sim.make_vec(task, episodes), sim.make_expert(task, quality, episodes, **knobs)  # type: ignore[arg-type]
    seeds = list(range(episodes))
    observation = env.reset(seeds)
    expert.reset(seeds=seeds)
    success, running = np.zeros(episodes, bool), np.ones(episodes, bool)
    for _ in range(env.max_episode_steps):
        observation, _, terminated, truncated, _ = env.step(expert.act(observation))
        success |= running & terminated.numpy()
        running &= ~(terminated | truncated).numpy()
        if not running.any():
            break
    assert not running.any()
    env.close()
    return success


@pytest.mark.parametrize("task", sim.TASK_NAMES)
def test_the_clean_expert_solves_98_in_100(task: str) -> None:
    success = solved(task, "clean", EPISODES)
    assert success.sum() >= 0.98 * EPISODES, f"{success.sum()}/{EPISODES}; failed seeds {np.flatnonzero(~success).tolist()}"


def test_the_names_known_without_mujoco_are_the_registered_ones() -> None:
    assert set(sim.TASK_NAMES) <= set(TASKS)


@pytest.mark.parametrize("task", sim.TASK_NAMES)
def test_scenes_start_apart_at_rest_and_within_limits(task: str) -> None:
    scene = load_scene(task)
    starts = np.stack([scene.initial(seed) for seed in range(50)])
    assert len(np.unique(starts.round(9), axis=0)) == 50
    np.testing.assert_array_equal(starts[7], scene.initial(7))
    spec, joints = sim.make_interface(task).robot_spec, starts[:, scene.joint_qpos]
    assert (joints > spec.position_low_rad).all() and (joints < spec.position_high_rad).all()
    np.testing.assert_allclose(scene.openings(starts), 0.08)


@pytest.mark.parametrize("task", sim.TASK_NAMES)
def test_nothing_is_solved_by_standing_still(task: str) -> None:
    env = sim.make_vec(task, 20)
    env.reset(0)
    still = torch.zeros(20, env.action_spec.dim)
    still[:, [n.endswith("gripper") for n in env.action_spec.names]] = 0.08
    for _ in range(10):
        assert not env.step(still)[2].any()


@pytest.mark.parametrize("task", sim.TASK_NAMES)
def test_random_actions_never_diverge(task: str) -> None:
    env = sim.make_vec(task, 16)
    env.reset(100)
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(env.action_spec.low), torch.tensor(env.action_spec.high)
    for _ in range(60):
        observation, *_ = env.step(low + (high - low) * torch.rand(16, len(low), generator=generator))
    assert all(torch.isfinite(value).all() and value.abs().max() < 1e3 for value in observation.values())


def test_a_task_registered_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'lift' is registered twice"):
        TASKS.add("lift")(type("Again", (Task,), {}))


def test_a_tracked_object_on_a_hinge_is_refused() -> None:
    lift = TASKS.get("lift")

    class Hinged(lift):  # type: ignore[misc,valid-type]
        def fixtures(self) -> str:
            return '<body name="cube"><joint name="cube" type="hinge"/><geom size=".02" mass=".1"/></body>'

    TASKS.add("hinged")(Hinged)
    try:
        with pytest.raises(InputError, match="'cube' moves on joint 'cube'"):
            load_scene("hinged")
    finally:
        del TASKS._entries["hinged"]


def test_nested_slides_add_up() -> None:
    scene = load_scene("drawer")
    qpos = scene.model.qpos0.copy()[None]
    qpos[:, scene.spawn_qpos["cabinet"]], qpos[:, scene.spawn_qpos["drawer"]] = 0.1, 0.05
    still = scene.poses(scene.model.qpos0[None])
    moved = scene.poses(qpos)
    for name in ("drawer", "handle"):
        np.testing.assert_allclose((moved[name] - still[name])[0], [-0.05, 0.1, 0, 0, 0, 0, 0], atol=1e-12)
