"""Makes a damaged dataset loadable again: keeps every episode that can be read in full, moves what cannot to damaged/, deletes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from demos import layout, rebuild, tables, video
from demos.doctor import Report, check
from demos.journal import read_journal
from demos.layout import cameras, columns
from demos.ledger import SAMPLED_IMAGES, Ledger
from demos.lock import hold, release
from demos.statistics import Stats, aggregate, image_stats, vector_stats
from sinew.errors import DataError
from sinew.progress import SILENT, Progress
from sinew.rundir import atomic_write


@dataclass
class _Episode:
    """An episode that the data files hold in full."""

    path: Path
    number: int
    """As the data file numbers it."""
    length: int
    start: int
    """Its first "index", as the data file has it."""
    row: dict[str, Any]
    """Its line; without a "length" where none was readable."""


def repair(root: Path | str, *, progress: Progress = SILENT) -> Report:
    """Mend what a crash left: bring in unsaved episodes, complete cut-off files, make counts and files agree.

    Args:
        root: dataset folder.
        progress: one step per stage.

    Returns:
        What was done (`actions`) and what `check` still finds, without looking at pictures.

    Raises:
        DataError: no dataset, nothing in it can be read, or a recorder is at work in it.
    """
    root = Path(root)
    actions: list[str] = []
    if not root.is_dir() or not any((root / n).exists() for n in ("meta", "data", layout.RECORDING)):
        layout.check_root(root)
    lock = hold(root)
    try:
        progress.start("repair", 3)
        facts = rebuild.load_or_rebuild_info(root, actions)
        progress.advance()
        _set_journals_aside(root, actions)
        _agree(root, facts, actions)
        progress.advance()
        for episode in Ledger(root).settle(keep_interrupted=True):
            state = "an interrupted" if episode.interrupted else "an unsaved"
            actions.append(f"brought in {state} episode of {episode.length} frames as episode {episode.index}")
        progress.advance()
    finally:
        release(root, lock)
    return replace(check(root, pictures=False), actions=tuple(actions))


def _set_journals_aside(root: Path, actions: list[str]) -> None:
    """Move away episodes in recording whose header is damaged: nothing tells what their bytes mean, and the rest shall be mended."""
    for folder in sorted((root / layout.RECORDING).glob("episode-*")):
        try:
            read_journal(folder)
        except DataError:
            rebuild.set_aside(root, folder, actions, "an episode that was never saved, and whose header is damaged")


def _agree(root: Path, facts: dict[str, Any], actions: list[str]) -> None:
    """Keep the episodes that can be read in full, and make all files say so."""
    lines = _lines(root, facts, actions)
    found = _data(root, facts, lines, actions)
    kept = _with_pictures(root, facts, found, actions)
    tasks = _tasks(root, kept, actions)
    starts = np.cumsum([0, *(e.length for e in kept)])
    renumbered = any(e.number != i or e.start != starts[i] for i, e in enumerate(kept)) or _strays(root, kept)
    if renumbered:
        _rewrite_data(root, facts, kept, actions)
    if renumbered or any("length" not in e.row for e in kept) or len(lines) != len(kept):
        _rewrite_lines(root, facts, kept, tasks, actions)
    totals = {"total_episodes": len(kept), "total_frames": int(starts[-1]), "total_tasks": len(tasks)}
    if any(facts.get(k) != v for k, v in totals.items()):
        actions.append(f"{layout.INFO} now counts {len(kept)} episodes, {starts[-1]} frames (it counted {facts.get('total_episodes')})")
        stats = aggregate([tables.row_stats(r) for r in tables.read_episodes(root, stats=True)])
        atomic_write(root / layout.STATS, json.dumps({k: {n: v.tolist() for n, v in s.items()} for k, s in stats.items()}))
        atomic_write(root / layout.INFO, json.dumps({**facts, **totals, "splits": {"train": f"0:{len(kept)}"}}, indent=4))


def _lines(root: Path, facts: dict[str, Any], actions: list[str]) -> dict[int, dict[str, Any]]:
    """Readable lines of episodes by index; files that stay unreadable are moved away."""
    lines: dict[int, dict[str, Any]] = {}
    unsaved = _unsaved_numbers(root, facts)
    for path in tables.episode_files(root):
        try:
            rows = tables.read_episodes(root, files=[path])
        except DataError:
            rebuild.set_aside(root, path, actions, "unreadable")
            continue
        for row in rows:
            if int(row["episode_index"]) in unsaved:
                continue
            lines.setdefault(int(row["episode_index"]), row)
    return lines


def _data(root: Path, facts: dict[str, Any], lines: Mapping[int, dict[str, Any]], actions: list[str]) -> list[_Episode]:
    found: dict[int, _Episode] = {}
    unsaved = _unsaved_numbers(root, facts)
    for path in sorted((root / "data").glob("*/*.parquet")):
        if not tables.is_readable(path) and not rebuild.complete_parquet(root, path, facts, actions):
            rebuild.set_aside(root, path, actions, "unreadable")
            continue
        table = tables.read_table(path, ["episode_index", "frame_index", "index"])
        number, frame, index = (np.asarray(table[k].to_numpy()).reshape(-1) for k in ("episode_index", "frame_index", "index"))
        for n in np.unique(number).tolist():
            at = np.flatnonzero(number == n)
            if n in unsaved:
                continue
            in_order = np.array_equal(frame[at], np.arange(len(at))) and np.array_equal(index[at], index[at[0]] + np.arange(len(at)))
            if n in found or not in_order:
                actions.append(f"left out episode {n} of {path.relative_to(root)}: its frames are not in order or it is there twice")
                continue
            row = lines.get(n, {})
            row = row if row.get("length") == len(at) else {}
            found[n] = _Episode(path, n, len(at), int(index[at[0]]), row)
    return [found[n] for n in sorted(found)]


def _with_pictures(root: Path, facts: dict[str, Any], episodes: list[_Episode], actions: list[str]) -> list[_Episode]:
    """Episodes whose videos hold all their frames; the place in the video is worked out where no line tells it."""
    keys = [k for k, kind in cameras(facts).items() if kind == "video"]
    lengths: dict[Path, int] = {}
    ends: dict[str, tuple[int, int]] = dict.fromkeys(keys, (0, 0))
    kept = []
    for episode in episodes:
        place = {k: v for k, v in episode.row.items() if k.startswith("videos/")}
        problem = ""
        for key in keys:
            if f"videos/{key}/from_timestamp" not in place:
                place |= _next_place(root, facts, key, *_own_place(root, facts, key, episode, *ends[key]), episode.length)
            number = place[f"videos/{key}/chunk_index"] * layout.FILES_PER_CHUNK + place[f"videos/{key}/file_index"]
            end = round(place[f"videos/{key}/from_timestamp"] * facts["fps"]) + episode.length
            ends[key] = (number, end)
            path = _video_path(root, facts, key, number)
            if path not in lengths:
                lengths[path] = _frames_in(path)
            if lengths[path] < end:
                problem = f"{path.relative_to(root)} holds {max(0, lengths[path])} frames, it needs {end}"
        if problem:
            actions.append(f"left out episode {episode.number}: {problem}")
        else:
            episode.row |= place
            kept.append(episode)
    return kept


def _own_place(root: Path, facts: dict[str, Any], key: str, episode: _Episode, number: int, end: int) -> tuple[int, int]:
    """The video of the number of the data file, where it is just as long: then an episode that was lost in between counts no more."""
    own = layout.file_number(episode.path)
    alone = own > number and _frames_in(_video_path(root, facts, key, own)) == episode.length
    return (own, 0) if alone else (number, end)


def _next_place(root: Path, facts: dict[str, Any], key: str, number: int, end: int, length: int) -> dict[str, Any]:
    """Where an episode follows the one before: in the same video, else at the start of the next."""
    path = _video_path(root, facts, key, number)
    if end and _frames_in(path) < end + length:
        number, end = number + 1, 0
    chunk, file = layout.file_indices(number)
    return {
        f"videos/{key}/chunk_index": chunk,
        f"videos/{key}/file_index": file,
        f"videos/{key}/from_timestamp": end / facts["fps"],
        f"videos/{key}/to_timestamp": (end + length) / facts["fps"],
    }


def _tasks(root: Path, kept: list[_Episode], actions: list[str]) -> list[str]:
    highest = -1
    for path in {e.path for e in kept}:
        highest = max(highest, int(np.max(tables.read_table(path, ["task_index"])["task_index"].to_numpy())))
    try:
        tasks = tables.read_tasks(root) if kept else []
    except DataError:
        tasks = []
    if len(tasks) <= highest:
        tasks += [f"unknown task {i}" for i in range(len(tasks), highest + 1)]
        tables.write_tasks(_staged(root / layout.TASKS), tasks)
        os.replace(_staged(root / layout.TASKS), root / layout.TASKS)
        actions.append(f"wrote {layout.TASKS} anew; {len(tasks)} tasks, name them with care")
    return tasks


def _strays(root: Path, kept: list[_Episode]) -> bool:
    """Whether data files hold rows of episodes that are not kept."""
    rows = sum(tables.count_rows(p) for p in (root / "data").glob("*/*.parquet"))
    return rows != sum(e.length for e in kept) and not any((root / layout.RECORDING).glob("episode-*"))


def _rewrite_data(root: Path, facts: dict[str, Any], kept: list[_Episode], actions: list[str]) -> None:
    """Give each episode a data file of its own, numbered without holes."""
    start = 0
    staged: list[tuple[Path, Path]] = []
    for new, episode in enumerate(kept):
        chunk, file = layout.file_indices(new)
        target = root / facts["data_path"].format(chunk_index=chunk, file_index=file)
        numbers = {"episode_index": np.full(episode.length, new), "index": start + np.arange(episode.length)}
        tables.copy_rows(episode.path, _staged(target), episode.number, slice(None), numbers)
        staged.append((_staged(target), target))
        episode.row |= {"data/chunk_index": chunk, "data/file_index": file}
        start += episode.length
    for episode, new in zip(kept, range(len(kept)), strict=True):
        beside = layout.native_path(root, episode.number)
        if beside.exists() and episode.number != new:
            target = layout.native_path(root, new)
            _staged(target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(beside, _staged(target))
            staged.append((_staged(target), target))
    for path in sorted((root / "data").glob("*/*.parquet")):
        rebuild.set_aside(root, path, actions, "replaced by renumbered files")
    numbers = {e.number for e in kept}
    for path in sorted((root / layout.NATIVE.split("/")[0]).glob("*/*.parquet")):
        if layout.file_number(path) not in numbers:
            rebuild.set_aside(root, path, actions, "its episode was left out")
    for source, target in staged:
        os.replace(source, target)
    actions.append(f"renumbered the frames of {len(kept)} episodes")


def _rewrite_lines(root: Path, facts: dict[str, Any], kept: list[_Episode], tasks: list[str], actions: list[str]) -> None:
    start, staged = 0, []
    outcome = any("success" in e.row for e in kept)
    known = {int(r["episode_index"]): tables.row_stats(r) for r in tables.read_episodes(root, stats=True)}
    for number, episode in enumerate(kept):
        chunk, file = layout.file_indices(number)
        target = root / layout.EPISODES.format(chunk_index=chunk, file_index=file)
        row = dict(episode.row)
        stats = known.get(episode.number, {}) if "length" in row else {}
        if "data/chunk_index" not in row:
            row |= _data_place(episode.path)
        path = root / facts["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        if not stats:
            told, stats = _describe(root, facts, path, number, start, row, tasks)
            row |= told
        row |= {"episode_index": number, "length": episode.length, "dataset_from_index": start, "dataset_to_index": start + episode.length}
        row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        _staged(target).parent.mkdir(parents=True, exist_ok=True)
        tables.write_episode(_staged(target), _ordered(row, outcome), stats)
        staged.append((_staged(target), target))
        start += episode.length
    for path in tables.episode_files(root):
        rebuild.set_aside(root, path, actions, "replaced")
    for source, target in staged:
        os.replace(source, target)
    actions.append(f"wrote the lines of {len(kept)} episodes anew")


def _describe(
    root: Path, facts: dict[str, Any], path: Path, number: int, start: int, row: Mapping[str, Any], tasks: list[str]
) -> tuple[dict[str, Any], dict[str, Stats]]:
    """Tasks and statistics of an episode whose line was lost, from its frames."""
    table = tables.read_table(path)
    index = np.asarray(table["episode_index"].to_numpy()).reshape(-1)
    table = tables.rows_where(table, index == number)
    values = {k: tables.column_array(table, k, d, s) for k, (d, s) in columns(facts).items()}
    stats = {k: vector_stats(v) for k, v in values.items()}
    length = len(table)
    for key, kind in cameras(facts).items():
        sample = sorted({int(i) for i in np.linspace(0, length - 1, min(SAMPLED_IMAGES, length))})
        if kind == "video":
            number = row[f"videos/{key}/chunk_index"] * layout.FILES_PER_CHUNK + row[f"videos/{key}/file_index"]
            reader = video.VideoReader(_video_path(root, facts, key, number), facts["fps"])
            first = round(row[f"videos/{key}/from_timestamp"] * facts["fps"])
            images = list(reader.read([first + i for i in sample]).values())
            reader.close()
        else:
            pictures = tables.picture_bytes(table, key)
            images = [video.decode_picture(pictures[i].as_py()) for i in sample]
        stats[key] = image_stats(np.stack(images))
    used = list(dict.fromkeys(values["task_index"].reshape(-1).tolist()))
    return {"tasks": [tasks[i] for i in used]}, stats


def _data_place(path: Path) -> dict[str, int]:
    chunk, file = (int(p.split("-")[1]) for p in (path.parent.name, path.stem))
    return {"data/chunk_index": chunk, "data/file_index": file}


def _ordered(row: Mapping[str, Any], outcome: bool) -> dict[str, Any]:
    """The columns in one order, so that all files have one schema."""
    result = {k: row[k] for k in sorted(row) if k not in tables.OUTCOME_COLUMNS}
    return {**result, **{k: row.get(k) for k in tables.OUTCOME_COLUMNS}} if outcome else result


def _video_path(root: Path, facts: dict[str, Any], key: str, number: int) -> Path:
    chunk, file = layout.file_indices(number)
    return root / facts["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)


def _frames_in(path: Path) -> int:
    try:
        return video.count_frames(path)
    except DataError:
        return -1


def _unsaved_numbers(root: Path, facts: dict[str, Any]) -> set[int]:
    """Episodes whose journal is still there: what else there is of them is written anew from it."""
    numbers = {int(p.name.split("-")[1]) for p in (root / layout.RECORDING).glob("episode-*")}
    return {n for n in numbers if n >= facts["total_episodes"]}


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


__all__ = ["repair"]
