"""Datasets made of episodes of other datasets: split, merged, trimmed, relabelled. Pictures are linked or copied, never encoded anew.

The dataset comes into being file by file; info.json, without which nobody takes it for one, is written last. A run that was cut off
goes on with what is there, if it is asked for the same again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from demos import layout, native, tables
from demos.dataset import Dataset
from demos.layout import columns
from demos.ledger import SAMPLED_IMAGES
from demos.lock import hold
from demos.statistics import Stats, aggregate, image_stats, vector_stats
from sinew import calibrations
from sinew.errors import DataError, InputError, SpecError
from sinew.progress import SILENT, Progress
from sinew.rundir import atomic_write, read_json
from sinew.specs import check_action_join, check_observation_join

PLAN = f"{layout.RECORDING}/edit.json"
"""What an unfinished dataset is made of, inside it."""
CONTRACT = "meta/contract.json"
COLLECTION = "meta/sinew_collection.json"
"""Which task was collected, and how."""
Success = bool | None | Literal["kept"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An episode, or a part of one, as it goes into a new dataset."""

    root: Path
    """Dataset that it is of."""
    episode: int
    """Its number there."""
    first: int = 0
    """First frame that is taken."""
    end: int | None = None
    """Frame after the last one; None for the end of the episode."""
    task: str | None = None
    """What is being done, in words, for all frames; None keeps what the frames say."""
    success: Success = "kept"
    """Whether it was done; None for unknown."""


def pieces_of(root: Path | str) -> list[Piece]:
    """All episodes of a dataset, whole.

    Raises:
        DataError: there is no dataset.
    """
    return [Piece(root=Path(root), episode=i) for i in range(layout.load_info(Path(root))["total_episodes"])]


def assemble(target: Path | str, pieces: Sequence[Piece], progress: Progress = SILENT) -> None:
    """Make a dataset of pieces, in their order.

    Args:
        target: folder; must not exist, be empty, or hold what an earlier call for the same pieces left.
        pieces: at least one.
        progress: advances by one per piece.

    Raises:
        InputError: no pieces, the folder is taken, or the disk is full; what was written stays for the next try.
        DataError: a source is damaged, or an episode or frame does not exist.
        SpecError: sources differ in what they record; names the difference.
    """
    target = Path(target)
    if not pieces:
        raise InputError("nothing is left: no episode goes into the new dataset")
    sources = {root: Dataset(root, cache_bytes=0) for root in dict.fromkeys(p.root for p in pieces)}
    pieces = [_checked(piece, sources[piece.root]) for piece in pieces]
    _check_alike(list(sources.values()))
    lock = _claim(target, pieces, sources)
    try:
        _Assembly(target, sources).make(pieces, progress)
        shutil.rmtree(target / layout.RECORDING, ignore_errors=True)
    except OSError as e:
        raise InputError(f"cannot write {target}: {e.strerror or e}; the same command goes on from here") from None
    finally:
        os.close(lock)


def _checked(piece: Piece, source: Dataset) -> Piece:
    length = source.episode(piece.episode).length
    end = length if piece.end is None else piece.end
    if not 0 <= piece.first < end <= length:
        raise DataError(f"{piece.root}: episode {piece.episode} has frames 0 to {length - 1}; {piece.first} to {end - 1} cannot be taken")
    if piece.task is not None and not piece.task.strip():
        raise DataError(f"{piece.root}: the task of episode {piece.episode} is empty; say in words what is done")
    return replace(piece, end=end)


def _check_alike(sources: Sequence[Dataset]) -> None:
    """Refuse sources whose frames do not belong into one dataset.

    Raises:
        SpecError: names what differs.
    """
    first, contract = sources[0], _contract(sources[0].root)
    for other in sources[1:]:
        names = str(other.root), str(first.root)
        if other.fps != first.fps:
            raise SpecError(f"{names[0]} has {other.fps:g} frames per second and {names[1]} {first.fps:g}: they cannot become one dataset")
        if all((source.root / layout.SPECS).is_file() for source in (other, first)):  # foreign ones tell no more than their features
            check_observation_join(names[0], other.observation_spec, names[1], first.observation_spec)
            check_observation_join(names[1], first.observation_spec, names[0], other.observation_spec)
            check_action_join(names[0], other.action_spec, names[1], first.action_spec)
        kinds = [{k: (f["dtype"], tuple(f["shape"])) for k, f in source.info["features"].items()} for source in (other, first)]
        for key in sorted(set(kinds[0]) | set(kinds[1])):
            if kinds[0].get(key) != kinds[1].get(key):
                raise SpecError(f"{names[0]} has {key!r} as {kinds[0].get(key)} and {names[1]} as {kinds[1].get(key)}")
        if _contract(other.root) != contract:
            raise SpecError(f"{names[0]} and {names[1]} were recorded under different contracts of the robot (meta/contract.json)")


