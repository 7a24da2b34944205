"""Deployment in one process: success, NaN at a random tick, wrong shapes, specs that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import sim
from robot_bridge import SimRobot, SimScene, SteppedClock
from robot_bridge.deploy import DeployConfig, deploy, make_gate
from sinew.errors import InputError, SafetyStop, SpecError
from sinew.specs import PolicySpec


class ExpertExecutor:
    """The scripted expert behind the executor protocol; `spoil` may change its actions."""

    def __init__(self, interface, spoil=lambda tick, action: action, task="lift") -> None:
        self.expert, self.interface, self.spoil, self.ticks = sim.make_expert(task, "clean", 1), interface, spoil, 0
        self.spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=1)
        self.seeds: list[int] = []

    def reset(self, ids=None, seeds: Any = ()) -> None:
        self.expert.reset(seeds=seeds)
        self.seeds += list(seeds)

    def act(self, obs):
        action = self.interface.action_spec.normalize(torch.as_tensor(np.asarray(self.expert.act(obs)), dtype=torch.float32))
        self.ticks += 1
        return self.spoil(self.ticks, action)


@pytest.fixture
def interface():
    return sim.make_interface("lift")


@pytest.fixture
def clock():
    return SteppedClock()


@pytest.fixture
def robot(interface, clock):
    robot = SimRobot(sim.RobotSim("lift"), interface.robot_spec, clock=clock)
    robot.sent = []
    write = robot.write
    robot.write = lambda command: (robot.sent.append(command.values["joint_position"]), write(command))[1]
    return robot


def run(executor: Any, interface, robot, clock, **options):
    return deploy(executor, interface, robot, scene=SimScene(robot), clock=clock, **options)


def test_the_expert_solves_the_task_through_the_gate(interface, robot, clock):
    executor = ExpertExecutor(interface)
    frames = []
    report = run(executor, interface, robot, clock, seeds=[3, 11, 4], on_frame=frames.append)
    assert (report.k, report.n, report.stopped) == (3, 3, "")
    assert [e.seed for e in report.episodes] == [3, 11, 4] == executor.seeds and all(e.ended_by == "success" for e in report.episodes)
    assert len(frames) == sum(e.steps for e in report.episodes) == report.policy["ticks"]
    assert frames[0].action.shape == (4,) and set(frames[0].observation) == set(interface.observation_spec)
    path = np.array(robot.sent)
    low, high = (np.array(v) for v in (interface.robot_spec.position_low_rad, interface.robot_spec.position_high_rad))
    assert ((path >= low) & (path <= high)).all()
    summary = json.loads(json.dumps(report.summary(), allow_nan=False))
    assert summary["k"] == 3 and summary["controller"]["rate_hz"] == 100.0 and summary["policy"]["rate_hz"] == 20.0
    assert summary["gate"]["latched"] == "" and summary["controller"]["scheduler"] == "stepped"


@pytest.mark.parametrize("task", sorted(sim.TASKS))
def test_every_task_can_be_deployed(task, clock):
    """One arm or two, with whatever objects: the expert solves it through the gate."""
    interface = sim.make_interface(task)
    robot = SimRobot(sim.RobotSim(task), interface.robot_spec, clock=clock)
    report = run(ExpertExecutor(interface, task=task), interface, robot, clock, seeds=[0, 1])
    assert report.k == 2 and report.stopped == "", report.gate


def test_every_run_is_alike(interface):
    def once():
        clock = SteppedClock()
        robot = SimRobot(sim.RobotSim("lift"), interface.robot_spec, clock=clock)
        frames = []
        report = run(ExpertExecutor(interface), interface, robot, clock, seeds=[5], on_frame=frames.append)
        return report.episodes, np.array([f.measured.values["joint_position"] for f in frames])

    (first, a), (second, b) = once(), once()
    assert first == second and np.array_equal(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_action_that_is_not_finite_never_reaches_the_robot(interface, robot, clock, bad):
    at = int(np.random.default_rng().integers(2, 20))

    def spoil(tick, action):
        if tick == at:
            action[0, 1] = bad
        return action

    report = run(ExpertExecutor(interface, spoil), interface, robot, clock, seeds=[0, 1])
    assert report.stopped == "non_finite" and len(report.episodes) == 1 and report.episodes[0].ended_by == "non_finite", at
    assert report.episodes[0].success is False and report.k == 0
    assert np.isfinite(np.array(robot.sent)).all()
    assert np.ptp(np.array(robot.sent)[-2:], axis=0).max() == 0.0  # it stands at the end
    assert report.gate["events"][-1]["reason"] == "non_finite"


def test_wrong_shapes_and_a_policy_that_gives_up_stop_too(interface, robot, clock):
    report = run(ExpertExecutor(interface, lambda tick, action: action[:, :2] if tick > 3 else action), interface, robot, clock, seeds=[0])
    assert report.stopped == "shape"

    def give_up(tick, action):
        if tick > 3:
            raise SafetyStop("the policy gave a non-finite action")
        return action

    clock = SteppedClock()
    robot = SimRobot(sim.RobotSim("lift"), interface.robot_spec, clock=clock)
    report = run(ExpertExecutor(interface, give_up), interface, robot, clock, seeds=[0])
    assert report.stopped == "non_finite" and "non-finite action" in report.gate["events"][-1]["detail"]


def test_a_defect_in_the_policy_leaves_the_robot_at_rest(interface, robot, clock):
    def crash(tick, action):
        if tick == 6:
            raise ZeroDivisionError
        return action

    with pytest.raises(ZeroDivisionError):
        run(ExpertExecutor(interface, crash), interface, robot, clock, seeds=[0])
    assert np.ptp(np.array(robot.sent)[-2:], axis=0).max() == 0.0


def test_without_a_scene_episodes_end_by_time(interface, robot, clock):
    executor: Any = ExpertExecutor(interface)
    report = deploy(executor, interface, robot, episodes=2, clock=clock, config=DeployConfig(max_steps=5))
    assert report.n == 0 and [(e.ended_by, e.success) for e in report.episodes] == [("time_limit", None)] * 2


def test_what_does_not_fit_is_refused_before_anything_moves(interface, robot, clock):
    executor = ExpertExecutor(interface)
    executor.spec = replace(executor.spec, action=replace(interface.action_spec, rate_hz=10.0))
    with pytest.raises(SpecError, match="rate_hz"):
        run(executor, interface, robot, clock, seeds=[0])
    seeing = sim.make_interface("lift", cameras=("front",)).observation_spec
    executor.spec = replace(executor.spec, action=interface.action_spec, observation=seeing)
    with pytest.raises(SpecError, match=r"observation\.images\.front"):
        run(executor, interface, robot, clock, seeds=[0])
    assert not robot.sent


def test_a_camera_that_is_not_there_is_named(clock):
    interface = sim.make_interface("lift", cameras=("front",))
    robot = SimRobot(sim.RobotSim("lift"), interface.robot_spec, clock=clock)
    with pytest.raises(InputError, match=r"images\.front within 0\.5 s"):
        run(ExpertExecutor(interface), interface, robot, clock, seeds=[0], config=DeployConfig(connect_timeout_s=0.5))


def test_a_recorder_gets_frames_and_outcomes(interface, robot, clock):
    class Recorder:
        def __init__(self):
            self.frames, self.ends = 0, []

        def frame(self, frame):
            self.frames += 1

        def end_episode(self, result):
            self.ends.append((result.seed, result.success, self.frames))

    recorder = Recorder()
    report = run(ExpertExecutor(interface), interface, robot, clock, seeds=[0, 1], record=recorder)
    assert [e[:2] for e in recorder.ends] == [(0, True), (1, True)] and recorder.frames == sum(e.steps for e in report.episodes)


def test_the_gate_of_a_task_checks_its_workspace(interface):
    gate = make_gate(interface)
    assert gate.config.dt_s == 0.01 and gate.config.workspace_low_m[0] == pytest.approx(interface.robot_spec.workspace_low_m[0] - 0.01)
    assert gate._tool is not None
    assert np.allclose(gate._tool.positions([0.0] * 7)[0], interface.chains[0].forward(np.zeros((1, 7))).position[:, 0])
