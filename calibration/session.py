"""What was recorded for a calibration, as it lies in a folder: pictures, robot poses with stamps, board and cameras.

Our own layout is `board.json`, `session.json` (mount, cameras), `poses.jsonl` (one line per picture: image, camera, stamp_ns, pose number,
T_base_hand as 16 numbers, and what is known of joints and velocity) and `images/`. `calibration.foreign` reads others'.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.boards import Board
from calibration.camera import Camera
from calibration.detection import detect
from calibration.model import MOUNTS, Mount
from calibration.order import resolve_order
from calibration.views import View, Views, pack
from sinew.config import from_json, to_json
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.se3 import Array


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture with the robot's pose, or one pose of the board where no picture was kept."""

    T_base_hand: Array
    """(4, 4) m."""
    image: Path | None = None
    T_camera_board: Array | None = None
    """(4, 4) m, of trackers that tell poses and no corners."""
    camera: int = 0
    pose: int | None = None
    """Shots of several cameras at one pose of the robot have one number."""
    stamp_ns: int | None = None
    twist: Array | None = None
    """Velocity of the hand in its own frame (6,), m/s and rad/s."""
    joint_jacobian: Array | None = None
    """(6, J) in the hand's frame."""
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Session:
    """All shots of one calibration."""

    shots: tuple[Shot, ...]
    cameras: tuple[Camera | None, ...]
    """None where the intrinsics are not known."""
    board: Board | None
    mount: Mount | None
    """None where the recording does not tell."""
    path: Path
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What lay there and cannot be used, and why."""


@dataclass(frozen=True)
class Found:
    """Views with what was left out of them."""

    views: Views
    rejected: dict[str, str]
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of each camera's pictures."""


def find_views(session: Session, cameras: Sequence[Camera | None] | None = None, progress: Progress = SILENT) -> Found:
    """Look for the board in every picture; pictures that cannot be used are named and left out.

    A camera's pictures must be of the size that its intrinsics are for; where these are not known, of the size that most have.

    Raises:
        DataError: nothing can be used, or no picture is of the size that the intrinsics are for.
        InputError: there is no description of the board.
    """
    views: list[View] = []
    rejected, sizes = dict(session.skipped), dict[str, tuple[int, int]]()
    progress.start("look for the board", len(session.shots))
    for shot in session.shots:
        progress.advance()
        found, size = _look(session, shot)
        if size:
            sizes[shot.name] = size
        if isinstance(found, str):
            rejected[shot.name] = found
        else:
            views.append(found)
    wanted = {c: _size(session, c, sizes) for c in range(len(session.cameras))}
    for view in [v for v in views if v.name in sizes and sizes[v.name] != wanted[v.camera]]:
        views = [v for v in views if v is not view]
        (width, height), (other_width, other_height) = sizes[view.name], wanted[view.camera]
        rejected[view.name] = f"its picture is {width} x {height}, those of this camera must be {other_width} x {other_height}"
    if not views:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(rejected.items())[:3]) or "it is empty"
        raise DataError(f"no picture of {session.path} can be used: {why}")
    views = _apart(session, views, rejected)
    known = tuple(c for c in (cameras or session.cameras) if c is not None)
    if session.board is not None and known and session.mount is not None and len(known) == len(session.cameras):
        views = resolve_order(views, session.board, known, session.mount)
    return Found(pack(views), rejected, tuple(wanted.values()))


def _apart(session: Session, views: list[View], rejected: dict[str, str]) -> list[View]:
    """Views that are there twice count once, and views of one and the same pose share the robot's error: else certainty would be false.

    Raises:
        DataError: nothing but one view, again and again.
    """
    kept: list[View] = []
    for view in views:
        before = [k for k in kept if k.camera == view.camera and _same_pose(k.robot, view.robot)]
        same = next((k for k in before if k.pixels.shape == view.pixels.shape and np.array_equal(k.pixels, view.pixels)), None)
        if same is not None:
            rejected[view.name] = "it is there more than once, and counts once" if same.name == view.name else f"it repeats {same.name}"
        elif before and view.pose is None and view.twist is None:
            first = kept.index(before[0])
            number = -1 - first if before[0].pose is None else before[0].pose  # below those that a session may give
            kept[first] = replace(before[0], pose=number)
            kept.append(replace(view, pose=number))
        else:
            kept.append(view)
    if len(views) > 2 and len(kept) == 1:
        raise DataError(f"all {len(views)} views of {session.path} are the same one: move the robot between the views")
    return kept


