"""Fault 4: cameras that stall, go away, turn black or are exchanged, at exact times."""

from __future__ import annotations

import pytest

from robot_bridge.faults.schedule import Fault, Schedule
from robot_bridge.faults.trial import Trial

pytest.importorskip("sim.render")


def trial(what: str, for_s: float | None, cameras: tuple[str, ...] = ("front",), **parameters: str) -> Trial:
    fault = Fault(what=what, after="motion", at_s=0.4, for_s=for_s, parameters=parameters)
    return Trial(schedule=Schedule(faults=(fault,)), cameras=cameras).run(max_steps=60)


def test_a_stall_of_100_ms_is_counted_and_does_no_harm():
    made = trial("camera_stall", 0.1)
    assert made.report.k == 1 and made.report.stopped == "" and made.report.policy["holds"] == {}
    assert made.report.policy["observations"]["images.front"]["late"] > 0


def test_a_stall_of_300_ms_holds_and_goes_on():
    made = trial("camera_stall", 0.3)
    assert made.report.policy["holds"]["images.front"] > 0 and made.report.k == 1
    held_ns = made.onset_ns + int(0.3e9)
    assert made.speed_at(held_ns) == 0.0  # stands within the 100 ms after the 200 that are allowed


@pytest.mark.parametrize(("what", "for_s"), [("camera_stall", 1.3), ("camera_unplugged", None)])
def test_a_camera_that_stays_away_for_a_second_ends_the_episode_which_is_kept_and_marked(what, for_s):
    made = trial(what, for_s)
    (episode,) = made.report.episodes
    assert episode.ended_by == "no images.front" and not episode.success and episode.steps > 5
    assert (made.last_motion_ns() - made.onset_ns) / 1e9 <= 0.2 + 0.05 + 0.25  # the age that is allowed, a policy's period, the stop


def test_one_camera_of_two_is_enough():
    made = trial("camera_stall", 1.3, ("front", "wrist"), camera="wrist")
    assert made.report.episodes[0].ended_by == "no images.wrist"


def test_black_pictures_are_counted():
    made = trial("camera_black", 0.3)
    assert made.report.policy["observations"]["images.front"]["black"] >= 5
