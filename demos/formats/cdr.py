"""ROS 2 messages of any type, by the definition that a bag holds of them: text in the format ros2msg, payloads in plain CDR.

Source: https://mcap.dev/spec/registry on ros2msg; OMG DDS-XTypes, XCDR version 1. No code is made of a definition, and no size
in a message is believed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sinew.errors import DataError

NUMBERS = {
    "bool": "?", "byte": "B", "char": "B", "uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i",
    "uint64": "Q", "int64": "q", "float32": "f", "float64": "d",
}  # fmt: skip
"""Primitive types with their struct letters."""
TEXTS = ("string", "wstring")
DEEPEST, MOST_FIELDS, MOST_PARTS = 16, 5_000, 1_000_000
"""Messages within messages, fields of a type, and texts and messages in one message; no ROS message comes near them."""
_FIELD = re.compile(r"([A-Za-z][\w/]*)(?:<=\d+)?(\[(?:<=)?\d*\])?\s+([A-Za-z]\w*)\s*(=)?")
_ONE = {"Header": "std_msgs/Header", "time": "builtin_interfaces/Time", "duration": "builtin_interfaces/Duration"}


@dataclass(frozen=True)
class Field:
    """One field of a message."""

    name: str
    kind: str
    """A primitive, a text, or empty for a message."""
    inside: tuple[Field, ...] = ()
    """Fields of the message."""
    count: int | None = None
    """Elements of an array: -1 for a sequence, None for a single value."""


def fields(definition: str, message: str) -> tuple[Field, ...]:
    """Fields of a message.

    Args:
        definition: text of the message and, behind lines of "=", of those that it is made of.
        message: its name, "sensor_msgs/msg/JointState".

    Raises:
        DataError: the text is none, lacks a message, or messages are within each other.
    """
    first, *rest = re.split(r"^=+\s*$", definition, flags=re.MULTILINE)
    texts = {_short(message): first}
    for block in rest:
        head, _, text = block.strip().partition("\n")
        if head.startswith("MSG:"):
            texts[_short(head.removeprefix("MSG:").strip())] = text
    return _parsed(texts, _short(message), 0, [MOST_FIELDS])


def _parsed(texts: Mapping[str, str], message: str, depth: int, left: list[int]) -> tuple[Field, ...]:
    if depth > DEEPEST:
        raise DataError(f"the definition of {message} holds itself or more than {DEEPEST} messages in each other")
    if message not in texts:
        raise DataError(f"the definition of {message} is missing; there are {', '.join(list(texts)[:8])}")
    found = []
    for line in texts[message].splitlines():
        line = line.partition("#")[0].strip()
        told = _FIELD.match(line)
        if told is None:
            if line:
                raise DataError(f"the definition of {message} has the line {line[:60]!r}, which is no field")
            continue
        kind, array, name, constant = told.groups()
        if constant:
            continue
        left[0] -= 1
        if left[0] < 0:
            raise DataError(f"the definition of {message} comes to more than {MOST_FIELDS} fields")
        count = None if array is None else int(array[1:-1]) if array[1:-1].isdigit() else -1
        if kind in NUMBERS or kind in TEXTS:
            found.append(Field(name, kind, (), count))
        else:
            owner = message.split("/")[0]
            inner = _ONE.get(kind) or _short(kind if "/" in kind else f"{owner}/{kind}")
            found.append(Field(name, "", _parsed(texts, inner, depth + 1, left), count))
    return tuple(found)


def _short(name: str) -> str:
    parts = name.split("/")
    return f"{parts[0]}/{parts[-1]}"


def decode(wanted: Sequence[Field], data: bytes) -> dict[str, Any]:
    """A message as numbers, texts, bytes, arrays, lists and nested objects.

    Raises:
        DataError: it is shorter than it claims, or not plain CDR.
    """
    if len(data) < 4 or data[0] != 0 or data[1] not in (0, 1):
        raise DataError(f"a message begins with {data[:4].hex()}, which is no plain CDR")
    try:
        return _Payload(data, "<" if data[1] else ">").message(wanted)
    except (struct.error, UnicodeDecodeError, ValueError) as e:
        raise DataError(f"a message of {len(data)} bytes does not hold what its type says ({e})") from None


class _Payload:
    def __init__(self, data: bytes, order: str) -> None:
        self.data, self.order, self.at, self.parts = data, order, 4, 0

    def message(self, wanted: Sequence[Field]) -> dict[str, Any]:
        return {field.name: self._field(field) for field in wanted}

    def _field(self, field: Field) -> Any:
        if field.count is None:
            return self._one(field)
        count = self._number("I") if field.count < 0 else field.count
        if count > len(self.data) - self.at:  # every element takes a byte or more
            raise ValueError(f"{field.name} has {count} elements and {len(self.data) - self.at} bytes are left")
        if field.kind not in NUMBERS:
            return [self._one(field) for _ in range(count)]
        letter = NUMBERS[field.kind]
        size = struct.calcsize(letter)
        if count:
            self._align(size)
        raw = self._take(count * size)
        return raw if letter == "B" else np.frombuffer(raw, np.dtype(self.order + letter))

    def _one(self, field: Field) -> Any:
        if field.kind in NUMBERS:
            return self._number(NUMBERS[field.kind])
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS} parts")
        if not field.kind:
            return self.message(field.inside)
        length = self._number("I")
        if field.kind == "wstring":
            return self._take(2 * length).decode("utf-16-le" if self.order == "<" else "utf-16-be").rstrip("\0")
        return self._take(length).rstrip(b"\0").decode(errors="replace")

    def _number(self, letter: str) -> Any:
        size = struct.calcsize(letter)
        self._align(size)
        return struct.unpack(self.order + letter, self._take(size))[0]

    def _align(self, size: int) -> None:
        self.at += -(self.at - 4) % size

    def _take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError(f"it ends {count - len(self.data) + self.at} bytes early")
        self.at += count
        return self.data[self.at - count : self.at]
