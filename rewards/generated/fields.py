"""What generated code sees of an environment: named numbers and vectors, read off the specs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sinew.specs import ActionSpec, ObservationSpec

_POSITION, _QUATERNION = ("x", "y", "z"), ("qw", "qx", "qy", "qz")
SHORT = 3
"""Vectors up to this length are told with the values that occurred."""
_NOT_A_WORD = re.compile(r"\W+", re.ASCII)


@dataclass(frozen=True)
class Field:
    """One named number or vector of an observation."""

    name: str
    """As code says it: now.<name>."""
    key: str
    """Tensor of the observation that it is part of."""
    columns: tuple[int, ...]
    """Where in that tensor."""
    elements: tuple[str, ...]
    """Names of the elements there."""
    unit: str
    """Of the elements, each once."""

    def told(self) -> str:
        """A line for a model that is to write code."""
        size = "a number" if len(self.columns) == 1 else f"{len(self.columns)} numbers"
        return f"{self.name}: {size}, {self.unit or 'no unit'} ({', '.join(self.elements)})"


def fields_of(spec: ObservationSpec) -> dict[str, Field]:
    """The fields of an observation by name.

    "tool.x", "tool.y", "tool.z" become `tool`, "joint1.position", "joint2.position", … `joint_position`, "cube.r11", …
    `cube_rotation`, "cube-tool.x", … `cube_from_tool`; a vector without names is one field with the last part of its key.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for key in spec.vectors:
        tensor = spec[key]
        if len(tensor.shape) != 1 or not tensor.shape[0]:
            continue
        for column in range(tensor.shape[0]):
            name = _group(tensor.names[column]) if tensor.names else key.rpartition(".")[2]
            groups.setdefault((key, name), []).append(column)
    fields: dict[str, Field] = {}
    for (key, name), columns in groups.items():
        tensor = spec[key]
        units = [u.strip() for u in tensor.unit.split(",")]
        unit = ", ".join(dict.fromkeys(units[c] if len(units) > 1 else units[0] for c in columns))
        word = _word(name)
        while word in fields:
            word += "_"
        elements = tuple(tensor.names[c] if tensor.names else str(c) for c in columns)
        fields[word] = Field(word, key, tuple(columns), elements, unit)
    return fields


def widths(fields: Iterable[Field]) -> dict[str, int]:
    """Names with lengths, as the checker takes them."""
    return {field.name: len(field.columns) for field in fields}


def described(fields: Mapping[str, Field], action: ActionSpec, ranges: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None) -> str:
    """The environment in lines: everything code may read, with length, unit, the names of the elements, and where they lay.

    Args:
        fields: from `fields_of`.
        action: what is commanded.
        ranges: smallest and largest values (D,) by name that occurred; None where nothing was recorded.
    """
    lines = []
    for name, field in fields.items():
        line = f"  now.{field.told()}"
        if ranges is not None and len(field.columns) <= SHORT:
            line += ", seen from " + " to ".join("[" + ", ".join(f"{v:.3g}" for v in end) + "]" for end in ranges[name])
        lines.append(line)
    bounds = ", ".join(f"{name} {low:g} to {high:g}" for name, low, high in zip(action.names, action.low, action.high, strict=True))
    return "\n".join([*lines, f"  action: {action.dim} numbers, {action.kind} at {action.rate_hz:g} Hz ({bounds})"])


def _group(name: str) -> str:
    owner, dot, element = name.rpartition(".")
    if not dot:
        return name
    if element in _POSITION:
        return owner
    if element in _QUATERNION:
        return f"{owner}_quaternion"
    if re.fullmatch(r"r[1-3][1-3]", element):
        return f"{owner}_rotation"
    return f"{re.sub(r'[0-9]+$', '', owner)}_{element}"


def _word(name: str) -> str:
    """A name that code can say."""
    word = _NOT_A_WORD.sub("_", name.replace("-", "_from_")).strip("_") or "value"
    return word if word.isidentifier() and not word[0].isdigit() else f"v_{word}"
