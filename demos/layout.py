"""Where everything lies in a LeRobotDataset v3 folder, and its info.json ↔ our specs."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinew.config import from_json, to_json
from sinew.errors import DataError, SpecError
from sinew.specs import ACTION, ActionSpec, ObservationSpec, TensorSpec

VERSION = "v3.0"
FILES_PER_CHUNK = 1000
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
SPECS = "meta/sinew.json"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
NATIVE = "native/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
"""Samples at their own rates and the account of what was lost, of the episode with the file's number; no part of LeRobot's format."""
RECORDING = "recording"
DAMAGED = "damaged"
STAMP = "timestamp_ns"
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"
INDEX_FEATURES = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}
"""Columns that every LeRobotDataset has."""
OUTCOME_FEATURES = {STAMP: "int64", REWARD: "float32", DONE: "bool", SUCCESS: "bool"}
"""Columns that we add. The real stamp is not called observation.*: LeRobot would hand it to policies as an input."""
MOST, MOST_EPISODES = 2**31, 2**24
"""No dataset has as many frames, or episodes; and no frame as many elements as the first."""
VECTOR_DTYPES = ("float32", "float64", "int64", "int32", "bool")


@dataclass(frozen=True)
class EpisodeInfo:
    """One episode of a dataset."""

    index: int
    length: int
    """Frames."""
    start: int
    """Global index of the first frame."""
    task: str
    """Task of the first frame."""
    success: bool | None
    """None: not recorded."""
    interrupted: bool = False
    """Recorded by a process that died before it saved the episode."""
    warnings: tuple[str, ...] = ()
    """What was odd while recording, for example a camera that stood still."""


def check_root(root: Path) -> None:
    """Refuse a folder that is not there or that is no LeRobotDataset v3.

    Raises:
        DataError: says what was found instead and what to do.
    """
    if not root.is_dir():
        beside = sorted(p.parent.parent.name for p in root.parent.glob(f"*/{INFO}"))[:8] if root.parent.is_dir() else []
        raise DataError(f"no dataset at {root}: {'datasets there are ' + ', '.join(beside) if beside else 'record one with sinew collect'}")
    if (root / INFO).is_file():
        return
    if (root / RECORDING).is_dir():
        raise DataError(f"{root / INFO} is missing but a recording is there; run sinew data repair {root}")
    raise DataError(f"{root} is not a LeRobotDataset v3: {INFO} is missing; give the folder that holds meta/, data/ and videos/")


def load_info(root: Path) -> dict[str, Any]:
    """info.json of a v3 dataset, checked for the fields that reading needs.

    Raises:
        DataError: missing, not JSON, another version, or a field is missing or of another type.
    """
    check_root(root)
    path = root / INFO
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read as JSON ({e}); run sinew data repair {root}") from None
    if not isinstance(info, dict) or "codebase_version" not in info:
        raise DataError(f"{path} is not of a LeRobotDataset: it has no codebase_version")
    version = str(info["codebase_version"])
    if not version.startswith("v3."):
        raise DataError(
            f"{path} is of LeRobotDataset {version}, Sinew reads v3: use LeRobot's lerobot.datasets.v30.convert_dataset_v21_to_v30"
        )
    for name, kind in (("fps", (int, float)), ("total_episodes", int), ("total_frames", int), ("features", dict), ("data_path", str)):
        if not isinstance(info.get(name), kind) or isinstance(info.get(name), bool):
            raise DataError(f"{path}: field {name!r} is {info.get(name)!r}; run sinew data repair {root}")
    if not info["fps"] > 0:
        raise DataError(f"{path}: fps is {info['fps']}, it must be above 0")
    for key, feature in info["features"].items():
        if not isinstance(feature, dict) or "dtype" not in feature or not isinstance(feature.get("shape"), list):
            raise DataError(f"{path}: feature {key!r} has no dtype and shape")
    _check_harmless(path, info)
    return info


def _check_harmless(path: Path, info: Mapping[str, Any]) -> None:
    """Refuse an info.json that leads out of the dataset's folder, or claims more than any dataset holds.

    Raises:
        DataError: names the field.
    """
    for name in ("data_path", "video_path"):
        if info.get(name) is not None and not _is_harmless(info[name]):
            raise DataError(f"{path}: {name} is {str(info[name])[:80]!r}; a path inside the dataset is expected, such as {DATA}")
    for key, feature in info["features"].items():
        if not key or "/" in key or "\\" in key or "\0" in key or key in (".", ".."):
            raise DataError(f"{path}: feature {key[:80]!r} has a name that no file can have")
        if not all(isinstance(n, int) and 0 <= n < MOST for n in feature["shape"]) or math.prod(feature["shape"]) >= MOST:
            raise DataError(f"{path}: feature {key!r} has the shape {str(feature['shape'])[:80]}")
    for name, most in (("total_episodes", MOST_EPISODES), ("total_frames", MOST)):
        if not 0 <= info[name] < most:
            raise DataError(f"{path}: {name} is {str(info[name])[:40]}")


def _is_harmless(template: Any) -> bool:
    """Whether a path template stays in the dataset and holds only the numbers and names that belong there."""
    if not isinstance(template, str) or template.startswith(("/", "\\")) or ".." in Path(template).parts or "\0" in template:
        return False
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(template) if name is not None]
    except ValueError:
        return False
    return all(
        how is None
        and ((name in ("chunk_index", "file_index") and re.fullmatch("0?[0-9]?d", spec or "d")) or (name, spec) == ("video_key", ""))
        for name, spec, how in fields
    )


def cameras(info: Mapping[str, Any]) -> dict[str, str]:
    """{camera key: "video" or "image"} in the order of info.json."""
    return {k: f["dtype"] for k, f in info["features"].items() if f["dtype"] in ("video", "image")}


def columns(info: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{key: (NumPy dtype name, shape)} of every numeric column of the data files."""
    return {k: (f["dtype"], tuple(f["shape"])) for k, f in info["features"].items() if f["dtype"] not in ("video", "image", "string")}


