"""Calibration sets of others: ROS-Industrial's, folders of pictures and matrices per camera, streams of poses, easy_handeye2 samples.

All numbers keep their meaning on the way in: quaternions of ROS are xyzw, ours wxyz; poses are T_base_hand in metres.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.boards import Board
from calibration.camera import Camera
from calibration.closed_form import nearest_rotation
from calibration.session import Session, Shot, read_own
from sinew.errors import DataError, InputError
from sinew.se3 import Array, quaternion_to_matrix, se3, se3_interpolate, se3_inverse, se3_log, xyzw_to_wxyz

ARUCO_NUMBERS = tuple(f"DICT_{n}X{n}_{count}" for n in (4, 5, 6, 7) for count in (50, 100, 250, 1000))
"""OpenCV's dictionaries by number."""
ENOUGH = 5
"""Pictures that tell what size all of a set are."""
MOST_FRAMES = 600
"""Of a stream of poses so many are used, spread over its motion."""


def read_session(path: str | Path) -> Session:
    """Read a folder or file of any known kind.

    Raises:
        InputError: nothing there, or of no known kind.
        DataError: it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _read_samples(path)
    for mark, read in KINDS.items():
        if (path / mark).exists():
            return read(path)
    if len(list(path.glob("*.csv"))) >= 2 and not any(p.is_dir() for p in path.iterdir()):
        return read_streams(path)
    raise InputError(
        f"{path} is no calibration set that is known: expected poses.jsonl (ours), cal_data.yaml (ROS-Industrial), "
        "CalibrationInfo.yaml with camera folders, two CSV files of stamped poses, or a YAML file of easy_handeye2 samples"
    )


def load_yaml(path: Path) -> Any:
    """A YAML file as plain values.

    Raises:
        DataError: it cannot be read.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise DataError(f"{path} cannot be read: {str(e).splitlines()[0]}") from None


def _pose_xyzw(row: Mapping[str, Any]) -> Array:
    """T (4, 4) of x, y, z, qx, qy, qz, qw."""
    try:
        return se3(quaternion_to_matrix([row["qw"], row["qx"], row["qy"], row["qz"]]), [row["x"], row["y"], row["z"]])
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(f"a pose needs x, y, z, qx, qy, qz, qw: {e}") from None


# ---------------------------------------------------------------- ROS-Industrial


def _read_industrial(path: Path) -> Session:
    info = load_yaml(path / "cal_data.yaml")
    try:
        target, lens, rows = info["target_finder"], info["intrinsics"], info["data"]
        board = _industrial_board(target)
        focal, centre = (float(lens["fx"]), float(lens["fy"])), (float(lens["cx"]), float(lens["cy"]))
    except (KeyError, TypeError) as e:
        raise DataError(f"{path / 'cal_data.yaml'} lacks {e}") from None
    shots, skipped = [], {}
    for row in rows:
        try:
            name, pose = str(row["image"]), _pose_xyzw(load_yaml(path / str(row["pose"])))
        except (DataError, KeyError, TypeError) as e:
            skipped[str(row)] = str(e)
            continue
        shots.append(Shot(T_base_hand=pose, image=path / name, name=name))
    width, height = _size_of(shots)
    mount = "to_hand" if "camera_mount_to_camera_guess" in info and info.get("static_camera", True) else None
    return Session(
        shots=tuple(shots), cameras=(Camera(width, height, focal, centre),), board=board, mount=mount, path=path, skipped=skipped
    )


def _industrial_board(target: Mapping[str, Any]) -> Board:
    kind = str(target["type"])
    columns, rows = int(target["cols"]), int(target["rows"])
    if "Charuco" in kind:
        number = int(target["dictionary"])
        name = ARUCO_NUMBERS[number] if 0 <= number < len(ARUCO_NUMBERS) else ""
        return Board(
            columns=columns,
            rows=rows,
            square_m=float(target["chessboard_dim"]),
            marker_m=float(target["aruco_marker_dim"]),
            dictionary=name,
        )
    if "CircleGrid" in kind:
        spacing = float(target["spacing"])
        return Board(kind="circles", columns=columns, rows=rows, square_m=spacing, marker_m=0.5 * spacing)
    raise DataError(f"target {kind} is not read: ChArUco boards and modified circle grids are")


