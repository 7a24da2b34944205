"""What policies see and do on robots that no simulated task describes, and a deployment on each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from robot_bridge import SimRobot, SteppedClock
from robot_bridge.deploy import DeployConfig, deploy, make_gate
from robot_bridge.robot_interface import JointTargets, RobotInterface
from robot_bridge.robots import load_robot
from sinew.errors import DataError, SpecError
from sinew.specs import IMAGES, ObservationSpec, PolicySpec


def interface_for(name: str, **changes: Any) -> RobotInterface:
    config = load_robot(name)
    vectors = {k: t for k, t in config.contract.observation_spec().tensors.items() if not k.startswith(IMAGES)}
    settings: dict[str, Any] = {"task_text": "wave", "wanted": ObservationSpec(vectors), "action": config.contract.action}
    return RobotInterface(config, **{**settings, **changes})


class Arm:
    """Joints that go most of the way to their targets in each period."""

    def __init__(self, start: np.ndarray, grippers: int) -> None:
        self.joint_position, self.joint_velocity = start.copy(), np.zeros(len(start))
        self.gripper: Any = np.full(grippers, 0.01) if grippers > 1 else 0.01
        self.poses: dict[str, np.ndarray] = {}
        self.success = False
        self.targets: list[np.ndarray] = []

    def reset(self, seed: int) -> None:
        pass

    def step(self, joint_target, gripper_target, duration_s: float) -> None:
        moved = 0.8 * (np.asarray(joint_target) - self.joint_position)
        self.joint_position, self.joint_velocity = self.joint_position + moved, moved / duration_s
        self.gripper = np.array(gripper_target, dtype=float)
        self.targets.append(np.array(joint_target))

    def image(self, camera: str, height: int = 4, width: int = 4) -> np.ndarray:
        return np.zeros((height, width, 3), np.uint8)


class Waving:
    """Swings every joint about the pose that it is shown first."""

    def __init__(self, interface: RobotInterface) -> None:
        self.spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=1)
        self.interface, self.home, self.ticks = interface, np.array(interface.robot_spec.home_rad), 0

    def reset(self, ids=None, seeds: Any = ()) -> None:
        pass

    def act(self, obs):
        assert set(obs) == set(self.spec.observation)
        self.ticks += 1
        low, high = np.array(self.spec.action.low), np.array(self.spec.action.high)
        wanted = 0.5 * (low + high)
        wanted[: len(self.home)] = self.home + 0.05 * np.sin(0.3 * self.ticks)
        return self.interface.action_spec.normalize(torch.as_tensor(np.clip(wanted, low, high)[None], dtype=torch.float32))


@pytest.mark.parametrize("name", ["ur5e", "fr3", "xarm7", "so101", "vx300s"])
def test_a_robot_known_as_data_is_brought_home_and_deployed(name):
    interface, clock = interface_for(name), SteppedClock()
    spec, config = interface.robot_spec, DeployConfig(max_steps=60, start_pose_rad=interface.robot_spec.home_rad, first_run=True)
    start = np.array(spec.home_rad)
    start[0] += 0.2
    physics = Arm(start, 1)
    robot: Any = SimRobot(physics, spec, clock=clock)
    sessions: dict[str, list[np.ndarray]] = {}
    write = robot.write
    robot.write = lambda command: (sessions.setdefault(command.session, []).append(command.values["joint_position"]), write(command))[1]
    gate = make_gate(interface, config, interface.config)
    report = deploy(Waving(interface), interface, robot, clock=clock, config=config, gate=gate, contract=interface.contract)
    assert [e.ended_by for e in report.episodes] == ["time_limit"] and report.stopped == "", report.gate
    assert len(sessions) == 2  # on the way home, and the episode
    for path in map(np.array, sessions.values()):
        for order, limit in ((1, spec.velocity_max_rad_s), (2, spec.acceleration_max_rad_s2), (3, interface.config.jerk_max_rad_s3)):
            assert np.all(np.abs(np.diff(path, order, axis=0)).max(0) / 0.01**order <= np.array(limit) * (1 + 1e-6) + 1e-6), order


def test_it_shows_what_the_contract_says():
    interface = interface_for("ur5e")
    joints, values = len(interface.robot_spec.joint_names), {}
    for key in interface.values:
        values[key] = np.array(0.04) if key == "gripper" else np.arange(joints, dtype=float)
    seen = interface.observe_values(values)
    assert {key: value.shape for key, value in seen.items()} == {k: t.shape for k, t in interface.observation_spec.tensors.items()}
    batch = interface.observe(values["joint_position"][None], values["joint_velocity"][None], np.array([[0.04]]), {})
    assert all(np.array_equal(batch[key][0], seen[key]) for key in batch)


def test_a_policy_that_does_not_fit_is_refused_with_the_difference():
    action = load_robot("ur5e").contract.action
    assert action is not None
    with pytest.raises(SpecError, match="disagree on the action"):
        interface_for("ur5e", action=replace(action, kind="ee_pose"))
    with pytest.raises(SpecError, match=r"observation\.environment_state"):
        wanted = interface_for("ur5e").observation_spec
        interface_for("ur5e", wanted=ObservationSpec({**wanted.tensors, "observation.environment_state": wanted["observation.state"]}))


def test_targets_stay_near_slow_and_within_the_limits():
    interface = interface_for("ur5e")
    spec, action = interface.robot_spec, interface.action_spec
    made, home = JointTargets(spec, action, 1), np.array(spec.home_rad)
    made.reset(home[None])
    far = np.array(action.high)[None]
    targets, openings = made.decode(far, home[None])
    assert np.all(np.abs(targets[0] - home) <= 0.9 * np.array(spec.velocity_max_rad_s) / action.rate_hz + 1e-12)
    for _ in range(1000):
        targets, openings = made.decode(far, home[None])
    assert np.all(targets[0] <= home + 0.5 + 1e-12) and openings.shape == (1, 1)
    with pytest.raises(DataError, match="finite numbers"):
        made.decode(np.full_like(far, np.nan), home[None])
    relative = JointTargets(spec, replace(action, kind="joint_delta", low=(-0.01,) * 7, high=(0.01,) * 7), 1)
    relative.reset(home[None])
    assert np.allclose(relative.decode(np.full((1, 7), 0.005), home[None])[0], home + 0.005)
