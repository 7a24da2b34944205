"""A camera of the network: its pictures as they come, and what its driver tells of the lens."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from calibration.camera import Camera, Model
from robot_bridge.contract import Contract
from robot_bridge.dds import codec
from robot_bridge.images import info_topic
from robot_bridge.transport import SENSOR, Transport
from sinew.errors import DataError, InputError
from sinew.se3 import Array

MODELS: dict[str, Model] = {"plumb_bob": "pinhole", "rational_polynomial": "rational", "equidistant": "fisheye", "": "pinhole"}
"""ROS's names of lens models (sensor_msgs/distortion_models.hpp) and ours."""
POLL_S = 0.01
PICTURES = {"sensor_msgs/Image": codec.decode_image, "sensor_msgs/CompressedImage": codec.decode_compressed_image}


def picture_topic(camera: str, contract: Contract | None = None) -> tuple[str, str]:
    """Topic of a camera's pictures and its message: of the robot's contract, a topic as it is given, or "/camera/image_raw".

    Raises:
        InputError: the contract has no such camera.
    """
    if camera.startswith("/"):
        return camera, "sensor_msgs/CompressedImage" if camera.endswith("/compressed") else "sensor_msgs/Image"
    if contract is None:
        return f"/{camera}/image_raw", "sensor_msgs/Image"
    source = next((s for s in contract.live if s.key == f"images.{camera}"), None)
    if source is None:
        raise InputError(f"robot {contract.robot} has no camera {camera!r}; its contract has {', '.join(contract.cameras) or 'none'}")
    return source.topic, source.message


class CameraFeed:
    """The pictures of one topic.

    Args:
        node: where.
        topic: of sensor_msgs/Image or CompressedImage.
        message: which of them.
    """

    def __init__(self, node: Transport, topic: str, message: str = "sensor_msgs/Image") -> None:
        self.topic, self._node, self._decode = topic, node, PICTURES[message]
        self._message = message
        self._subscription = node.subscription(topic, message, SENSOR)

    def picture(self, timeout_s: float = 5.0) -> tuple[np.ndarray, int]:
        """The next picture (height, width, 3) uint8, and the stamp of its header, ns.

        Raises:
            InputError: none comes in time.
        """
        self._subscription.take()
        deadline, problem = time.monotonic() + timeout_s, ""
        while time.monotonic() < deadline:
            if not self._subscription.wait(POLL_S):
                continue
            sample = self._subscription.newest()
            if sample is None:
                continue
            try:
                stamp_ns, _, image = self._decode(sample.data)
                return image, stamp_ns
            except DataError as e:
                problem = f" that can be read ({e})"
        known = self._node.topics()
        other = f"; it carries {known[self.topic]}" if known.get(self.topic, self._message) != self._message else ""
        pictures = [name for name, message in known.items() if message in PICTURES]
        raise InputError(
            f"no picture{problem} on {self.topic} within {timeout_s:g} s{other}; topics with pictures: "
            f"{', '.join(sorted(pictures)) or 'none'}"
        )


def lens(node: Transport, topic: str, timeout_s: float = 5.0) -> tuple[Camera, str]:
    """What the driver of a camera tells of its lens, and the name of its optical frame.

    Args:
        node: where to ask.
        topic: of its pictures; camera_info is beside it.
        timeout_s: to wait for it.

    Raises:
        InputError: it tells nothing, or that it is not calibrated.
    """
    name, info = topic.removesuffix("/compressed"), info_topic(topic)
    subscription = node.subscription(info, "sensor_msgs/CameraInfo", SENSOR)
    if not subscription.wait(timeout_s):
        raise InputError(
            f"nothing on {info} within {timeout_s:g} s: calibrate the lens with 'sinew calibrate intrinsics --robot dds --camera {topic}' "
            "and give its camera.json with --intrinsics"
        )
    sample = subscription.newest()
    assert sample is not None  # it has waited for one
    message = codec.decode(sample.data, "sensor_msgs/CameraInfo")
    return camera_of(message, info, rectified="rect" in name.rsplit("/", 1)[-1]), str(message.header.frame_id)


def camera_of(message: Any, where: str, rectified: bool = False) -> Camera:
    """A camera from sensor_msgs/CameraInfo; of pictures that are rectified already by its projection matrix.

    Raises:
        InputError: it is not calibrated, or of a lens that is not known.
    """
    k = np.asarray(message.p, dtype=float).reshape(3, 4)[:, :3] if rectified else np.asarray(message.k, dtype=float).reshape(3, 3)
    if not k[0, 0] > 0:
        raise InputError(
            f"{where} says that the camera is not calibrated: run 'sinew calibrate intrinsics' first, and give its camera.json with "
            "--intrinsics"
        )
    if rectified:
        return Camera.from_matrix(k, [0.0] * 5, int(message.width), int(message.height))
    if message.distortion_model not in MODELS:
        raise InputError(f"{where} tells of a {message.distortion_model!r} lens; known are {', '.join(filter(None, MODELS))}")
    told: Array = np.asarray(message.d, dtype=float)
    return Camera.from_matrix(k, told.tolist(), int(message.width), int(message.height), MODELS[message.distortion_model])
