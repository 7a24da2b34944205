"""Fault 5: whatever a policy gives that is no action never reaches the robot, and the robot is held in the same tick."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from robot_bridge.driver import DriverCheck
from robot_bridge.faults.trial import Trial

BAD_TICK = 12
CONTROLLER_PERIOD_NS = 10_000_000
BAD: dict[str, Any] = {
    "nan": (lambda a: a * float("nan"), "non_finite"),
    "one nan": (lambda a: torch.cat((a[:, :-1], a[:, -1:] * float("nan")), 1), "non_finite"),
    "infinity": (lambda a: a + float("inf"), "non_finite"),
    "too few": (lambda a: a[:, :-1], "shape"),
    "too many": (lambda a: torch.cat((a, a), 1), "shape"),
    "a batch": (lambda a: torch.cat((a, a), 0), "shape"),
    "a scalar": (lambda a: torch.tensor(0.0), "shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_action_latches_in_the_same_tick(name):
    change, reason = BAD[name]
    given: list[int] = []

    def spoil(tick: int, action: Any) -> Any:
        if tick < BAD_TICK:
            return action
        given.append(made.clock.now_ns())
        return change(action)

    made = Trial(spoil=spoil)
    made.run(max_steps=40)
    stamp_ns, why = made.first(("latched",))
    assert why == reason == made.report.stopped and stamp_ns == given[0] and len(given) == 1
    braked = [t for t in made.robot.times_ns if t >= given[0]]
    assert braked[0] - given[0] <= CONTROLLER_PERIOD_NS
    assert made.stop_s(given[0]) <= 0.25
    assert np.isfinite(np.array(made.robot.commands)).all() and made.robot.check.refused == {}


@pytest.mark.parametrize("value", [1e9, -1e9, 1e-310, 3.4e38])
def test_huge_and_denormal_actions_are_kept_within_every_limit(value):
    made = Trial(spoil=lambda tick, action: torch.full_like(action, value) if tick >= BAD_TICK else action)
    made.run(max_steps=30)
    check, path = made.robot.check, np.array(made.robot.commands)
    assert check.refused == {} and check.sudden == 0 and np.isfinite(path).all()
    spec = made.robot.spec
    assert (path >= np.array(spec.position_low_rad)).all() and (path <= np.array(spec.position_high_rad)).all()
    steps = np.abs(np.diff(path, axis=0)) / 0.01
    assert (steps <= np.array(spec.velocity_max_rad_s) * (1 + 1e-9)).all()


def test_the_driver_refuses_and_counts_what_should_never_come(spec):
    check = DriverCheck(spec, 100.0)
    fine = np.array([0.0, 0.1, 0.2, 0.04])
    cases = {
        "non_finite": fine * np.nan,
        "shape": fine[:2],
        "position": np.array([1.6, 0.0, 0.0, 0.04]),
        "gripper": np.array([0.0, 0.0, 0.0, 0.5]),
    }
    assert check.judge(fine, 0) == "" and check.judge(fine[:3], 10**7) == ""
    for reason, values in cases.items():
        assert check.judge(values, 2 * 10**7) == reason
    assert check.refused == dict.fromkeys(cases, 1) and check.taken == 2 and check.sudden == 0
    check.judge(fine + np.array([0.5, 0.0, 0.0, 0.0]), 3 * 10**7)  # 0.5 rad within 20 ms, of a joint that does 1 rad/s
    assert check.sudden == 1 and check.report()["largest_gap_s"] == 0.02
    check.restart()
    check.judge(fine, 4 * 10**7)
    assert check.sudden == 1
