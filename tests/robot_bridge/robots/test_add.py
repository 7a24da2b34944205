"""Configs for robots that nobody has described: from URDF files, from a living robot, and what is refused."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from robot_bridge.robots import load_robot
from robot_bridge.robots.add import Choice, from_network, from_urdf
from robot_bridge.robots.kinematics import tool_poses
from robot_bridge.robots.served import serve_robot
from robot_bridge.robots.urdf import read_urdf, to_urdf, urdf_file
from robot_bridge.transport import open_transport
from sinew.cli.main import main
from sinew.errors import DataError, InputError

LIMIT = '<limit lower="-1" upper="2" velocity="3" effort="40"/>'
ARM = f"""<robot name="two">
<link name="base"/><link name="upper"/><link name="fore"/><link name="hand"/><link name="left"/><link name="right"/>
<joint name="elbow" type="revolute"><parent link="upper"/><child link="fore"/><origin xyz="0 0 .3" rpy="0 0 0"/>
 <axis xyz="0 2 0"/>{LIMIT}</joint>
<joint name="shoulder" type="continuous"><parent link="base"/><child link="upper"/><origin xyz="0 0 .1"/><axis xyz="0 0 1"/>
 <limit velocity="2" effort="50"/></joint>
<joint name="wrist" type="fixed"><parent link="fore"/><child link="hand"/><origin xyz="0 0 .2"/></joint>
<joint name="finger_left" type="prismatic"><parent link="hand"/><child link="left"/><axis xyz="0 1 0"/>
 <limit lower="0" upper="0.04" velocity="0.1" effort="20"/></joint>
<joint name="finger_right" type="prismatic"><parent link="hand"/><child link="right"/><mimic joint="finger_left"/>
 <limit lower="0" upper="0.04" velocity="0.1" effort="20"/></joint>
