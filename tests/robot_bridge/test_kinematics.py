"""The fast forward kinematics against the simulator's, and the lever arms as a bound."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.kinematics import Arms, CallableTool


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
        moved = arms.positions(list(q + delta))
        bound = np.abs(delta) @ np.array(arms.levers_m)
        assert max(np.linalg.norm(np.subtract(a, b)) for a, b in zip(points, moved, strict=True)) <= bound + 1e-12


def test_a_callable_has_no_known_levers():
    tool = CallableTool(lambda q: q * 2, 3)
    assert tool.positions([1.0, 2.0, 3.0]) == [(2.0, 4.0, 6.0)] and tool.levers_m == (np.inf,) * 3