def _contract(root: Path) -> str | None:
    path = root / CONTRACT
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _collected_on(root: Path) -> str | None:
    path = root / COLLECTION
    return read_json(path).get("task") if path.is_file() else None


def _claim(target: Path, pieces: Sequence[Piece], sources: Mapping[Path, Dataset]) -> int:
    """Take the folder: the lock, and the plan that says what it will hold."""
    told = {"pieces": [{**vars(p), "root": str(p.root.resolve())} for p in pieces], "hashes": [s.content_hash() for s in sources.values()]}
    plan, path = json.dumps(told), target / PLAN
    if target.exists() and not (path.is_file() and path.read_text() == plan):
        there = [p for p in target.iterdir() if p.name != layout.RECORDING] if target.is_dir() else [target]
        if there:
            unfinished = "holds another unfinished one" if path.is_file() else "is not empty"
            what = "holds a dataset" if (target / layout.INFO).exists() else unfinished
            raise InputError(f"{target} {what}; choose another folder for --out")
    lock = hold(target)
    atomic_write(path, plan)
    return lock


class _Assembly:
    """A dataset that is being put together."""

    def __init__(self, target: Path, sources: Mapping[Path, Dataset]) -> None:
        self.root, self.sources = target, sources
        self.info: dict[str, Any] = json.loads(json.dumps(next(iter(sources.values())).info))
        self.info |= {"data_path": layout.DATA, "chunks_size": layout.FILES_PER_CHUNK, "video_path": layout.VIDEO if self._videos else None}
        self.tasks: list[str] = []
        self._rows = {root: tables.read_episodes(root, stats=True) for root in sources}
        self._files: dict[str, dict[Path, int]] = {key: {} for key in self._videos}

    @property
    def _videos(self) -> list[str]:
        return [key for key, kind in layout.cameras(self.info).items() if kind == "video"]

    def make(self, pieces: Sequence[Piece], progress: Progress) -> None:
        """Write everything, info.json last."""
        progress.start("episodes", len(pieces))
        start, stats, counts = 0, [], []
        for number, piece in enumerate(pieces):
            row, found = self._episode(number, piece, start)
            start = row["dataset_to_index"]
            stats.append(found)
            counts.append(row["length"])
            progress.advance()
        first = next(iter(self.sources))
        for name in (layout.SPECS, CONTRACT):
            if (first / name).is_file():
                atomic_write(self.root / name, (first / name).read_text())
        tasks = {_collected_on(root) for root in self.sources}
        if len(tasks) == 1 and None not in tasks:
            atomic_write(self.root / COLLECTION, json.dumps({"task": tasks.pop()}))
        self._calibrations(pieces)
        self._through(layout.TASKS, lambda path: tables.write_tasks(path, self.tasks))
        totals = aggregate(stats)
        atomic_write(self.root / layout.STATS, json.dumps({k: {n: v.tolist() for n, v in s.items()} for k, s in totals.items()}))
        self.info |= {"total_episodes": len(pieces), "total_frames": start, "total_tasks": len(self.tasks)}
        self.info["splits"] = {"train": f"0:{len(pieces)}"}
        atomic_write(self.root / layout.INFO, json.dumps(self.info, indent=4))

    def _episode(self, number: int, piece: Piece, start: int) -> tuple[dict[str, Any], dict[str, Stats]]:
        source = self.sources[piece.root]
        old, told = self._rows[piece.root][piece.episode], source.episode(piece.episode)
        assert piece.end is not None  # `_checked` has filled it in
        length, fps = piece.end - piece.first, self.info["fps"]
        chunk, file = layout.file_indices(number)
        success = told.success if piece.success == "kept" else piece.success
        values = self._columns(source, piece, number, start, success)
        data = source.root / source.info["data_path"].format(chunk_index=old["data/chunk_index"], file_index=old["data/file_index"])
        relative = layout.DATA.format(chunk_index=chunk, file_index=file)
        self._through(relative, lambda path: tables.copy_rows(data, path, piece.episode, slice(piece.first, piece.end), values))
        texts = [self.tasks[i] for i in np.unique(values["task_index"])]
        row: dict[str, Any] = {"episode_index": number, "tasks": texts, "length": length}
        for key in self._videos:
            row |= self._video(source, key, old, piece, length / fps)
        row |= {"data/chunk_index": chunk, "data/file_index": file, "dataset_from_index": start, "dataset_to_index": start + length}
        row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        row |= {"success": success, "interrupted": told.interrupted, "warnings": list(told.warnings)}
        stats = self._stats(source, piece, values, whole=length == told.length)
        self._beside(source, piece, number)
        path = layout.EPISODES.format(chunk_index=chunk, file_index=file)
        like = tables.episode_schema(self.root) if number else None
        self._through(path, lambda path: tables.write_episode(path, row, stats, like))
        return row, stats

    def _beside(self, source: Dataset, piece: Piece, number: int) -> None:
        """Samples at their own rates: those of a whole episode are linked, those of a part are cut by the stamps of its frames."""
        path, told = layout.native_path(source.root, piece.episode), source.episode(piece.episode)
        if not path.exists() or layout.STAMP not in columns(source.info):
            return
        relative = str(layout.native_path(self.root, number).relative_to(self.root))
        if (piece.first, piece.end) == (0, told.length):
            self._through(relative, lambda target: _link(path, target))
            return
        stamps = source.column(layout.STAMP)[told.start : told.start + told.length, 0]
        first_ns = int(stamps[piece.first])
        end_ns = int(stamps[piece.end]) if piece.end is not None and piece.end < told.length else 1 << 62
        whole = native.Beside(tables.read_native(path))
        part, account = native.trimmed(whole, tables.native_account(path), first_ns, end_ns)
        self._through(relative, lambda target: tables.write_native(target, part.streams, account))

    def _columns(self, source: Dataset, piece: Piece, number: int, start: int, success: bool | None) -> dict[str, np.ndarray]:
        """The columns that are not those of before, of the frames that are taken."""
        at = source.episode(piece.episode).start
        rows = slice(at + piece.first, at + (piece.end or 0))
        count = rows.stop - rows.start
        texts: list[str] = [piece.task or source.tasks[int(i)] for i in source.column("task_index")[rows, 0]]
        self.tasks += [text for text in dict.fromkeys(texts) if text not in self.tasks]
        values = {
            "timestamp": (np.arange(count) / self.info["fps"]).astype(np.float32),
            "frame_index": np.arange(count), "episode_index": np.full(count, number), "index": start + np.arange(count),
            "task_index": np.array([self.tasks.index(text) for text in texts]),
        }  # fmt: skip
        told = columns(self.info)
        changed = piece.success != "kept" or count != source.episode(piece.episode).length
        if changed and {layout.REWARD, layout.DONE, layout.SUCCESS} <= set(told):
            last = np.arange(count) == count - 1
            values[layout.REWARD] = (last & bool(success)).astype(told[layout.REWARD][0])
            values[layout.DONE], values[layout.SUCCESS] = last, last & bool(success)
        return values

    def _video(self, source: Dataset, key: str, old: Mapping[str, Any], piece: Piece, seconds: float) -> dict[str, Any]:
        """Where the pictures are: in a file of the source, which is linked or copied when it is needed first."""
        path = source.video_path(key, piece.episode).resolve()
        number = self._files[key].setdefault(path, len(self._files[key]))
        chunk, file = layout.file_indices(number)
        relative = layout.VIDEO.format(video_key=key, chunk_index=chunk, file_index=file)
        self._through(relative, lambda target: _link(path, target))
        begin = float(old.get(f"videos/{key}/from_timestamp") or 0.0) + piece.first / self.info["fps"]
        names = {"chunk_index": chunk, "file_index": file, "from_timestamp": begin, "to_timestamp": begin + seconds}
        return {f"videos/{key}/{name}": value for name, value in names.items()}

    def _stats(self, source: Dataset, piece: Piece, values: Mapping[str, np.ndarray], *, whole: bool) -> dict[str, Stats]:
        """Of the vectors anew; of the pictures those of before where the episode is whole, else of a sample."""
        at, stats = source.episode(piece.episode).start, {}
        rows = slice(at + piece.first, at + (piece.end or 0))
        for key in columns(self.info):
            stats[key] = vector_stats(np.asarray(values.get(key, source.column(key)[rows])))
        before = tables.row_stats(self._rows[piece.root][piece.episode]) if whole else {}
        for key in source.cameras:
            if key in before:
                stats[key] = before[key]
                continue
            count = rows.stop - rows.start
            sample = rows.start + np.linspace(0, count - 1, min(SAMPLED_IMAGES, count)).astype(int)
            stats[key] = image_stats(source.at(sample, {key: [0.0]})[key][:, 0])
        return stats

    def _calibrations(self, pieces: Sequence[Piece]) -> None:
        """Where the cameras were, episode by episode, as the sources tell it."""
        known = {root: calibrations.load(root) for root in self.sources}
        found: list[calibrations.Calibration] = []
        for number, piece in enumerate(pieces):
            before = [c for c in known[piece.root] if c.from_episode <= piece.episode]
            now = replace(before[-1] if before else calibrations.Calibration(), from_episode=number)
            if not found or found[-1].hash != now.hash:
                found.append(now)
        if any(known.values()):
            calibrations.store(found, self.root / "meta")

    def _through(self, relative: str, write: Any) -> None:
        """Have a file written beside its place and renamed into it; one that an earlier run wrote is kept."""
        path = self.root / relative
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.new")
        staged.unlink(missing_ok=True)
        write(staged)
        os.replace(staged, path)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where that cannot be. Nothing of ours changes a video in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
