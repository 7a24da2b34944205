"""robomimic's HDF5 files: data/demo_i with actions, obs/…, rewards and dones. Its own page on dataset structure tells the layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from demos.dataset import Dataset
from demos.formats.source import Choice, Described, Episode, as_picture, camera_name, check_size, chosen, pictures_of, vectors_of
from sinew.errors import DataError, InputError, MissingDependency
from sinew.progress import SILENT, Progress
from sinew.specs import ACTION, ENVIRONMENT_STATE, STATE, ActionKind

MAGIC = b"\x89HDF\r\n\x1a\n"
USUAL_HZ = 20
"""robosuite's control rate, which files without `control_freq` were recorded at."""


def is_it(path: Path) -> bool:
    """Whether a file is HDF5."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        return f.read(len(MAGIC)) == MAGIC


class Reader:
    """See `demos.formats.source.Source`. robosuite's low-dimensional observations of the robot become observation.state, "object"
    observation.environment_state; actions of a controller of deltas are ee_delta within [-1, 1].

    Args:
        path: HDF5 file.
        choice: observations by their names in the file.

    Raises:
        DataError: no robomimic file.
        InputError: something was chosen that is not there.
    """

    def __init__(self, path: Path, choice: Choice) -> None:
        self.path, self.damage = path, list[str]()
        self._file = _open(path, "r")
        try:
            self.described = self._describe(choice)
        except BaseException:
            self.close()
            raise

    def _describe(self, choice: Choice) -> Described:
        data: Any = self._inside(self._file, "data") if "data" in self._file else {}
        if not any(name.startswith("demo") for name in data):
            raise DataError(f"{self.path} has no data/demo_0: it is no dataset of robomimic")
        self._names = sorted((n for n in data if n.startswith("demo")), key=lambda n: int("".join(filter(str.isdigit, n)) or 0))
        first = self._inside(data, self._names[0])
        if "obs" not in first or "actions" not in first:
            there = ", ".join(first)
            raise DataError(f"{self.path}: {self._names[0]} has {there}, no obs; robomimic's dataset_states_to_obs makes them of states")
        observed = self._inside(first, "obs")
        arrays = {name: array for name in observed if hasattr(array := self._inside(observed, name), "dtype")}
        vectors, pictures = dict(vectors_of(arrays)), dict(pictures_of(arrays))
        state = chosen(choice.state, list(vectors), "observation") or tuple(n for n in vectors if n.startswith("robot")) or tuple(vectors)
        environment = chosen(choice.environment, list(vectors), "observation") or tuple(n for n in ("object",) if n in vectors)
        wanted = chosen(choice.cameras, list(pictures), "camera") or tuple(pictures)
        self._cameras = {camera_name(name): name for name in wanted}
        self._action = choice.action or "actions"
        chosen([self._action], [n for n in first if n.startswith("action")], "action")
        told = _told(data.attrs.get("env_args"))
        kind, bounded = _kind(told)
        dim = int(self._inside(first, self._action).shape[1])
        return Described(
            fps=choice.fps or round(float(told.get("env_kwargs", {}).get("control_freq") or USUAL_HZ)),
            vectors=vectors,
            state=state,
            environment=tuple(n for n in environment if n not in state),
            cameras={name: pictures[of] for name, of in self._cameras.items()},
            action_dim=dim,
            action_kind=choice.action_kind or kind,
            action_low=(-1.0,) * dim if bounded else (),
            action_high=(1.0,) * dim if bounded else (),
            robot=str(told.get("env_kwargs", {}).get("robots") or told.get("env_name") or ""),
            episodes=len(self._names),
        )

    def episode(self, index: int) -> Episode:
        """See `Source`."""
        name = self._names[index]
        try:
            group = self._inside(self._inside(self._file, "data"), name)
            observed = self._inside(group, "obs")
            arrays = {key: self._inside(observed, key) for key in {*self.described.state, *self.described.environment}}
            arrays[ACTION] = self._inside(group, self._action)
            for key, array in arrays.items():
                check_size(array.shape, f"{self.path}: {name}/{key}")
            vectors = {key: np.asarray(array).reshape(len(array), -1) for key, array in arrays.items()}
            rewards = np.asarray(self._inside(group, "rewards")) if "rewards" in group else np.zeros(0)
            pictures = {short: self._inside(observed, of) for short, of in self._cameras.items()}
        except (KeyError, OSError) as e:
            raise DataError(f"{self.path}: {name} is damaged or lacks something that the first one has ({e})") from None
        success = bool(rewards.max() > 0) if rewards.size else None
        return Episode(len(vectors[ACTION]), vectors, lambda camera, at: as_picture(np.asarray(pictures[camera][at])), (), success)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _inside(self, group: Any, name: str) -> Any:
        """A member of a group that is in this very file: HDF5 has links to other files, and arrays that lie in them.

        Raises:
            DataError: it leads elsewhere, or unfolds into more than any holds.
            KeyError: it is not there.
        """
        link = group.get(name, getlink=True)
        found = group[name] if type(link).__name__ == "HardLink" else None
        if found is None or getattr(found, "external", None) or getattr(found, "is_virtual", False):
            if name not in group:
                raise KeyError(name)
            raise DataError(f"{self.path}: {group.name}/{name} leads out of the file; it is not followed")
        if getattr(found, "chunks", None):
            check_size(found.chunks, f"{self.path}: a block of {group.name}/{name}")
        return found


def write(dataset: Dataset, path: Path, progress: Progress = SILENT) -> dict[str, int]:
    """Write a dataset as an HDF5 file that robomimic trains on.

    Vectors become obs/state and obs/environment_state, pictures obs/<camera>_image (T, H, W, 3); actions are scaled to [-1, 1], as
    robomimic expects them. Its own tools find no simulator by it.

    Raises:
        InputError: the file is there already, or cannot be written.
    """
    if path.exists():
        raise InputError(f"{path} exists already; nothing is written over, choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    names = {STATE: "state", ENVIRONMENT_STATE: "environment_state"}
    vectors = {names.get(k, k.removeprefix("observation.")): k for k in dataset.observation_spec if k not in dataset.cameras}
    with _open(partial, "w") as file:
        data = file.create_group("data")
        progress.start("episodes", dataset.num_episodes)
        for index in range(dataset.num_episodes):
            episode = dataset.episode(index)
            rows = slice(episode.start, episode.start + episode.length)
            group = data.create_group(f"demo_{index}")
            group.attrs["num_samples"] = episode.length
            group.create_dataset("actions", data=dataset.action_spec.normalize(dataset.column(ACTION)[rows]))
            last = np.arange(episode.length) == episode.length - 1
            group.create_dataset("rewards", data=(last & bool(episode.success)).astype(np.float64))
            group.create_dataset("dones", data=last.astype(np.int64))
            for name, key in vectors.items():
                values = dataset.column(key)[rows]
                group.create_dataset(f"obs/{name}", data=values)
                group.create_dataset(f"next_obs/{name}", data=np.concatenate((values[1:], values[-1:])))
            for key in dataset.cameras:
                _write_pictures(group, f"obs/{key.rsplit('.', 1)[-1]}_image", dataset, key, index)
            progress.advance()
        data.attrs["total"] = len(dataset)
        told = {"env_name": dataset.info.get("robot_type") or "sinew", "type": 1, "env_kwargs": {"control_freq": dataset.fps}}
        data.attrs["env_args"] = json.dumps(told)
    partial.rename(path)
    return {"episodes": dataset.num_episodes, "frames": len(dataset)}


def _write_pictures(group: Any, name: str, dataset: Dataset, key: str, index: int) -> None:
    shape = dataset.observation_spec[key].shape
    packed = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 1}
    array = group.create_dataset(name, (dataset.episode(index).length, *shape), "uint8", **packed)
    at = 0
    for block in dataset.pictures(key, index):
        array[at : at + len(block)] = block
        at += len(block)


def _told(env_args: Any) -> Mapping[str, Any]:
    try:
        told = json.loads(env_args) if env_args is not None else {}
    except (TypeError, ValueError, RecursionError):
        told = {}
    return told if isinstance(told, Mapping) and isinstance(told.get("env_kwargs", {}), Mapping) else {}


def _kind(told: Mapping[str, Any]) -> tuple[ActionKind, bool]:
    """What actions command, and whether they are within [-1, 1]: as robosuite's controller is set up."""
    controllers = told.get("env_kwargs", {}).get("controller_configs")
    if not isinstance(controllers, Mapping):
        return "joint_position", False
    text = json.dumps(controllers)
    delta = '"control_delta": false' not in text and '"input_type": "absolute"' not in text
    if "OSC" in text:
        return ("ee_delta", True) if delta else ("ee_pose", False)
    return ("joint_delta" if delta else "joint_position"), delta


def _open(path: Path, mode: str) -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingDependency("HDF5 files need h5py: pip install 'sinew[formats]'") from None
    try:
        return h5py.File(path, mode)
    except OSError as e:
        raise DataError(f"{path} cannot be opened as HDF5 ({str(e)[:120]})") from None
