"""Robots as data: published poses, two kinematics against each other, limits, controllers, stand-ins, configs from a URDF."""

from __future__ import annotations

import json

import mujoco
import numpy as np
import pytest

from robot_bridge.robots import ROBOTS, RobotConfig, load_robot
from robot_bridge.robots.kinematics import jacobians, link_poses, tool_model, tool_poses
from robot_bridge.robots.mjcf import collision_pairs, mjcf
from robot_bridge.robots.stand_in import ArmPhysics
from sinew.config import from_json, to_json
from sinew.errors import DataError, InputError

WITH_FRAMES = [name for name in ROBOTS if load_robot(name).frames]
UR5E_DH = (
    (0.0, 0.1625, np.pi / 2),
    (-0.425, 0.0, 0.0),
    (-0.3922, 0.0, 0.0),
    (0.0, 0.1333, np.pi / 2),
    (0.0, 0.0997, -np.pi / 2),
    (0.0, 0.0996, 0.0),
)
"""a, d, alpha of each joint: the article "DH parameters" of Universal Robots."""
FR3_DH = ((0.0, 0.333, 0.0), (0.0, 0.0, -np.pi / 2), (0.0, 0.316, np.pi / 2), (0.0825, 0.0, np.pi / 2),
          (-0.0825, 0.384, -np.pi / 2), (0.0, 0.0, np.pi / 2), (0.088, 0.0, np.pi / 2))  # fmt: skip
"""a, d, alpha in Craig's convention: the FCI documentation."""


def samples(config, count=20):
    low, high = np.array(config.spec.position_low_rad), np.array(config.spec.position_high_rad)
    return np.random.default_rng(0).uniform(low, high, (count, len(low)))


def standard_dh(a, d, alpha, theta):
    c, s, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
    return np.array([[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]])


def craig_dh(a, d, alpha, theta):
    c, s, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
    return np.array([[c, -s, 0, a], [s * ca, c * ca, -sa, -sa * d], [s * sa, c * sa, ca, ca * d], [0, 0, 0, 1]])


def test_ur5e_is_where_its_published_dh_parameters_put_it():
    config = load_robot("ur5e")
    for joints in samples(config):
        expected = np.diag([-1.0, -1.0, 1.0, 1.0])  # base_link is turned by half a turn against the controller's base
        for (a, d, alpha), theta in zip(UR5E_DH, joints, strict=True):
            expected = expected @ standard_dh(a, d, alpha, theta)
        assert np.allclose(link_poses(config, joints)["wrist_3_link"], expected, atol=1e-9)


def test_fr3_is_where_its_published_dh_parameters_put_it():
    config = load_robot("fr3")
    for joints in samples(config):
        expected = np.eye(4)
        for (a, d, alpha), theta in zip(FR3_DH, joints, strict=True):
            expected = expected @ craig_dh(a, d, alpha, theta)
        assert np.allclose(link_poses(config, joints)["fr3_link7"], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "link", "joints", "position_m"),
    [
        ("xarm7", "link7", [0.0] * 7, (0.206, 0.0, 0.1205)),  # user manual: X 206, Y 0, Z 120.5 mm with all joints at 0
        ("vx300s", "ee_gripper_link", [0.0] * 6, (0.536494, 0.0, 0.42705)),  # home matrix of Interbotix' modern_robotics descriptions
        ("fr3", "fr3_hand_tcp", [0, -np.pi / 4, 0, -3 * np.pi / 4, 0, np.pi / 2, np.pi / 4], (0.3069, 0.0, 0.4869)),  # ready pose
        ("ur5e", "wrist_3_link", [0.0] * 6, (0.8172, 0.2329, 0.0628)),  # DH article, arm stretched out
    ],
)
def test_known_published_poses(name, link, joints, position_m):
    assert np.allclose(link_poses(load_robot(name), joints)[link][:3, 3], position_m, atol=1e-4)


@pytest.mark.parametrize("name", WITH_FRAMES)
def test_three_kinematics_agree(name):
    """Products of matrices, MuJoCo's of the generated model, and the gate's product of exponentials; the Jacobian by differences."""
    config = load_robot(name)
    model = mujoco.MjModel.from_xml_string(mjcf(config))
    data, tools = mujoco.MjData(model), tool_model(config)
    for joints in samples(config, 5):
        for joint, value in zip(config.spec.joint_names, joints, strict=True):
            data.joint(joint).qpos[0] = value
        mujoco.mj_kinematics(model, data)
        poses = tool_poses(config, joints)
        for i, tool in enumerate(config.tools):
            assert np.allclose(data.site(tool).xpos, poses[i][:3, 3], atol=1e-8)
            assert np.allclose(data.site(tool).xmat.reshape(3, 3), poses[i][:3, :3], atol=1e-8)
            assert np.allclose(tools.positions(joints)[i], poses[i][:3, 3], atol=1e-9)
        step = 1e-6
        for j in range(len(joints)):
            ahead, behind = joints.copy(), joints.copy()
            ahead[j] += step
            behind[j] -= step
            for i, (a, b) in enumerate(zip(tool_poses(config, ahead), tool_poses(config, behind), strict=True)):
                jacobian = jacobians(config, joints)[i]
                assert np.allclose((a[:3, 3] - b[:3, 3]) / (2 * step), jacobian[:3, j], atol=1e-6)
                spin = (a[:3, :3] - b[:3, :3]) / (2 * step) @ poses[i][:3, :3].T
                assert np.allclose((spin[2, 1], spin[0, 2], spin[1, 0]), jacobian[3:, j], atol=1e-6)