</robot>"""


def test_a_urdf_becomes_a_config_and_what_it_does_not_tell_is_marked():
    config = from_urdf("two", read_urdf(ARM, "two.urdf"), Choice(home=(0.0, 0.5)))
    spec = config.spec
    assert spec.joint_names == ("shoulder", "elbow") and spec.gripper_name == "finger_left" and config.tools == ("hand",)
    assert spec.position_low_rad == (-2 * np.pi, -1.0) and spec.velocity_max_rad_s == (2.0, 3.0)
    assert spec.acceleration_max_rad_s2 == (4.0, 6.0) and config.effort_max_nm == (50.0, 40.0)
    assert (spec.gripper_low_m, spec.gripper_high_m) == (0.0, 0.08)  # two fingers, one of which mimics the other
    assert "acceleration_max_rad_s2" in config.derived and any("shoulder" in text for text in config.derived)
    # elbow about y by a quarter turn: the forearm lies along x
    assert np.allclose(tool_poses(config, [0.0, np.pi / 2])[0][:3, 3], [0.2, 0.0, 0.4])
    asked = from_urdf("two", read_urdf(ARM, "two.urdf"), Choice(acceleration=(7.0,), velocity=(1.0, 1.5)))
    assert asked.spec.acceleration_max_rad_s2 == (7.0, 7.0) and "acceleration_max_rad_s2" not in asked.derived
    gripper = next(s for s in config.contract.sources if s.key == "gripper")
    assert gripper.to_si([0.01])[0] == pytest.approx(0.02)


@pytest.mark.parametrize("name", ["ur5e", "fr3", "xarm7", "so101", "vx300s"])
def test_a_robots_own_urdf_gives_its_kinematics_back(name):
    known = load_robot(name)
    made = from_urdf("copy", read_urdf(to_urdf(known), name), Choice(tool=known.tools[0]))
    assert made.spec.joint_names == known.spec.joint_names and made.spec.position_high_rad == known.spec.position_high_rad
    joints = np.array(known.spec.home_rad) + 0.1
    assert np.allclose(tool_poses(made, joints)[0], tool_poses(known, joints)[0])


@pytest.mark.parametrize(
    ("change", "choice", "message"),
    [
        (('velocity="3"', ""), {}, "joints elbow have no velocity limit in the URDF: give the datasheet's with --velocity"),
        (('lower="-1" upper="2"', ""), {}, "joint 'elbow' has position limits None to None"),
        (('lower="-1"', 'lower="low"'), {}, "has a limit of 'low', which is no number"),
        (('2 0"/>', '0 0"/>'), {}, "the axis of joint 'elbow' is zero"),
        (("<robot", '<!DOCTYPE a [<!ENTITY b "c">]><robot'), {}, "declares entities"),
        (('<robot name="two">', '<robot name="two"><xacro:macro/>'), {}, "is not XML|no plain URDF"),
        (("</robot>", ""), {}, "is not XML"),
        (('<parent link="base"/>', '<parent link="hand"/>'), {}, "is no tree"),
        (("", ""), {"joints": ("shoulder", "elbo")}, "has no joint 'elbo'; it moves by"),
        (("", ""), {"tool": "tip"}, "has no link 'tip'; it has base"),
        (("", ""), {"acceleration": (1.0, 2.0, 3.0)}, "one above 0 for each of the 2 joints"),
        (("", ""), {"gripper": "elbow", "joints": ("shoulder",)}, "turns: give the openings"),
    ],
)
def test_what_is_missing_or_damaged_is_told_in_one_line(change, choice, message):
    with pytest.raises((InputError, DataError), match=message) as told:
        from_urdf("two", read_urdf(ARM.replace(*change) if change[0] else ARM, "two.urdf"), Choice(**choice))
    assert "\n" not in str(told.value)


def test_the_command_line_writes_shows_and_refuses(tmp_path, capsys):
    urdf, out = tmp_path / "two.urdf", tmp_path / "two.json"
    urdf.write_text(ARM)
    assert main(["robot", "add", "two", "--urdf", str(urdf), "--out", str(out)]) == 0
    assert load_robot(out) == from_urdf("two", urdf_file(urdf), Choice())
    assert "derived, check against your robot" in capsys.readouterr().out
    assert main(["robot", "show", str(out)]) == 0 and "shoulder" in capsys.readouterr().out
    assert main(["robot", "list", "--json"]) == 0 and '"ur5e"' in capsys.readouterr().out
    for words, message in (
        (["add", "ur5e", "--urdf", str(urdf)], "known already"),
        (["add", "two"], "give either --urdf FILE or --from-network"),
        (["add", "two", "--urdf", str(tmp_path / "no.urdf")], "cannot be read: No such file"),
        (["show", "ur6"], "unknown robot 'ur6'"),
    ):
        assert main(["robot", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_living_robot_describes_itself(domain):
    known, quit_event, up = load_robot("xarm7"), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: serve_robot(known, domain=domain, quit_event=quit_event, ready=lambda line: up.set()))
    thread.start()
    assert up.wait(30)
    node = open_transport("dds", "adder", domain=domain)
    try:
        made = from_network("mine", node, Choice(tool="link_tcp"), 30.0)
    finally:
        node.close()
        quit_event.set()
        thread.join()
    arm = made.contract.sinks[0]
    assert (arm.kind, arm.topic) == (
        "trajectory",
        "/xarm7_traj_controller/joint_trajectory",
    )  # whose topic is taken, not the first in the list
    assert made.spec.joint_names == known.spec.joint_names and made.contract.sources[0].topic == "/joint_states"


def test_a_network_without_a_description_is_told(domain):
    node = open_transport("dds", "adder", domain=domain)
    with pytest.raises(
        InputError, match=r"nothing came on /robot_description within 0\.3 s on DDS domain .*topics seen: none; start robot_state_publisher"
    ):
        from_network("mine", node, Choice(), 0.3)
    node.close()