def file_indices(number: int) -> tuple[int, int]:
    """(chunk, file) of the number-th file."""
    return divmod(number, FILES_PER_CHUNK)


def native_path(root: Path, episode: int) -> Path:
    """File of what was kept beside the frames of an episode."""
    chunk, file = file_indices(episode)
    return root / NATIVE.format(chunk_index=chunk, file_index=file)


def file_number(path: Path) -> int:
    """Number of a file, by its name and its folder's."""
    chunk, file = (int(p.split("-")[1]) for p in (path.parent.name, path.stem))
    return chunk * FILES_PER_CHUNK + file


def new_info(
    fps: int, observation: ObservationSpec, action: ActionSpec, robot_type: str, cameras_as: str, extra: Mapping[str, TensorSpec]
) -> dict[str, Any]:
    """info.json of an empty dataset.

    Args:
        fps: frames per second.
        observation: its vectors become columns, its images cameras.
        action: becomes the column "action".
        robot_type: free text.
        cameras_as: "video" or "image".
        extra: become columns too, which no policy sees.
    """
    features: dict[str, Any] = {}
    for key, spec in observation.tensors.items():
        if key in observation.images:
            features[key] = {"dtype": cameras_as, "shape": list(spec.shape), "names": ["height", "width", "channels"]}
        else:
            features[key] = {"dtype": spec.dtype, "shape": list(spec.shape), "names": list(spec.names) or None}
    features[ACTION] = {"dtype": "float32", "shape": [action.dim], "names": list(action.names)}
    for key, spec in extra.items():
        features[key] = {"dtype": spec.dtype, "shape": list(spec.shape), "names": list(spec.names) or None}
    for key, dtype in {**OUTCOME_FEATURES, **INDEX_FEATURES}.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return {
        "codebase_version": VERSION,
        "robot_type": robot_type or None,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {},
        "data_path": DATA,
        "video_path": VIDEO if observation.images and cameras_as == "video" else None,
        "features": features,
    }


def check_recordable(observation: ObservationSpec, action: ActionSpec, extra: Mapping[str, TensorSpec]) -> None:
    """Refuse specs that a LeRobotDataset cannot hold.

    Raises:
        SpecError: names the key.
    """
    taken = {ACTION, *OUTCOME_FEATURES, *INDEX_FEATURES}
    for key in extra:
        if "/" in key or key.startswith("observation") or key in taken:
            raise SpecError(
                f"extra column {key!r} cannot be recorded: take a name without a slash, outside observation.*, unlike the usual ones"
            )
    for key in observation.tensors:
        if "/" in key or not key.startswith("observation."):
            raise SpecError(f"key {key!r} cannot be recorded: keys are observation.<name>, without a slash")
    for key, spec in {**observation.tensors, **extra}.items():
        if key in observation.images:
            if spec.dtype != "uint8" or len(spec.shape) != 3 or spec.shape[2] != 3 or min(spec.shape) < 1:
                raise SpecError(f"{key!r} is {spec.dtype} {spec.shape}; a camera is uint8 (height, width, 3)")
        elif len(spec.shape) != 1 or spec.shape[0] < 1 or spec.dtype not in VECTOR_DTYPES:
            raise SpecError(f"{key!r} is {spec.dtype} {spec.shape}; what is not a camera is a vector (D,) of {', '.join(VECTOR_DTYPES)}")
    if action.dim < 1:
        raise SpecError("the action spec has no elements")


def check_resumable(root: Path, info: Mapping[str, Any]) -> None:
    """Refuse to add episodes to a foreign dataset with features that we only read.

    Raises:
        DataError: names the feature.
    """
    for key, feature in info["features"].items():
        if feature["dtype"] not in ("video", "image") and (feature["dtype"] not in VECTOR_DTYPES or len(feature["shape"]) != 1):
            what = f"{feature['dtype']} {tuple(feature['shape'])}"
            raise DataError(f"{root} cannot be recorded into: feature {key!r} is {what}, we write vectors of {', '.join(VECTOR_DTYPES)}")
    if info["fps"] != int(info["fps"]):
        raise DataError(f"{root} cannot be recorded into: its fps {info['fps']} is no whole number")


