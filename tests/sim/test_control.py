"""Decoders: they go where they are told, keep every limit, and do not wind up."""

import numpy as np
import pytest

from sim import TaskInterface, make_interface
from sim.control import _solve
from sinew.errors import SpecError


def follow(action: np.ndarray, steps: int, start: np.ndarray | None = None) -> tuple[TaskInterface, np.ndarray]:
    """Decode one action again and again for a robot that follows perfectly: interface and joints (steps + 1, J)."""
    interface = make_interface("lift")
    decoder = interface.decoder(1)
    q = np.array(interface.robot_spec.home_rad)[None] if start is None else start
    decoder.reset(q, np.array([0.08]))
    trail = [q]
    for _ in range(steps):
        q, _ = decoder.decode(action, q)
        trail.append(q)
    return interface, np.concatenate(trail)


def test_the_tool_moves_by_the_delta_and_keeps_pointing_down() -> None:
    interface, trail = follow(np.array([[0.01, -0.005, 0.005, 0.08]]), 10)
    frames = interface.chains[0].forward(trail)
    moved = frames.position[:, -1] - frames.position[:, 0]
    np.testing.assert_allclose(moved, [0.1, -0.05, 0.05], atol=2e-3)
    np.testing.assert_allclose(frames.rotation[:, 2, -1], [0, 0, -1], atol=2e-3)


def test_targets_stay_inside_workspace_speed_and_joint_limits() -> None:
    rng = np.random.default_rng(0)
    interface = make_interface("lift")
    spec, actions = interface.robot_spec, interface.action_spec
    decoder = interface.decoder(16)
    q = np.tile(spec.home_rad, (16, 1))
    decoder.reset(q, np.full(16, 0.08))
    low, high = np.array(actions.low), np.array(actions.high)
    direction = rng.uniform(low, high, (16, 4))
    for step in range(200):
        if step % 20 == 0:
            direction = rng.uniform(low, high, (16, 4))
        target, gripper = decoder.decode(direction, q)
        assert (np.abs(target - q) <= np.array(spec.velocity_max_rad_s) / spec.rate_hz).all()
        assert (target >= spec.position_low_rad).all() and (target <= spec.position_high_rad).all()
        assert (gripper >= spec.gripper_low_m).all() and (gripper <= spec.gripper_high_m).all()
        q = target
    tool = interface.chains[0].forward(q).position.T
    assert (tool >= np.array(spec.workspace_low_m) - 5e-3).all() and (tool <= np.array(spec.workspace_high_m) + 5e-3).all()


def test_a_blocked_arm_does_not_wind_up() -> None:
    interface = make_interface("lift")
    decoder = interface.decoder(1)
    q = np.array(interface.robot_spec.home_rad)[None]
    decoder.reset(q, np.array([0.08]))
    for _ in range(50):
        target, _ = decoder.decode(np.array([[0.0, 0.0, -0.025, 0.08]]), q)  # the joints never move
    here = interface.chains[0].forward(q).position
    lead = np.linalg.norm(interface.chains[0].forward(target).position - here)
    assert 0.02 < lead < 0.045
    for _ in range(3):  # three steps up undo 3.5 cm of lead: nothing was stored beyond the leash
        target, _ = decoder.decode(np.array([[0.0, 0.0, 0.025, 0.08]]), q)
    assert interface.chains[0].forward(target).position[2, 0] > here[2, 0]


def test_measurement_noise_does_not_move_the_target() -> None:
    interface = make_interface("lift")
    decoder = interface.decoder(1)
    q = np.array(interface.robot_spec.home_rad)[None]
    decoder.reset(q, np.array([0.08]))
    rng = np.random.default_rng(0)
    still = np.array([[0.0, 0.0, 0.0, 0.08]])
    targets = [decoder.decode(still, q + 0.01 * rng.standard_normal(q.shape))[0] for _ in range(100)]
    assert np.abs(targets[-1] - q).max() < 1e-3


@pytest.mark.parametrize("action", ["ee_delta", "joint_position"])
def test_rows_do_not_depend_on_each_other_to_the_bit(action: str) -> None:
    interface = make_interface("lift", action=action)
    rng = np.random.default_rng(1)
    q = np.tile(interface.robot_spec.home_rad, (64, 1)) + 0.1 * rng.standard_normal((64, 7))
    low, high = np.array(interface.action_spec.low), np.array(interface.action_spec.high)
    many, one = interface.decoder(64), interface.decoder(1)
    many.reset(q, np.full(64, 0.08))
    one.reset(q[9:10], np.full(1, 0.08))
    for _ in range(5):
        command = rng.uniform(low, high, (64, len(low)))
        target, gripper = many.decode(command, q)
        alone, alone_gripper = one.decode(command[9:10], q[9:10])
        assert np.array_equal(target[9:10], alone) and np.array_equal(gripper[9:10], alone_gripper)


def test_joint_targets_are_limited_in_step_and_lead() -> None:
    interface = make_interface("lift", action="joint_position")
    spec = interface.robot_spec
    decoder = interface.decoder(1)
    q = np.array(spec.home_rad)[None]
    decoder.reset(q, np.array([0.08]))
    command = np.concatenate((np.array(spec.position_high_rad), [0.0]))[None]
    for step in range(1, 10):
        target, _ = decoder.decode(command, q)
        assert (np.abs(target - q) <= min(0.3, step * spec.velocity_max_rad_s[0] / spec.rate_hz) + 1e-12).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused(bad: float) -> None:
    interface = make_interface("lift")
    decoder = interface.decoder(2)
    q = np.tile(interface.robot_spec.home_rad, (2, 1))
    decoder.reset(q, np.zeros(2))
    command = np.zeros((2, 4))
    command[1, 2] = bad
    with pytest.raises(SpecError, match="element 2 of world 1"):
        decoder.decode(command, q)


def test_reset_of_some_worlds_leaves_the_others() -> None:
    interface = make_interface("lift")
    decoder = interface.decoder(3)
    q = np.tile(interface.robot_spec.home_rad, (3, 1))
    decoder.reset(q, np.zeros(3))
    for _ in range(4):
        decoder.decode(np.full((3, 4), 0.01), q)
    decoder.reset(q[1:2], np.zeros(1), [1])
    after, _ = decoder.decode(np.zeros((3, 4)), q)
    np.testing.assert_allclose(after[1], q[1], atol=1e-3)
    assert np.abs(after[0] - q[0]).max() > 1e-2


def test_solve_equals_lapack() -> None:
    rng = np.random.default_rng(5)
    factor = rng.standard_normal((10, 6, 6))
    matrix = factor @ factor.transpose(0, 2, 1) + 0.1 * np.eye(6)
    vector = rng.standard_normal((10, 6))
    solution = _solve(np.ascontiguousarray(matrix.transpose(1, 2, 0)), np.ascontiguousarray(vector.T))
    np.testing.assert_allclose(solution.T, np.linalg.solve(matrix, vector[..., None])[..., 0], rtol=1e-9)
