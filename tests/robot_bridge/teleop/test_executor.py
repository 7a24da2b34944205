import numpy as np
import pytest

import demos
import robot_bridge
import sim
from robot_bridge.deploy import DeployConfig, deploy
from robot_bridge.given import ActionSpace
from robot_bridge.recording import DatasetRecorder
from robot_bridge.takeover import DeviceLost, Given, ScriptedTakeover
from robot_bridge.teleop.executor import Attentive, TeleopExecutor
from sinew.specs import STATE

UP, STILL = Given((0.0, 0.0, 0.5, 0.0, 0.0, 0.0)), Given((0.0,) * 6)


@pytest.fixture
def collected(tmp_path):
    """(script, requests, episodes) → the report, the dataset and what was said, of a simulated robot in stepped time."""

    def play(script, requests, seeds=(1,), max_steps=60):
        clock, interface = robot_bridge.SteppedClock(), sim.make_interface("lift")
        robot = robot_bridge.SimRobot(sim.RobotSim("lift"), interface.robot_spec, clock=clock)
        said: list[str] = []
        takeover = ScriptedTakeover(script, requests)
        specs = interface.observation_spec, interface.action_spec
        executor = TeleopExecutor(takeover, ActionSpace(interface), *specs, robot.read, said.append)
        with DatasetRecorder(tmp_path / "data", interface) as recorder:
            report = deploy(
                executor, interface, robot, seeds=seeds, scene=robot_bridge.SimScene(robot), clock=clock, ended=executor.ended,
                record=Attentive(recorder, executor), config=DeployConfig(max_steps=max_steps), tell=said.append,
            )  # fmt: skip
        return report, demos.Dataset(tmp_path / "data"), said

    return play


def height(data):
    """(frames,) of the tool, metres."""
    return data.column(STATE)[:, data.observation_spec[STATE].names.index("tool.z")]


def test_recording_begins_with_the_first_motion_and_ends_with_a_word(collected):
    report, data, _ = collected([None] * 4 + [STILL] * 3 + [UP] * 10 + [STILL] * 40, {25: "success"})
    assert not report.stopped and [e.ended_by for e in report.episodes] == ["success"]
    assert data.num_episodes == 1 and data.episode(0).success is True
    assert 15 <= len(data) <= 19  # what was given before the first motion is left out
    assert height(data)[-1] > height(data)[0] + 0.02
    up = data.column("action")[:10, data.action_spec.names.index("dz")]
    assert np.allclose(up, 0.5 * data.action_spec.high[2], atol=1e-6)
    assert (data.column("action")[12:, :3] == 0).all()


def test_what_is_thrown_away_leaves_nothing_and_the_next_one_is_kept(collected):
    report, data, _ = collected([UP] * 10 + [STILL] * 5 + [UP] * 200, {8: "reset", 24: "failure"}, seeds=(1, 2))
    assert [e.ended_by for e in report.episodes] == ["discarded", "failure"]
    assert data.num_episodes == 1 and data.episode(0).success is False and 10 <= len(data) <= 18


def test_a_pause_is_held_and_not_recorded(collected):
    report, data, said = collected([UP] * 80, {10: "pause", 30: "pause", 40: "success"})
    assert not report.stopped and data.num_episodes == 1
    assert 18 <= len(data) <= 22 and any("pause" in line for line in said)
    gap = np.diff(data.column("timestamp_ns")[:, 0])
    assert gap.max() > 0.9e9 > 10 * np.median(gap)  # 20 ticks of 50 ms
    before = np.argmax(gap)
    assert np.diff(height(data))[before] < 0.06  # it came to rest; going on for 20 ticks would be 0.25 m


def test_stop_ends_all_and_keeps_what_there_is(collected):
    report, data, _ = collected([UP] * 80, {12: "stop"}, seeds=(1, 2, 3))
    assert [e.ended_by for e in report.episodes] == ["stop"] and not report.stopped
    assert data.num_episodes == 1 and data.episode(0).success is None


def test_a_lost_device_holds_the_robot_and_latches(collected):
    report, data, said = collected([UP] * 6 + [DeviceLost("the gamepad is gone")] * 200, {}, max_steps=200)
    assert sum("the gamepad is gone; the robot holds" in line for line in said) >= 1
    assert report.gate["counts"].get("expired", 0) > 0
    assert data.num_episodes == 1


def test_nobody_moves_and_nothing_is_recorded(collected):
    report, data, _ = collected([None] * 100, {}, max_steps=30)
    assert [e.ended_by for e in report.episodes] == ["time_limit"] and not report.stopped and data.num_episodes == 0
