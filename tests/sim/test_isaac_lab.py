"""Isaac Lab's physics against MuJoCo's, and what is refused; the contract of all worlds is in test_backends.py."""

import sys

import mujoco
import numpy as np
import pytest
import torch

import sim
from sim.isaac_lab import _joint_names
from sim.isaac_lab_check import check_same
from sinew.errors import InputError, MissingDependency

SCENE = """<mujoco><option cone="elliptic"/><worldbody><geom name="floor" type="plane" size="1 1 1"/>
  <body name="a" pos="0 0 .3"><joint name="a" axis="0 1 0" range="-1 1" damping=".1" limited="true"/><geom size=".1" mass="1"/>
  <body name="b" pos="0 0 .3"><joint name="b" type="slide"/><joint name="c" type="slide" axis="1 0 0"/>
  <geom size=".05" mass="1"/></body></body>
  <body name="d" pos="1 0 .5"><freejoint name="d"/><geom type="box" size=".1 .1 .1" friction=".7"/></body></worldbody>
  <actuator><position joint="a" kp="10"/></actuator></mujoco>"""
JOINTS = ("a", "b", "c", "d")


def compiled(text: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(text)


def test_a_model_is_the_same_as_itself_and_names_of_joints_are_found() -> None:
    check_same(compiled(SCENE), compiled(SCENE), JOINTS)
    assert _joint_names(compiled(SCENE), ["world_joint", "a", "b_c", "d"]) == list(JOINTS)


@pytest.mark.parametrize(
    ("there", "instead", "told"),
    [
        ('mass="1"/></body></body>', 'mass="1.1"/></body></body>', "masses, servos, damping or weight"),
        ('damping=".1"', 'damping=".2"', "masses, servos, damping or weight"),
        ('kp="10"', 'kp="11"', "masses, servos, damping or weight"),
        ("<freejoint", '<geom mass="0" contype="1" size=".01" pos="0 0 .2"/><freejoint', "shapes that collide"),
        ('size=".1 .1 .1"', 'size=".1 .1 .11" mass="8"', "masses|sizes"),
        ('friction=".7"', 'friction=".8"', "friction of the shapes"),
        ('range="-1 1"', 'range="-1 2"', "limits of the joints"),
        ('cone="elliptic"', 'cone="pyramidal"', "option cone"),
        ('kp="10"/></actuator>', 'kp="10"/></actuator><contact><exclude body1="a" body2="d"/></contact>', "pairs of shapes that touch"),
        ('<position joint="a" kp="10"/>', "", "joints, actuators, tendons or constraints"),
    ],
)
def test_what_a_reader_of_mjcf_changed_is_named(there: str, instead: str, told: str) -> None:
    assert SCENE.count(there) == 1
    with pytest.raises(InputError, match=told):
        check_same(compiled(SCENE), compiled(SCENE.replace(there, instead)), JOINTS)


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="this is Isaac Lab's Python")
def test_another_python_is_told_how_to_get_the_right_one() -> None:
    with pytest.raises(MissingDependency, match=r"Python 3.12 only, and this is 3\.\d+: python3.12 -m venv"):
        sim.worlds(sim.make_interface("reach"), 1, backend="isaaclab")


@pytest.mark.parametrize("task", ["lift", "peg"])
def test_isaac_lab_moves_as_mujoco_does(task: str) -> None:
    pytest.importorskip("isaaclab")
    interface = sim.make_interface(task)
    ours, theirs = (sim.worlds(interface, 2, backend=backend) for backend in ("mujoco", "isaaclab"))
    seen, _ = ours.reset(range(2)), theirs.reset(range(2))
    expert = sim.make_expert(task, num_envs=2)
    expert.reset(seeds=range(2))
    for _ in range(20):  # one second, a grasp of lift's cube included
        action = expert.act(seen).float()
        seen, other = ours.step(action)[0], theirs.step(action)[0]
        for key in seen:
            assert np.abs(seen[key].numpy() - other[key].numpy()).max() < 5e-3, key
    np.testing.assert_allclose(theirs.qvel.numpy(), ours.qvel, atol=0.05)  # type: ignore[attr-defined]


def test_versions_that_collide_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("isaaclab")
    from importlib import metadata

    from sim.isaac_lab import _collisions

    assert _collisions() == []
    version = metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.0.0" if name == "mujoco" else version(name))
    assert [text for text in _collisions() if "mujoco" in text and "4.0.0 is installed" in text]


def test_a_simulation_that_runs_already_is_left_alone() -> None:
    pytest.importorskip("isaaclab")
    from isaaclab.sim import SimulationCfg, SimulationContext
    from isaaclab_newton.physics import NewtonCfg

    SimulationContext(SimulationCfg(device="cpu", physics=NewtonCfg()))
    try:
        with pytest.raises(InputError, match="a simulation of Isaac Lab runs in this process"):
            sim.worlds(sim.make_interface("reach"), 1, backend="isaaclab")
    finally:
        SimulationContext.clear_instance()


def test_randomised_worlds_are_refused() -> None:
    pytest.importorskip("isaaclab")
    damping = sim.Randomisation(parameters=(sim.Parameter(what="damping", range=(0.2, 2), unit="N m s/rad"),))
    with pytest.raises(InputError, match="worlds of Isaac Lab are not randomised"):
        sim.worlds(sim.make_interface("reach"), 1, backend="isaaclab", randomisation=damping)


def test_states_are_tensors_of_this_process() -> None:
    pytest.importorskip("isaaclab")
    env = sim.worlds(sim.make_interface("reach"), 1, backend="isaaclab")
    assert isinstance(env.qpos, torch.Tensor) and env.qpos.device.type == "cpu"  # type: ignore[attr-defined]
