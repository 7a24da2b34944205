"""A pause is no loss: what is measured meanwhile is neither kept nor missed; and a word records the saved episode again."""

from __future__ import annotations

from typing import Any

import demos
import robot_bridge
import sim
from demos import accounts, layout, tables
from robot_bridge.deploy import DeployConfig, deploy
from robot_bridge.given import ActionSpace
from robot_bridge.recording import DatasetRecorder
from robot_bridge.takeover import Given, ScriptedTakeover
from robot_bridge.teleop.executor import Attentive, TeleopExecutor

UP = Given((0.0, 0.0, 0.5, 0.0, 0.0, 0.0))


def play(root, script, requests, seeds=(1,)) -> list[str]:
    clock, interface = robot_bridge.SteppedClock(), sim.make_interface("lift")
    robot = robot_bridge.SimRobot(sim.RobotSim("lift"), interface.robot_spec, clock=clock)
    said: list[str] = []
    specs = interface.observation_spec, interface.action_spec
    executor: Any = TeleopExecutor(ScriptedTakeover(script, requests), ActionSpace(interface), *specs, robot.read, said.append)
    with DatasetRecorder(root, interface, tell=said.append) as recorder:
        executor.again = recorder.again
        deploy(
            executor, interface, robot, seeds=seeds, scene=robot_bridge.SimScene(robot), clock=clock, ended=executor.ended,
            record=Attentive(recorder, executor), config=DeployConfig(max_steps=80), tell=said.append,
        )  # fmt: skip
    return said


def test_what_is_measured_in_a_pause_is_neither_kept_nor_missed(tmp_path):
    said = play(tmp_path / "d", [UP] * 80, {10: "pause", 30: "pause", 40: "success"})
    joints = accounts.samples(tmp_path / "d", 0)["joint_position"]
    told = tables.native_account(layout.native_path(tmp_path / "d", 0))
    assert told["streams"]["joint_position"]["lost"] == 0 and told["streams"]["joint_position"]["rate_hz"] == 100.0
    assert 80 <= len(joints) <= 120  # 18 to 22 frames at 20 Hz, of 40
    assert told["skipped"] == told["dropped"] == {} and any(s.startswith("episode 0") and "nothing lost" in s for s in said)


def test_a_word_before_the_first_motion_throws_the_saved_episode_away(tmp_path):
    script = [UP] * 10 + [None] * 10 + [UP] * 40
    said = play(tmp_path / "d", script, {10: "success", 15: "again", 35: "again", 45: "failure"}, seeds=(1, 2))
    data = demos.Dataset(tmp_path / "d")
    assert data.num_episodes == 1 and data.episode(0).success is False
    assert any("is thrown away; record it again" in s for s in said) and any("throw that one away first" in s for s in said)
