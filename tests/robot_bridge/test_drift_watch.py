"""Cameras are watched beside a robot: pictures of a simulated scene, what is said of them, and nothing that commands the robot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.boards import Board
from calibration.camera import Camera
from calibration.results import Mounted
from robot_bridge import SimRobot, SteppedClock
from robot_bridge.drift_watch import ERROR, OK, STALE, WARN, DriftWatch, only_looking
from robot_bridge.robots import load_robot
from sinew.errors import InputError
from sinew.se3 import matrix_to_quaternion, se3_exp

pytest.importorskip("sim.render")
mujoco: Any = pytest.importorskip("mujoco")
BOARD, SIZE = Board(), (480, 640)


class Place:
    """A simulated arm with a board, whose joints and camera are put where a test wants them."""

    def __init__(self, mount: str, cameras: tuple[str, ...] = ()) -> None:
        from robot_bridge.calibrating.hand import hand_of_task
        from robot_bridge.calibrating.scene import task_scene
        from sim.render import camera_matrix
        from sinew.cli.calibrate_watch import around

        self.physics, self.truth = task_scene(BOARD, "table" if mount == "in_hand" else "hand")
        interface = self.physics.interface
        self.hand, self.clock = hand_of_task(interface), SteppedClock()
        names = cameras or (self.truth.camera,)
        self.robot: Any = SimRobot(self.physics, interface.robot_spec, cameras=names, image_size=SIZE, clock=self.clock)
        lens = Camera.from_matrix(camera_matrix(self.physics.scene.model, self.truth.camera, *SIZE), [0.0] * 5, SIZE[1], SIZE[0])
        self.stored = Mounted(
            name=self.truth.camera, mount=self.truth.mount, T=self.truth.T, covariance=np.diag([1e-4] * 3 + [1e-4] * 3) ** 2,
            camera=lens, Z=self.truth.Z, pixel_sigma=0.1, robot_sigma_m=3e-5, robot_sigma_rad=5e-5,
        )  # fmt: skip
        home = np.array(self.physics.joint_position)
        wanted = np.array(around(self.hand.pose(home), self.truth.mount))
        self.joints = self.hand.near(wanted, home)[0]

    def stand(self, joints: np.ndarray, watch: DriftWatch, moving: bool = False) -> None:
        """Be somewhere for half a second, and look meanwhile."""
        data, scene = self.physics.data, self.physics.scene
        for i in range(6):
            data.qpos[scene.joint_qpos] = joints + 0.01 * i * moving
            mujoco.mj_forward(scene.model, data)
            self.robot._ticks = i % 5  # a picture with the first and the last of them
            self.robot.measure()
            watch.look()
            self.clock.wait_until(self.clock.now_ns() + 100_000_000)

    def bump(self, twist: np.ndarray) -> None:
        """Move the camera in its mount, by a twist in its frame."""
        model, flip = self.physics.scene.model, np.diag([1.0, -1.0, -1.0])
        camera, pose = model.camera(self.truth.camera), np.eye(4)
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, camera.quat)
        pose[:3, :3], pose[:3, 3] = turn.reshape(3, 3) @ flip, camera.pos
        pose = pose @ se3_exp(twist)
        camera.pos[:], camera.quat[:] = pose[:3, 3], matrix_to_quaternion(pose[:3, :3] @ flip)

    def watch(self, **options: Any) -> DriftWatch:
        boards = {m.name: BOARD for m in options.get("cameras", [self.stored])}
        cameras = options.pop("cameras", [self.stored])
        return DriftWatch(self.robot, self.hand, cameras, boards, now_ns=self.clock.now_ns, **options)


@pytest.mark.parametrize("mount", ["in_hand", "to_hand"])
def test_a_bump_of_a_millimetre_is_found_and_named_while_the_robot_goes_around(mount):
    place = Place(mount)
    watch, name = place.watch(), place.truth.camera
    assert watch.summary()["holds"] is None and watch.status(name)[0] == WARN
    for joints in place.joints[:7]:
        place.stand(joints, watch)
    assert watch.holds and watch.watched[name].used >= 5, watch.summary()
    assert watch.status(name)[0] == OK and "where it was" in watch.status(name)[1]
    place.bump(np.array([1, -1, 1, -1, 1, 1]) / 3**0.5 * ([1e-3] * 3 + [np.deg2rad(0.2)] * 3))
    for joints in place.joints:
        place.stand(joints, watch)
    level, message, values = watch.status(name)
    assert level == ERROR and f"camera {name}" in message and watch.summary()["moved"][0] == f"camera {name}", watch.summary()
    assert message.endswith("; the mount of the camera, not of the board") and values["calibration"] == place.stored.hash
    assert watch.monitor.cameras[name] is place.stored


def test_pictures_of_a_moving_hand_are_passed_over_where_the_arm_is_between():
    place = Place("in_hand")
    watch = place.watch()
    for joints in place.joints[:3]:
        place.stand(joints, watch, moving=True)
    state = watch.watched["wrist"]
    assert state.used == 0 and state.passed_over["the hand moved"] == state.pictures > 0
    level, message, _ = watch.status("wrist")
    assert level == WARN and "the hand moved" in message


def test_a_board_that_stands_beside_the_robot_needs_no_stillness_and_remembers_the_night():
    place = Place("to_hand")
    watch = place.watch(on="base")  # the board is in the hand, which does not move as long as the camera sees it
    for _ in range(4):
        place.stand(place.joints[0], watch)
    assert watch.holds and watch.watched["front"].used == watch.watched["front"].pictures > 3
    place.bump(np.array([2e-3, 0, 0, 0, np.deg2rad(0.4), 0]))
    today = place.watch(on="base")
    today.monitor.recall(watch.monitor.remember())
    for _ in range(2):
        place.stand(place.joints[0], today)
    assert set(today.summary()["moved"]) == {"camera front", "the board beside the robot"}
    assert today.status("front")[0] == ERROR and "would tell which" in today.status("front")[1]


def test_a_camera_without_its_board_or_of_another_size_or_without_pictures_is_told_of():
    place = Place("to_hand", cameras=("front", "wrist"))
    from dataclasses import replace

    coarse = replace(place.stored, name="wrist", camera=replace(place.stored.camera, width=1280, height=960))
    gone = replace(place.stored, name="side")
    watch = place.watch(cameras=[place.stored, coarse, gone])
    watch.boards["front"] = Board(dictionary="DICT_7X7_50")
    for _ in range(12):
        place.stand(place.joints[0], watch)
    told = {name: watch.status(name)[:2] for name in watch.watched}
    assert told["front"][0] == WARN and "is not watched" in told["front"][1]
    assert told["wrist"][0] == WARN and "640 x 480, its calibration is for 1280 x 960" in told["wrist"][1]
    assert told["side"] == (STALE, "camera side gives no pictures")
    with pytest.raises(InputError, match="--rate"):
        place.watch(rate_hz=0.0)


def test_who_only_looks_commands_nothing():
    config = only_looking(load_robot("ur5e"))
    assert not config.contract.sinks and config.contract.action is None
    assert config.contract.live == load_robot("ur5e").contract.live
