"""The recorder: every frame is on disk when `add_frame` returns, every episode is loadable when `save_episode` returns."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from demos import layout, tables
from demos.journal import Journal, remove_journal
from demos.layout import EpisodeInfo, cameras, columns
from demos.ledger import Ledger
from demos.lock import hold
from demos.native import Sample
from demos.stillness import Stillness
from demos.video import FrameEncoder
from sinew.errors import DataError, InputError
from sinew.rundir import atomic_write, write_json
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

SYNC_PERIOD_S = 0.5
"""How much may be lost to a power failure; nothing is lost to a killed process."""
STILL_S = 1.0
"""A camera whose picture does not change for so long while others or the robot do is reported as stuck."""
PARALLEL_PIXELS = 200 * 200
"""Cameras above this size are encoded in threads of their own."""


class Writer:
    """Records episodes into a LeRobotDataset v3. Use `Writer.create` or `Writer.resume`; it is a context manager.

    A frame that `add_frame` took survives kill -9. The frames of an episode that was not saved stay in `recording/`;
    `Writer.resume` or `demos.repair` brings them in, marked as interrupted.
    """

    def __init__(self, ledger: Ledger, lock: int, observation: ObservationSpec, action: ActionSpec, task: str | None) -> None:
        self.root, self.task = ledger.root, task
        self.observation_spec, self.action_spec = observation, action
        self.recovered: list[EpisodeInfo] = []
        """Episodes of an earlier, killed process that entered when this one resumed."""
        self._ledger, self._lock = ledger, lock
        self._journal: Journal | None = None
        self._encoders: dict[str, FrameEncoder] = {}
        self._pictures = Stillness(max(2, round(STILL_S * self.fps)))
        self._full: str | None = None
        self._columns = {k: v for k, v in columns(ledger.info).items() if k not in {*_MADE_AT_SAVE, layout.STAMP}}
        self._cameras = cameras(ledger.info)
        self._shapes = {k: layout.image_shape(ledger.info["features"][k]) for k in self._cameras}
        large = [k for k, s in self._shapes.items() if s[0] * s[1] >= PARALLEL_PIXELS]
        self._pool = ThreadPoolExecutor(len(large)) if len(large) > 1 else None
        self._beginning = threading.Lock()  # frames and samples come on threads of their own
        self._retractable = 0
        self._closing = threading.Event()
        threading.Thread(target=self._sync_often, name="demos-sync", daemon=True).start()

    @classmethod
    def create(
        cls,
        root: Path | str,
        *,
        fps: int,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        robot_type: str = "",
        task: str | None = None,
        video: bool = True,
        extra: Mapping[str, TensorSpec] | None = None,
    ) -> Writer:
        """Start a new dataset.

        Args:
            root: folder; must not exist or be empty.
            fps: frames per second, a whole number.
            observation_spec: vectors (D,) and cameras (height, width, 3) uint8.
            action_spec: the recorded command, in physical units.
            robot_type: free text, kept in info.json.
            task: what `add_frame` uses when it is given none.
            video: keep cameras as H.264 (small), else as lossless PNG in the Parquet files.
            extra: columns that no policy sees, vectors (D,): what else a recording tells of its frames.

        Raises:
            InputError: the folder is taken or cannot be written.
            SpecError: a LeRobotDataset cannot hold these tensors.
        """
        root = Path(root)
        layout.check_recordable(observation_spec, action_spec, extra or {})
        if isinstance(fps, bool) or fps != int(fps) or fps < 1:
            raise InputError(f"fps {fps} cannot be recorded: LeRobotDataset wants a whole number of frames per second, 1 or more")
        # A process killed right here leaves the specs and no more: nothing that anyone would miss.
        started = {root / "meta", root / layout.SPECS, root / layout.RECORDING, root / layout.RECORDING / "lock"}
        if root.is_dir() and any(p not in started and not p.name.startswith(".sinew.json") for p in root.rglob("*")):
            there = "holds a dataset: go on with it (Writer.resume)" if (root / layout.INFO).exists() else "is not empty: empty it"
            raise InputError(f"{root} {there} or choose another folder")
        info = layout.new_info(int(fps), observation_spec, action_spec, robot_type, "video" if video else "image", extra or {})
        atomic_write(root / layout.SPECS, layout.save_specs(observation_spec, action_spec, extra))
        write_json(root / layout.INFO, info)
        return cls(Ledger(root), hold(root), observation_spec, action_spec, task)

    @classmethod
    def resume(cls, root: Path | str, *, task: str | None = None, keep_interrupted: bool = True) -> Writer:
        """Go on with a dataset, whatever ended the process before.

        Args:
            root: dataset folder.
            task: as in `create`.
            keep_interrupted: bring in the frames of an episode that was never saved, as an episode of its own (see
                `recovered`); otherwise they are dropped. An episode whose saving was cut short always enters.

        Raises:
            DataError: no dataset, foreign, damaged, or another process records into it.
        """
        root = Path(root)
        info = layout.load_info(root)
        layout.check_resumable(root, info)
        lock = hold(root)
        try:
            ledger = Ledger(root)
            recovered = ledger.settle(keep_interrupted=keep_interrupted)
            observation, action = layout.load_specs(root, info, {} if (root / layout.SPECS).exists() else ledger.stats)
        except BaseException:
            os.close(lock)
            raise
        writer = cls(ledger, lock, observation, action, task)
        writer.recovered = recovered
        return writer

    @property
    def fps(self) -> int:
        """Frames per second."""
        return self._ledger.info["fps"]

    @property
    def num_episodes(self) -> int:
        """Saved episodes."""
        return len(self._ledger.rows)

    @property
    def num_frames(self) -> int:
        """Frames of the saved episodes."""
        return self._ledger.num_frames

    @property
    def episode_length(self) -> int:
        """Frames of the episode in progress."""
        return self._journal.length if self._journal else 0

    def add_frame(self, values: Mapping[str, np.ndarray], *, task: str | None = None, stamp_ns: int | None = None) -> None:
        """Record one frame; when this returns it survives the end of this process.

        Args:
            values: {key: array} of every observation key, "action" and extra column, with exactly the shape and dtype of the specs.
            task: what is being done, in words; None for the writer's own.
            stamp_ns: when it was measured, nanoseconds (wall clock or simulation time), kept as "timestamp_ns"; None
                for the wall clock now.

        Raises:
            DataError: a key is missing or unknown, a shape or dtype differs, a value is not finite, the task is empty.
            InputError: the disk is full; the frames before are kept.
        """
        if self._full:
            raise InputError(self._full)
        at = self.episode_length
        task = self.task if task is None else task
        if not isinstance(task, str) or not task.strip():
            raise DataError(f"frame {at}: the task is empty; say in words what is done, for example task='lift the cube'")
        self._check(values, at)
        journal = self._journal or self._begin()
        packets = self._encode(values)
        row = {k: values[k] for k in self._columns}
        if layout.STAMP in columns(self._ledger.info):
            row[layout.STAMP] = np.array([time.time_ns() if stamp_ns is None else int(stamp_ns)])
        try:
            journal.append(row, packets, task)
        except InputError as e:
            # The encoder is one frame ahead of the file now, so this episode takes no more.
            self._full = f"{e}; then save_episode or discard_episode"
            raise
        self._pictures.see(at, values, self._cameras)

    def amend(self, values: Mapping[str, np.ndarray]) -> None:
        """Change columns of the newest frame, which is on disk already: what becomes known of it only later.

        Raises:
            DataError: a key is no extra column or its shape differs.
            InputError: no frame was recorded, or the disk refuses.
        """
        for key, value in values.items():
            if key.startswith("observation.") or self._columns.get(key) != (str(value.dtype), value.shape):
                raise DataError(f"column {key!r} of the newest frame cannot become {value.dtype} {value.shape}")
        if self._journal is None:
            raise InputError("no frame was recorded that could be changed")
        self._journal.amend(values)

    def add_samples(self, stream: str, samples: Sequence[Sample]) -> None:
        """Keep samples of a stream at its own rate beside the frames of the episode in progress, which begins if there is none.

        May be called on a thread of its own, on which `note` is called too.

        Args:
            stream: its name, such as "joint_position" or "images.front".
            samples: (stamp, receipt, values) in the order in which they came; nanoseconds on the clock of the frames' stamps.

        Raises:
            DataError: a sample has another number of values than those before.
            InputError: the disk is full.
        """
        self._aside(lambda journal: journal.beside.add(stream, samples))

    def note(self, what: str, of: str, n: int = 1, **more: Any) -> None:
        """Keep what happened in the episode in progress: see `demos.native.Beside`.

        Raises:
            InputError: the disk is full.
        """
        self._aside(lambda journal: journal.beside.note(what, of, n, **more))

    def _aside(self, write: Callable[[Journal], None]) -> None:
        journal = self._journal or self._begin()
        try:
            write(journal)
        except OSError as e:
            raise InputError(f"cannot record into {journal.folder}: {e.strerror or e}; the frames before are kept, free space") from None

    def news(self) -> list[str]:
        """One line for each camera that became odd in the episode in progress, told once."""
        return self._pictures.news()

    @property
    def episode_bytes(self) -> int:
        """Size of the episode in progress on disk."""
        return self._journal.bytes if self._journal else 0

    def save_episode(self, success: bool | None = None, notes: Sequence[str] = ()) -> EpisodeInfo:
        """Make the recorded frames an episode of the dataset.

        Args:
            success: whether the task was done; None for unknown.
            notes: what was odd, kept with the episode's warnings.

        Returns:
            The episode, with `warnings` for cameras that stood still or showed one colour.

        Raises:
            DataError: no frame was recorded.
            InputError: the disk is full; the frames are kept and saving may be tried again.
        """
        if self._journal is None or not self._journal.length:
            raise DataError("save_episode without a frame: call add_frame first")
        warnings = [*notes, *self._pictures.warnings(self.episode_length)]
        self._journal.seal({"success": None if success is None else bool(success), "warnings": warnings})
        episode = self._ledger.commit(self._journal.folder)
        self._forget()
        self._retractable += 1
        return episode

    def account(self) -> dict[str, Any]:
        """What came and what was lost in the newest saved episode: see `demos.native.account`."""
        return tables.native_account(layout.native_path(self.root, self.num_episodes - 1))

    def retract_episode(self) -> EpisodeInfo:
        """Throw away the newest saved episode; one that an earlier process saved is left alone.

        Raises:
            DataError: an episode is in progress, or this process has saved none.
            InputError: the folder cannot be written.
        """
        if self.episode_length:
            raise DataError("an episode is being recorded: discard_episode throws that one away")
        if not self._retractable:
            raise DataError("this run has saved no episode that could be thrown away; use sinew data edit --delete for earlier ones")
        self.discard_episode()
        episode = self._ledger.retract()
        self._retractable -= 1
        return episode

    def discard_episode(self) -> None:
        """Drop the frames of the episode in progress."""
        if self._journal is not None:
            folder = self._journal.folder
            self._forget()
            remove_journal(folder)

    def finalize(self) -> None:
        """Close the recorder. Saved episodes need nothing of it; unsaved frames stay for `resume` or `repair`."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._forget()
        if self._pool:
            self._pool.shutdown()
        folder = self.root / layout.RECORDING
        if not any(folder.glob("episode-*")):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finalize()

    def _check(self, values: Mapping[str, np.ndarray], at: int) -> None:
        wanted = {**self._columns, **{k: ("uint8", s) for k, s in self._shapes.items()}}
        if values.keys() != wanted.keys():
            missing, extra = wanted.keys() - values.keys(), values.keys() - wanted.keys()
            what = f"key {min(missing)!r} is missing" if missing else f"key {min(extra)!r} is unknown"
            raise DataError(f"frame {at}: {what}; the dataset records {', '.join(wanted)}")
        for key, (dtype, shape) in wanted.items():
            value = values[key]
            if not isinstance(value, np.ndarray):
                raise DataError(f"frame {at}: {key!r} is a {type(value).__name__}; give a NumPy array {dtype} {shape}")
            if value.shape != shape:
                raise DataError(f"frame {at}: {key!r} has shape {value.shape}, the dataset records {shape}")
            if value.dtype != dtype:
                raise DataError(f"frame {at}: {key!r} is {value.dtype}, the dataset records {dtype}; convert it with .astype('{dtype}')")
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                element = int(np.flatnonzero(~np.isfinite(value))[0])
                raise DataError(f"frame {at}: {key!r} element {element} is {value[element]}; the frame was not recorded, mend its source")

    def _begin(self) -> Journal:
        with self._beginning:
            return self._journal or self._new_journal()

    def _new_journal(self) -> Journal:
        info = self._ledger.info
        self._encoders = {k: FrameEncoder(kind, self._shapes[k], self.fps) for k, kind in self._cameras.items()}
        recorded = dict(self._columns)
        if layout.STAMP in info["features"]:
            recorded[layout.STAMP] = ("int64", (1,))
        header = {"episode_index": self.num_episodes, "fps": self.fps, "started_unix_ns": time.time_ns(), "pid": os.getpid()}
        folder = self.root / layout.RECORDING / f"episode-{self.num_episodes:06d}"
        self._pictures.reset()
        self._journal = Journal(folder, header, recorded, self._cameras)
        return self._journal

    def _encode(self, values: Mapping[str, np.ndarray]) -> dict[str, bytes]:
        if self._pool is None:
            return {k: e.encode(values[k]) for k, e in self._encoders.items()}
        running = {k: self._pool.submit(e.encode, values[k]) for k, e in self._encoders.items()}
        return {k: f.result() for k, f in running.items()}

    def _forget(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self._journal, self._encoders, self._full = None, {}, None

    def _sync_often(self) -> None:
        while not self._closing.wait(SYNC_PERIOD_S):
            journal = self._journal
            try:
                if journal is not None:
                    journal.flush()
            except OSError:
                # The episode was saved or dropped meanwhile, or the disk is full, which the next frame will say.
                continue


_MADE_AT_SAVE = (layout.REWARD, layout.DONE, layout.SUCCESS, *layout.INDEX_FEATURES)
