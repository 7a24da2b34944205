"""A calibration on disk: our JSON with covariance and hash, and what ROS tools read (camera_info, static transform, easy_handeye2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.boards import Board
from calibration.camera import Camera
from calibration.model import MOUNTS, Mount
from calibration.solve import Result, summary
from sinew.calibrations import Calibration
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
            (np.round(self.T, 6) + 0.0).tolist(),  # + 0.0: minus zero is zero
            (np.round(self.camera.parameters, 4) + 0.0).tolist(),
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
    result: Result, folder: Path, *, names: tuple[str, ...] = (), base_frame: str = "base_link", hand_frame: str = "tool0",
    camera_frames: tuple[str, ...] = (), board: Board | None = None,
) -> dict[str, Path]:  # fmt: skip
    """Write calibration.json, and per camera <name>.camera_info.yaml, <name>.static_tf.yaml and <name>.easy_handeye2.yaml.

    Args:
        result: what was estimated.
        folder: where to.
        names: of the cameras.
        base_frame: of the robot's base.
        hand_frame: of its hand.
        camera_frames: of each camera's optical axes, as its driver calls it; <name>_optical_frame where that is left out.
        board: what was looked at, kept for whoever watches for drift later.

    Returns:
        What was written, by kind.
    """
    return write_mounted(
        mounted(result, names), summary(result), folder, base_frame=base_frame, hand_frame=hand_frame, camera_frames=camera_frames,
        board=board,
    )  # fmt: skip


def write_mounted(
    cameras: Sequence[Mounted], report: Mapping[str, Any], folder: Path, *, base_frame: str = "base_link", hand_frame: str = "tool0",
    camera_frames: tuple[str, ...] = (), board: Board | None = None,
) -> dict[str, Path]:  # fmt: skip
    """As `write`, for cameras that were calibrated in any way; `report` is kept as it is."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    files = {"calibration": folder / "calibration.json"}
    content = {"version": VERSION, "cameras": [{**to_json(m), "hash": m.hash} for m in cameras], "report": report}
    content |= {} if board is None else {"board": to_json(board)}
    files["calibration"].write_text(json.dumps(content, indent=1))
    for m, frame in zip(cameras, (*camera_frames, *[""] * len(cameras)), strict=False):
        parent, child = hand_frame if m.mount == "in_hand" else base_frame, frame or f"{m.name}_optical_frame"
        for kind, data in (
            ("camera_info", camera_info(m.camera, m.name)),
            ("static_tf", {"transforms": [static_transform(m, parent, child)]}),
            ("easy_handeye2", _easy_handeye(m, base_frame, hand_frame, child)),
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
        cameras = [_camera(row, str(path)) for row in content["cameras"]]
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path} is no calibration: {e}") from None
    for m in cameras:
        shapes = (m.T.shape, m.Z.shape, m.covariance.shape) == ((4, 4), (4, 4), (6, 6))
        if m.mount not in MOUNTS or not shapes or not all(np.isfinite(v).all() for v in (m.T, m.Z, m.covariance)):
            raise DataError(f"{path}: camera {m.name} has no usable pose")
    return cameras


def read_board(path: Path) -> Board | None:
    """The board that a calibration was made with; None where it does not tell.

    Raises:
        InputError: nothing there.
        DataError: it is no calibration.
    """
    path = path / "calibration.json" if path.is_dir() else path
    try:
        told = json.loads(path.read_text()).get("board")
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, AttributeError) as e:
        raise DataError(f"{path} is no calibration: {e}") from None
    return None if told is None else from_json(Board, told, str(path))


def _camera(row: Mapping[str, Any], where: str) -> Mounted:
    arrays: dict[str, Any] = {k: np.array(row[k], dtype=float) for k in ("T", "covariance", "Z")}
    plain: dict[str, Any] = {k: row[k] for k in ("name", "mount", "pixel_sigma", "robot_sigma_m", "robot_sigma_rad", "scale")}
    return Mounted(**plain, **arrays, camera=from_json(Camera, row["camera"], where))


def read_named(given: Sequence[str | Path]) -> list[Mounted]:
    """The cameras of several results, each a path or NAME=PATH, which gives the one camera of that result another name.

    Raises:
        InputError: nothing there, a name for several cameras, or two cameras of one name.
        DataError: it is no calibration.
    """
    found: list[Mounted] = []
    for text in map(str, given):
        name, equals, path = text.partition("=")
        named = bool(equals) and "/" not in name and not Path(text).exists()
        cameras = read(Path(path if named else text))
        if named and len(cameras) > 1:
            raise InputError(f"{text}: {path} has cameras {', '.join(m.name for m in cameras)}, and one name does not do for them")
        found += [replace(m, name=name) for m in cameras] if named else cameras
    names = [m.name for m in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"two cameras are called {twice[0]}: give one another name, as front={given[0]}")
    return found


def carried(cameras: Sequence[Mounted]) -> Calibration:
    """What datasets, runs and deployments carry of a calibration."""
    return Calibration(cameras=tuple({**to_json(m), "hash": m.hash} for m in cameras))


def uncarried(calibration: Calibration) -> list[Mounted]:
    """The cameras of what `carried` made."""
    return [_camera(row, f"calibration {calibration.hash}") for row in calibration.cameras]


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


def static_transform(m: Mounted, parent: str, child: str) -> dict[str, Any]:
    """geometry_msgs/TransformStamped of a camera's optical frame, quaternion xyzw by name."""
    return {"header": {"frame_id": parent}, "child_frame_id": child, "transform": _transform(m.T)}


def _transform(pose: Array) -> dict[str, Any]:
    w, x, y, z = (float(v) for v in matrix_to_quaternion(pose[:3, :3]))
    t = [float(v) for v in pose[:3, 3]]
    return {"translation": {"x": t[0], "y": t[1], "z": t[2]}, "rotation": {"x": x, "y": y, "z": z, "w": w}}


def _easy_handeye(m: Mounted, base_frame: str, hand_frame: str, camera_frame: str) -> dict[str, Any]:
    parameters = {
        "name": m.name, "calibration_type": "eye_in_hand" if m.mount == "in_hand" else "eye_on_base",
        "tracking_base_frame": camera_frame, "tracking_marker_frame": "board", "robot_base_frame": base_frame,
        "robot_effector_frame": hand_frame, "freehand_robot_movement": False,
    }  # fmt: skip
    return {"parameters": parameters, "transform": _transform(m.T)}
