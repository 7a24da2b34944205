"""Files that a killed process left cut off, completed from what surrounds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from demos import footer, layout, tables, video
from sinew.errors import DataError
from sinew.rundir import write_json


def load_or_rebuild_info(root: Path, actions: list[str]) -> dict[str, Any]:
    """info.json; where it is missing or cut off, written anew from the frames, the videos and meta/sinew.json.

    Raises:
        DataError: another version, or no readable data file to work it out from.
    """
    path = root / layout.INFO
    try:
        return layout.load_info(root)
    except DataError:
        try:
            text = path.read_text() if path.exists() else ""
        except (OSError, UnicodeDecodeError):
            text = ""
        if '"codebase_version"' in text and '"v3.' not in text:
            raise
    info = _from_specs(root) or _from_frames(root)
    if info is None:
        raise DataError(f"{path} cannot be read and no file under data/ tells what it said; nothing was changed")
    write_json(path, info)
    actions.append(f"wrote {layout.INFO} anew from the recorded files; robot_type is lost")
    return info


def _from_specs(root: Path) -> dict[str, Any] | None:
    if not (root / layout.SPECS).exists():
        return None
    folders = [p.name for p in (root / "videos").glob("*")]
    fps = _fps(root)
    try:
        observation, action = layout.read_specs(root)
        extra = layout.read_extra(root)
    except DataError:
        return None
    kept_as = "video" if not observation.images or folders else "image"
    return layout.new_info(fps or round(action.rate_hz), observation, action, "", kept_as, extra)


def _from_frames(root: Path) -> dict[str, Any] | None:
    path, fps = next(_readable(root), None), _fps(root)
    if path is None or fps is None:
        return None
    features = tables.features_of(path)
    for folder in sorted((root / "videos").glob("*")):
        first = next(iter(sorted(folder.glob("*/*.mp4"))), None)
        if first is not None:
            facts = video.video_facts(first, fps)
            shape = [facts["video.height"], facts["video.width"], 3]
            features[folder.name] = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"], "info": facts}
    for key, feature in features.items():
        if feature["dtype"] == "image":
            feature["shape"] = list(video.decode_picture(tables.picture_bytes(tables.read_table(path, [key]), key)[0].as_py()).shape)
    return {
        "codebase_version": layout.VERSION, "robot_type": None, "total_episodes": 0, "total_frames": 0, "total_tasks": 0,
        "chunks_size": layout.FILES_PER_CHUNK, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": fps, "splits": {},
        "data_path": layout.DATA, "video_path": layout.VIDEO if any(f["dtype"] == "video" for f in features.values()) else None,
        "features": features,
    }  # fmt: skip


def _readable(root: Path):
    return (p for p in sorted((root / "data").glob("*/*.parquet")) if tables.is_readable(p))


def _fps(root: Path) -> int | None:
    for path in _readable(root):
        table = tables.read_table(path, ["timestamp", "frame_index"])
        time = np.asarray(table["timestamp"].to_numpy(), np.float64)
        number = np.asarray(table["frame_index"].to_numpy(), np.float64)
        if number.size and number.max() > 0 and time[number.argmax()] > 0:
            return round(number.max() / time[number.argmax()])
    return None


def complete_parquet(root: Path, path: Path, info: dict[str, Any], actions: list[str]) -> bool:
    """Give a data file that lost its footer a new one; the old file goes to damaged/. Whether that worked."""
    template, leaves = tables.template(info)
    try:
        whole = footer.complete(path.read_bytes(), leaves, template)
    except OSError:
        return False
    staged = path.with_name(f".{path.name}.new")
    if whole is None:
        return False
    staged.write_bytes(whole)
    try:
        rows = len(tables.read_table(staged))
    except DataError:
        staged.unlink()
        return False
    set_aside(root, path, actions, "its footer was missing")
    os.replace(staged, path)
    actions.append(f"completed {path.relative_to(root)}: {rows} frames")
    return True


def set_aside(root: Path, path: Path, actions: list[str], why: str) -> None:
    """Move a file to damaged/ under its own path, beside earlier ones of that name."""
    target = root / layout.DAMAGED / path.relative_to(root)
    target = target.with_name(target.name + ".saved")
    for n in range(1, 1000):
        if not target.exists():
            break
        target = target.with_name(f"{path.name}.saved{n}")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    actions.append(f"moved {path.relative_to(root)} to {layout.DAMAGED}/ ({why})")
