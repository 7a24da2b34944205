"""Diffusion Policy's replay buffers: a zarr folder or zip with data/<name> over all frames and meta/episode_ends."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from demos.bags.topic import in_one_line
from demos.formats.source import Choice, Described, Episode, as_picture, camera_name, check_size, chosen, pictures_of, vectors_of
from sinew.errors import DataError, MissingDependency
from sinew.specs import ACTION

USUAL_HZ = 10
"""Rate of PushT and of the robot's data that were published in this format."""
STATES = ("state", "robot_eef_pos", "robot_eef_rot_axis_angle", "robot_gripper_width", "robot_joint", "agent_pos")
"""Names that are the robot's state in published sets."""

SPARE_BYTES, MOST_UNFOLDED = 64 << 20, 100
"""A file in a zip may become this many bytes, and this many times its own size besides."""
DESCRIPTIONS = (".zarray", ".zmetadata", "zarr.json")
"""Files that say how arrays are stored."""


def is_it(path: Path) -> bool:
    """Whether a path is a zarr folder, or a zip of one, with episode ends."""
    if path.is_dir():
        return (path / "meta" / "episode_ends").is_dir()
    if not path.name.endswith(".zip") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.startswith("meta/episode_ends/") for name in archive.namelist())


class Reader:
    """See `demos.formats.source.Source`. Every vector but the action becomes observation.state, unless some have the usual names.

    Args:
        path: folder or zip.
        choice: arrays by their names under data/.

    Raises:
        DataError: no replay buffer, or compressed by something that is not here.
    """

    def __init__(self, path: Path, choice: Choice) -> None:
        self.path, self.damage = path, list[str]()
        self._root, self._store = _open(path)
        try:
            self.described = self._describe(choice)
        except BaseException as e:
            self.close()
            if isinstance(e, (ValueError, KeyError, TypeError, AttributeError, RecursionError)):  # of zarr, which reads metadata late
                raise DataError(f"{path} cannot be opened as zarr ({in_one_line(e)[:120]})") from None
            raise

    def _describe(self, choice: Choice) -> Described:
        data = self._arrays = dict(self._root["data"].arrays())
        if any(".." in name for name in data):
            raise DataError(f"{self.path} names arrays that lead out of it; it is not read")
        for array in (*data.values(), self._root["meta"]["episode_ends"]):
            self._check_harmless(array)
        self._ends = np.asarray(self._read(self._root["meta"]["episode_ends"], slice(None)), dtype=np.int64)
        frames = int(self._ends[-1]) if len(self._ends) else 0
        if not len(self._ends) or (np.diff(self._ends, prepend=0) <= 0).any():
            raise DataError(f"{self.path}: meta/episode_ends does not rise; it is damaged")
        for name, array in data.items():
            if array.shape[0] < frames:
                raise DataError(f"{self.path}: data/{name} has {array.shape[0]} frames, the episodes {frames}")
        self._action = choice.action or "action"
        chosen([self._action], list(data), "action")
        vectors, pictures = dict(vectors_of(data)), dict(pictures_of(data))
        action_dim = vectors.pop(self._action, 0)
        if not action_dim:
            raise DataError(f"{self.path}: data/{self._action} is no vector per frame")
        usual = tuple(name for name in STATES if name in vectors)
        state = chosen(choice.state, list(vectors), "array") or usual or tuple(vectors)
        wanted = chosen(choice.cameras, list(pictures), "camera") or tuple(pictures)
        self._cameras = {camera_name(name): name for name in wanted}
        environment = chosen(choice.environment, list(vectors), "array")
        return Described(
            fps=choice.fps or USUAL_HZ,
            vectors=vectors,
            state=state,
            environment=tuple(name for name in environment if name not in state),
            cameras={name: pictures[of] for name, of in self._cameras.items()},
            action_dim=action_dim,
            action_kind=choice.action_kind or "ee_pose",
            episodes=len(self._ends),
        )

    def episode(self, index: int) -> Episode:
        """See `Source`."""
        rows = slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
        length = rows.stop - rows.start
        vectors = {}
        for key in {*self.described.state, *self.described.environment}:
            vectors[key] = self._read(self._arrays[key], rows).reshape(length, -1)
        vectors[ACTION] = self._read(self._arrays[self._action], rows).reshape(length, -1)

        blocks: dict[str, tuple[int, np.ndarray]] = {}

        def picture(camera: str, at: int) -> np.ndarray:
            array = self._arrays[self._cameras[camera]]
            size, frame = int(array.chunks[0]), rows.start + at  # pictures are compressed together by so many
            begin = frame // size * size
            if blocks.get(camera, (-1, None))[0] != begin:
                blocks[camera] = (begin, self._read(array, slice(begin, min(begin + size, array.shape[0]))))
            return as_picture(blocks[camera][1][frame - begin])

        return Episode(length, vectors, picture)

    def _check_harmless(self, array: Any) -> None:
        """Refuse arrays that unfold into far more than any holds.

        Raises:
            DataError: names the array.
        """
        check_size(array.chunks, f"{self.path}: a block of {array.path}")

    def _read(self, array: Any, rows: Any) -> np.ndarray:
        try:
            if isinstance(rows, slice):
                count = len(range(*rows.indices(array.shape[0])))
                check_size((count, *array.shape[1:]), f"{self.path}: {array.path}")
            return np.asarray(array[rows])
        except (ValueError, KeyError, OSError, RuntimeError, MemoryError, TypeError, zipfile.BadZipFile) as e:
            raise DataError(f"{self.path}: {array.path} cannot be read ({in_one_line(e)[:120]})") from None

    def close(self) -> None:
        """Close the zip."""
        if self._store is not None:
            self._store.close()


def _refuse_ways_out(path: Path) -> None:
    """Refuse a folder with links out of it, and a zip whose files unfold into far more than they are.

    Raises:
        DataError: names the file.
    """
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_symlink() and not file.resolve().is_relative_to(path.resolve()):
                raise DataError(f"{path}: {file.relative_to(path)} is a link that leads out of it; it is not followed")
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size > SPARE_BYTES + MOST_UNFOLDED * entry.compress_size:
                raise DataError(
                    f"{path}: {entry.filename[:80]} has {entry.compress_size} bytes and would unfold into {entry.file_size}: a trap"
                )


def _refuse_pickles(path: Path) -> None:
    """Refuse arrays that would run code when they are read, by what is written about them, before a library looks at it.

    Raises:
        DataError: names the array.
    """
    if path.is_dir():
        described = {str(file.relative_to(path)): file.read_bytes() for name in DESCRIPTIONS for file in path.rglob(name)}
    else:
        with zipfile.ZipFile(path) as archive:
            described = {name: archive.read(name) for name in archive.namelist() if name.rsplit("/", 1)[-1] in DESCRIPTIONS}
    for name, text in described.items():
        if b"pickle" in text.lower():
            raise DataError(f"{path}: {name.rpartition('/')[0]} is pickled, which would run code; it is not read")


def _open(path: Path) -> tuple[Any, Any]:
    try:
        import zarr
        from zarr.storage import ZipStore
    except ImportError:
        raise MissingDependency("zarr folders need zarr: pip install 'sinew[formats]'") from None
    try:
        _refuse_ways_out(path)
        _refuse_pickles(path)
        store = ZipStore(path, mode="r") if path.is_file() else None
        root = zarr.open_group(store if store is not None else str(path), mode="r")
        if "data" not in root or "meta" not in root:
            raise DataError(f"{path} has no data and meta: it is no replay buffer")
        return root, store
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile) as e:
        raise DataError(f"{path} cannot be opened as zarr ({in_one_line(e)[:120]})") from None
