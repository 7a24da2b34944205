"""A calibration on disk: our JSON with covariance and hash, and what ROS tools read (camera_info, static transform, easy_handeye2)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera
from calibration.model import MOUNTS, Mount
from calibration.solve import Result, summary
from sinew.config import from_json, to_json
from sinew.errors import DataError, InputError
from sinew.se3 import Array, matrix_to_quaternion

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """Where one camera is: what users of a calibration need."""

    name: str
    mount: Mount
    T: Array
    """T_hand_camera or T_base_camera (4, 4)."""
    covariance: Array
    """(6, 6), rotation vector in rad first, then translation in m, in the camera's frame."""
    camera: Camera
    Z: Array
    """T_base_board or T_hand_board (4, 4) at the time."""
    pixel_sigma: float
    robot_sigma_m: float
    robot_sigma_rad: float
    scale: float = 1.0

    @property
    def hash(self) -> str:
        """Of the mount, the pose to a micrometre and microradian, and the lens: datasets and policies carry it."""
        told = [
            self.mount,
            np.round(self.T, 6).tolist(),
            np.round(self.camera.parameters, 4).tolist(),
            self.camera.width,
            self.camera.height,
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def mounted(result: Result, names: tuple[str, ...] = ()) -> list[Mounted]:
    """Every camera of a result."""
    return [
        Mounted(
            name=names[c] if c < len(names) else f"camera{c}", mount=result.mount, T=result.T[c], covariance=result.covariance[c],
            camera=result.cameras[c], Z=result.Z, pixel_sigma=result.pixel_sigma, robot_sigma_m=result.robot_sigma_m,
            robot_sigma_rad=result.robot_sigma_rad, scale=result.scale,
        )
        for c in range(len(result.T))
    ]  # fmt: skip


def write(
    result: Result, folder: Path, *, names: tuple[str, ...] = (), base_frame: str = "base_link", hand_frame: str = "tool0"
) -> dict[str, Path]:
    """Write calibration.json, and per camera <name>.camera_info.yaml, <name>.static_tf.yaml and <name>.easy_handeye2.yaml.

    Returns:
        What was written, by kind.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    cameras = mounted(result, names)
    files = {"calibration": folder / "calibration.json"}
    content = {"version": VERSION, "cameras": [{**to_json(m), "hash": m.hash} for m in cameras], "report": summary(result)}
    files["calibration"].write_text(json.dumps(content, indent=1))
    for m in cameras:
        parent = hand_frame if m.mount == "in_hand" else base_frame
        for kind, data in (
            ("camera_info", camera_info(m.camera, m.name)),
            ("static_tf", {"transforms": [static_transform(m, parent)]}),
            ("easy_handeye2", _easy_handeye(m, base_frame, hand_frame)),
        ):
            files[f"{m.name}.{kind}"] = folder / f"{m.name}.{kind}.yaml"
            files[f"{m.name}.{kind}"].write_text(yaml.safe_dump(data, sort_keys=False))
    return files


def read(path: Path) -> list[Mounted]:
    """The cameras of a calibration.json, or of the folder that holds one.

    Raises:
        InputError: nothing there.
        DataError: it is no calibration, or one of another version.
    """
    path = path / "calibration.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text())
        if content.get("version") != VERSION:
            raise DataError(f"{path} is of version {content.get('version')}, this Sinew reads {VERSION}")
        cameras = []
        for row in content["cameras"]:
            arrays: dict[str, Any] = {k: np.array(row[k], dtype=float) for k in ("T", "covariance", "Z")}
            plain: dict[str, Any] = {k: row[k] for k in ("name", "mount", "pixel_sigma", "robot_sigma_m", "robot_sigma_rad", "scale")}
            cameras.append(Mounted(**plain, **arrays, camera=from_json(Camera, row["camera"], str(path))))
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path} is no calibration: {e}") from None
    for m in cameras:
        if m.mount not in MOUNTS or m.T.shape != (4, 4) or m.covariance.shape != (6, 6) or not np.isfinite(m.T).all():
            raise DataError(f"{path}: camera {m.name} has no usable pose")
    return cameras


def camera_info(camera: Camera, name: str) -> dict[str, Any]:
    """What ROS's camera_info_manager reads."""
    model = {"pinhole": "plumb_bob", "rational": "rational_polynomial", "fisheye": "equidistant"}[camera.model]
    k = camera.matrix
    projection = np.concatenate([k, np.zeros((3, 1))], 1)

    def table(matrix: Array) -> dict[str, Any]:
        return {"rows": matrix.shape[0], "cols": matrix.shape[1], "data": [float(v) for v in matrix.ravel()]}

    return {
        "image_width": camera.width,
        "image_height": camera.height,
        "camera_name": name,
        "camera_matrix": table(k),
        "distortion_model": model,
        "distortion_coefficients": table(np.array([camera.distortion])),
        "rectification_matrix": table(np.eye(3)),
        "projection_matrix": table(projection),
    }


def static_transform(m: Mounted, parent: str) -> dict[str, Any]:
    """geometry_msgs/TransformStamped of a camera's optical frame, quaternion xyzw by name."""
    return {"header": {"frame_id": parent}, "child_frame_id": f"{m.name}_optical_frame", "transform": _transform(m.T)}


def _transform(pose: Array) -> dict[str, Any]:
    w, x, y, z = (float(v) for v in matrix_to_quaternion(pose[:3, :3]))
    t = [float(v) for v in pose[:3, 3]]
    return {"translation": {"x": t[0], "y": t[1], "z": t[2]}, "rotation": {"x": x, "y": y, "z": z, "w": w}}


def _easy_handeye(m: Mounted, base_frame: str, hand_frame: str) -> dict[str, Any]:
    parameters = {
        "name": m.name, "calibration_type": "eye_in_hand" if m.mount == "in_hand" else "eye_on_base",
        "tracking_base_frame": f"{m.name}_optical_frame", "tracking_marker_frame": "board", "robot_base_frame": base_frame,
        "robot_effector_frame": hand_frame, "freehand_robot_movement": False,
    }  # fmt: skip
    return {"parameters": parameters, "transform": _transform(m.T)}
