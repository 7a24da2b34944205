"""Faults 6 and 7: a policy that is late, gone, or out of memory; times are of the stepped clock, and so exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from robot_bridge.faults.trial import Trial

PERIOD_S = 0.05
LATE_TICK = 12
FOR_EVER_S = 3.0


def late(times: float, only_once: bool = True) -> Trial:
    """The policy thinks for so many periods at one tick, or from it on."""
    slow = (lambda tick: tick == LATE_TICK) if only_once else (lambda tick: tick >= LATE_TICK)
    began: list[int] = []

    def think_s(tick: int) -> float:
        if not slow(tick):
            return 0.0
        began.append(made.clock.now_ns())
        return times * PERIOD_S

    made = Trial(think_s=think_s)
    made.run(max_steps=60)
    made.began_ns = began[0]  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("times", [1.0, 2.0, 5.0])
def test_a_late_policy_holds_and_what_it_decided_on_old_measurements_is_never_executed(times):
    made: Any = late(times)
    ttl_s = 0.1  # after the measurement behind the target before, which is a period older
    stops = made.report.controller["stops"]
    assert stops["last_target_to_hold_ms"] is None or stops["last_target_to_hold_ms"] <= 100.0
    assert stops["command_to_standstill_ms"] is None or stops["command_to_standstill_ms"] <= 250.0
    if times * PERIOD_S > ttl_s:
        assert made.gate.counts["expired"] > 0  # held meanwhile; the late target itself is refused
        end_ns = made.began_ns + int(times * PERIOD_S * 1e9)
        assert made.speed_at(end_ns + 10_000_000) == 0.0
    assert made.report.k == 1 and made.report.stopped == ""


def test_a_policy_that_never_answers_holds_within_100_ms_stands_within_250_and_latches():
    made: Any = late(FOR_EVER_S / PERIOD_S)
    stops = made.report.controller["stops"]
    assert stops["last_target_to_hold_ms"] <= 100.0 and stops["command_to_standstill_ms"] <= 250.0
    assert made.stop_s(made.began_ns) <= 0.1 + 0.25
    assert made.report.stopped == "expired"  # and stays so, until an operator releases it
    after = np.array([q for t, q in zip(made.robot.times_ns, made.robot.commands, strict=True) if t > made.began_ns + int(0.4e9)])
    assert np.ptp(after, axis=0).max() == 0.0


def test_a_policy_that_is_always_late_holds_rather_than_stutters_beyond_limits():
    made: Any = late(3.0, only_once=False)
    check = made.robot.check
    assert check.refused == {} and check.sudden == 0
    assert made.report.policy["late_actions"] > 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("device-side assert")])
def test_a_policy_that_breaks_leaves_the_robot_at_rest(error):
    def spoil(tick: int, action: Any) -> Any:
        if tick == LATE_TICK:
            raise error
        return action

    made = Trial(spoil=spoil)
    with pytest.raises(type(error)):
        made.run(max_steps=40)
    path = np.array(made.robot.commands)
    assert made.robot.check.refused == {} and np.ptp(path[-2:], axis=0).max() == 0.0


def test_a_policy_that_comes_back_does_not_resume_motion_without_an_operator():
    """Longer away than the latch takes: what comes afterwards is not followed."""
    made: Any = late(1.5 / PERIOD_S)
    assert made.report.stopped == "expired" and made.gate.latched
    end_ns = made.began_ns + int(1.5e9)
    assert made.last_motion_ns() < end_ns
    assert made.gate.release("test") == "" and made.gate.latched == ""
