"""Dense potentials: they rise along what an expert does, are highest where the task is solved, and pay for progress."""

from pathlib import Path

import pytest
import torch

import rewards
import sim
from rewards.dense import Grasp, GraspPotential, InsertPotential, ReachPotential, closeness
from sinew.cli.train_rl import Args
from sinew.cli.train_rl_methods import DENSE, potential, rewarded
from sinew.errors import InputError
from sinew.specs import ENVIRONMENT_STATE, STATE, ObservationSpec, TensorSpec

WORLDS = 8
AXES = ("x", "y", "z")
SPEC = ObservationSpec(
    {
        STATE: TensorSpec(shape=(4,), names=("gripper", *(f"tool.{a}" for a in AXES))),
        ENVIRONMENT_STATE: TensorSpec(shape=(6,), names=tuple(f"{name}.{a}" for name in ("peg", "hole") for a in AXES)),
    }
)


def seen(tool=(0.5, 0.0, 0.2), gripper=0.08, peg=(0.5, 0.0, 0.04), hole=(0.5, 0.2, 0.0)) -> dict[str, torch.Tensor]:
    return {STATE: torch.tensor([[gripper, *tool]]), ENVIRONMENT_STATE: torch.tensor([[*peg, *hole]])}


def test_closeness_falls_with_distance_everywhere() -> None:
    values = closeness(torch.linspace(0, 0.5, 200))
    assert values[0] == 1.0 and float(values[-1]) == pytest.approx(0.0, abs=1e-6) and bool((values.diff() < 0).all())
    assert float(closeness(torch.tensor(5.0))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("task", DENSE)
def test_an_expert_climbs_it_to_the_top(task: str) -> None:
    """From the start of every episode to its success, and no step of the way is worth more than the end."""
    env, expert = sim.make_vec(task, WORLDS), sim.make_expert(task, num_envs=WORLDS)
    phi = potential(env.interface, task)
    observation = env.reset(0)
    expert.reset(seeds=range(WORLDS))
    value = phi(observation)
    start, last, running = value.clone(), torch.full((WORLDS,), float("nan")), torch.ones(WORLDS, dtype=torch.bool)
    highest, fallen = value.clone(), torch.zeros(WORLDS)
    for _ in range(env.max_episode_steps):
        observation, _, terminated, truncated, info = env.step(expert.act(observation))
        value = phi(info["final_observation"])
        assert bool(((phi.low <= value) & (value <= phi.high)).all())
        fallen = torch.where(running, torch.maximum(fallen, highest - value), fallen)
        highest = torch.where(running, torch.maximum(highest, value), highest)
        last = torch.where(running & terminated, value, last)
        running &= ~(terminated | truncated)
        if not running.any():
            break
    env.close()
    # 1.5 cm, which is what solves reach, are worth 0.16
    assert bool((last > start + 0.3).all()) and bool((last > -0.2).all()), (start, last)
    assert bool((highest - last < 0.05).all()) and bool((fallen < 0.15).all()), (highest, last, fallen)


@pytest.mark.parametrize("task", DENSE)
def test_returns_are_those_of_success_less_a_rent_for_what_is_left(task: str) -> None:
    """sum g^t (r_t) = sum g^t success - potential at the start - (1 - g) sum g^t (- potential after the step), 0 where it is solved."""
    gamma = 0.9
    env, expert = sim.make_vec(task, 4), sim.make_expert(task, num_envs=4)
    phi = potential(env.interface, task)
    worlds = rewarded(env, env.interface, Args(out=Path("x"), task=task))
    observation = worlds.reset(range(4))
    start = phi(observation)
    expert.reset(seeds=range(4))
    paid, sparse, rent, running = torch.zeros(4), torch.zeros(4), torch.zeros(4), torch.ones(4, dtype=torch.bool)
    for t in range(env.max_episode_steps):
        observation, reward, terminated, truncated, info = worlds.step(expert.act(observation))
        paid += gamma**t * reward * running
        sparse += gamma**t * info["success"].float() * running
        rent += (1 - gamma) * gamma**t * -phi(info["final_observation"]) * ~terminated * running
        running &= ~(terminated | truncated)
        if not running.any():
            break
    env.close()
    assert bool((sparse > 0).all()) and bool((rent > 0).all())
    torch.testing.assert_close(paid, sparse - start - rent, atol=1e-5, rtol=1e-5)


def test_staying_away_pays_nothing_and_coming_and_going_nothing() -> None:
    shaped = rewards.make("shaped", potential=ReachPotential(SPEC, "peg"), gamma=1.0)
    far, near = seen(), seen(tool=(0.5, 0.0, 0.1))

    def step(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
        no = torch.zeros(1, dtype=torch.bool)
        told = {**before, **{f"next.{k}": v for k, v in after.items()}, "success": no, "terminated": no}
        return float(shaped.reward(told, {}))

    assert step(far, far) == 0.0 and step(far, near) > 0.05 and step(far, near) + step(near, far) == pytest.approx(0.0, abs=1e-6)


def test_closing_the_fingers_pays_around_the_object_only() -> None:
    phi = GraspPotential(SPEC, Grasp(object="peg", width_m=0.024))
    there, away = (0.5, 0.0, 0.04), (0.5, 0.0, 0.15)
    assert float(phi(seen(tool=there, gripper=0.024))) == pytest.approx(0.0, abs=1e-5)
    assert float(phi(seen(tool=there, gripper=0.024)) - phi(seen(tool=there))) == pytest.approx(1 / 3, abs=1e-5)
    assert abs(float(phi(seen(tool=away, gripper=0.024)) - phi(seen(tool=away)))) < 1e-5


def test_the_way_into_a_hole_leads_over_its_rim() -> None:
    phi = InsertPotential(SPEC, Grasp(object="peg", width_m=0.024), "hole", half_m=0.04, rim_m=0.04, within_m=0.012, depth_m=0.01)
    # foot of the peg: on the table beside the hole; up; over the hole; in it
    way = [float(phi.way(seen(peg=(0.5, y, 0.04 + foot)))) for y, foot in ((0.0, 0.0), (0.0, 0.055), (0.2, 0.055), (0.2, 0.01))]
    assert way == pytest.approx([0.055 + 0.2 + 0.045, 0.2 + 0.045, 0.045, 0.0], abs=1e-5)
    beside_at_table = float(phi.way(seen(peg=(0.5, 0.18, 0.04))))
    assert beside_at_table > way[2]  # pressing against the block from the side is further than being over it


def test_what_the_observation_does_not_name_is_told() -> None:
    with pytest.raises(InputError, match=r"no element 'cup.x'; it has peg.x"):
        ReachPotential(SPEC, "cup")
    without = ObservationSpec({**SPEC.tensors, STATE: TensorSpec(shape=(3,), names=tuple(f"tool.{a}" for a in AXES))})
    with pytest.raises(InputError, match="nothing can be grasped"):
        GraspPotential(without, Grasp(object="peg", width_m=0.02))
    with pytest.raises(InputError, match="no dense reward for push: there is one for reach, lift, peg"):
        potential(sim.make_interface("push"), "push")
