"""Bringing the scene back between episodes: by a person, by going home, by a backward policy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from test_learning_env import INTERFACE, Later, Rig, hold_action, play

import sim
from rl.reset import Reset
from robot_bridge.takeover import ScriptedTakeover
from sinew.errors import InputError


class PutDown:
    """Down to the table, open, up."""

    def reset(self) -> None:
        self.ticks = 0

    def act(self, obs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        names = INTERFACE.observation_spec["observation.state"].names
        tool = obs["observation.state"][0, [names.index(f"tool.{a}") for a in "xyz"]]
        low = bool(tool[2] < 0.026)
        self.ticks += int(low or self.ticks > 0)
        x, y = float((0.5 - tool[0]).clamp(-0.02, 0.02)), float((0.0 - tool[1]).clamp(-0.02, 0.02))
        if self.ticks == 0:
            action = [x, y, float((0.02 - tool[2]).clamp(-0.015, 0.0)), 0.0]
        else:
            action = [0.0, 0.0, 0.0 if self.ticks < 8 else 0.02, 0.08]
        return INTERFACE.action_spec.normalize(torch.tensor([action]))


def test_without_a_scene_the_person_sets_it_up_and_says_how_it_went():
    rig = Rig(ScriptedTakeover([None] * 20), scene=False, max_steps=4)
    rig.arm.takeover = Later(ScriptedTakeover(), 2, ["pause"])
    first = rig.env.reset([1])
    assert torch.equal(rig.env.reset([2])["observation.state"], first["observation.state"]) and rig.arm.episode == 0  # begun, not played
    play(rig, 3)
    rig.arm.takeover = Later(ScriptedTakeover(), 2, ["success", "pause"])
    _, reward, terminated, truncated, info = rig.env.step(hold_action())
    assert (float(reward), bool(terminated), bool(truncated), bool(info["success"])) == (1.0, True, False, True)
    assert "set the scene up again" in rig.told[-1] and rig.words == []


def test_going_home_opens_the_gripper_and_keeps_to_the_gate():
    rig = Rig()
    rig.env.reset([1])
    for _ in range(8):
        rig.env.step(torch.tensor([[0.025, 0.02, -0.01, 0.0]]))
    assert rig.arm.go_home()
    values = rig.simulated.read().values
    assert np.abs(values["joint_position"] - np.array(INTERFACE.robot_spec.home_rad)).max() < 0.05 and float(values["gripper"]) > 0.06
    rig.clock.wait_until(rig.clock.now_ns() + int(1e9))
    assert rig.still() and not rig.arm.gate.latched and rig.arm.gate.counts["jump"] == 0
    play(rig, 2)


def test_a_reset_policy_is_tried_a_bounded_number_of_times_and_then_a_person_is_asked():
    tried: list[int] = []
    asked: list[tuple[int, str]] = []
    back = iter([False, True, False, False, False])
    reset = Reset([tried.append, tried.append], lambda: next(back), lambda seed, why: asked.append((seed, why)), rounds=3)
    assert reset(10) and not reset(20)
    assert tried == [10, 10, 11, 11, 20, 20, 21, 21, 22, 22]  # other noise in every round
    assert asked == [(20, "the scene is not back after 3 tries")] and vars(reset.counts) == {"alone": 1, "rounds": 5, "asked": 1}
    with pytest.raises(InputError, match="does nothing"):
        Reset([], lambda: True, lambda seed, why: None)


def test_a_policy_that_puts_the_cube_down_brings_the_scene_back():
    """Lift, then put it down again with a backward controller; nobody sets the scene up in between."""
    from sinew.cli.resetting import in_region, start_region

    rig = Rig(scene=True)
    region, expert, put_down = start_region(INTERFACE), sim.make_expert("lift"), PutDown()
    asked: list[int] = []
    done: list[bool] = []

    def play_backward(seed: int) -> None:
        put_down.reset()
        rig.arm.drive(put_down.act, 60)
        rig.arm.go_home()

    reset = Reset([play_backward], lambda: in_region(region, rig.arm.poses()), lambda seed, why: asked.append(seed))
    obs = rig.env.reset([5])
    rig.env.restore = lambda seed: done.append(reset(seed))
    for _ in range(3):
        expert.reset(seeds=[rig.arm.seed])
        while True:
            obs, _, terminated, truncated, info = rig.env.step(expert.act(obs))
            if bool(terminated | truncated):
                break
        assert bool(info["success"])
    assert done == [True] * 3 and not asked and reset.counts.alone == 3
    assert in_region(region, rig.arm.poses()) and not in_region(region, {}), "what is not seen is not back"
