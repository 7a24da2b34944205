"""The fast forward kinematics against the simulator's, and the lever arms as a bound."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.kinematics import Arm, Arms, CallableTool, LinkPoint


@pytest.mark.parametrize("task", ["lift", "handover"])
def test_agrees_with_the_simulator(task):
    sim = pytest.importorskip("sim")
    if task not in sim.TASKS:
        pytest.skip(f"task {task} is not registered")
    interface = sim.make_interface(task)
    arms = Arms.of(interface.chains)
    rng = np.random.default_rng(0)
    joints = len(interface.robot_spec.joint_names)
    per_arm = joints // len(interface.chains)
    for q in rng.uniform(-2, 2, (50, joints)):
        points = arms.positions(list(q))
        for i, chain in enumerate(interface.chains):
            assert np.allclose(points[i], chain.forward(q[None, i * per_arm : (i + 1) * per_arm]).position[:, 0], atol=1e-12)
        delta = rng.normal(size=joints) * 0.3
        bound = arms.levers_m @ np.abs(delta)
        assert (np.linalg.norm(arms.points((q + delta)[None])[0] - arms.points(q[None])[0], axis=1) <= bound + 1e-12).all()


@pytest.mark.parametrize("task", ["lift", "handover"])
def test_jacobians_agree_with_the_simulators(task):
    sim = pytest.importorskip("sim")
    interface = sim.make_interface(task)
    arms = Arms.of(interface.chains)
    q = np.random.default_rng(1).uniform(-1.5, 1.5, len(interface.robot_spec.joint_names))
    at = 0
    for chain, jacobian in zip(interface.chains, arms.jacobians(q), strict=True):
        joints = len(chain.joint_ids)
        expected = chain.jacobian(chain.forward(q[None, at : at + joints]))[..., 0]
        assert np.allclose(jacobian, expected, atol=1e-12)
        at += joints


def test_a_link_moves_with_its_joint_only_and_a_slide_moves_along():
    """Two hinges about z and a slide along x; each link point is carried by the joints up to its own."""
    arm = Arm(
        anchors=((0, 0, 0), (1, 0, 0), (2, 0, 0)), axes=((0, 0, 1), (0, 0, 1), (1, 0, 0)), tool=(2.5, 0, 0),
        links=(LinkPoint(0, (1, 0, 0), 0.1), LinkPoint(1, (2, 0, 0))), slides=(False, False, True),
    )  # fmt: skip
    arms = Arms([arm])
    tool, elbow, wrist = arms.points(np.array([[np.pi / 2, -np.pi / 2, 0.3]]))[0]
    assert np.allclose(tool, [1.8, 1, 0]) and np.allclose(elbow, [0, 1, 0]) and np.allclose(wrist, [1, 1, 0])
    assert arms.tools == 1 and arms.radii_m.tolist() == [0, 0.1, 0]
    assert arms.levers_m.tolist() == [[np.inf, np.inf, 1.0], [1.0, 0, 0], [2.0, 1.0, 0]]
    q, small = np.array([0.3, -0.4, 0.2]), 1e-6
    moved = (arms.points(q + small * np.eye(3)) - arms.points(q - small * np.eye(3)))[:, 0].T / (2 * small)
    assert np.allclose(arms.jacobians(q)[0][:3], moved, atol=1e-8)


def test_a_callable_has_no_known_levers():
    tool = CallableTool(lambda q: q * 2, 3)
    assert tool.points(np.array([[1.0, 2.0, 3.0]])).tolist() == [[[2.0, 4.0, 6.0]]]
    assert tool.levers_m.tolist() == [[np.inf] * 3] and tool.jacobians(np.zeros(3)) == []
