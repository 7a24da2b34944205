"""Actors on Ray, really: two processes of a local Ray act, one of them dies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import test_actors
import torch
from safetensors.torch import load_file, save_file

from rl.checkpoint import read_state
from rl.crew import CrewConfig
from rl.on_ray import LOCAL, RayCrew, connect, learners
from rl.runner import STATE_FILE
from sinew.errors import InputError, MissingDependency
from sinew.rundir import RunDir

pytest.importorskip("ray", reason="ray is not installed: pip install 'sinew[distributed]'")


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Starting Ray takes seconds: all these tests share one."""
    ray, _ = connect(LOCAL)
    yield
    ray.shutdown()


def act(place: int, told: Mapping[str, Any], outpost: Any) -> None:
    """Runs in Ray's process; place 1 is killed once."""
    torch.set_num_threads(1)
    run = RunDir(Path(told["run"]))
    test_actors.residual(outpost(test_actors.Mortal(run, place)), run)


def broken(place: int, told: Mapping[str, Any], outpost: Any) -> None:
    raise InputError("there is no such task")


def learn(rank: int, told: Mapping[str, Any], group: Any) -> None:
    """The second learner of a group, in Ray's process, with an actor of its own."""
    torch.set_num_threads(1)
    run = RunDir.create(Path(told["run"]) / str(rank), {})
    source = ray_crew(RunDir(Path(told["run"])), "act", 1)
    source.run, source.group = run, group
    try:
        _, actor = test_actors.residual(source, run)
    finally:
        source.close()
    save_file({k: v.contiguous() for k, v in actor.state_dict().items()}, run / "last.safetensors")


def ray_crew(run: RunDir, function: str, actors: int, **options: Any) -> RayCrew:
    spec = point_mass.PointMass(1).action_spec
    return RayCrew(
        run, CrewConfig(actors=actors, **options), test_actors.WORLDS, spec, LOCAL, f"test_ray:{function}", {"run": str(run.path)}
    )


def test_two_actors_on_ray_act_and_one_is_killed(tmp_path):
    run, notes = RunDir.create(tmp_path / "run", {}), test_actors.Notes()
    (run / "waits").touch()
    learner, kept = ray_crew(run, "act", 2), []
    taken = learner.took
    learner.took = lambda arrival: (kept.append(arrival), taken(arrival))[1]  # type: ignore[method-assign]
    try:
        result, actor = test_actors.residual(learner, run, replace(test_actors.SHORT, steps=1_200), notes)
    finally:
        learner.close()
    assert result.steps >= 1_200 and result.updates > 300
    assert not test_actors.test_residual.same(actor, point_mass.ToyActor())
    assert notes.heard("actor 1 DIED") and notes.heard("started again (1 of 3)"), notes.said
    assert {a.place for a in kept} == {0, 1}
    first = [a.stamp for a in kept if a.place == 0]
    assert [number for _, number, _ in first] == list(range(len(first))), "every step once and in order"
    assert sum(seat.lost for seat in learner.seats) == 0


def test_two_learners_learn_as_one_each_from_an_actor_of_its_own(tmp_path):
    run = RunDir.create(tmp_path / "run", {})
    (run / "died").touch()
    with learners(LOCAL, 2, "test_ray:learn", {"run": str(run.path)}) as group:
        source = ray_crew(run, "act", 1)
        source.group = group
        try:
            result, actor = test_actors.residual(source, run)
        finally:
            source.close()
    theirs = load_file(run / "1" / "last.safetensors")
    assert all(torch.equal(v, theirs[k]) for k, v in actor.state_dict().items()), "one set of weights"
    assert result.steps >= test_actors.SHORT.steps
    states = [read_state(folder / STATE_FILE)[1] for folder in (run.path, run.path / "1")]
    assert states[0]["step"] == states[1]["step"] == result.steps
    assert states[0]["learner"]["updates"] == states[1]["learner"]["updates"] == result.updates
    assert all(s["source"]["places"][0][1] * test_actors.WORLDS < result.steps for s in states), "each took in a part of them"


def test_what_ails_actors_is_told(tmp_path):
    run = RunDir.create(tmp_path / "run", {})
    learner = ray_crew(run, "broken", 1, restarts=0)
    try:
        with pytest.raises(InputError, match="all 1 actors died: there is no such task"):
            test_actors.residual(learner, run)
    finally:
        learner.close()


def test_no_ray_at_an_address_is_told(monkeypatch):
    import ray

    def refuse(**options: Any) -> None:
        raise ConnectionError(f"ray client connection timeout at {options['address']}\nwith more lines")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InputError, match=r"no Ray at ray://nowhere:1: ray client .*; start one with: ray start --head") as told:
        connect("ray://nowhere:1")
    assert "\n" not in str(told.value)


def test_a_missing_ray_is_told_with_the_command(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sinew\[distributed\]'"):
        ray_crew(RunDir.create(tmp_path / "run", {}), "act", 1)
