"""Are the cameras those that were calibrated: looked at before an episode begins, while the robot stands.

`CameraCheck` is what `robot_bridge.deploy.deploy` and recordings ask; it looks at what the drivers tell, at a board where one is in view,
and at the robot's own body where its shape is known. Nothing of this is done while the robot moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calibration.boards import Board
from calibration.body import Body
from calibration.camera import Camera
from calibration.detection import detect
from calibration.drift import Picture
from calibration.exchange import by_board, by_body, by_lens
from calibration.results import Mounted
from robot_bridge.calibrating.feed import camera_of, picture_topic
from robot_bridge.calibrating.hand import Hand
from robot_bridge.contract import Contract
from robot_bridge.dds import codec
from robot_bridge.transport import SENSOR, Transport
from sinew.errors import InputError
from sinew.protocols import Observation

INFO_S = 2.0
"""Time for the drivers to tell of their lenses; those that do not are passed over."""
Told = tuple[dict[str, Camera], dict[str, str]]


class CameraCheck:
    """Says what is wrong with the cameras; nothing where all is well, or it cannot be told.

    Args:
        cameras: the calibrations, by the names that the robot gives its cameras.
        hand: of the arm that they are calibrated to; None where that is not known.
        boards: what each camera may see, by its name.
        body: the robot's shape; its joints are the hand's robot's, its base the calibrations'.
        told: what the drivers tell, asked once.
    """

    def __init__(
        self,
        cameras: Sequence[Mounted],
        hand: Hand | None = None,
        *,
        boards: Mapping[str, Board] | None = None,
        body: Body | None = None,
        told: Callable[[], Told] | None = None,
    ) -> None:
        self.cameras, self.hand, self.boards, self.body = tuple(cameras), hand, dict(boards or {}), body
        self._told = told

    def __call__(self, measured: Observation) -> str:
        """One line on what is wrong with what was measured."""
        images = {m.name: np.asarray(measured.values[k]) for m in self.cameras if (k := f"images.{m.name}") in measured.values}
        if len(self.cameras) < 2 or len(images) < 2:
            return ""
        if self._told is not None:
            if problem := by_lens(self.cameras, *self._told()):
                return problem
            self._told = None  # what was right is not asked for again
        if self.hand is None:
            return ""
        joints = np.asarray(measured.values["joint_position"], dtype=float)
        robot = self.hand.pose(joints)
        problem = by_board(self.cameras, self._pictures(images, robot))
        if not problem and self.body is not None:
            problem = by_body(self.cameras, self.body, joints, robot, images)
        return problem

    def _pictures(self, images: Mapping[str, np.ndarray], robot: np.ndarray) -> list[Picture]:
        """The boards that are seen."""
        found = []
        for name, board in self.boards.items():
            seen = detect(images[name], board) if name in images else None
            if seen is not None and not seen.refused:
                found.append(Picture(camera=name, robot=robot, points=board.points[seen.ids], pixels=seen.pixels))
        return found


def drivers_tell(node: Transport, cameras: Sequence[str], contract: Contract | None = None, timeout_s: float = INFO_S) -> Told:
    """Lens and frame of each camera, as its driver tells them on camera_info; cameras that tell nothing are left out.

    Args:
        node: where to ask.
        cameras: their names.
        contract: tells their topics; None for /<camera>/image_raw.
        timeout_s: for each.
    """
    topics = {name: picture_topic(name, contract)[0].removesuffix("/compressed") for name in cameras}
    infos = {name: topic.rsplit("/", 1)[0] + "/camera_info" for name, topic in topics.items()}
    waiting = {name: node.subscription(info, "sensor_msgs/CameraInfo", SENSOR) for name, info in infos.items()}
    lenses, frames = {}, {}
    for name, subscription in waiting.items():
        sample = subscription.newest() if subscription.wait(timeout_s) else None
        if sample is None:
            continue
        message = codec.decode(sample.data, "sensor_msgs/CameraInfo")
        frames[name] = str(message.header.frame_id)
        try:
            lenses[name] = camera_of(message, infos[name], rectified="rect" in topics[name].rsplit("/", 1)[-1])
        except InputError:  # a driver that knows nothing of its lens still tells its frame
            continue
    return lenses, frames
