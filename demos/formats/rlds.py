"""RLDS datasets as TensorFlow Datasets stores them (Open X-Embodiment): features.json, and TFRecord files of one episode per record.

Records and their protocol buffers are read here, without TensorFlow. Layouts: TensorFlow's page on TFRecord, `tf.train.Example`'s
definition, and the flattened names that TensorFlow Datasets gives to the steps of an episode ("steps/observation/image").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from demos.formats.source import Choice, Described, Episode, as_picture, camera_name, check_size, chosen
from demos.video import decode_picture
from sinew.errors import DataError
from sinew.rundir import read_json
from sinew.specs import ACTION

FEATURES = "features.json"
STEPS = "steps/"
LANGUAGE = ("steps/language_instruction", "steps/observation/natural_language_instruction", "steps/observation/language_instruction")
STATES = ("state", "proprio", "eef_state", "joint_state", "gripper_state", "robot_state")
"""Names of the robot's own state in published sets."""
USUAL_HZ = 10
MOST_BYTES = 2**31
"""Of one record."""
_DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16", "DT_BFLOAT16": "float32", "DT_INT32": "int32",
           "DT_INT64": "int64", "DT_UINT8": "uint8", "DT_BOOL": "bool"}  # fmt: skip


def is_it(path: Path) -> bool:
    """Whether a folder is a version of a dataset of TensorFlow Datasets."""
    return path.is_dir() and (path / FEATURES).is_file() and any(_files(path))


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.tfrecord*"))


class Reader:
    """See `demos.formats.source.Source`.

    Args:
        path: folder with features.json and the TFRecord files.
        choice: names below steps/observation.

    Raises:
        DataError: damaged, or no dataset of episodes.
        InputError: something was chosen that is not there.
    """

    def __init__(self, path: Path, choice: Choice) -> None:
        self.damage: list[str] = []
        self.path = path
        try:
            self._kinds = dict(_features(read_json(path / FEATURES), ""))
        except (RecursionError, AttributeError, TypeError, ValueError) as e:
            raise DataError(f"{path / FEATURES} does not describe a dataset ({type(e).__name__})") from None
        for file in _files(path):
            if not file.resolve().is_relative_to(path.resolve()):
                raise DataError(f"{file} is a link that leads out of the dataset; it is not followed")
        if not any(name.startswith(STEPS) for name in self._kinds):
            raise DataError(f"{path} has no steps: it is no RLDS dataset")
        self._records = [(file, at) for file in _files(path) for at in _offsets(file)]
        if not self._records:
            raise DataError(f"{path} holds no episode")
        observed = {n.removeprefix("steps/observation/"): k for n, k in self._kinds.items() if n.startswith("steps/observation/")}
        vectors = {n: int(np.prod(k.shape)) for n, k in observed.items() if k.kind == "vector"}
        pictures = {n: k.shape for n, k in observed.items() if k.kind == "picture"}
        usual = tuple(n for n in STATES if n in vectors)
        state = chosen(choice.state, list(vectors), "observation") or usual or tuple(vectors)
        environment = chosen(choice.environment, list(vectors), "observation")
        wanted = chosen(choice.cameras, list(pictures), "camera") or tuple(pictures)
        self._cameras = {camera_name(name): name for name in wanted}
        names = [n.removeprefix(STEPS) for n, k in self._kinds.items() if n.startswith("steps/action") and k.kind == "vector"]
        self._action = chosen([choice.action], names, "action") if choice.action else tuple(sorted(names))
        if not self._action:
            raise DataError(f"{path} has no steps/action")
        if not state:
            raise DataError(f"{path} observes no vector; it has {', '.join(observed)}")
        first = self._steps(0)
        shapes = {short: self._first_picture(first, of).shape for short, of in self._cameras.items()}
        self.described = Described(
            fps=choice.fps or USUAL_HZ,
            vectors=vectors,
            state=state,
            environment=tuple(n for n in environment if n not in state),
            cameras={short: (int(s[0]), int(s[1]), 3) for short, s in shapes.items()},
            action_dim=sum(int(np.prod(self._kinds[STEPS + n].shape)) for n in self._action),
            action_kind=choice.action_kind or "ee_delta",
            robot=path.parent.name,
            episodes=len(self._records),
        )

    def episode(self, index: int) -> Episode:
        """See `Source`."""
        found = self._steps(index)
        length = self._length(found, index)
        names = {*self.described.state, *self.described.environment}
        vectors = {name: self._vector(found, f"steps/observation/{name}", length) for name in names}
        vectors[ACTION] = np.concatenate([self._vector(found, STEPS + name, length) for name in self._action], axis=1)
        texts = next((found[name] for name in LANGUAGE if found.get(name)), [])
        rewards = found.get("steps/reward")
        success = bool(max(rewards) > 0) if rewards is not None and len(rewards) else None

        def picture(camera: str, at: int) -> np.ndarray:
            return as_picture(decode_picture(found[f"steps/observation/{self._cameras[camera]}"][at]))

        for of in self._cameras.values():
            if len(found.get(f"steps/observation/{of}", ())) != length:
                raise DataError(f"{self.path}: episode {index} has {length} steps and not as many pictures {of}")
        return Episode(length, vectors, picture, [t.decode(errors="replace") for t in texts] if len(texts) == length else (), success)

    def close(self) -> None:
        """Nothing stays open."""

    def _steps(self, index: int) -> dict[str, Any]:
        file, at = self._records[index]
        try:
            return dict(_example(_record(file, at)))
        except (struct.error, IndexError, ValueError) as e:
            raise DataError(f"{file}: the record of episode {index} is damaged ({e})") from None

    def _length(self, found: Mapping[str, Any], index: int) -> int:
        name = STEPS + self._action[0]
        each = int(np.prod(self._kinds[name].shape))
        count = len(found.get(name, ()))
        if not count or count % each:
            raise DataError(f"{self.path}: episode {index} has {count} numbers of {name}, {each} for each step")
        return count // each

    def _vector(self, found: Mapping[str, Any], name: str, length: int) -> np.ndarray:
        values, each = np.asarray(found.get(name, ()), dtype=np.float64), int(np.prod(self._kinds[name].shape))
        if values.size != length * each:
            raise DataError(f"{self.path}: {name} has {values.size} numbers, {length} steps of {each} are expected")
        return values.reshape(length, each)

    def _first_picture(self, found: Mapping[str, Any], name: str) -> np.ndarray:
        encoded = found.get(f"steps/observation/{name}")
        if not encoded:
            raise DataError(f"{self.path}: the first episode has no picture {name}")
        return decode_picture(encoded[0])


