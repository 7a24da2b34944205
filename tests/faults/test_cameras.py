"""Fault 4: cameras that stall, go away, turn black or are exchanged, at exact times."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.exchange import by_lens
from robot_bridge.camera_check import CameraCheck, drivers_tell
from robot_bridge.dds.node import Node
from robot_bridge.dds.topics import RobotTopics
from robot_bridge.dds_robot import task_robot
from robot_bridge.faults.cameras import check_of, true_cameras
from robot_bridge.faults.schedule import Fault, Schedule
from robot_bridge.faults.trial import Trial
from sinew.errors import InputError
from sinew.protocols import Observation

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


BOTH, SIZE = ("front", "wrist"), (48, 64)


def watched(*faults: Fault) -> Trial:
    """A trial whose cameras are looked at before each episode."""
    return Trial(schedule=Schedule(faults=faults), cameras=BOTH, image_size=SIZE, look=lambda world: check_of(world, BOTH, SIZE))


def test_exchanged_cameras_are_refused_before_anything_moves():
    exchanged = watched(Fault(what="cameras_swapped", after="start"))
    with pytest.raises(InputError, match="cameras front and wrist are exchanged: the robot is where each of them sees it") as refused:
        exchanged.run()
    assert exchanged.robot.commands == [] and "\n" not in str(refused.value)


def test_cameras_in_their_places_are_not_and_those_exchanged_later_stop_the_next_episode():
    made = watched(Fault(what="cameras_swapped", after="start", at_s=1.0)).run(seeds=(0, 1))
    assert [e.ended_by for e in made.report.episodes] == ["success"] and made.report.stopped.startswith("cameras front and wrist")
    assert made.speed_at(made.robot.times_ns[-1]) == 0.0


def test_what_the_drivers_tell_of_lenses_and_frames_finds_topics_that_are_exchanged(serve, domain):
    import sim

    serve("lift", cameras=BOTH, image_size=SIZE)
    world = sim.RobotSim("lift")
    cameras = true_cameras(world, BOTH, SIZE)
    node = Node("looker", domain=domain)
    try:
        for images, exchanged in (({}, False), ({"front": "/wrist/image_raw", "wrist": "/front/image_raw"}, True)):
            contract = task_robot(world.interface.robot_spec, BOTH, RobotTopics(images=images)).contract
            lenses, frames = drivers_tell(node, BOTH, contract, timeout_s=30.0)
            assert set(lenses) == set(frames) == set(BOTH)
            assert ("exchanged: their frames" in by_lens(cameras, lenses, frames)) is exchanged
            assert ("the lens of each is that of the other" in by_lens(cameras, lenses)) is exchanged
        assert drivers_tell(node, ("side",), None, timeout_s=0.1) == ({}, {})
    finally:
        node.close()
        world.close()


def test_one_camera_alone_is_exchanged_with_none():
    import sim

    world = sim.RobotSim("lift")
    alone = CameraCheck(true_cameras(world, ("front",), SIZE))
    world.close()
    assert alone(Observation(0, 0, {"images.front": np.zeros((*SIZE, 3), dtype=np.uint8)})) == ""


def test_drivers_are_asked_until_what_they_tell_is_right():
    import sim

    world = sim.RobotSim("lift")
    frames = {"front": "wrist_optical", "wrist": "front_optical"}
    check = CameraCheck(true_cameras(world, BOTH, SIZE), told=lambda: ({}, frames))
    world.close()
    seen = Observation(0, 0, {f"images.{name}": np.zeros((*SIZE, 3), dtype=np.uint8) for name in BOTH})
    assert "exchanged" in check(seen) and "exchanged" in check(seen)
    frames.clear()
    assert check(seen) == ""
