"""What every foreign format is read as, and the one way from there into a LeRobotDataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from demos.layout import INFO
from demos.writer import Writer
from sinew.config import to_json
from sinew.errors import DataError, InputError, unknown
from sinew.progress import SILENT, Progress
from sinew.rundir import read_json, write_json
from sinew.specs import ACTION, ENVIRONMENT_STATE, IMAGES, STATE, ActionKind, ActionSpec, ObservationSpec, TensorSpec

NOTE = "meta/converted.json"
"""What a dataset was converted from, so that an interrupted conversion goes on."""
FORMATS: Mapping[str, str] = {
    "robomimic": "demos.formats.robomimic",
    "zarr": "demos.formats.diffusion_policy",
    "rlds": "demos.formats.rlds",
    "mcap": "demos.formats.mcap",
}
"""Format → module with `is_it(path) -> bool` and `Reader(path, choice)`."""
MOST_ELEMENTS = 2**31
"""Of one array of one episode: what claims more is damaged or a trap."""
WIDEST = 2**16
"""Numbers in one vector."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What of a foreign dataset is wanted, as far as it does not say so itself."""

    state: tuple[str, ...] = ()
    """Vectors that make up observation.state, in this order; the format's usual ones if empty."""
    environment: tuple[str, ...] = ()
    """Vectors that make up observation.environment_state."""
    cameras: tuple[str, ...] = ()
    """Pictures that are wanted; all if empty."""
    action: str = ""
    """The action, where there are several."""
    action_kind: ActionKind | None = None
    """What the action commands; what the format tells if left out, else joint_position."""
    fps: int | None = None
    """Frames per second, where the format does not tell."""


@dataclass(frozen=True)
class Episode:
    """One episode of a foreign dataset, in memory or read as it is asked for."""

    length: int
    vectors: Mapping[str, np.ndarray]
    """{name: (T, D)}; the action among them, as "action"."""
    picture: Callable[[str, int], np.ndarray]
    """(camera, frame) → (H, W, 3) uint8."""
    tasks: Sequence[str] = ()
    """Text per frame; empty where the format tells none."""
    success: bool | None = None
    begin_ns: int = 0
    """Wall clock of the first frame, where it is known."""
    notes: Sequence[str] = ()
    """What was odd."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a foreign dataset says of itself, before its episodes are read."""

    fps: int
    vectors: Mapping[str, int]
    """{name: D} of all that can be observed."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of a vector's elements, where they are told."""
    state: tuple[str, ...]
    """Those that make up observation.state."""
    environment: tuple[str, ...] = ()
    """Those that make up observation.environment_state."""
    cameras: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """{name: (H, W, 3)}."""
    action: str = ""
    """The vector that is the action, where it is one of `vectors`."""
    action_dim: int
    action_kind: ActionKind = "joint_position"
    action_low: tuple[float, ...] = ()
    """Smallest commands; taken from the data where they are not known."""
    action_high: tuple[float, ...] = ()
    """Largest commands."""
    robot: str = ""
    episodes: int


class Source(Protocol):
    """A foreign dataset."""

    described: Described
    damage: list[str]
    """What could not be read so far, a line each."""

    def episode(self, index: int) -> Episode:
        """One episode.

        Raises:
            DataError: it is damaged.
        """
        ...

    def close(self) -> None:
        """Close its files."""
        ...


def kind_of(path: Path) -> str | None:
    """The format of a file or folder; None if it is none that is known."""
    for name, module in FORMATS.items():
        if import_module(module).is_it(path):
            return name
    return None


def open_source(path: Path, choice: Choice | None = None, kind: str | None = None) -> Source:
    """Open a foreign dataset.

    Args:
        path: file or folder.
        choice: what of it is wanted.
        kind: its format; found out if left out.

    Raises:
        InputError: no such path, a format that is not known, or something was chosen that is not there.
        DataError: it is damaged.
        MissingDependency: the library that reads it is not here.
    """
    if not path.exists():
        raise InputError(f"{path} is not there")
    if kind is not None and kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    found = kind or kind_of(path)
    if found is None:
        raise InputError(f"{path} is in no format that is known: {', '.join(FORMATS)}, LeRobotDataset v2 and v3, MCAP and .db3 bags")
    return import_module(FORMATS[found]).Reader(path, choice or Choice())