def save_specs(observation: ObservationSpec, action: ActionSpec, extra: Mapping[str, TensorSpec] | None = None) -> str:
    """Content of meta/sinew.json: what info.json cannot say (units, bounds, kind of action)."""
    told = {"format_version": 1, "observation": to_json(observation.tensors), "action": to_json(action)}
    return json.dumps(told | ({"extra": to_json(extra)} if extra else {}), indent=2) + "\n"


def load_specs(root: Path, info: Mapping[str, Any], stats: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[ObservationSpec, ActionSpec]:
    """Specs as recorded by us, else as far as info.json tells them.

    Args:
        root: the dataset.
        info: its info.json.
        stats: minima and maxima, the bounds of an action whose limits nobody wrote down.

    Raises:
        DataError: there is no action, or meta/sinew.json is damaged or does not fit info.json.
    """
    path = root / SPECS
    if ACTION not in columns(info):
        raise DataError(f"{root / INFO} has no feature 'action'; it has {', '.join(info['features'])}")
    if not path.exists():
        return _foreign_observation(info), _foreign_action(info, stats)
    observation, action = read_specs(root)
    for key, spec in {**observation.tensors, ACTION: TensorSpec(shape=(action.dim,))}.items():
        have = info["features"].get(key, {}).get("shape")
        if have is None or tuple(have) != spec.shape:
            raise DataError(f"{path} does not fit {INFO}: {key!r} is {spec.shape} in one and {have} in the other")
    return observation, action


def read_extra(root: Path) -> dict[str, TensorSpec]:
    """The extra columns that meta/sinew.json tells of.

    Raises:
        DataError: they are damaged.
    """
    try:
        told = json.loads((root / SPECS).read_text()).get("extra", {})
        return {k: from_json(TensorSpec, v, f"{SPECS} {k}") for k, v in told.items()}
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise DataError(f"{root / SPECS} cannot be read ({e})") from None


def read_specs(root: Path) -> tuple[ObservationSpec, ActionSpec]:
    """meta/sinew.json.

    Raises:
        DataError: missing or damaged.
    """
    path = root / SPECS
    try:
        told = json.loads(path.read_text())
        observation = ObservationSpec({k: from_json(TensorSpec, v, f"{SPECS} {k}") for k, v in told["observation"].items()})
        action = from_json(ActionSpec, told["action"], f"{SPECS} action")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path} cannot be read ({e}); delete it to go on with what {INFO} says") from None
    return observation, action


def _foreign_observation(info: Mapping[str, Any]) -> ObservationSpec:
    tensors = {}
    for key, feature in info["features"].items():
        if feature["dtype"] in ("video", "image"):
            tensors[key] = TensorSpec(shape=image_shape(feature), dtype="uint8")
        elif key.startswith("observation") and feature["dtype"] != "string":
            shape = tuple(feature["shape"])
            dtype = "float32" if feature["dtype"].startswith("float") else feature["dtype"]
            tensors[key] = TensorSpec(shape=shape, dtype=dtype, names=element_names(feature) if len(shape) == 1 else ())
    return ObservationSpec(tensors)


def _foreign_action(info: Mapping[str, Any], stats: Mapping[str, Mapping[str, np.ndarray]]) -> ActionSpec:
    feature = info["features"][ACTION]
    low, high = np.ravel(stats[ACTION]["min"]), np.ravel(stats[ACTION]["max"])
    flat = high - low < 1e-6
    names = element_names(feature) or tuple(f"action_{i}" for i in range(low.size))
    return ActionSpec(
        kind="joint_position",
        low=tuple(np.where(flat, low - 0.5, low)),
        high=tuple(np.where(flat, high + 0.5, high)),
        rate_hz=float(info["fps"]),
        names=names,
    )


def image_shape(feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """(height, width, 3) of a camera, whichever order its feature is written in."""
    shape, names = tuple(feature["shape"]), feature.get("names") or []
    if len(shape) == 3 and (list(names)[:1] in (["channels"], ["channel"]) or (shape[0] == 3 and shape[2] != 3)):
        shape = (shape[1], shape[2], shape[0])
    return (int(shape[0]), int(shape[1]), 3)


def element_names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a vector's elements, () where the feature has none that fit; LeRobot writes lists and nested objects."""
    names = feature.get("names")
    while isinstance(names, Mapping):
        names = next(iter(names.values()), None) if len(names) == 1 else list(names)
    if isinstance(names, list) and len(names) == int(np.prod(feature["shape"])) and all(isinstance(n, str) for n in names):
        return tuple(names)
    return ()
