"""The interface that simulator and deployment share."""

import numpy as np
import pytest

import sim
from sinew.specs import ENVIRONMENT_STATE, STATE


def test_state_holds_joints_gripper_and_tool_pose_by_name() -> None:
    interface = sim.make_interface("lift")
    home = np.array(interface.robot_spec.home_rad)[None]
    cube = np.array([[0.45, 0.05, 0.02, np.cos(0.1), 0, 0, np.sin(0.1)]])
    values = interface.observe(home, np.full((1, 7), 0.5), np.array([0.06]), {"cube": cube})
    named = dict(zip(interface.observation_spec[STATE].names, values[STATE][0], strict=True))
    assert named["joint2.position"] == pytest.approx(home[0, 1]) and named["joint7.velocity"] == pytest.approx(0.5)
    assert named["gripper"] == pytest.approx(0.06)
    # home puts the tool at (0.5, 0, 0.2), pointing down: R is diag(-1, 1, -1) or diag(1, -1, -1)
    np.testing.assert_allclose([named[f"tool.{a}"] for a in "xyz"], [0.5, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(np.abs([named["tool.r11"], named["tool.r22"]]), [1, 1], atol=1e-6)
    assert named["tool.r11"] * named["tool.r22"] == pytest.approx(-1)
    around = dict(zip(interface.observation_spec[ENVIRONMENT_STATE].names, values[ENVIRONMENT_STATE][0], strict=True))
    np.testing.assert_allclose([around[f"cube.{a}"] for a in "xyz"], [0.45, 0.05, 0.02], atol=1e-6)
    np.testing.assert_allclose([around["cube.r11"], around["cube.r21"]], [np.cos(0.2), np.sin(0.2)], atol=1e-6)
    np.testing.assert_allclose([around[f"cube-tool.{a}"] for a in "xyz"], [-0.05, 0.05, -0.18], atol=1e-6)


@pytest.mark.parametrize("task", sim.TASK_NAMES)
def test_observing_measurements_equals_the_environments_observation(task: str) -> None:
    env = sim.make_vec(task, 3)
    observation = env.reset([1, 2, 3])
    robots = [sim.RobotSim(task, seed) for seed in (1, 2, 3)]
    poses = {name: np.stack([robot.poses[name] for robot in robots]) for name in env.interface.objects}
    joints, speeds = (np.stack([getattr(robot, f"joint_{what}") for robot in robots]) for what in ("position", "velocity"))
    values = env.interface.observe(joints, speeds, np.stack([robot.gripper for robot in robots]), poses)
    for key, value in values.items():
        np.testing.assert_array_equal(value, observation[key].numpy())


@pytest.mark.parametrize("task", sim.TASK_NAMES)
def test_the_view_comes_back_from_observations(task: str) -> None:
    env = sim.make_vec(task, 4)
    observation = env.reset(0)
    view = env.interface.view({key: value.numpy() for key, value in observation.items()})
    poses = env.scene.poses(env.qpos)
    for name in env.interface.objects:
        np.testing.assert_allclose(view.positions[name], poses[name][:, :3], atol=1e-6)
    assert len(view.tools) == len(view.grippers) == len(env.scene.robots)
    np.testing.assert_allclose(np.stack(view.grippers, 1), env.scene.openings(env.qpos), atol=1e-6)


def test_actions_of_two_arms_are_named_by_arm() -> None:
    names = sim.make_interface("handover").action_spec.names
    assert names == ("left_dx", "left_dy", "left_dz", "left_gripper", "right_dx", "right_dy", "right_dz", "right_gripper")
    assert len(sim.make_interface("handover").robot_spec.joint_names) == 14
    joints = sim.make_interface("handover", action="joint_position").action_spec
    assert joints.dim == 16 and joints.names[-2:] == ("left_gripper", "right_gripper")