def _size_of(shots: list[Shot]) -> tuple[int, int]:
    """(width, height) of most of a few pictures."""
    import cv2

    sizes: Counter[tuple[int, int]] = Counter()
    for shot in shots:
        image = cv2.imread(str(shot.image), cv2.IMREAD_GRAYSCALE) if shot.image else None
        if image is not None:
            sizes[image.shape[1], image.shape[0]] += 1
        if sizes.total() >= ENOUGH:
            break
    if not sizes:
        raise DataError("none of its pictures can be read")
    return sizes.most_common(1)[0][0]


# ---------------------------------------------------------------- a folder per camera


def _read_cameras(path: Path) -> Session:
    info = load_yaml(path / "CalibrationInfo.yaml")
    try:
        prefix, kind, size = str(info["camera_folder_prefix"]), str(info["pattern_type"]), float(info["size"])
        rows, columns = int(info["number_of_rows"]), int(info["number_of_columns"])
        mount = "to_hand" if int(info["calibration_setup"]) == 1 else "in_hand"
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path / 'CalibrationInfo.yaml'} lacks {e}") from None
    if kind != "checkerboard":
        raise DataError(f"pattern {kind!r} of {path} is not read: checkerboards are")
    # their count is of inner corners
    board = Board(kind="checkerboard", columns=columns + 1, rows=rows + 1, square_m=size, marker_m=0.5 * size)
    folders = sorted(p for p in path.glob(f"{prefix}*") if p.is_dir())
    if not folders:
        raise DataError(f"{path} has no folder {prefix}1")
    shots, cameras, skipped = [], [], {}
    for number, folder in enumerate(folders):
        lens = load_yaml(folder / "intrinsic_pars_file.yaml")
        distortion = [float(lens.get(k, 0.0)) for k in ("dist_k0", "dist_k1", "dist_px", "dist_py", "dist_k2")]
        size_px, focal = (int(lens["img_width"]), int(lens["img_height"])), (float(lens["fx"]), float(lens["fy"]))
        centre = _centre((float(lens["cx"]), float(lens["cy"])), size_px)
        cameras.append(Camera(*size_px, focal, centre, tuple(distortion)))
        for image in sorted((folder / "image").iterdir()):
            name = f"{folder.name}/{image.name}"
            try:
                pose = np.loadtxt(folder / "pose" / f"{image.stem}.csv").reshape(4, 4)
            except (OSError, ValueError):
                skipped[name] = "its picture has no readable pose"
                continue
            pose = se3(nearest_rotation(pose[:3, :3]), pose[:3, 3])
            shots.append(
                Shot(T_base_hand=pose, image=image, camera=number, pose=int(image.stem) if image.stem.isdigit() else None, name=name)
            )
    return Session(shots=tuple(shots), cameras=tuple(cameras), board=board, mount=mount, path=path, skipped=skipped)


