"""A calibration told to ROS: where the cameras are on /tf_static, their lenses on camera_info topics or to their drivers.

/tf_static keeps the newest message of every publisher for whoever comes later, so all cameras go into one (tf2_ros's
StaticTransformBroadcaster does the same). A frame has one parent: where a driver gives the camera's optical frame one already, the
root of the driver's own frames is placed instead, so that its optical frame lands where it was calibrated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.results import camera_info, read
from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, make
from robot_bridge.transforms import TransformTree
from robot_bridge.transport import LATCHED, Transport
from sinew.errors import DataError, InputError
from sinew.se3 import Array, matrix_to_quaternion, quaternion_to_matrix, se3, se3_inverse

STATIC, TF_MESSAGE, INFO = "/tf_static", "tf2_msgs/TFMessage", "sensor_msgs/CameraInfo"
LISTEN_S = 1.5
"""For what others say on /tf_static; they keep it for whoever comes."""
FOREVER_NS = 1 << 62


@dataclass(frozen=True)
class Placed:
    """One transform that is published."""

    camera: str
    parent: str
    child: str
    pose: Array
    """T_parent_child (4, 4)."""
    optical: str
    """Frame of the camera's optical axes."""


class Publication:
    """Publishes a calibration as long as it is open.

    Args:
        result: folder of a calibration, or its calibration.json.
        node: where.
        root: root of the driver's frames, which is placed instead of the optical frame; of a single camera only.
        infos: publish camera_info too, on /<camera>/calibrated/camera_info.

    Raises:
        InputError: nothing there, a frame that has another parent already, or a root that the optical frame does not hang on.
        DataError: the result is damaged.
    """

    def __init__(self, result: Path, node: Transport, *, root: str = "", infos: bool = True) -> None:
        folder = result if result.is_dir() else result.parent
        self._cameras = read(result)
        if root and len(self._cameras) != 1:
            raise InputError(f"--root {root} is for one camera; {result} has {', '.join(m.name for m in self._cameras)}")
        self._node = node
        others = _static_tree(node)
        self.placed = tuple(_rooted(_placed(folder, m.name, m.T), others, root) for m in self._cameras)
        self._transforms = node.publisher(STATIC, TF_MESSAGE, LATCHED)
        stamp_ns = time.time_ns()
        told = [codec.Transform(stamp_ns, p.parent, p.child, _seven(p.pose)) for p in self.placed]
        self._transforms.write(codec.encode_transforms(told))
        self.info_topics: tuple[str, ...] = ()
        if infos:
            for m, placed in zip(self._cameras, self.placed, strict=True):
                topic = f"/{m.name}/calibrated/camera_info"
                node.publisher(topic, INFO, LATCHED).send(info_message(camera_info(m.camera, m.name), placed.optical))
                self.info_topics += (topic,)

    def set_camera_info(self, timeout_s: float = 5.0) -> list[str]:
        """Give every driver its camera's lens through its service set_camera_info (camera_info_manager's), which keeps it.

        Returns:
            The services that took it.

        Raises:
            InputError: no such service, or it refused.
        """
        taken = []
        for m, placed in zip(self._cameras, self.placed, strict=True):
            service = f"/{m.name}/set_camera_info"
            client = self._node.client(service, "sensor_msgs/SetCameraInfo")
            message = info_message(camera_info(m.camera, m.name), placed.optical)
            answer = client.call(make("sensor_msgs/SetCameraInfo_Request", camera_info=message), timeout_s)
            if not answer.success:
                raise InputError(f"{service} refused the lens: {answer.status_message}")
            taken.append(service)
        return taken


def info_message(told: dict[str, Any], frame: str) -> Any:
    """sensor_msgs/CameraInfo of what `calibration.results.camera_info` says."""
    header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=0, nanosec=0), frame_id=frame)

    def numbers(name: str) -> np.ndarray:
        return np.array(told[name]["data"], dtype=np.float64)

    return blank(
        INFO, header=header, height=told["image_height"], width=told["image_width"], distortion_model=told["distortion_model"],
        d=numbers("distortion_coefficients"), k=numbers("camera_matrix"), r=numbers("rectification_matrix"), p=numbers("projection_matrix"),
    )  # fmt: skip


def _placed(folder: Path, name: str, T: Array) -> Placed:
    """What the result's file for ROS says, which knows the names of the frames."""
    import yaml

    path = folder / f"{name}.static_tf.yaml"
    try:
        told = yaml.safe_load(path.read_text())["transforms"][0]
        parent, child = str(told["header"]["frame_id"]), str(told["child_frame_id"])
        t, q = told["transform"]["translation"], told["transform"]["rotation"]
        pose = se3(quaternion_to_matrix([q["w"], q["x"], q["y"], q["z"]]), [t["x"], t["y"], t["z"]])
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}; 'sinew calibrate handeye' writes it beside calibration.json") from None
    except (ValueError, KeyError, TypeError, IndexError, yaml.YAMLError) as e:
        raise DataError(f"{path} holds no transform: {e}") from None
    if not np.allclose(pose, T, atol=1e-6):
        raise DataError(f"{path} says something else than calibration.json beside it: calibrate again, or take the file away")
    return Placed(name, parent, child, pose, child)


def _static_tree(node: Transport) -> dict[str, tuple[str, Array]]:
    """What others say on /tf_static: child to parent and T_parent_child (4, 4)."""
    subscription = node.subscription(STATIC, TF_MESSAGE, LATCHED)
    found: dict[str, tuple[str, Array]] = {}
    deadline = time.monotonic() + LISTEN_S
    while time.monotonic() < deadline:
        subscription.wait(0.1)
        for sample in subscription.take():
            try:
                for t in codec.decode_transforms(sample.data):
                    found[t.child.strip("/")] = t.parent.strip("/"), se3(quaternion_to_matrix(t.pose[3:]), t.pose[:3])
            except DataError:
                continue
    return found


def _rooted(placed: Placed, others: dict[str, tuple[str, Array]], root: str) -> Placed:
    """The same place told of the driver's root, where there is one."""
    parent = others.get(placed.child, ("", np.eye(4)))[0]
    if not root:
        if parent and parent != placed.parent:
            raise InputError(
                f"frame {placed.child} has parent {parent} on {STATIC} already, its driver places it: give the root of the driver's "
                f"frames, as --root {_top(others, placed.child)}"
            )
        return placed
    if root == placed.child:
        return placed
    tree = TransformTree(FOREVER_NS)
    for child, (above, pose) in others.items():
        tree.add(above, child, np.array(_seven(pose)), 0, 0, fixed=True)
    found = tree.lookup(root, placed.child, 0, "newest", FOREVER_NS, FOREVER_NS)
    if found is None:
        raise InputError(f"frame {placed.child} does not hang on {root}: frames on {STATIC} are {', '.join(sorted(others)) or 'none'}")
    T_root_child = se3(quaternion_to_matrix(found.value[3:]), found.value[:3])
    return Placed(placed.camera, placed.parent, root, placed.pose @ se3_inverse(T_root_child), placed.optical)


def _top(others: dict[str, tuple[str, Array]], frame: str) -> str:
    """The frame that has no parent above one."""
    seen = {frame}
    while frame in others and others[frame][0] not in seen:
        frame = others[frame][0]
        seen.add(frame)
    return frame


def _seven(pose: Array) -> tuple[float, ...]:
    return (*(float(v) for v in pose[:3, 3]), *(float(v) for v in matrix_to_quaternion(pose[:3, :3])))
