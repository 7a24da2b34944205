"""Any MJCF or URDF robot through a config of names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sim
from sinew.errors import InputError, SpecError

URDF = """<robot name="three">
 <link name="base"/>
 <link name="turret"><inertial><mass value="1"/><origin xyz="0 0 .1"/><inertia ixx=".01" iyy=".01" izz=".01" ixy="0" ixz="0" iyz="0"/></inertial></link>
 <link name="upper"><inertial><mass value="1"/><origin xyz="0 0 .2"/><inertia ixx=".02" iyy=".02" izz=".002" ixy="0" ixz="0" iyz="0"/></inertial></link>
 <link name="fore"><inertial><mass value=".6"/><origin xyz="0 0 .2"/><inertia ixx=".01" iyy=".01" izz=".001" ixy="0" ixz="0" iyz="0"/></inertial></link>
 <link name="tip"/>
 <joint name="pan" type="revolute"><parent link="base"/><child link="turret"/><axis xyz="0 0 1"/><origin xyz="0 0 .1"/>
  <limit lower="-2" upper="2" effort="100" velocity="3"/></joint>
 <joint name="shoulder" type="revolute"><parent link="turret"/><child link="upper"/><axis xyz="0 1 0"/><origin xyz="0 0 .2"/>
  <limit lower="-1.5" upper="1.5" effort="100" velocity="3"/></joint>
 <joint name="elbow" type="revolute"><parent link="upper"/><child link="fore"/><axis xyz="0 1 0"/><origin xyz="0 0 .4"/>
  <limit lower=".2" upper="2.6" effort="100" velocity="3"/></joint>
 <joint name="flange" type="fixed"><parent link="fore"/><child link="tip"/><origin xyz="0 0 .4" rpy="0 .3 0"/></joint>
