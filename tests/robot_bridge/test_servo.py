"""Differential inverse kinematics of a person's motions: limits, singular poses, and nothing that is not asked for."""

import numpy as np
import pytest

import sim
from robot_bridge.servo import ArmServo, saturated_step
from sinew.se3 import so3_log

INTERFACE = sim.make_interface("lift", action="joint_position")
CHAIN, LIMITS = INTERFACE.chains[0], INTERFACE.arm_limits[0]


def push(way, turn, ticks=150):
    """Joint targets (T, J) of an arm that is pushed one way from its home pose, and its tool's positions and rotations."""
    servo = ArmServo(CHAIN, LIMITS)
    servo.begin(LIMITS.home)
    targets = [LIMITS.home]
    for _ in range(ticks):
        targets.append(servo.move(np.array(way, dtype=float), np.array(turn, dtype=float), targets[-1]))
    frames = CHAIN.forward(np.array(targets))
    return np.array(targets), frames.position.T, frames.rotation.transpose(2, 0, 1)


@pytest.mark.parametrize("axis", range(6))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pushed_to_its_limits_an_arm_comes_to_rest_and_goes_nowhere_else(axis, sign):
    way, turn = np.zeros(3), np.zeros(3)
    (way if axis < 3 else turn)[axis % 3] = sign * (0.025 if axis < 3 else 0.1)
    targets, positions, rotations = push(way, turn)
    steps = np.abs(np.diff(targets, axis=0))
    assert (steps <= LIMITS.step_max + 1e-9).all()
    assert (targets >= LIMITS.position_low - 1e-9).all() and (targets <= LIMITS.position_high + 1e-9).all()
    assert steps[-20:].max() < 0.01  # at rest, not to and fro
    others = [k for k in range(3) if axis >= 3 or k != axis]
    assert np.abs(positions - positions[0])[:, others].max() < 0.02
    if axis < 3:
        assert max(np.linalg.norm(so3_log(r @ rotations[0].T)) for r in rotations[::10]) < 0.1


def test_where_nothing_is_asked_nothing_moves():
    targets, _, _ = push((0, 0, 0), (0, 0, 0), ticks=5)
    np.testing.assert_array_equal(targets, np.tile(LIMITS.home, (6, 1)))


def test_a_redundant_joint_takes_over_for_one_at_its_limit():
    jacobian = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    low, high = np.full(3, -1.0), np.array([0.1, 1.0, 1.0])
    share, step = saturated_step(jacobian, np.array([0.8, 0.2]), low, high, np.zeros(3))
    assert share == 1.0 and step[0] == pytest.approx(0.1)
    np.testing.assert_allclose(jacobian @ step, (0.8, 0.2), atol=1e-6)
    share, step = saturated_step(jacobian, np.array([2.2, 0.4]), low, high, np.zeros(3))
    assert share == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(jacobian @ step, (1.1, 0.2), atol=1e-6)  # slower, in the same direction