def _same_pose(a: Array, b: Array) -> bool:
    return float(np.abs(a - b).max()) < SAME


SAME = 1e-4
"""Poses nearer to each other than this, m and rad, are one: the robot stood."""


def _look(session: Session, shot: Shot) -> tuple[View | str, tuple[int, int] | None]:
    """The view of a shot, or why it gives none; and the (width, height) of its picture, None without one."""
    import cv2

    if not np.isfinite(shot.T_base_hand).all():
        return "its robot pose is not finite", None
    if shot.image is None:
        return _from_pose(shot), None
    if session.board is None:
        raise InputError(f"{session.path} does not describe its board: put its board.json there")
    image = cv2.imread(str(shot.image), cv2.IMREAD_GRAYSCALE)
    if image is None:
        return "its picture is missing or damaged", None
    size = (image.shape[1], image.shape[0])
    found = detect(image, session.board)
    if found.refused:
        return found.refused, size
    view = View(
        robot=shot.T_base_hand, points=session.board.points[found.ids], pixels=found.pixels, sigma=found.sigma, name=shot.name,
        camera=shot.camera, pose=shot.pose, twist=shot.twist, joint_jacobian=shot.joint_jacobian,
    )  # fmt: skip
    return view, size


def _size(session: Session, number: int, sizes: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """(width, height) that a camera's pictures must have; (0, 0) where there are none.

    Raises:
        DataError: none has the size that its intrinsics are for.
    """
    own = Counter(sizes[s.name] for s in session.shots if s.camera == number and s.name in sizes)
    lens = session.cameras[number]
    if not own or (lens is not None and (lens.width, lens.height) in own):
        return (0, 0) if not own or lens is None else (lens.width, lens.height)
    width, height = own.most_common(1)[0][0]
    if lens is not None:
        raise DataError(
            f"the pictures of camera {number} of {session.path} are {width} x {height}, its intrinsics are for {lens.width} x "
            f"{lens.height}: give those of this size with --intrinsics"
        )
    return width, height


TRACKER = Camera(1000, 1000, (1000.0, 1000.0), (500.0, 500.0))
"""Trackers that tell poses are given a camera, and a board of this half size in metres, whose corners carry the pose."""
TRACKED_M = 0.1


def _from_pose(shot: Shot) -> View:
    """A pose of the board as the corners of one: their spread carries rotation and translation alike."""
    corners = TRACKED_M * np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    assert shot.T_camera_board is not None
    seen = corners @ shot.T_camera_board[:3, :3].T + shot.T_camera_board[:3, 3]
    return View(
        robot=shot.T_base_hand, points=corners, pixels=TRACKER.project(seen), name=shot.name, camera=shot.camera, pose=shot.pose,
        twist=shot.twist, joint_jacobian=shot.joint_jacobian,
    )  # fmt: skip


# ---------------------------------------------------------------- our own layout


def write_session(path: Path, board: Board, cameras: Sequence[Camera], mount: Mount, names: Sequence[str] = ()) -> SessionWriter:
    """Begin a folder of our own layout.

    Raises:
        InputError: there is a session already.
    """
    if (path / "session.json").exists():
        raise InputError(f"{path} holds a calibration session already: choose another folder")
    (path / "images").mkdir(parents=True, exist_ok=True)
    (path / "board.json").write_text(json.dumps(to_json(board), indent=1))
    info = {
        "version": 1,
        "mount": mount,
        "cameras": [{"name": n, **to_json(c)} for n, c in zip(names or map(str, range(len(cameras))), cameras, strict=True)],
    }
    (path / "session.json").write_text(json.dumps(info, indent=1))
    return SessionWriter(path)


def continue_session(path: Path, board: Board, cameras: Sequence[Camera], mount: Mount) -> tuple[Session, SessionWriter]:
    """Go on with a folder of our own layout.

    Returns:
        What is there, and what adds to it.

    Raises:
        InputError: it is of another board, camera or mount.
        DataError: it is damaged.
    """
    if not (path / "poses.jsonl").exists():
        (path / "poses.jsonl").touch()
    session = read_own(path)
    for what, there, given in (("board", session.board, board), ("mount", session.mount, mount), ("lens", session.cameras, tuple(cameras))):
        if there != given:
            raise InputError(f"{path} was taken with {what} {there}, now it is {given}: go on with the same one, or choose another folder")
    counted = [int(p.stem) for p in (path / "images").glob("*.png") if p.stem.isdigit()]
    return session, SessionWriter(path, max(counted, default=-1) + 1)


class SessionWriter:
    """Adds shots to a session; every one is on the disk when `add` returns."""

    def __init__(self, path: Path, count: int = 0) -> None:
        self.path, self.count = path, count

    def add(
        self, image: np.ndarray, T_base_hand: Array, *, camera: int = 0, pose: int | None = None, stamp_ns: int | None = None, **more: Any
    ) -> None:
        """Store one picture (height, width, 3) RGB or (height, width), and where the hand was."""
        import cv2

        name = f"images/{self.count:04d}.png"
        cv2.imwrite(str(self.path / name), image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        row = {"image": name, "camera": camera, "pose": pose, "stamp_ns": stamp_ns, "T_base_hand": np.ravel(T_base_hand).tolist()}
        row.update({k: np.asarray(v).tolist() for k, v in more.items()})
        with (self.path / "poses.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
        self.count += 1


def read_own(path: Path) -> Session:
    """Read our own layout; lines that cannot be used are named.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        board = from_json(Board, json.loads((path / "board.json").read_text()))
        info = json.loads((path / "session.json").read_text()) if (path / "session.json").exists() else {}
        lines = (path / "poses.jsonl").read_text().splitlines()
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is no calibration session: {e}") from None
    cameras = tuple(from_json(Camera, {k: v for k, v in c.items() if k != "name"}) for c in info.get("cameras", ())) or (None,)
    mount = info.get("mount")
    if mount is not None and mount not in MOUNTS:
        raise DataError(f"{path}: mount {mount!r} is not known; known are {', '.join(MOUNTS)}")
    shots, skipped, listed = [], {}, set()
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        name = f"line {i + 1}"
        try:
            row = json.loads(line)
            listed.add(name := str(row["image"]))
            if not name or Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"picture {name!r} is not inside the session")
            pose = pose_of(row)
        except (ValueError, KeyError, TypeError) as e:
            skipped[name] = f"its line in poses.jsonl, number {i + 1}, cannot be used: {e}"
            continue
        shots.append(
            Shot(
                T_base_hand=pose, image=path / name, camera=int(row.get("camera") or 0), pose=row.get("pose"), stamp_ns=row.get("stamp_ns"),
                name=name, twist=_optional(row.get("twist")), joint_jacobian=_optional(row.get("joint_jacobian")),
            )
        )  # fmt: skip
    there = sorted(p for p in (path / "images").glob("*") if p.suffix.lower() in PICTURES)
    skipped |= {name: "it has no line in poses.jsonl" for p in there if (name := f"images/{p.name}") not in listed}
    return Session(shots=tuple(shots), cameras=cameras, board=board, mount=mount, path=path, skipped=skipped)


PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def pose_of(row: Mapping[str, Any]) -> Array:
    """T_base_hand (4, 4) of a line: "T_base_hand" as 16 numbers, or "position" (3) m and "quaternion_wxyz" (4).

    Raises:
        ValueError: no pose, or none that is rigid.
    """
    from sinew.se3 import quaternion_to_matrix, se3

    if "T_base_hand" in row:
        pose = np.asarray(row["T_base_hand"], dtype=float).reshape(4, 4)
        if np.isfinite(pose).all() and (np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() > 1e-2 or np.linalg.det(pose[:3, :3]) < 0):
            raise ValueError("T_base_hand is no rigid motion")
        return pose
    if "position" in row and "quaternion_wxyz" in row:
        return se3(quaternion_to_matrix(row["quaternion_wxyz"]), row["position"])
    raise ValueError("a line needs T_base_hand, or position and quaternion_wxyz")


def _optional(value: Any) -> Array | None:
    return None if value is None else np.asarray(value, dtype=float)
