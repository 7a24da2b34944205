"""What was recorded for a calibration without a board, as it lies in a folder.

`session.json` has mount and cameras as `calibration.session` writes them, and "joints": the names of the model's joints in the order of
the positions. `poses.jsonl` has a line per picture: "image", "camera", and "joints", positions in rad (m for slides) as a list in that
order or as {name: position}; "mask" where it is not `masks/<name of the image>.png`; "keypoints" {name: [u, v, confidence]}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.body import Body
from calibration.camera import Camera
from calibration.keypoints import Points
from calibration.masks import read_mask, read_picture
from calibration.silhouettes import Look
from sinew.config import from_json, to_json
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.se3 import Array

IN_HAND = (
    "a camera on the hand always sees the hand alike, so its outline tells nothing of the motion, and what is wrong in one picture is "
    "wrong in all: use a board and 'sinew calibrate handeye' for a camera in the hand"
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of `poses.jsonl`."""

    image: Path
    mask: Path
    camera: int
    joints: Mapping[str, float]
    """Positions by the model's names."""
    keypoints: Mapping[str, tuple[float, float, float]]
    """Pixel and confidence of points of the body."""
    name: str


@dataclass(frozen=True, kw_only=True)
class Recording:
    """All of a folder."""

    records: tuple[Record, ...]
    cameras: tuple[Camera | None, ...]
    joints: tuple[str, ...]
    """Names of all joints that have positions."""
    path: Path
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Lines that cannot be used, and why."""


def read_recording(path: Path) -> Recording:
    """Read a folder; lines that cannot be used are named.

    Raises:
        InputError: no such folder, or a camera on the hand.
        DataError: a file is missing or damaged.
    """
    if not path.is_dir():
        raise InputError(f"{path} does not exist or is no folder: give one with poses.jsonl, session.json, images/ and masks/")
    try:
        info = json.loads((path / "session.json").read_text()) if (path / "session.json").exists() else {}
        lines = (path / "poses.jsonl").read_text().splitlines()
        cameras = tuple(from_json(Camera, {k: v for k, v in c.items() if k != "name"}) for c in info.get("cameras", ())) or (None,)
        names = [str(n) for n in info.get("joints", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path} is no recording for a markerless calibration: {e}") from None
    if info.get("mount") == "in_hand":
        raise InputError(IN_HAND)
    records, skipped = [], {}
    for i, line in enumerate(lines):
        try:
            records.append(_record(path, json.loads(line), names))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            skipped[f"line {i + 1}"] = f"poses.jsonl cannot be read here: {e}"
    known = dict.fromkeys(name for r in records for name in r.joints)
    for r in [r for r in records if set(r.joints) != set(known)]:
        missing = sorted(set(known) - set(r.joints))
        skipped[r.name] = f"it has no position of joint {', '.join(missing)}"
        records.remove(r)
    return Recording(records=tuple(records), cameras=cameras, joints=tuple(known), path=path, skipped=skipped)


def _record(path: Path, row: Mapping[str, Any], names: Sequence[str]) -> Record:
    image = str(row["image"])
    mask = str(row.get("mask") or f"masks/{Path(image).stem}.png")
    for name in (image, mask):
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"picture {name!r} is not inside the recording")
    if "joints" not in row:
        raise ValueError('a line needs "joints", the positions of the robot')
    given = row["joints"]
    if not isinstance(given, Mapping):
        if len(given) != len(names):
            raise ValueError(f'{len(given)} joint positions for the {len(names)} names under "joints" in session.json')
        given = dict(zip(names, given, strict=True))
    points = {str(k): (float(v[0]), float(v[1]), float(v[2]) if len(v) > 2 else 1.0) for k, v in (row.get("keypoints") or {}).items()}
    joints = {str(k): float(np.nan if v is None else v) for k, v in given.items()}
    return Record(
        image=path / image, mask=path / mask, camera=int(row.get("camera") or 0), joints=joints, keypoints=points, name=image,
    )  # fmt: skip


def looks_of(
    recording: Recording, camera: int, mask_of: Callable[[Record], np.ndarray] | None = None, progress: Progress = SILENT
) -> tuple[list[Look], dict[str, str]]:
    """The views of one camera, and why others cannot be used.

    Args:
        recording: what lies there.
        camera: which of its cameras.
        mask_of: makes the mask (height, width) bool of a record; reads the one that lies there if left out.
        progress: told of every picture.

    Raises:
        DataError: none can be used.
    """
    looks, rejected = [], dict(recording.skipped)
    mine = [r for r in recording.records if r.camera == camera]
    progress.start("look for the robot's masks", len(mine))
    for record in mine:
        progress.advance()
        try:
            mask = (mask_of or (lambda r: read_mask(r.mask)))(record)
        except InputError as e:
            rejected[record.name] = str(e)
            continue
        looks.append(Look(joints=np.array([record.joints[n] for n in recording.joints]), mask=mask, name=record.name))
    if not looks:
        told = "; ".join(f"{name}: {why}" for name, why in list(rejected.items())[:2]) or f"camera {camera} has no pictures"
        raise DataError(f"no view of {recording.path} can be used: {told}")
    return looks, rejected


def points_of(recording: Recording, camera: int, body: Body) -> tuple[list[Points], Array, dict[str, str]]:
    """The points found in the pictures of one camera; `keypoints.json` says where they are: {name: {"body": ..., "position": [x, y, z]}}.

    Returns:
        The points of each view, the joints' positions (V, J), and why other views cannot be used.

    Raises:
        DataError: keypoints.json is missing or damaged.
        InputError: it names a part that the body does not have.
    """
    try:
        content = json.loads((recording.path / "keypoints.json").read_text())
        places = {str(k): (str(v["body"]), [float(x) for x in v["position"]]) for k, v in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{recording.path / 'keypoints.json'} does not say where the points are on the body: {e}") from None
    views, positions, rejected = [], [], dict(recording.skipped)
    for record in (r for r in recording.records if r.camera == camera):
        q = np.array([record.joints[n] for n in recording.joints])
        names = [n for n, (u, v, c) in record.keypoints.items() if n in places and np.isfinite([u, v, c]).all() and c > 0]
        if not np.isfinite(q).all() or not names:
            rejected[record.name] = "it has no known keypoint" if np.isfinite(q).all() else "its joint positions are not finite"
            continue
        at = np.array([body.point(*places[n], q) for n in names])
        seen = np.array([record.keypoints[n] for n in names])
        moved = body.jacobians(q, at[:, :3], at[:, 3].astype(int))
        sure = np.minimum(seen[:, 2], 1.0)
        views.append(Points(points=at[:, :3], jacobians=moved, pixels=seen[:, :2], confidence=sure, name=record.name))
        positions.append(q)
    return views, np.reshape(positions, (len(views), len(recording.joints))), rejected


def picture_of(record: Record) -> np.ndarray:
    """The picture (height, width, 3) uint8 of a record.

    Raises:
        DataError: missing or damaged.
    """
    return read_picture(record.image)


def write_recording(
    path: Path, cameras: Sequence[Camera], joints: Sequence[str], positions: Sequence[Array], images: Sequence[np.ndarray] = (),
    masks: Sequence[np.ndarray] = (), camera: int = 0,
) -> None:  # fmt: skip
    """Write a folder, one line per row of positions (J,); pictures (height, width, 3) uint8 and masks (height, width) bool as given.

    Raises:
        InputError: there is one already.
    """
    import cv2

    if (path / "poses.jsonl").exists():
        raise InputError(f"{path} holds a recording already: choose another folder")
    for folder in ("images", "masks"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    info = {"version": 1, "mount": "to_hand", "cameras": [to_json(c) for c in cameras], "joints": list(joints)}
    (path / "session.json").write_text(json.dumps(info, indent=1))
    with (path / "poses.jsonl").open("w") as file:
        for i, q in enumerate(positions):
            row = {"image": f"images/{i:04d}.png", "camera": camera, "joints": [float(v) for v in q]}
            file.write(json.dumps(row) + "\n")
    for i, image in enumerate(images):
        cv2.imwrite(str(path / f"images/{i:04d}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    for i, mask in enumerate(masks):
        cv2.imwrite(str(path / f"masks/{i:04d}.png"), mask.astype(np.uint8) * 255)