@pytest.mark.parametrize("name", list(ROBOTS))
def test_a_config_comes_back_from_its_file_and_stands_within_its_limits(name, tmp_path):
    config = load_robot(name)
    config.save(tmp_path / "robot.json")
    assert load_robot(tmp_path / "robot.json") == config == from_json(RobotConfig, to_json(config))
    spec = config.spec
    assert config.cited and all(lo < hi for lo, hi in zip(spec.position_low_rad, spec.position_high_rad, strict=True))
    for home, low, high in zip(spec.home_rad, spec.position_low_rad, spec.position_high_rad, strict=False):
        assert low < home < high
    for tool in tool_poses(config, spec.home_rad) if config.frames else []:
        assert (tool[:3, 3] > spec.workspace_low_m).all() and (tool[:3, 3] < spec.workspace_high_m).all()


@pytest.mark.parametrize("name", WITH_FRAMES)
def test_home_is_free_of_collisions_and_folding_up_is_not(name):
    config = load_robot(name)
    model = mujoco.MjModel.from_xml_string(mjcf(config))
    data, pairs = mujoco.MjData(model), collision_pairs(config, model)

    def nearest(joints):
        for joint, value in zip(config.spec.joint_names, joints, strict=True):
            data.joint(joint).qpos[0] = value
        mujoco.mj_kinematics(model, data)
        return min(mujoco.mj_geomDistance(model, data, a, b, 1.0, None) for a, b in pairs)

    assert nearest(config.spec.home_rad) > 0
    assert min(nearest(joints) for joints in samples(config, 100)) < 0


@pytest.mark.parametrize("name", WITH_FRAMES)
def test_a_stand_in_follows_its_targets_and_tells_its_torques(name):
    config = load_robot(name)
    physics = ArmPhysics(config, seed=3)
    home, opening = physics.joint_position, np.atleast_1d(physics.gripper)
    goal = np.clip(home + 0.1, config.spec.position_low_rad, config.spec.position_high_rad)
    for k in range(100):
        physics.step(home + min(k / 50, 1.0) * (goal - home), opening * 0 + config.spec.gripper_low_m, 0.01)
    assert np.abs(physics.joint_position - goal).max() < 0.01 and np.abs(physics.joint_velocity).max() < 0.05
    assert (np.abs(physics.joint_effort) <= np.array(config.effort_max_nm) + 1e-9).all()
    assert (np.atleast_1d(physics.gripper) < opening).all()
    again = ArmPhysics(config, seed=3)
    assert np.array_equal(again.joint_position, home)


def test_another_controller_is_chosen_by_its_kind():
    config = load_robot("aloha").with_controller("position")
    assert [s.topic for s in config.contract.sinks[:2]] == [
        "/follower_left/forward_position_controller/commands",
        "/follower_right/forward_position_controller/commands",
    ]
    assert "trajectory" in {s.kind for s in config.alternatives} and "position" not in {s.kind for s in config.alternatives}
    with pytest.raises(InputError, match="unknown controller of gripper of fr3 'gripper_positon'"):
        load_robot("fr3").with_controller(gripper="gripper_positon")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jerk_max_rad_s3": [1.0]}, "jerk_max_rad_s3 has 1 values for 6 joints"),
        ({"effort_max_nm": [0.0] * 6}, "must be finite and above 0; take them from the datasheet"),
        ({"tools": ["hand"]}, "unknown link of robot 'ur5e' 'hand'"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"frames": []}, "unknown link|no joint frames"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(tmp_path, change, message):
    data = to_json(load_robot("ur5e"))
    path = tmp_path / "robot.json"
    path.write_text(json.dumps({**data, **change}))
    with pytest.raises((InputError, DataError), match=message) as told:
        ArmPhysics(load_robot(path))
    assert "\n" not in str(told.value)


def test_unknown_robots_and_files_are_told():
    with pytest.raises(InputError, match=r"did you mean 'ur5e'.*made by 'sinew robot add'"):
        load_robot("ur5")
    with pytest.raises(InputError, match=r"robot file nowhere\.json cannot be read: No such file"):
        load_robot("nowhere.json")
