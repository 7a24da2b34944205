"""Messages of any bag as plain objects: ROS 2's CDR, JSON and protocol buffers; and the vectors and pictures in them.

Protocol buffers are imported here only.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from demos.bags.topic import Topic, in_one_line
from demos.formats import cdr
from sinew.errors import DataError, MissingDependency

TIMES = ("header", "stamp", "timestamp")
"""Fields that say when, which is no observation."""
NAMES = ("name", "names", "joint_names")
"""Fields that name the elements of the vectors beside them."""
VIDEO = {"h264": "h264", "h265": "hevc", "hevc": "hevc", "vp9": "vp9", "av1": "av1"}
"""Formats of compressed video with the names that FFmpeg has for them."""
CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2, 3), "bgra8": (2, 1, 0, 3), "mono8": (0, 0, 0), "8uc1": (0, 0, 0),
            "8uc3": (2, 1, 0)}  # fmt: skip
"""Encodings of raw images: which channels are red, green and blue."""
WIDEST, MOST_PIXELS, DEEPEST = 4096, 2**26, 8
"""Elements that a vector may have, and a picture; objects in each other that are looked into."""
Decode = Callable[[bytes], Mapping[str, Any]]


def decoder(topic: Topic) -> Decode:
    """What makes objects of a topic's messages.

    Raises:
        DataError: nobody here knows the encoding, or the bag lacks the definition.
        MissingDependency: protocol buffers are not here.
    """
    if topic.encoding == "json":
        return _json
    if topic.encoding == "protobuf" and topic.schema:
        return _protobuf(topic)
    if topic.encoding == "cdr" and topic.definition:
        return partial(cdr.decode, cdr.fields(topic.definition, topic.type))
    lacks = "the bag holds no definition of it" if topic.encoding in ("cdr", "protobuf") else "known are cdr, json and protobuf"
    raise DataError(f"topic {topic.name} ({topic.type or 'no type'}, {topic.encoding}) cannot be read: {lacks}")


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise DataError(f"a message of {len(data)} bytes is no JSON ({in_one_line(e)[:80]})") from None
    return found if isinstance(found, dict) else {"data": found}


def _protobuf(topic: Topic) -> Decode:
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
    except ImportError:
        raise MissingDependency("this file holds protocol buffers: pip install 'sinew[formats]'") from None
    pool, files = descriptor_pool.DescriptorPool(), descriptor_pb2.FileDescriptorSet()
    try:
        files.ParseFromString(topic.schema)
        left = {file.name: file for file in files.file}
        while left:  # a file is known after those that it imports
            ready = [file for file in left.values() if not left.keys() & set(file.dependency)]
            if not ready:
                raise ValueError("its files import each other")
            for file in ready:
                pool.Add(left.pop(file.name))
        made = message_factory.GetMessageClass(pool.FindMessageTypeByName(topic.type))
    except (message.DecodeError, KeyError, TypeError, ValueError) as e:
        raise DataError(f"topic {topic.name}: the definition of {topic.type} cannot be used ({in_one_line(e)[:80]})") from None

    def decode(data: bytes) -> Mapping[str, Any]:
        try:
            return _plain(made.FromString(data))
        except (message.DecodeError, ValueError, RecursionError) as e:
            raise DataError(f"a message of {len(data)} bytes is no {topic.type} ({in_one_line(e)[:80]})") from None

    return decode


def _plain(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value, nested = getattr(message, field.name), field.message_type is not None
        if nested and field.message_type.GetOptions().map_entry:
            continue
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        if repeated:
            found[field.name] = [_plain(each) for each in value] if nested else list(value)
        elif not nested:
            found[field.name] = value
        elif message.HasField(field.name):
            found[field.name] = _plain(value)
    return found


# ---------------------------------------------------------------- what is in them


def vectors(message: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray, tuple[str, ...]]]:
    """(path, (D,) float64, names of the elements or ()) of all numbers and lists of numbers, and of objects of nothing but numbers."""
    names = next((tuple(message[n]) for n in NAMES if _texts(message.get(n))), ())
    for key, value in message.items():
        path = f"{prefix}{key}"
        if key in TIMES or isinstance(value, (str, bytes)) or path.count(".") > DEEPEST:
            continue
        if isinstance(value, Mapping):
            leaves = list(_leaves(value, ""))
            if leaves and all(_number(v) for _, v in leaves):
                yield path, np.array([float(v) for _, v in leaves]), tuple(name for name, _ in leaves)
            yield from vectors(value, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            yield from _columns(path, value)
        elif (array := _array(value)) is not None:
            yield path, array, names if len(names) == len(array) and not _number(value) else ()


def _columns(path: str, rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, np.ndarray, tuple[str, ...]]]:
    """The numbers of a list of objects, as of foxglove's JointStates: one vector for each field that all of them have."""
    names = tuple(str(row.get("name", "")) for row in rows)
    for key in rows[0]:
        column = [row.get(key) for row in rows]
        if len(rows) <= WIDEST and all(_number(value) for value in column):
            yield f"{path}.{key}", np.array(column, np.float64), names if all(names) else ()


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and prefix.count(".") < DEEPEST:
            yield from _leaves(inner, f"{prefix}{key}.")
        elif key not in TIMES:
            yield f"{prefix}{key}", inner


def _array(value: Any) -> np.ndarray | None:
    if _number(value):
        return np.array([float(value)])
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) if 0 < value.size <= WIDEST else None
    if isinstance(value, list) and 0 < len(value) <= WIDEST and all(_number(each) for each in value):
        return np.array(value, np.float64)
    return None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(abs(value) < 1e300)  # JSON has numbers that are no floats


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def pictured(message: Mapping[str, Any]) -> str:
    """What kind of picture a message is: "" for none, "raw", "image" for a JPEG or PNG, or a format of video."""
    if not isinstance(message.get("data"), (bytes, str)):
        return ""
    if isinstance(message.get("encoding"), str) and "width" in message and "height" in message:
        return "raw"
    told = message.get("format")
    return VIDEO.get(told.lower().strip(), "image") if isinstance(told, str) else ""


def picture_bytes(message: Mapping[str, Any]) -> bytes:
    """The bytes of a picture; JSON holds them in base64.

    Raises:
        DataError: it does not.
    """
    data = message["data"]
    try:
        return data if isinstance(data, bytes) else base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise DataError("a picture in JSON is not written in base64") from None


def raw_picture(message: Mapping[str, Any]) -> np.ndarray:
    """A raw image as uint8 (height, width, 3).

    Raises:
        DataError: its encoding is not known, or it is smaller than it says.
    """
    told, data = str(message["encoding"]).lower(), picture_bytes(message)
    if told not in CHANNELS:
        raise DataError(f"images of encoding {told[:20]!r} are not read; known are {', '.join(CHANNELS)}")
    order = CHANNELS[told]
    height, width, channels = int(message["height"]), int(message["width"]), 1 if order == (0, 0, 0) else len(order)
    step = int(message.get("step") or width * channels)
    if not (0 < height * width <= MOST_PIXELS and width * channels <= step and height * step <= len(data)):
        raise DataError(f"an image says that it has {height} x {width} pixels of {told} and holds {len(data)} bytes")
    rows = np.frombuffer(data, np.uint8, height * step).reshape(height, step)
    return rows[:, : width * channels].reshape(height, width, channels)[:, :, list(order[:3])]