# ---------------------------------------------------------------- features.json


class _Kind:
    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        self.kind, self.shape = kind, shape


def _features(told: Any, prefix: str) -> Iterator[tuple[str, _Kind]]:
    """(flattened name, what it is) of every leaf."""
    if not isinstance(told, Mapping):
        return
    for holder, inside in (("featuresDict", "features"), ("sequence", "feature")):
        if holder in told:
            children = told[holder].get(inside, {})
            if holder == "sequence":
                yield from _features(children, prefix)
            else:
                for name, child in children.items():
                    yield from _features(child, f"{prefix}/{name}" if prefix else str(name))
            return
    if "image" in told:
        shape = _shape(told["image"].get("shape"))
        yield prefix, _Kind("picture" if len(shape) != 3 or shape[2] == 3 else "other", shape)  # masks and depth are left out
    elif "text" in told:
        yield prefix, _Kind("text", ())
    elif "tensor" in told:
        tensor = told["tensor"]
        shape, dtype = _shape(tensor.get("shape")), str(tensor.get("dtype", "float32"))
        numeric = dtype in _DTYPES.values() or dtype in _DTYPES
        plain = str(tensor.get("encoding", "none")).lower() in ("none", "")
        vector = numeric and plain and len(shape) <= 1 and all(n > 0 for n in shape)
        yield prefix, _Kind("vector" if vector else "other", shape)


def _shape(told: Any) -> tuple[int, ...]:
    dimensions = told.get("dimensions", ()) if isinstance(told, Mapping) else ()
    shape = tuple(int(n) for n in dimensions)
    check_size(tuple(max(n, 1) for n in shape), FEATURES)  # -1 stands for any number
    return shape


# ---------------------------------------------------------------- TFRecord and tf.train.Example


def _offsets(file: Path) -> list[int]:
    """Where the records begin."""
    size, at, found = file.stat().st_size, 0, []
    with file.open("rb") as f:
        while at < size:
            f.seek(at)
            head = f.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else MOST_BYTES
            if length >= MOST_BYTES or at + length + 16 > size:
                raise DataError(f"{file} is cut off or damaged at byte {at}; {len(found)} episodes before it are whole")
            found.append(at)
            at += length + 16
    return found


def _record(file: Path, at: int) -> bytes:
    with file.open("rb") as f:
        f.seek(at)
        head = f.read(12)
        data = f.read(struct.unpack("<Q", head[:8])[0])
        told = struct.unpack("<I", f.read(4))[0]
    if _masked(data) != told:
        raise DataError(f"{file}: the record at byte {at} is damaged: its checksum differs")
    return data


def _masked(data: bytes) -> int:
    """TFRecord's masked CRC-32C; by Google's library where it is there, which is a thousand times faster."""
    try:
        import google_crc32c

        crc = google_crc32c.value(data)
    except ImportError:
        crc = _crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


_TABLE = _table().tolist()


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _example(data: bytes) -> Iterator[tuple[str, Any]]:
    """{name: [bytes] or array} of a serialised tf.train.Example."""
    for number, features in _fields(data):
        for _, entry in _fields(features) if number == 1 else ():
            parts = dict(_fields(entry))
            yield parts.get(1, b"").decode(), _feature(parts.get(2, b""))


def _feature(data: bytes) -> Any:
    for number, content in _fields(data):
        if number == 1:
            return [value for _, value in _fields(content)]
        if number == 2:
            return np.concatenate([np.frombuffer(value, "<f4") for _, value in _fields(content)] or [np.zeros(0, np.float32)])
        if number == 3:
            return np.concatenate([_varints(value) for _, value in _fields(content)] or [np.zeros(0, np.int64)])
    return []


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of a protocol buffer's fields; a number's content is its bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(data, at)
        elif kind == 0:
            begin = at
            _, at = _varint(data, at)
            yield key >> 3, data[begin:at]
            continue
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > end:
            raise ValueError("a field leads past the end")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _varints(data: bytes) -> np.ndarray:
    check_size((len(data),), "a list of numbers")
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value - (1 << 64) if value >= 1 << 63 else value)
    return np.array(found, dtype=np.int64)
