"""The single robot in continuous time moves as a world of the batched environment does."""

import numpy as np
import pytest

import sim
from sinew.errors import SpecError


@pytest.mark.parametrize("task", ["lift", "handover"])
def test_it_moves_exactly_as_a_world_of_the_batch(task: str) -> None:
    env, robot, expert = sim.make_vec(task, 1), sim.RobotSim(task, 7), sim.make_expert(task)
    observation = env.reset([7])
    expert.reset(seeds=[7])
    solved = False
    for _ in range(40):
        action = expert.act(observation)
        grippers = [i for i, name in enumerate(env.action_spec.names) if name.endswith("gripper")]
        observation, _, terminated, *_ = env.step(action)
        if terminated:
            solved = True
            break
        robot.step(env.joint_targets()[0], action[0, grippers].numpy().astype(np.float64), 0.05)
        np.testing.assert_array_equal(robot.data.qpos, env.qpos[0])
    assert solved == (task == "lift")


def test_deployed_loop_with_the_shared_interface_solves_the_task() -> None:
    """Observe, decide, decode, move: as a runner on the network does, with nothing from the batched environment."""
    interface, expert = sim.make_interface("lift"), sim.make_expert("lift")
    for seed in range(5):
        robot = sim.RobotSim("lift", seed)
        decoder = interface.decoder(1)
        decoder.reset(robot.joint_position[None], np.array([robot.gripper]), [0])
        expert.reset(seeds=[seed])
        for _ in range(interface.max_episode_steps):
            poses = {name: pose[None] for name, pose in robot.poses.items()}
            seen = interface.observe(robot.joint_position[None], robot.joint_velocity[None], np.array([robot.gripper]), poses)
            joints, gripper = decoder.decode(expert.act(seen).numpy(), robot.joint_position[None])  # type: ignore[arg-type]
            for _ in range(5):
                robot.step(joints[0], float(gripper[0]), 0.01)
            if robot.success:
                break
        assert robot.success, seed


def test_time_passes_as_asked_in_any_pieces() -> None:
    robot = sim.RobotSim("reach")
    target = robot.joint_position
    for piece in (0.004, 0.004, 0.004, 0.05, 0.0077):
        robot.step(target, 0.08, piece)
    assert abs(robot.time_s - 0.0697) <= 0.01
    for _ in range(1000):
        robot.step(target, 0.08, 0.0033)
    assert abs(robot.time_s - 0.0697 - 3.3) <= 0.01


def test_targets_ramp_over_one_control_period() -> None:
    robot = sim.RobotSim("lift")
    start = robot.joint_position.copy()
    robot.step(start + 0.1, 0.08, 0.02)
    np.testing.assert_allclose(robot.data.ctrl[robot.scene.joint_ctrl], start + 0.04, atol=1e-12)
    robot.step(start + 0.1, 0.08, 0.05)
    np.testing.assert_allclose(robot.data.ctrl[robot.scene.joint_ctrl], start + 0.1, atol=1e-12)


def test_reset_brings_the_episode_of_the_seed_back() -> None:
    robot = sim.RobotSim("lift", 3)
    first = robot.poses["cube"]
    robot.step(robot.joint_position + 0.05, 0.0, 0.5)
    robot.reset(3)
    np.testing.assert_array_equal(robot.poses["cube"], first)
    assert robot.time_s == 0 and not robot.success
    robot.reset(4)
    assert not np.array_equal(robot.poses["cube"], first)


@pytest.mark.parametrize(
    ("joints", "gripper"), [(np.full(7, np.nan), 0.0), (np.zeros(7), np.inf), (np.zeros(6), 0.0), (np.zeros(7), [0.0, 0.0])]
)
def test_bad_targets_are_refused_and_nothing_moves(joints: np.ndarray, gripper: float) -> None:
    robot = sim.RobotSim("lift")
    before = robot.data.qpos.copy()
    with pytest.raises(SpecError):
        robot.step(joints, gripper, 0.05)
    np.testing.assert_array_equal(robot.data.qpos, before)


def test_tool_pose_agrees_with_the_model() -> None:
    robot = sim.RobotSim("lift", 2)
    pose = robot.tool_pose
    np.testing.assert_allclose(pose[:3], robot.data.site("tool").xpos, atol=1e-9)
    assert abs(np.linalg.norm(pose[3:]) - 1) < 1e-9
