"""ee_delta actions on robots known as data: the tool goes where the actions say, on the generated model."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.robot_interface import RobotInterface
from robot_bridge.robots import load_robot
from robot_bridge.robots.kinematics import tool_poses
from sinew.errors import SpecError
from sinew.specs import IMAGES, ActionSpec, ObservationSpec


def interface(name, **changes) -> RobotInterface:
    config = load_robot(name)
    spec = config.spec
    one = ["dx", "dy", "dz", "dyaw", "gripper"]
    prefixes = [""] if config.arms == 1 else ["left_", "right_"]
    low, high = [-0.02] * 3 + [-0.1, spec.gripper_low_m], [0.02] * 3 + [0.1, spec.gripper_high_m]
    names = tuple(prefix + n for prefix in prefixes for n in one)
    values = {"kind": "ee_delta", "low": low * config.arms, "high": high * config.arms, "rate_hz": 20.0, "names": names}
    vectors = {k: t for k, t in config.contract.observation_spec().tensors.items() if not k.startswith(IMAGES)}
    return RobotInterface(config, task_text="reach", wanted=ObservationSpec(vectors), action=ActionSpec(**{**values, **changes}))


@pytest.mark.parametrize("name", ["ur5e", "fr3", "xarm7", "aloha"])
def test_the_tool_follows_the_actions(name):
    made = interface(name)
    config = made.config
    joints = np.array(config.spec.home_rad)[None]
    decoder = made.decoder(1)
    decoder.reset(joints)
    before = [pose.copy() for pose in tool_poses(config, joints[0])]
    one = np.array([0.004, -0.002, 0.003, 0.0, config.spec.gripper_low_m + 0.01])
    for _ in range(10):
        joints, openings = decoder.decode(np.tile(one, config.arms)[None], joints)
    for _ in range(10):  # the servo catches up
        joints, openings = decoder.decode(np.tile(one * [0, 0, 0, 0, 1], config.arms)[None], joints)
    for start, end in zip(before, tool_poses(config, joints[0]), strict=True):
        assert np.allclose(end[:3, 3] - start[:3, 3], [0.04, -0.02, 0.03], atol=2e-3)
        assert np.allclose(end[:3, :3], start[:3, :3], atol=0.02)
    assert np.allclose(openings, config.spec.gripper_low_m + 0.01)


def test_robots_that_cannot_are_told():
    with pytest.raises(SpecError, match="the frames of robot ros2_control are not known"):
        interface("ros2_control")
    with pytest.raises(SpecError, match="the policy commands dx, dy; robot ur5e takes dx, dy, dz, gripper for each of 1 arms"):
        interface("ur5e", names=("dx", "dy"), low=(-1.0,) * 2, high=(1.0,) * 2)
