"""A full disk, clocks, what makes a loop late, and wild commands counted at the driver."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from robot_bridge.faults.fuzz import fuzz_driver
from robot_bridge.faults.schedule import KINDS, Fault, Schedule
from robot_bridge.faults.trial import Trial, wall_clock_off
from sinew.errors import InputError


def test_a_full_disk_stops_the_deployment_with_the_robot_at_rest():
    """Fault 3: the recorder cannot write. The error comes at once, what was recorded is kept, the robot stands."""

    class Recorder:
        def __init__(self) -> None:
            self.frames: list[Any] = []

        def frame(self, frame: Any) -> None:
            if len(self.frames) == 9:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.frames.append(frame)

        def end_episode(self, result: Any) -> None:
            raise AssertionError("the episode has no end")

    made = Trial(record=Recorder())
    with pytest.raises(OSError, match="No space left"):
        made.run(max_steps=40)
    path = np.array(made.robot.commands)
    assert len(made.record.frames) == 9 and np.ptp(path[-2:], axis=0).max() == 0.0


def test_the_wall_clock_of_this_machine_has_no_part_in_control():
    """Fault 9: an hour off, to the bit the same commands."""
    plain = Trial().run(max_steps=25)
    for offset_s in (3600.0, -3600.0):
        with wall_clock_off(offset_s):
            other = Trial().run(max_steps=25)
        assert np.array_equal(np.array(other.robot.commands), np.array(plain.robot.commands))


def test_wild_commands_reach_the_driver_within_its_limits():
    """Fault 13, a small one; the benchmark sends a hundred thousand."""
    told = fuzz_driver(2000, seed=int(np.random.default_rng().integers(1 << 30)))
    assert told["refused"] == {} and told["sudden"] == 0 and told["taken"] > 2000 and told["latched"] > 0, told


def test_the_cadence_tells_which_stage_was_slow():
    """Fault 11: on a loaded machine the report says where the time went; how regular the loop is, the benchmark tells."""
    made = Trial(think_s=lambda tick: 0.08 if tick % 5 == 0 else 0.0).run(max_steps=30)
    stages = made.report.policy["stages_us"]
    assert max(stages, key=lambda name: stages[name]["max"]) == "policy" and stages["policy"]["max"] == 80_000.0
    assert made.report.policy["late_actions"] > 0


@pytest.mark.parametrize("what", [name for name, kind in KINDS.items() if kind.process])
def test_faults_that_need_a_process_are_refused_in_this_one(what):
    with pytest.raises(InputError, match=f"{what}.*sinew robot --faults FILE"):
        Trial(schedule=Schedule(faults=(Fault(what=what),))).run()