def _centre(told: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """The middle of the picture, where Gazebo tells (width + 1) / 2: it counts pixels from 1, we and OpenCV from 0."""
    gazebo = ((size[0] + 1) / 2, (size[1] + 1) / 2)
    return (told[0] - 1, told[1] - 1) if told == gazebo else told


# ---------------------------------------------------------------- streams of poses


def read_streams(path: Path, hand: str | None = None, camera: str | None = None, time_offset_s: float = 0.0) -> Session:
    """Two CSV files of stamped poses (t, x, y, z, qx, qy, qz, qw): the hand's in the base's frame and the camera's in the target's.

    Args:
        path: folder.
        hand: file of the hand's poses; the one whose name holds "hand", "base" or "robot" and not "camera" or "target" if left out.
        camera: file of the camera's poses.
        time_offset_s: added to the camera's stamps before the hand's pose is looked up.

    Raises:
        InputError: which file is which cannot be told.
        DataError: they do not overlap in time, or cannot be read.
    """
    files = sorted(p.name for p in path.glob("*.csv"))
    camera = camera or next((f for f in files if "target" in f or "camera" in f or "cam_" in f), None)
    hand = hand or next((f for f in files if f != camera and ("hand" in f or "base" in f or "hinge" in f)), None)
    if hand is None or camera is None:
        raise InputError(
            f"which of {', '.join(files)} holds the hand's poses and which the camera's cannot be told: name them with --streams"
        )
    robot_s, robot = _stream(path / hand)
    seen_s, seen = _stream(path / camera)
    wanted = seen_s + time_offset_s
    inside = np.flatnonzero((wanted > robot_s[0] + VELOCITY_S) & (wanted < robot_s[-1] - VELOCITY_S))
    if len(inside) < 3:
        raise DataError(f"{hand} and {camera} overlap in {len(inside)} poses only: are their clocks the same?")
    inside = inside[np.linspace(0, len(inside) - 1, min(MOST_FRAMES, len(inside))).astype(int)]
    poses, twists = _at(robot_s, robot, wanted[inside])
    shots = tuple(
        Shot(
            T_base_hand=pose,
            T_camera_board=se3_inverse(seen[i]),
            stamp_ns=round(1e9 * float(seen_s[i])),
            twist=twist,
            name=f"{camera}:{i + 1}",
        )
        for i, pose, twist in zip(inside, poses, twists, strict=True)
    )
    from calibration.session import TRACKER

    return Session(shots=shots, cameras=(TRACKER,), board=None, mount="in_hand", path=path)


VELOCITY_S = 0.02
"""Velocities are differences over this time to either side."""


def _stream(path: Path) -> tuple[Array, Array]:
    """Stamps (N,) s and poses (N, 4, 4) of a file, in order of time, each stamp once."""
    try:
        rows = [[float(v) for v in row] for row in csv.reader(path.read_text().splitlines()) if row and not row[0].startswith("#")]
        table = np.array(rows)
        if table.ndim != 2 or table.shape[1] != 8:
            raise ValueError(f"rows of 8 numbers are expected, found {table.shape}")
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read as t, x, y, z, qx, qy, qz, qw: {e}") from None
    table = table[np.isfinite(table).all(1)]
    _, first = np.unique(table[:, 0], return_index=True)
    table = table[first]
    return table[:, 0], se3(quaternion_to_matrix(xyzw_to_wxyz(table[:, 4:])), table[:, 1:4])


def _at(stamps: Array, poses: Array, when: Array) -> tuple[Array, Array]:
    """Poses (M, 4, 4) between those of a stream, and velocities (M, 6) in their own frame."""

    def look(t: Array) -> Array:
        after = np.clip(np.searchsorted(stamps, t), 1, len(stamps) - 1)
        part = (t - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
        return se3_interpolate(poses[after - 1], poses[after], np.clip(part, 0, 1))

    moved = se3_log(se3_inverse(look(when - VELOCITY_S)) @ look(when + VELOCITY_S))
    return look(when), moved / (2 * VELOCITY_S)


# ---------------------------------------------------------------- easy_handeye2


def _read_samples(path: Path) -> Session:
    """Samples of easy_handeye2: a list of robot and tracking transforms; the parameters beside them tell the mount, if they are there."""
    info = load_yaml(path)
    rows = info.get("samples") if isinstance(info, dict) else info
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no easy_handeye2 samples: a list of robot and tracking transforms is expected")
    shots, skipped = [], {}
    for i, row in enumerate(rows):
        try:
            robot, board = _transform(row["robot"]), _transform(row.get("tracking") or row["optical"])
        except (KeyError, TypeError, AttributeError, ValueError, InputError) as e:
            skipped[f"sample {i}"] = f"it has no readable pair of transforms: {e}"
            continue
        shots.append(Shot(T_base_hand=robot, T_camera_board=board, name=f"sample {i}"))
    kind = (info.get("parameters") or {}).get("calibration_type") if isinstance(info, dict) else None
    from calibration.session import TRACKER

    mount = {"eye_in_hand": "in_hand", "eye_on_base": "to_hand"}.get(str(kind))
    return Session(shots=tuple(shots), cameras=(TRACKER,), board=None, mount=mount, path=path, skipped=skipped)  # type: ignore[arg-type]


def _transform(row: Mapping[str, Any]) -> Array:
    t, q = row["translation"], row["rotation"]
    return se3(quaternion_to_matrix([q["w"], q["x"], q["y"], q["z"]]), [t["x"], t["y"], t["z"]])


KINDS: dict[str, Callable[[Path], Session]] = {
    "poses.jsonl": read_own,
    "cal_data.yaml": _read_industrial,
    "CalibrationInfo.yaml": _read_cameras,
}
"""File that tells a kind of folder → how it is read."""
