"""What a dataset holds, and the one way an episode enters it: everything beside its place first, info.json last.

Every file of an episode is new and complete before it is renamed into place, and info.json, which counts the episodes, is
renamed last. A crash in between leaves files that nothing counts; the journal is still there and the next run writes the
same files again. LeRobot can load the dataset at each of these moments.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demos import layout, native, tables, video
from demos.journal import HEADER, Recorded, blob_name, packet_ends, read_journal, remove_journal
from demos.layout import EpisodeInfo, cameras, columns, file_indices
from demos.statistics import Stats, aggregate, image_stats, vector_stats
from sinew.errors import DataError, InputError
from sinew.rundir import atomic_write

SAMPLED_IMAGES = 16
"""Images per camera and episode that statistics are taken of."""


class Ledger:
    """The committed state of a dataset that is being written.

    Args:
        root: dataset folder with at least info.json.

    Raises:
        DataError: the dataset is damaged or foreign.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.info = root, layout.load_info(root)
        self.rows = tables.read_episodes(root)[: self.info["total_episodes"]]
        if len(self.rows) != self.info["total_episodes"]:
            told = self.info["total_episodes"]
            raise DataError(f"{root / layout.INFO} counts {told} episodes, {len(self.rows)} are there; run sinew data repair {root}")
        self.tasks = tables.read_tasks(root) if (root / layout.TASKS).exists() else []
        self._stats: dict[str, Stats] | None = None

    @property
    def stats(self) -> dict[str, Stats]:
        """Statistics of all committed frames; read from the episodes' lines when first asked for, which takes a while."""
        if self._stats is None:
            rows = tables.read_episodes(self.root, stats=True)[: len(self.rows)]
            self._stats = aggregate([tables.row_stats(r) for r in rows])
        return self._stats

    @property
    def num_frames(self) -> int:
        """Frames of all committed episodes."""
        return int(self.rows[-1]["dataset_to_index"]) if self.rows else 0

    def journals(self) -> list[Path]:
        """Folders of episodes that were not committed, oldest first."""
        return sorted(p for p in (self.root / layout.RECORDING).glob("episode-*") if p.is_dir())

    def settle(self, *, keep_interrupted: bool) -> list[EpisodeInfo]:
        """Bring in what an earlier process left: sealed episodes always, interrupted ones if asked.

        Returns:
            The episodes that entered.
        """
        entered = []
        for folder in self.journals():
            recorded = read_journal(folder)
            done = bool(recorded.header) and recorded.header["episode_index"] < len(self.rows)
            if len(recorded) and not done and (recorded.seal is not None or keep_interrupted):
                entered.append(self.commit(folder))
            else:
                remove_journal(folder)
        return entered

    def commit(self, folder: Path) -> EpisodeInfo:
        """Make the episode in a journal part of the dataset and remove the journal.

        Raises:
            DataError: the journal does not fit the dataset.
            InputError: the disk is full; the journal is kept.
        """
        recorded = read_journal(folder)
        if {k: list(v) for k, v in recorded.header.get("cameras", {}).items()} != {k: list(v) for k, v in cameras(self.info).items()}:
            raise DataError(f"{folder / HEADER} was recorded with other cameras than {self.root / layout.INFO} names; move it away")
        staged = folder / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        try:
            staged.mkdir()
            episode = self._stage(folder, recorded, staged)
        except (OSError, video.VideoError) as e:
            shutil.rmtree(staged, ignore_errors=True)
            raise InputError(f"cannot save episode {len(self.rows)} in {self.root}: {e.strerror or e}; its frames are kept") from None
        remove_journal(folder)
        return episode

    def _stage(self, folder: Path, recorded: Recorded, staged: Path) -> EpisodeInfo:
        moves: list[tuple[Path, Path]] = []

        def place(pattern: str, number: int, **names: str) -> tuple[Path, int, int]:
            chunk, file = file_indices(number)
            target = self.root / pattern.format(chunk_index=chunk, file_index=file, **names)
            moves.append((staged / f"{len(moves)}{target.suffix}", target))
            return moves[-1][0], chunk, file

        values, tasks = self._columns(recorded)
        seal = recorded.seal or {"success": None, "warnings": []}
        row: dict[str, Any] = {"episode_index": len(self.rows), "tasks": _distinct(tasks), "length": len(recorded)}
        stats = {k: vector_stats(v) for k, v in values.items()}
        pictures: dict[str, list[bytes]] = {}
        for key, kind in cameras(self.info).items():
            packets = folder / blob_name(key)
            os.truncate(packets, int(packet_ends(recorded, key)[-1]))
            if kind == "video":
                path, chunk, file = place(self.info["video_path"], self._next_file(f"videos/{key}/"), video_key=key)
                stats[key] = self._write_video(key, packets, path, len(recorded))
                row |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": file, f"videos/{key}/from_timestamp": 0.0}
                row[f"videos/{key}/to_timestamp"] = len(recorded) / self.info["fps"]
            else:
                pictures[key] = _split(packets.read_bytes(), packet_ends(recorded, key))
                sample = np.linspace(0, len(recorded) - 1, min(SAMPLED_IMAGES, len(recorded))).astype(int)
                stats[key] = image_stats(np.stack([video.decode_picture(pictures[key][i]) for i in sample]))
        self._beside(folder, place)
        path, chunk, file = place(self.info["data_path"], self._next_file("data/"))
        tables.write_frames(path, values, pictures)
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": self.num_frames, "dataset_to_index": self.num_frames + len(recorded)}
        path, chunk, file = place(layout.EPISODES, self._next_file("meta/episodes/"))
        row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        row |= {"success": seal["success"], "interrupted": recorded.seal is None, "warnings": list(seal["warnings"])}
        tables.write_episode(path, row, stats, tables.episode_schema(self.root) if self.rows else None)
        self._publish(moves, row, tasks, stats, staged)
        return episode_info(row)

    def _beside(self, folder: Path, place: Any) -> None:
        """Stage what was kept beside the frames; what an episode of the same number left there goes."""
        beside, number = native.read_log(folder), len(self.rows)
        if beside:
            tables.write_native(place(layout.NATIVE, number)[0], beside.streams, native.account(beside))
        else:
            layout.native_path(self.root, number).unlink(missing_ok=True)

    def retract(self) -> EpisodeInfo:
        """Take the last episode out of the dataset again, with its files. Killed on the way, it is in or out, never half.

        Raises:
            DataError: there is none, or its files hold other episodes too.
            InputError: the folder cannot be written.
        """
        if not self.rows:
            raise DataError(f"{self.root} has no episode that could be taken out")
        row, rest = self.rows[-1], self.rows[:-1]
        files = self._files_of(row)
        if any(path in self._files_of(other) for other in rest for path in files):
            raise DataError(f"the last episode of {self.root} shares its files with others; use sinew data edit --delete {len(rest)}")
        lines = tables.read_episodes(self.root, stats=True)[: len(rest)]
        totals = aggregate([tables.row_stats(r) for r in lines])
        count = int(rest[-1]["dataset_to_index"]) if rest else 0
        info = {**self.info, "total_episodes": len(rest), "total_frames": count}
        info["splits"] = {"train": f"0:{len(rest)}"} if rest else {}
        try:
            # From here on nobody counts the episode; its files are what a crash in the middle of saving would have left.
            atomic_write(self.root / layout.INFO, json.dumps(info, indent=4))
            self.info, self._stats, self.rows = info, totals, rest
            if rest:
                self._write_stats(totals)
            for path in [*files, *(() if rest else (self.root / layout.STATS,))]:
                path.unlink(missing_ok=True)
        except OSError as e:
            raise InputError(f"cannot take episode {len(rest)} out of {self.root}: {e.strerror or e}; run sinew data repair") from None
        return episode_info(row)

    def _files_of(self, row: Mapping[str, Any]) -> list[Path]:
        """Every file of an episode, its line last."""
        patterns = {f"videos/{key}": self.info["video_path"] for key, kind in cameras(self.info).items() if kind == "video"}
        patterns |= {"data": self.info["data_path"], "meta/episodes": layout.EPISODES}
        found = [layout.native_path(self.root, int(row["episode_index"]))]
        for prefix, pattern in patterns.items():
            number = {"chunk_index": row[f"{prefix}/chunk_index"], "file_index": row[f"{prefix}/file_index"]}
            found.append(self.root / pattern.format(video_key=prefix.removeprefix("videos/"), **number))
        return found

    def _write_video(self, key: str, packets: Path, path: Path, length: int) -> Stats:
        found = video.write_mp4(packets, path, self.info["fps"])
        if found != length:
            raise DataError(f"{packets} holds {found} frames, {length} were acknowledged")
        if not self.info["features"][key].get("info"):
            self.info["features"][key]["info"] = video.video_facts(path, self.info["fps"])
        reader = video.VideoReader(path, self.info["fps"])
        # Even frames are key frames, so each sampled image costs one decode.
        sample = sorted({int(i) // 2 * 2 for i in np.linspace(0, length - 1, min(SAMPLED_IMAGES, length))})
        images = reader.read(sample)
        reader.close()
        return image_stats(np.stack([images[i] for i in sample]))

    def _columns(self, recorded: Recorded) -> tuple[dict[str, np.ndarray], list[str]]:
        """Every column of the data file, with the tasks of the frames; the table of tasks grows by what is new."""
        count, fps = len(recorded), self.info["fps"]
        tasks = [recorded.tasks[i] for i in recorded.rows["task"]]
        self.tasks += [t for t in _distinct(tasks) if t not in self.tasks]
        last = np.arange(count) == count - 1
        success = bool((recorded.seal or {}).get("success"))
        made = {
            layout.REWARD: (last & success).astype(np.float32),
            layout.DONE: last & (recorded.seal is not None),
            layout.SUCCESS: last & success,
            "timestamp": (np.arange(count) / fps).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, len(self.rows)),
            "index": self.num_frames + np.arange(count),
            "task_index": np.array([self.tasks.index(t) for t in tasks]),
        }
        values = {}
        for key, (dtype, shape) in columns(self.info).items():
            found = recorded.rows[f"c:{key}"] if f"c:{key}" in (recorded.rows.dtype.names or ()) else made[key]
            values[key] = np.ascontiguousarray(found.reshape(count, *shape)).astype(dtype)
        return values, tasks

    def _publish(
        self, moves: Sequence[tuple[Path, Path]], row: dict[str, Any], tasks: Sequence[str], stats: Mapping[str, Stats], staged: Path
    ) -> None:
        totals = aggregate([self.stats, stats]) if self.rows else dict(stats)
        info = {**self.info, "total_episodes": len(self.rows) + 1, "total_frames": row["dataset_to_index"], "total_tasks": len(self.tasks)}
        info["splits"] = {"train": f"0:{len(self.rows) + 1}"}
        if set(tasks) - set(tables.read_tasks(self.root) if (self.root / layout.TASKS).exists() else ()):
            tables.write_tasks(staged / "tasks.parquet", self.tasks)
            moves = [(staged / "tasks.parquet", self.root / layout.TASKS), *moves]
        for source, target in moves:
            _sync(source)
            target.parent.mkdir(parents=True, exist_ok=True)
        for source, target in moves:
            os.replace(source, target)
        for folder in {target.parent for _, target in moves}:
            _sync(folder)
        self._write_stats(totals)
        atomic_write(self.root / layout.INFO, json.dumps(info, indent=4))
        self.info, self._stats = info, totals
        self.rows.append(row)

    def _write_stats(self, totals: Mapping[str, Stats]) -> None:
        atomic_write(self.root / layout.STATS, json.dumps({k: {n: v.tolist() for n, v in s.items()} for k, s in totals.items()}))

    def _next_file(self, prefix: str) -> int:
        """Number of the first file that no committed episode uses."""
        used = [r[f"{prefix}chunk_index"] * layout.FILES_PER_CHUNK + r[f"{prefix}file_index"] for r in self.rows]
        return max(used, default=-1) + 1


def episode_info(row: Mapping[str, Any]) -> EpisodeInfo:
    """An episode's line as `EpisodeInfo`."""
    end, length = int(row["dataset_to_index"]), int(row["length"])
    return EpisodeInfo(
        index=int(row["episode_index"]),
        length=length,
        start=end - length,
        task=str((row.get("tasks") or [""])[0]),
        success=row.get("success"),
        interrupted=bool(row.get("interrupted")),
        warnings=tuple(row.get("warnings") or ()),
    )


def _distinct(items: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _split(blob: bytes, ends: np.ndarray) -> list[bytes]:
    return [blob[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
