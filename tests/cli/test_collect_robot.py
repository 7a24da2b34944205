"""`sinew collect --robot`: the expert behind the control loop and its gate, here with a stepped robot where the network's would be."""

from __future__ import annotations

from functools import partial

import pytest

import demos
import robot_bridge
import robot_bridge.deploy
import sim
from sinew.cli.collect import Args, collect, task_of_dataset
from sinew.errors import InputError


@pytest.fixture
def robot(monkeypatch):
    clock = robot_bridge.SteppedClock()
    monkeypatch.setattr(robot_bridge, "DdsRobot", lambda spec, **_: robot_bridge.SimRobot(sim.RobotSim("lift"), spec, clock=clock))
    monkeypatch.setattr(robot_bridge, "DdsScene", robot_bridge.SimScene)
    monkeypatch.setattr(robot_bridge.deploy, "deploy", partial(robot_bridge.deploy.deploy, clock=clock))


def test_the_expert_is_recorded_on_a_robot_and_goes_on(robot, tmp_path):
    assert collect(Args(task="lift", out=tmp_path / "d", episodes=2, robot="dds"))["successes"] == 2
    assert collect(Args(task="lift", out=tmp_path / "d", episodes=3, robot="dds"))["episodes"] == 3
    data = demos.Dataset(tmp_path / "d")
    assert "sent.joint_position" in data.info["features"] and task_of_dataset(tmp_path / "d") == "lift"
    assert demos.check(tmp_path / "d").ok
    with pytest.raises(InputError, match="through 'dds'"):
        collect(Args(task="lift", out=tmp_path / "d", episodes=4))
    with pytest.raises(InputError, match="seed"):
        collect(Args(task="lift", out=tmp_path / "d", episodes=4, robot="dds", seed=1))


def test_a_dataset_of_the_simulation_does_not_go_on_with_a_robot(robot, tmp_path):
    collect(Args(task="lift", out=tmp_path / "d", episodes=1))
    with pytest.raises(InputError, match="through None"):
        collect(Args(task="lift", out=tmp_path / "d", episodes=2, robot="dds"))
    with pytest.raises(InputError, match="worlds of Gymnasium"):
        collect(Args(task="gym:Meta-World/reach-v3", out=tmp_path / "e", episodes=1, robot="dds"))
