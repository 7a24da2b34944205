"""What a dataset holds (`info`) and what is wrong with it (`check`), with file, key and frame named. Nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from demos import accounts, layout, tables, video
from demos.checks.doubles import check_doubles
from demos.checks.finding import Finding
from demos.checks.pictures import check_pictures
from demos.checks.tasks import check_tasks
from demos.checks.times import check_times
from demos.checks.values import check_values
from demos.dataset import Dataset
from demos.journal import read_journal
from demos.layout import cameras
from sinew import calibrations
from sinew.config import to_json
from sinew.errors import DataError
from sinew.progress import SILENT, Progress


@dataclass(frozen=True)
class Report:
    """What `check` found, or what `repair` did and what is left."""

    root: str
    findings: tuple[Finding, ...]
    actions: tuple[str, ...] = ()
    """What repair did, one line each."""
    episodes: int = 0
    frames: int = 0

    @property
    def ok(self) -> bool:
        """Nothing but notes."""
        return all(f.level == "note" for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"ok": self.ok, **to_json(self)}


def info(root: Path | str) -> dict[str, Any]:
    """What a dataset holds: size, rate, tasks, outcomes, cameras, specs, and episodes that were never saved.

    Raises:
        DataError: no dataset, or it cannot be read.
    """
    dataset = Dataset(root)
    episodes = [dataset.episode(i) for i in range(dataset.num_episodes)]
    outcomes = Counter({True: "success", False: "failure", None: "unknown"}[e.success] for e in episodes)
    files = [p for p in dataset.root.rglob("*") if p.is_file()]
    return {
        "root": str(root),
        "version": dataset.info["codebase_version"],
        "robot_type": dataset.info.get("robot_type"),
        "fps": dataset.fps,
        "episodes": len(episodes),
        "frames": len(dataset),
        "duration_s": len(dataset) / dataset.fps,
        "bytes": sum(p.stat().st_size for p in files),
        "tasks": dict(Counter(e.task for e in episodes)),
        "outcomes": dict(outcomes),
        "interrupted": sum(e.interrupted for e in episodes),
        "cameras": {k: {"kept_as": kind, "shape": dataset.observation_spec[k].shape} for k, kind in cameras(dataset.info).items()},
        "observation": to_json(dataset.observation_spec.tensors),
        "action": to_json(dataset.action_spec),
        "specs_from": layout.SPECS if (dataset.root / layout.SPECS).exists() else layout.INFO,
        "unsaved": [{"folder": str(p.relative_to(dataset.root)), "frames": n} for p, n in unsaved(dataset.root)],
        "calibrations": [
            {"hash": c.hash, "from_episode": c.from_episode, "cameras": {str(m["name"]): m["hash"] for m in c.cameras}}
            for c in calibrations.load(dataset.root)
        ],
        "beside": accounts.summary(dataset.root, dataset.num_episodes),
    }


def unsaved(root: Path) -> list[tuple[Path, int]]:
    """Folders of episodes that were never saved, with the frames that they hold."""
    found = []
    for folder in sorted((root / layout.RECORDING).glob("episode-*")):
        try:
            found.append((folder, len(read_journal(folder))))
        except DataError:
            found.append((folder, 0))
    return found


def check(root: Path | str, *, pictures: bool = True, progress: Progress = SILENT) -> Report:
    """Look for everything that would break or poison training.

    Args:
        root: dataset folder.
        pictures: decode every picture, to find cameras that are stuck, blank or cut short.
        progress: advances by one per episode and camera.

    Raises:
        DataError: there is no LeRobotDataset v3 at `root`.
    """
    root = Path(root)
    facts = layout.load_info(root)
    findings = [
        Finding("warning", str(p.relative_to(root)), f"{n} frames of an episode that was never saved; run sinew data repair {root}")
        for p, n in unsaved(root)
    ]
    broken = list(_files(root, facts))
    findings += broken
    if any(f.level == "error" for f in broken):
        return Report(str(root), tuple(findings), (), facts["total_episodes"], facts["total_frames"])
    try:
        dataset = Dataset(root)
    except DataError as e:
        findings.append(Finding("error", layout.INFO, str(e)))
        return Report(str(root), tuple(findings), (), facts["total_episodes"], facts["total_frames"])
    if not len(dataset):
        return Report(str(root), tuple(findings))
    for look in (_indices, check_tasks, check_values, check_times, check_doubles, _calibrations):
        findings += look(dataset)
    findings += [Finding(level, where, told, episode=i) for level, where, told, i in accounts.odd(root, dataset.num_episodes)]
    cut = [i for i in range(dataset.num_episodes) if dataset.episode(i).interrupted]
    findings += [Finding("note", "meta/episodes", "recording was interrupted", episode=i) for i in cut]
    if pictures:
        findings += check_pictures(dataset, progress)
    findings = [replace(f, advice=f.advice or _advice(f, dataset)) for f in findings]
    return Report(str(root), tuple(findings), (), dataset.num_episodes, len(dataset))


def _advice(finding: Finding, dataset: Dataset) -> str:
    """What to do with an episode that should not be trained on: cut off an end of it, or leave it out."""
    if finding.level != "warning" or finding.episode is None or not finding.kind:
        return ""
    length, edit = dataset.episode(finding.episode).length, f"sinew data edit {dataset.root}"
    first = finding.frame or 0
    last = length - 1 if finding.frame is None else first if finding.last is None else finding.last
    keep = f"{finding.episode}:{last + 1}-" if first == 0 else f"{finding.episode}:-{first - 1}"
    if finding.kind != "stamp" and (first == 0) != (last == length - 1) and last - first + 1 <= length // 2:
        return f"cut it off: {edit} --trim {keep} --out NEW"
    return f"look at it, or leave it out: {edit} --delete {finding.episode} --out NEW"


def _files(root: Path, facts: dict[str, Any]) -> Iterator[Finding]:
    """Files that are missing, truncated, too short, or that nothing counts."""
    rows: list[dict[str, Any]] = []
    for path in tables.episode_files(root):
        try:
            rows += tables.read_episodes(root, files=[path])
        except DataError as e:
            yield Finding("error", str(path.relative_to(root)), _plain(e, path))
    have = {r["episode_index"] for r in rows}
    missing = [i for i in range(facts["total_episodes"]) if i not in have]
    if missing:
        yield Finding(
            "error", "meta/episodes", f"{_ranges(missing)} of {facts['total_episodes']} episodes have no line; run sinew data repair {root}"
        )
    rows = [r for r in rows if r["episode_index"] < facts["total_episodes"]]
    used = set()
    for row in rows:
        path = root / facts["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        if path not in used:
            used.add(path)
            try:
                tables.count_rows(path)
            except DataError as e:
                yield Finding("error", str(path.relative_to(root)), _plain(e, path), episode=row["episode_index"])
    for path in sorted(set((root / "data").glob("*/*.parquet")) - used) if not missing else ():
        yield Finding("warning", str(path.relative_to(root)), f"LeRobot loads this file, no episode uses it; run sinew data repair {root}")
    yield from _video_files(root, facts, rows)


def _video_files(root: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[Finding]:
    lengths: dict[Path, int] = {}
    for key, kind in cameras(facts).items():
        for row in rows if kind == "video" else ():
            path = root / facts["video_path"].format(
                video_key=key, chunk_index=row[f"videos/{key}/chunk_index"], file_index=row[f"videos/{key}/file_index"]
            )
            try:
                if path not in lengths:
                    lengths[path] = video.count_frames(path)
                needed = round(row[f"videos/{key}/from_timestamp"] * facts["fps"]) + row["length"]
                if needed > lengths[path]:
                    problem = f"holds {lengths[path]} frames, the episode ends at {needed}"
                    frame = max(0, row["length"] - (needed - lengths[path]))
                    yield Finding("error", str(path.relative_to(root)), problem, key, row["episode_index"], frame)
            except DataError as e:
                lengths[path] = 1 << 62
                yield Finding("error", str(path.relative_to(root)), _plain(e, path), key, row["episode_index"])


def _indices(dataset: Dataset) -> Iterator[Finding]:
    for i in range(dataset.num_episodes):
        e = dataset.episode(i)
        rows = slice(e.start, e.start + e.length)
        for key, want in (("episode_index", np.full(e.length, i)), ("frame_index", np.arange(e.length))):
            wrong = np.flatnonzero(dataset.column(key)[rows, 0] != want)
            if wrong.size:
                found, frame = dataset.column(key)[rows, 0][wrong[0]], int(wrong[0])
                yield Finding("error", "data", f"is {found}, expected {want[wrong[0]]}", key, i, frame)


def _calibrations(dataset: Dataset) -> Iterator[Finding]:
    """Episodes whose cameras were elsewhere than those of the first ones."""
    where = f"meta/{calibrations.FILE}"
    try:
        found = [c for c in calibrations.load(dataset.root) if c.from_episode < dataset.num_episodes]
    except DataError as e:
        yield Finding("error", where, _plain(e, dataset.root / where))
        return
    if not found:
        return
    ends = [*(c.from_episode - 1 for c in found[1:]), dataset.num_episodes - 1]
    for calibration, last in list(zip(found, ends, strict=True))[1:]:
        these = _ranges(list(range(calibration.from_episode, last + 1)))
        before = found[0]
        if calibration.hash == before.hash:
            continue
        if not calibration.cameras or not before.cameras:
            told = these if not calibration.cameras else _ranges(list(range(found[1].from_episode)))
            message = f"where the cameras were is not known for episodes {told}; record with --calibration throughout"
            yield Finding("note", where, message, episode=calibration.from_episode)
            continue
        pairs = [(c, before.camera(str(c["name"]), len(calibration.cameras))) for c in calibration.cameras]
        moved = [(c, calibrations.apart(was, c)) for c, was in pairs if was is not None]
        told = "; ".join(f"camera {c['name']} {a.told}" for c, a in moved if not a.same)
        level, what = ("warning", told) if told else ("note", "the cameras were calibrated again and are where they were")
        message = f"episodes {these} have calibration {calibration.hash}, the first ones {before.hash}: {what}"
        yield Finding(level, where, message, episode=calibration.from_episode)


def _plain(error: DataError, path: Path) -> str:
    """What is wrong, without the path that the finding names already."""
    return str(error).removeprefix(f"{path} ").split(" (")[0]


def _ranges(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} … {numbers[-1]}"
