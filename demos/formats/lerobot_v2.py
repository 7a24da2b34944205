"""LeRobotDataset v2.0 and v2.1: a file per episode, JSON lines beside. Becomes v3 without a picture being encoded anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from demos import layout, tables
from demos.edit import PLAN, assemble, pieces_of
from demos.statistics import Stats, aggregate, vector_stats
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress

EPISODES, TASKS, STATS = "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl"


def is_it(path: Path) -> bool:
    """Whether a folder is a LeRobotDataset of version 2."""
    try:
        return str(json.loads((path / layout.INFO).read_text())["codebase_version"]).startswith("v2")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def upgrade(root: Path, out: Path, progress: Progress = SILENT) -> dict[str, int]:
    """Write a dataset of version 2 as version 3; its videos are linked or copied.

    Args:
        root: dataset of version 2.
        out: folder; must not exist, be empty, or hold what an earlier call left.
        progress: advances by one per episode.

    Returns:
        {"episodes", "frames"}.

    Raises:
        DataError: damaged; names the file.
        InputError: the folder is taken.
    """
    if out.exists() and not (out / PLAN).exists() and any(p.name != layout.RECORDING for p in out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder for --out")
    # A folder with version 3's lines over version 2's own files, which the paths in its info.json fit: from there it is any other edit.
    stage = out / layout.RECORDING / "v2" / root.resolve().name
    shutil.rmtree(stage, ignore_errors=True)
    _overlay(root.resolve(), stage)
    assemble(out, pieces_of(stage), progress)
    info = layout.load_info(out)
    return {"episodes": info["total_episodes"], "frames": info["total_frames"]}


def _overlay(root: Path, stage: Path) -> None:
    info = _object(root / layout.INFO)
    tasks = {_count(root / TASKS, line, "task_index"): str(line.get("task", "")) for line in _lines(root / TASKS)}
    episodes = sorted(_lines(root / EPISODES), key=lambda line: _count(root / EPISODES, line, "episode_index"))
    of_stats = _lines(root / STATS) if (root / STATS).is_file() else []
    known = {_count(root / STATS, line, "episode_index"): line.get("stats") or {} for line in of_stats}
    size = int(info.get("chunks_size") or layout.FILES_PER_CHUNK)
    (stage / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    for name in ("data", "videos", "images"):
        if (root / name).is_dir():
            (stage / name).symlink_to(root / name)
    facts = {key: value for key, value in info.items() if key not in ("total_chunks", "total_videos", "splits")}
    facts |= {"codebase_version": layout.VERSION, "data_path": _template(info, "data_path"), "video_path": _template(info, "video_path")}
    facts |= {"total_episodes": 0, "total_frames": 0}
    (stage / layout.INFO).write_text(json.dumps(facts))
    layout.load_info(stage)  # refuses paths that lead elsewhere before any is followed
    start, totals = 0, []
    for number, line in enumerate(episodes):
        index, length = line["episode_index"], _count(root / EPISODES, line, "length")
        if index != number:
            raise DataError(f"{root / EPISODES} lacks episode {number}; the dataset cannot be converted whole")
        row: dict[str, Any] = {"episode_index": number, "tasks": list(map(str, line.get("tasks") or [])), "length": length}
        for key, kind in layout.cameras(facts).items():
            if kind == "video":
                place = {"chunk_index": number // size, "file_index": number, "from_timestamp": 0.0, "to_timestamp": length / facts["fps"]}
                row |= {f"videos/{key}/{name}": value for name, value in place.items()}
        row |= {"data/chunk_index": number // size, "data/file_index": number}
        row |= {"dataset_from_index": start, "dataset_to_index": start + length, "success": None, "interrupted": False, "warnings": []}
        start += length
        stats = _stats(known.get(number, {}), facts, root, row)
        totals.append(stats)
        path = stage / layout.EPISODES.format(chunk_index=0, file_index=number)
        tables.write_episode(path, row, stats, tables.episode_schema(stage) if number else None)
    facts |= {"total_episodes": len(episodes), "total_frames": start, "total_tasks": len(tasks)}
    tables.write_tasks(stage / layout.TASKS, [tasks.get(i, "") for i in range(max(tasks, default=-1) + 1)])
    (stage / layout.STATS).write_text(json.dumps({k: {n: v.tolist() for n, v in s.items()} for k, s in aggregate(totals).items()}))
    (stage / layout.INFO).write_text(json.dumps(facts))


def _stats(told: Mapping[str, Any], facts: Mapping[str, Any], root: Path, row: Mapping[str, Any]) -> dict[str, Stats]:
    """Of pictures as version 2.1 tells them; of vectors from the frames, so that all episodes have the same."""
    path = root / facts["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    table, stats = tables.read_table(path), {}
    for key, (dtype, shape) in layout.columns(facts).items():
        if key not in table.column_names:
            raise DataError(f"{path} has no column {key!r}, which {layout.INFO} names")
        stats[key] = vector_stats(tables.column_array(table, key, dtype, shape))
    for key in layout.cameras(facts):
        found = told.get(key)
        if isinstance(found, Mapping) and all(np.size(found.get(n, ())) == 3 for n in ("min", "max", "mean", "std")):
            stats[key] = {n: np.asarray(found[n], np.float64).reshape(3, 1, 1) for n in ("min", "max", "mean", "std")}
            stats[key]["count"] = np.asarray(found.get("count", [1])).reshape(1)
    return stats


def _template(info: Mapping[str, Any], name: str) -> str | None:
    told = info.get(name)
    if not isinstance(told, str):
        return None
    return told.replace("episode_chunk", "chunk_index").replace("episode_index", "file_index")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path} cannot be read ({e})") from None
    if not isinstance(found, dict) or not isinstance(found.get("fps"), (int, float)) or not isinstance(found.get("features"), dict):
        raise DataError(f"{path} has no fps and features")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        found = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path} cannot be read ({e})") from None
    if not all(isinstance(line, dict) for line in found):
        raise DataError(f"{path} holds lines that are no objects")
    return found


def _count(path: Path, line: Mapping[str, Any], name: str) -> int:
    found = line.get(name)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < layout.MOST_EPISODES:
        raise DataError(f"{path} has a line whose {name} is {str(found)[:40]!r}; a number is expected")
    return found