</robot>"""  # noqa: E501

MJCF = """<mujoco model="gantry"><compiler angle="degree"/>
 <default><geom contype="0" conaffinity="0"/><joint armature=".1"/></default>
 <worldbody><body name="x" gravcomp="1"><joint name="x" type="slide" axis="1 0 0" range="0 .9"/><geom size=".03" mass="1"/>
  <body name="y" gravcomp="1"><joint name="y" type="slide" axis="0 1 0" range="-.5 .5"/><geom size=".03" mass="1"/>
   <body name="z" gravcomp="1" pos="0 0 .3"><joint name="z" type="slide" axis="0 0 1" range="-.3 .3"/><geom size=".03" mass="1"/>
    <body name="spin" gravcomp="1"><joint name="spin" axis="0 0 1" range="-90 90"/><geom size=".02" mass=".2"/>
      <site name="point" pos="0 0 -.05"/>
     <body name="claw" gravcomp="1"><joint name="claw" type="slide" axis="0 1 0" range="0 .06" damping="1"/>
       <geom size=".01" mass=".1"/></body>
 </body></body></body></body></worldbody>
 <actuator><position name="mx" joint="x" kp="2000" kv="150"/><position name="my" joint="y" kp="2000" kv="150"/>
  <position name="mz" joint="z" kp="2000" kv="150"/><position name="ms" joint="spin" kp="50" kv="5"/>
  <position name="mc" joint="claw" kp="100" kv="10"/>
 </actuator></mujoco>"""


@pytest.fixture
def urdf(tmp_path: Path) -> sim.RobotConfig:
    path = tmp_path / "three.urdf"
    path.write_text(URDF)
    home = (0.0, 0.2, 1.6)
    return sim.RobotConfig(
        name="three", path=str(path), joints=("pan", "shoulder", "elbow"), tool="tip", home_rad=home, servo_kp=600.0, servo_kv=40.0
    )


@pytest.fixture
def mjcf(tmp_path: Path) -> sim.RobotConfig:
    path = tmp_path / "gantry.xml"
    path.write_text(MJCF)
    return sim.RobotConfig(
        name="gantry",
        path=str(path),
        joints=("x", "y", "z", "spin"),
        actuators=("mx", "my", "mz", "ms"),
        tool="point",
        gripper_joints=("claw",),
        gripper_actuators=("mc",),
        home_rad=(0.5, 0.0, 0.0, 0.0),
    )


def reach(robot: sim.RobotConfig, episodes: int = 40) -> int:
    env, expert = sim.make_vec("reach", episodes, robot=robot), sim.make_expert("reach", num_envs=episodes, robot=robot)
    observation = env.reset(0)
    expert.reset(seeds=range(episodes))
    solved = torch.zeros(episodes, dtype=torch.bool)
    for _ in range(env.max_episode_steps - 1):
        observation, _, terminated, *_ = env.step(expert.act(observation))
        solved |= terminated
    env.close()
    return int(solved.sum())


def test_a_urdf_arm_without_actuators_or_gripper_reaches(urdf: sim.RobotConfig) -> None:
    interface = sim.make_interface("reach", robot=urdf)
    assert interface.action_spec.names == ("dx", "dy", "dz")
    assert interface.robot_spec.joint_names == ("robot_pan", "robot_shoulder", "robot_elbow")
    assert interface.robot_spec.gripper_name is None
    np.testing.assert_allclose(interface.robot_spec.position_low_rad, (-2, -1.5, 0.2))
    # the fixed tip link is still there: 0.1 + 0.2 + 0.4 + 0.4 up when straight
    np.testing.assert_allclose(interface.chains[0].forward(np.zeros((1, 3))).position[:, 0], [0, 0, 1.1], atol=1e-12)
    assert reach(urdf) >= 38


def test_an_mjcf_gantry_with_its_own_actuators_and_one_finger_reaches(mjcf: sim.RobotConfig) -> None:
    interface = sim.make_interface("reach", robot=mjcf)
    assert interface.action_spec.names == ("dx", "dy", "dz", "gripper") and interface.action_spec.high[3] == pytest.approx(0.06)
    # degrees of the file became radians, metres of the slides stayed
    np.testing.assert_allclose(interface.robot_spec.position_high_rad, (0.9, 0.5, 0.3, np.pi / 2), rtol=1e-5)
    assert reach(mjcf) >= 38


def test_joint_position_actions_work_too(urdf: sim.RobotConfig) -> None:
    env = sim.make_vec("reach", 2, action="joint_position", robot=urdf)
    env.reset(0)
    target = torch.tensor([[0.3, 0.1, 1.4]] * 2)
    for _ in range(30):
        observation, *_ = env.step(target)
    np.testing.assert_allclose(observation["observation.state"][:, :3], target, atol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": ("pan", "sholder"), "home_rad": ()}, "has no joint 'sholder'; its joint names are pan, shoulder, elbow"),
        ({"tool": "hand"}, "has no site 'hand' and has no body 'hand'; its body names are world, base, turret, upper, fore, tip"),
        ({"actuators": ("a", "b", "c")}, "has no actuator 'a'; its actuator names are \\(none\\)"),
        ({"path": "missing.urdf"}, "missing.urdf does not exist"),
    ],
)
def test_wrong_names_are_told_with_what_exists(urdf: sim.RobotConfig, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sim.make_vec("reach", 1, robot=replace(urdf, **change))  # type: ignore[arg-type]


def test_a_file_that_is_no_model_is_refused(urdf: sim.RobotConfig, tmp_path: Path) -> None:
    (tmp_path / "broken.xml").write_text("<mujoco><worldbody><geom/></worldbody>")
    with pytest.raises(InputError, match=r"broken\.xml cannot be read"):
        sim.make_vec("reach", 1, robot=replace(urdf, path=str(tmp_path / "broken.xml")))


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match="2 home_rad for 1 joints"):
        sim.RobotConfig(name="r", joints=("a",), tool="t", home_rad=(0.0, 1.0))
    with pytest.raises(SpecError, match="names no joints"):
        sim.RobotConfig(name="r", joints=(), tool="t")


def test_two_armed_tasks_refuse_a_single_robot(urdf: sim.RobotConfig) -> None:
    with pytest.raises(InputError, match="has 2 arms"):
        sim.make_vec("handover", 1, robot=urdf)
