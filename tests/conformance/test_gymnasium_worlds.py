"""Meta-World and gym-pusht behind our interface, where they are installed: they want another mujoco than ours, so in a venv of their own.

    pip install -c constraints.txt torch metaworld gym-pusht ... and then mujoco==3.16.0; docs/benchmarks.md has the whole command
"""

from pathlib import Path

import pytest
import torch

pytest.importorskip("metaworld", reason="Meta-World is not installed in this venv")
pytest.importorskip("gym_pusht", reason="gym-pusht is not installed in this venv")

import sim
from sinew.cli import collect, eval, train
from sinew.errors import InputError

REACH, PUSHT = "gym:Meta-World/reach-v3", "gym:gym_pusht/PushT-v0"


def test_meta_world_draws_its_places_from_the_seed_and_ends_on_success() -> None:
    task = sim.GymnasiumTask(REACH)
    env, expert = task.make_vec(2), task.make_expert(2)
    first, again, other = env.reset([5, 5]), env.reset([5, 6]), env.reset([7, 6])
    state = "observation.state"
    assert torch.equal(first[state][0], first[state][1]) and torch.equal(first[state][0], again[state][0])
    assert not torch.equal(again[state][0], again[state][1]) and torch.equal(again[state][1], other[state][1])
    assert first[state].shape == (2, 39) and bool((first[state][:, -3:] != 0).all())  # the goal is seen
    obs = other
    for _ in range(env.max_episode_steps):
        obs, _, terminated, truncated, info = env.step(expert.act(obs))
        if bool((terminated | truncated).any()):
            break
    assert bool(info["success"].any()) and torch.equal(info["success"], terminated)
    with pytest.raises(InputError, match="unknown Meta-World task 'reach-v9'"):
        sim.GymnasiumTask("gym:Meta-World/reach-v9")


def test_every_verb_takes_a_world(tmp_path: Path) -> None:
    made = collect.collect(collect.Args(task=REACH, out=tmp_path / "data", episodes=3))
    assert made["episodes"] == made["successes"] == 3
    train.train(train.Args(data=(tmp_path / "data",), out=tmp_path / "run", steps=5, batch_size=8))
    assert eval.evaluate(eval.Args(run=tmp_path / "run", episodes=2))["n"] == 2


def test_the_expert_pushes_the_t_home() -> None:
    task = sim.GymnasiumTask(PUSHT)
    env, expert = task.make_vec(4), task.make_expert(4)
    obs = env.reset([0, 1, 2, 3])
    expert.reset(range(4), [0, 1, 2, 3])
    solved = torch.zeros(4, dtype=torch.bool)
    for _ in range(env.max_episode_steps - 1):
        obs, _, terminated, _, info = env.step(expert.act(obs))
        solved |= info["success"]
        expert.reset(terminated.nonzero()[:, 0].tolist(), [0] * int(terminated.sum()))
    assert int(solved.sum()) >= 3
