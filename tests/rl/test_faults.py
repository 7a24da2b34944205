"""What goes wrong is told in one line, loses nothing, and can be gone on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import test_residual
import test_rlpd
import torch

from rl.crew import CrewConfig
from rl.replay import Ring
from sinew.cli import improve_actors
from sinew.cli.improve import Args
from sinew.errors import DataError, InputError

CONFIG = replace(test_residual.SHORT, stop_success=2.0)


def learn(folder: Path, env: Any, **options: Any) -> torch.nn.Module:
    return test_residual.learn(folder, CONFIG, env=env, evaluate=None, **options)[1]


class BreaksAt(point_mass.PointMass):
    """A reward or an observation that is not finite at one step."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(8)
        self.at, self.what, self.steps = at, what, 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.steps == self.at:
            (reward if self.what == "reward" else obs[point_mass.STATE])[3] = float("nan")
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_run_that_met_a_value_that_is_not_finite_goes_on_from_its_checkpoint(tmp_path, what):
    whole = learn(tmp_path / "whole", point_mass.PointMass(8))
    with pytest.raises(InputError, match=f"world 3: .*{what} is not finite .*checkpoint is kept") as told:
        learn(tmp_path / "broken", BreaksAt(110, what))
    assert "\n" not in str(told.value)
    assert test_residual.same(whole, learn(tmp_path / "broken", point_mass.PointMass(8)))


@pytest.mark.parametrize(
    ("frame", "action_dim", "named"),
    [
        ({"features": ((6,), torch.float32), "base_action": ((2,), torch.float32)}, 2, r"features is \(6,\) there, \(4,\) here"),
        ({"features": ((4,), torch.float32)}, 2, "base_action is missing there"),
        ({"features": ((4,), torch.float32), "base_action": ((2,), torch.float32)}, 3, r"action is \(3,\) there, \(2,\) here"),
    ],
)
def test_recorded_episodes_of_another_task_are_refused_by_name(tmp_path, frame, action_dim, named):
    ring, off = Ring(4, 1, frame, action_dim), torch.zeros(1, dtype=torch.bool)
    zeros = {k: torch.zeros(1, *shape) for k, (shape, _) in frame.items()}
    ring.add(zeros, torch.zeros(1, action_dim), torch.zeros(1), off, off)
    with pytest.raises(DataError, match=f"another task or method: {named}"):
        learn(tmp_path / "run", point_mass.PointMass(8), demos=ring)


def test_a_run_goes_on_only_with_the_demonstrations_it_fits(tmp_path):
    """The same checkpoint with demonstrations of the right shape is taken."""
    test_rlpd.learn(tmp_path / "run", replace(test_rlpd.SHORT, steps=500), test_rlpd.demonstrations(3))
    assert (tmp_path / "run" / "train_state.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"actors": -1}, "--actors -1"),
        ({"address": "local"}, "--actors 0: give the number"),
        ({"actors": 2, "method": "recap"}, "recap acts and learns in turns"),
        ({"actors": 2, "learners": 2}, "--learners 2: give --address"),
        ({"actors": 3, "learners": 2, "address": "local"}, "a multiple of it"),
    ],
)
def test_options_of_actors_that_do_not_go_together_are_told(options, told):
    with pytest.raises(InputError, match=told):
        improve_actors.described(Args(run="base", out=Path("out"), **options))


def test_settings_of_a_crew_that_cannot_be_are_told():
    assert improve_actors.described(Args(run="base", out=Path("out"))) == {}
    assert improve_actors.described(Args(run="base", out=Path("out"), actors=2)) == {"actors": 2}
    bad: dict[str, int]
    for bad in ({"actors": 0}, {"actors": 1, "restarts": -1}, {"actors": 1, "lead_steps": 0}, {"actors": 1, "publish_every": 0}):
        with pytest.raises(InputError):
            CrewConfig(**bad)
