"""Worlds of Gymnasium where a task's name stands. Those that need packages of their own are in tests/conformance."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import sim
from demos import Dataset, Writer
from sim import pusht_expert
from sinew.cli import collect, eval, train
from sinew.errors import InputError, MissingDependency
from sinew.rundir import write_json

PENDULUM = "gym:Pendulum-v1"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes of the pendulum under a spring, as a dataset of ours."""
    root, task = tmp_path_factory.mktemp("pendulum") / "data", sim.GymnasiumTask(PENDULUM)
    env = task.make_vec(1)
    specs = {"observation_spec": task.observation_spec, "action_spec": task.action_spec}
    with Writer.create(root, fps=20, robot_type=task.world, task=task.task_text, **specs) as writer:
        for seed in (0, 1):
            obs = env.reset([seed])
            for _ in range(30):
                action = -obs["observation.state"][:, 1:2]
                writer.add_frame({**{k: v[0].numpy() for k, v in obs.items()}, "action": action[0].numpy()})
                obs, *_ = env.step(action)
            writer.save_episode(success=True)
    write_json(root / collect.COLLECTION, {"task": PENDULUM})
    return root


def test_a_world_trains_and_evaluates_as_a_task_does(recorded: Path) -> None:
    assert Dataset(recorded).num_episodes == 2
    run = recorded.parent / "run"
    train.train(train.Args(data=(recorded,), out=run, steps=5, batch_size=8))
    result = eval.evaluate(eval.Args(run=run, episodes=3))
    assert result["task"] == PENDULUM and result["n"] == 3 and result["lengths"] == [200] * 3
    assert (run / "eval" / "gym_Pendulum-v1.json").exists()
    with pytest.raises(InputError, match="not filmed"):
        eval.evaluate(eval.Args(run=run, episodes=1, videos=1))


def test_what_cannot_be_recorded_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    out = tmp_path / "data"
    for task, error, said in (
        (PENDULUM, InputError, "no scripted expert is known for 'gym:Pendulum-v1'"),
        ("gym:CartPole-v1", InputError, "only bounded Box actions"),
        ("gym:Pendulum-v9", InputError, "Gymnasium cannot make 'Pendulum-v9'"),
        ("gym:no_such_package/World-v0", MissingDependency, "no package 'no_such_package' is installed"),
    ):
        with pytest.raises(error, match=said):
            collect.collect(collect.Args(task=task, out=out))
    for options, said in (({"quality": "human"}, "--quality human"), ({"cameras": ("front",)}, "--cameras front")):
        with pytest.raises(InputError, match=said):
            collect.collect(collect.Args(task=PENDULUM, out=out, **options))
    assert not out.exists()


# ---------------------------------------------------------------- geometry of the expert for PushT


def test_corners_turn_and_move_with_the_block() -> None:
    np.testing.assert_array_equal(pusht_expert.corners(np.zeros(3)), pusht_expert.CORNERS)
    turned = pusht_expert.corners(np.array([100.0, 50.0, np.pi / 2]))
    np.testing.assert_allclose(turned[1], [100, 110], atol=1e-9)  # (60, 0) a quarter turn on


def test_edges_lie_on_the_outline_and_look_into_the_block() -> None:
    outline = np.vstack([pusht_expert.CORNERS, pusht_expert.CORNERS[:1]])
    for a, b, inward in pusht_expert.EDGES:
        along = np.array(b, float) - a
        assert along @ inward == 0 and np.linalg.norm(inward) == 1
        middle = (np.array(a) + b) / 2
        assert inside(middle + 0.1 * np.array(inward), outline) and not inside(middle - 0.1 * np.array(inward), outline)


def inside(point: np.ndarray, outline: np.ndarray) -> bool:
    """Whether a ray to the right crosses the closed outline an odd number of times."""
    crossings = 0
    for (x0, y0), (x1, y1) in pairwise(outline):
        if (y0 > point[1]) != (y1 > point[1]):
            crossings += bool(point[0] < x0 + (point[1] - y0) * (x1 - x0) / (y1 - y0))
    return crossings % 2 == 1


def test_a_walk_ends_at_its_end_in_even_steps() -> None:
    targets = pusht_expert._walk([np.zeros(2), np.array([30.0, 0.0]), np.array([30.0, 5.0])], 20.0)
    np.testing.assert_allclose(targets, [[15, 0], [30, 0], [30, 5]])
    assert pusht_expert._walk([np.zeros(2), np.zeros(2)], 20.0) == []
