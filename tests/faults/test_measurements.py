"""Fault 8: joint states that do not come, stand still, jump, go back in time or are no numbers, at exact times while the arm moves."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.faults.schedule import Fault, Schedule
from robot_bridge.faults.trial import Trial

POLICY_PERIOD_S = 0.05
CONTROLLER_PERIOD_S = 0.01
STOP_TIME_S = 0.25


def trial(what: str, for_s: float | None = None, **parameters: float) -> Trial:
    fault = Fault(what=what, after="motion", at_s=0.5, for_s=for_s, parameters=parameters)
    return Trial(schedule=Schedule(faults=(fault,))).run()


@pytest.mark.parametrize(
    ("what", "reason", "within_s"),
    [
        ("joint_states_nan", "bad_measurement", CONTROLLER_PERIOD_S),
        ("joint_count_wrong", "bad_measurement", CONTROLLER_PERIOD_S),
        ("joint_states_jump", "measured_jump", CONTROLLER_PERIOD_S),
        ("joint_states_frozen", "frozen", 0.1),
    ],
)
def test_what_cannot_be_true_latches(what, reason, within_s):
    made = trial(what)
    assert made.speed_at(made.onset_ns - 10_000_000) > 0.1  # it did move
    stamp_ns, why = made.first(("hold", "latched"), made.onset_ns)
    assert why == reason == made.report.stopped and (stamp_ns - made.onset_ns) / 1e9 <= within_s
    assert made.stop_s(stamp_ns) <= STOP_TIME_S
    assert np.isfinite(np.array(made.robot.commands)).all()


def test_joint_states_that_do_not_come_hold_within_three_periods_of_the_policy_and_end_the_episode():
    made = trial("joint_states_dropped")
    stamp_ns, why = made.first(("hold", "latched"), made.onset_ns)
    assert why in ("stale_observation", "expired") and (stamp_ns - made.onset_ns) / 1e9 <= 0.1 <= 3 * POLICY_PERIOD_S
    assert made.stop_s(made.onset_ns) <= 0.1 + STOP_TIME_S
    (episode,) = made.report.episodes
    assert episode.ended_by == made.report.stopped == "stale_observation" and made.report.policy["holds"]["joint_position"] > 1


def test_stamps_that_go_back_hold_at_the_next_tick():
    made = trial("joint_states_reversed")
    stamp_ns, why = made.first(("hold", "latched"), made.onset_ns)
    assert why == "measurement_order" and (stamp_ns - made.onset_ns) / 1e9 <= 3 * CONTROLLER_PERIOD_S
    assert made.stop_s(stamp_ns) <= STOP_TIME_S


@pytest.mark.parametrize(("for_s", "part"), [(0.05, 1.0), (None, 0.2)])
def test_few_missing_joint_states_do_no_harm(for_s, part):
    made = trial("joint_states_dropped", for_s, part=part)
    assert made.report.k == 1 and made.report.stopped == "" and made.first(("latched",)) is None


def test_a_short_silence_holds_and_goes_on_by_itself():
    made = trial("joint_states_dropped", 0.3)
    assert made.first(("hold",), made.onset_ns) and made.report.k == 1 and made.report.stopped == ""


def test_an_effort_that_no_motion_needs_latches():
    made = trial("effort_spike", joint=1)
    stamp_ns, why = made.first(("hold", "latched"), made.onset_ns)
    assert why == "effort" == made.report.stopped and (stamp_ns - made.onset_ns) / 1e9 <= 0.1 + 2 * CONTROLLER_PERIOD_S
    assert trial("effort_spike", 0.05, joint=1).report.k == 1  # a short one is none


@pytest.mark.parametrize("what", ["commands_ignored", "robot_estop"])
def test_a_robot_that_does_not_move_when_commanded_is_noticed(what):
    made = trial(what)
    _, why = made.first(("latched",), made.onset_ns)
    assert why == "not_following" == made.report.stopped
    assert made.travel_rad(made.onset_ns + 100_000_000) < 0.02  # and did not move meanwhile


def test_a_late_robot_is_held_within_its_limits():
    made = trial("commands_delayed", delay_s=0.1)
    assert made.robot.check.refused == {} and made.robot.check.sudden == 0
