"""The clutch of absolute devices, by properties: whatever a hand does, nothing jumps and nothing is too fast."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from robot_bridge.clutch import CATCH_UP, LEAD_M, LEAD_RAD, GripClutch, JointClutch, PoseClutch
from robot_bridge.given import ActionSpace
from robot_bridge.takeover import Given
from sinew.se3 import matrix_to_quaternion, so3_exp, so3_log

TOOL, JOINTS = sim.make_interface("lift"), sim.make_interface("lift", action="joint_position")
BOTH = sim.make_interface("handover")
HOME = np.array(TOOL.robot_spec.home_rad)
SPEED = np.array(TOOL.robot_spec.velocity_max_rad_s) / TOOL.action_spec.rate_hz
SEEDS = st.integers(0, 2**32 - 1)


def wild_hand(rng, ticks):
    """Poses (7,) of a hand that wanders, leaps, tumbles and is not seen for a while, None then, with the number of the hold."""
    position, rotation, hold, seen = rng.normal(0, 3, 3), so3_exp(rng.normal(0, 2, 3)), 0, True
    for _ in range(ticks):
        position = position + rng.normal(0, 0.03, 3) * rng.choice([0, 1, 3]) + rng.normal(0, 2, 3) * (rng.random() < 0.05)
        rotation = so3_exp(rng.normal(0, 0.1, 3) * rng.choice([0, 1, 3]) + rng.normal(0, 2, 3) * (rng.random() < 0.05)) @ rotation
        seen = seen if rng.random() < 0.85 else not seen
        hold += rng.random() < 0.05
        yield (*position, *matrix_to_quaternion(rotation)) if seen else None, int(hold)


@given(seed=SEEDS, frame=st.sampled_from(["world", "tool"]))
@settings(max_examples=15, deadline=None)
def test_a_wild_hand_never_moves_the_tool_faster_than_it_may_and_taking_hold_moves_nothing(seed, frame):
    rng, space, held = np.random.default_rng(seed), ActionSpace(TOOL), None
    space.reset(np.array([0.04]))
    joints = HOME + rng.uniform(-0.2, 0.2, len(HOME))
    for pose, hold in wild_hand(rng, 60):
        if pose is None:
            action, held = space.hold(joints), None
        else:
            action = space.action(Given(pose, frame, kind="pose", hold=hold, open=rng.random()), joints)
            assert held == hold or not action[:3].any()
            held = hold
        assert np.abs(action[:3]).max() <= TOOL.action_spec.high[0] + 1e-12
        space.executed(action, by_person=True)


@given(seed=SEEDS, kind=st.sampled_from(["pose", "joints"]), frame=st.sampled_from(["world", "tool"]))
@settings(max_examples=15, deadline=None)
def test_joint_targets_of_a_wild_device_change_by_no_more_than_the_speed_limit(seed, kind, frame):
    rng, space, held = np.random.default_rng(seed), ActionSpace(JOINTS), None
    space.reset(np.array([0.04]))
    measured = HOME + rng.uniform(-0.3, 0.3, len(HOME))
    low, high = np.array(JOINTS.robot_spec.position_low_rad), np.array(JOINTS.robot_spec.position_high_rad)
    before, leader = measured, rng.uniform(-3, 3, len(HOME))
    for pose, hold in wild_hand(rng, 60):
        leader = leader + rng.normal(0, 0.1, len(HOME)) * rng.choice([0, 1, 4]) + rng.normal(0, 2, len(HOME)) * (rng.random() < 0.05)
        if pose is None:
            action, held = space.hold(measured), None
        else:
            values = pose if kind == "pose" else tuple(leader)
            action = space.action(Given(values, frame, kind=kind, hold=hold), measured)
        target = action[:-1]
        assert (np.abs(target - before) <= SPEED + 1e-9).all()
        if pose is not None and held != hold and kind == "joints":
            np.testing.assert_allclose(target, before, atol=1e-12)
        held = hold if pose is not None else None
        assert (low <= target).all() and (target <= high).all()
        space.executed(action, by_person=True)
        before, measured = target, measured + 0.7 * (target - measured)  # a servo that lags behind


def test_a_hand_is_followed_to_the_end_along_the_worlds_axes_and_along_the_tools():
    turn = so3_exp(np.array([0.0, 0.0, 0.4]))
    for axes in (None, so3_exp(np.array([0.3, -0.5, 1.0]))):
        clutch, went, turned = PoseClutch(), np.zeros(3), np.eye(3)
        hand = so3_exp(np.array([0.2, 0.1, -0.3]))
        clutch.step(np.ones(3), hand, 0.01, 0.05, axes)
        for _ in range(30):
            way, rotation = clutch.step(np.array([1.05, 1.02, 0.96]), turn @ hand, 0.01, 0.05, axes)
            went, turned = went + way, so3_exp(rotation) @ turned
        along = np.eye(3) if axes is None else axes @ hand.T
        np.testing.assert_allclose(went, along @ (0.05, 0.02, -0.04), atol=1e-9)
        np.testing.assert_allclose(turned, along @ turn @ along.T, atol=1e-9)
        assert clutch.away


def test_what_a_hand_did_too_fast_is_given_up_and_a_leap_is_not_followed():
    clutch, hand = PoseClutch(), np.eye(3)
    clutch.step(np.zeros(3), hand, 0.01, 0.05)
    clutch.step(np.array([0.2, 0, 0]), hand, 0.01, 0.05)
    rest = sum(clutch.step(np.array([0.2, 0, 0]), hand, 0.01, 0.05)[0][0] for _ in range(50))
    assert rest == pytest.approx(LEAD_M)
    moved = [clutch.step(np.array([5.0, 0, 0]), hand, 0.01, 0.05)[0] for _ in range(20)]
    assert not np.any(moved)


def test_only_the_turn_about_the_vertical_counts_where_no_other_can_be_made():
    clutch, turned = PoseClutch(), 0.0
    clutch.step(np.zeros(3), np.eye(3), 0.01, 0.1)
    goal = so3_exp(np.array([0, 0, 0.5])) @ so3_exp(np.array([0.3, 0, 0]))
    for _ in range(20):
        _, turn = clutch.step(np.zeros(3), goal, 0.01, 0.1, yaw_only=True)
        assert not turn[:2].any()
        turned += turn[2]
    assert turned == pytest.approx(0.5, abs=1e-6)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_leader_that_moves_comes_to_correspond_and_one_that_rests_moves_nothing(seed):
    rng, clutch = np.random.default_rng(seed), JointClutch()
    leader, at, most = rng.uniform(-1, 1, 6), rng.uniform(-1, 1, 6), np.full(6, 0.1)
    for _ in range(5):
        assert not clutch.step(leader + rng.uniform(-0.001, 0.001, 6), at, most).round(2).any()
    before = np.abs(leader - at)
    for k in range(400):
        told = leader + 0.5 * np.sin(0.1 * k)
        change = clutch.step(told, at, most)
        at = at + change
    assert (np.abs(told - at) <= before + 0.01).all() and np.abs(told - at).max() < 0.05
    assert 0 < CATCH_UP < 1 and LEAD_RAD > 0


def test_a_gripper_is_followed_from_when_the_device_comes_by_where_it_is():
    clutch = GripClutch()
    assert [clutch.step(told, 0.0) for told in (1.0, 0.6, 0.3)] == [0.0, 0.0, 0.0]  # what is held is not let fall
    assert clutch.step(0.02, 0.0) == 0.02 and clutch.step(0.7, 0.02) == 0.7
    clutch.release()
    assert clutch.step(1.0, 0.5) == 0.5 and clutch.step(0.2, 0.5) == 0.2  # it passed between two ticks


def test_both_arms_are_moved_in_one_tick_and_each_has_its_own_clutch():
    space, joints = ActionSpace(BOTH), np.array(BOTH.robot_spec.home_rad)
    space.reset(np.array([0.02, 0.03]))
    width = BOTH.action_spec.dim // 2

    def hands(left, right):
        also = () if right is None else (Given((*right, 1, 0, 0, 0), arm=1, kind="pose"),)
        return Given((*left, 1, 0, 0, 0), kind="pose", also=also)

    assert not space.action(hands((0, 0, 0), (1, 1, 1)), joints)[[0, 1, 2, width, width + 1, width + 2]].any()
    action = space.action(hands((0.01, 0, 0), (1, 1.01, 1)), joints)
    np.testing.assert_allclose(action[[0, 1, 2, width, width + 1, width + 2]], (0.01, 0, 0, 0, 0.01, 0), atol=1e-12)
    assert action[[i for i, n in enumerate(BOTH.action_spec.names) if n.endswith("gripper")]].tolist() == [0.02, 0.03]
    action = space.action(hands((0.02, 0, 0), None), joints)
    assert action[0] == pytest.approx(0.01) and not action[width : width + 3].any()
    assert not space.action(hands((0.02, 0, 0), (2, 2, 2)), joints)[:3].any()  # the second takes hold anew


def test_a_hand_that_turns_turns_the_tool_of_an_arm_of_joint_targets():
    space, measured = ActionSpace(JOINTS), HOME
    space.reset(np.array([0.04]))
    chain = JOINTS.chains[0]
    before = chain.forward(HOME[None]).rotation[..., 0]
    turn = so3_exp(np.array([0.0, 0.3, 0.0]))
    for rotation in [np.eye(3)] + [turn] * 40:
        action = space.action(Given((0, 0, 0, *matrix_to_quaternion(rotation)), kind="pose"), measured)
        space.executed(action, by_person=True)
        measured = action[:-1]
    after = chain.forward(measured[None]).rotation[..., 0]
    np.testing.assert_allclose(so3_log(after @ before.T), (0.0, 0.3, 0.0), atol=0.02)