def transfer(
    source: Source, out: Path, *, task: str | None = None, told: Mapping[str, Any] | None = None, progress: Progress = SILENT
) -> dict[str, int]:
    """Write a foreign dataset as a LeRobotDataset, an episode after the other; what was interrupted goes on.

    Args:
        source: opened.
        out: folder; must not exist, be empty, or hold what an earlier call for the same source left.
        task: words for frames of which the source tells none.
        told: where it comes from, kept beside the data and compared when it goes on.
        progress: advances by one per episode.

    Returns:
        {"episodes", "frames"}.

    Raises:
        InputError: the folder is taken, or nobody tells the task.
        DataError: an episode is damaged; those before are kept.
    """
    note = {"from": to_json(told or {}), "described": to_json(source.described)}
    if (out / NOTE).exists():
        if read_json(out / NOTE) != note:
            raise InputError(f"{out} holds another conversion; choose another folder for --out")
        writer = Writer.resume(out, keep_interrupted=False)
    else:
        observation, action = specs(source, progress)
        robot = source.described.robot
        writer = Writer.create(out, fps=source.described.fps, observation_spec=observation, action_spec=action, robot_type=robot)
        write_json(out / NOTE, note)
    with writer:
        progress.start("episodes", source.described.episodes, done=writer.num_episodes)
        for index in range(writer.num_episodes, source.described.episodes):
            _write(writer, source, source.episode(index), task, index)
            progress.advance()
        return {"episodes": writer.num_episodes, "frames": writer.num_frames}


def specs(source: Source, progress: Progress = SILENT) -> tuple[ObservationSpec, ActionSpec]:
    """Our specs of a source; where it does not tell the bounds of its actions, those that occur."""
    told = source.described
    tensors: dict[str, TensorSpec] = {}
    for key, names in ((STATE, told.state), (ENVIRONMENT_STATE, told.environment)):
        if names:
            elements = tuple(element for name in names for element in _elements(told, name))
            tensors[key] = TensorSpec(shape=(len(elements),), names=elements)
    for name, shape in told.cameras.items():
        tensors[IMAGES + name] = TensorSpec(shape=shape, dtype="uint8", low=0, high=255)
    low, high = (told.action_low, told.action_high) if told.action_low else _bounds(source, progress)
    names = told.names.get(told.action) or tuple(f"action.{i}" for i in range(told.action_dim))
    action = ActionSpec(kind=told.action_kind, low=low, high=high, rate_hz=float(told.fps), names=names)
    return ObservationSpec(tensors), action


def _elements(told: Described, name: str) -> tuple[str, ...]:
    """Names of a vector's elements; those that another observation has as well say whose they are."""
    names, width = told.names.get(name), told.vectors[name]
    if width > WIDEST:
        raise DataError(f"{name} has {width} numbers in each frame: it is damaged or a trap; choose others with --state")
    if names is None:
        return tuple(f"{name}.{i}" for i in range(width)) if width > 1 else (name,)
    others = {element for other in (*told.state, *told.environment) if other != name for element in told.names.get(other, ())}
    return tuple(f"{name}.{element}" if element in others else element for element in names)


def _bounds(source: Source, progress: Progress) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = np.full(source.described.action_dim, math.inf), np.full(source.described.action_dim, -math.inf)
    progress.start("bounds of the actions", source.described.episodes)
    for index in range(source.described.episodes):
        actions = source.episode(index).vectors[ACTION]
        if not np.isfinite(actions).all():
            raise DataError(f"episode {index} has an action that is not finite at frame {int(np.argwhere(~np.isfinite(actions))[0, 0])}")
        low, high = np.minimum(low, actions.min(0)), np.maximum(high, actions.max(0))
        progress.advance()
    flat = high - low < 1e-6
    return tuple(np.where(flat, low - 0.5, low).tolist()), tuple(np.where(flat, high + 0.5, high).tolist())


def _write(writer: Writer, source: Source, episode: Episode, task: str | None, index: int) -> None:
    told = source.described
    parts = {key: names for key, names in ((STATE, told.state), (ENVIRONMENT_STATE, told.environment)) if names}
    joined = {key: np.concatenate([episode.vectors[name] for name in names], axis=1).astype(np.float32) for key, names in parts.items()}
    actions = episode.vectors[ACTION].astype(np.float32)
    if any(len(values) != episode.length for values in (*joined.values(), actions)):
        raise DataError(f"episode {index}: its arrays are of different length")
    period_ns = 1e9 / told.fps
    for at in range(episode.length):
        words = episode.tasks[at] if len(episode.tasks) else task
        if not words or not words.strip():
            raise InputError(f"episode {index} does not tell what is done: say it with --task")
        frame = {key: values[at] for key, values in joined.items()} | {ACTION: actions[at]}
        for name in told.cameras:
            frame[IMAGES + name] = episode.picture(name, at)
        writer.add_frame(frame, task=words, stamp_ns=episode.begin_ns + round(at * period_ns))
    writer.save_episode(success=episode.success, notes=episode.notes)


def chosen(wanted: Sequence[str], there: Sequence[str], what: str) -> tuple[str, ...]:
    """`wanted`, if all of it is there.

    Raises:
        InputError: something is not; what is there is listed.
    """
    for name in wanted:
        if name not in there:
            raise unknown(what, name, there)
    return tuple(wanted)


def camera_name(name: str) -> str:
    """A camera's name without what only says that it is a picture: "agentview_image" is "agentview"."""
    short = name.removesuffix("_image").removesuffix("_rgb")
    return (short if short not in ("", "image", "img", "rgb") else "front").replace("/", "_").replace(".", "_")


def check_size(shape: Sequence[int], where: str) -> None:
    """Refuse an array that no episode has.

    Raises:
        DataError: it claims to be larger than anything.
    """
    if math.prod(shape) >= MOST_ELEMENTS:
        raise DataError(f"{where} says that it has the shape {tuple(shape)}: it is damaged or a trap")


def vectors_of(arrays: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(name, D) of the arrays that are one number or one vector per frame."""
    for name, array in arrays.items():
        if len(array.shape) in (1, 2) and np.dtype(array.dtype).kind in "fiub":
            yield name, int(array.shape[1]) if len(array.shape) == 2 else 1


def pictures_of(arrays: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """(name, (H, W, 3)) of the arrays that are one picture per frame, whichever axis has the colours."""
    for name, array in arrays.items():
        shape = tuple(array.shape)
        if len(shape) == 4 and 3 in (shape[3], shape[1]) and np.dtype(array.dtype).kind in "uf":
            yield name, (shape[1], shape[2], 3) if shape[3] == 3 else (shape[2], shape[3], 3)


def as_picture(array: np.ndarray) -> np.ndarray:
    """One picture as (H, W, 3) uint8: colours last; numbers in [0, 1] become [0, 255]."""
    if array.shape[-1] != 3:
        array = np.moveaxis(array, 0, -1)
    if array.dtype != np.uint8:
        scale = 255.0 if np.dtype(array.dtype).kind == "f" and float(array.max(initial=0.0)) <= 1.0 else 1.0
        array = np.clip(np.rint(np.nan_to_num(array) * scale), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(array)


__all__ = [
    "FORMATS", "INFO", "Choice", "Described", "Episode", "Source", "as_picture", "camera_name", "check_size", "chosen", "kind_of",
    "open_source", "pictures_of", "specs", "transfer", "vectors_of",
]  # fmt: skip
