"""Frozen dataclasses to JSON and back, strictly: an unknown or missing field is named, never ignored."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from sinew.errors import DataError, InputError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A dataclass, mapping, sequence or scalar as what `json.dumps` takes."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(v) for v in value]
    array: Any = value  # of NumPy or torch, which layer 0 does not import
    if hasattr(array, "item") and getattr(array, "ndim", 1) == 0:
        return array.item()
    if hasattr(array, "tolist"):
        return array.tolist()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Build dataclass `cls` from what `to_json` made of one.

    Args:
        cls: a dataclass whose fields are scalars, tuples, mappings, unions of these, or dataclasses.
        data: parsed JSON.
        where: name of the file or field, for messages.

    Raises:
        DataError: a field is unknown, missing or of another type.
        InputError: the class itself refuses a value.
    """
    if not isinstance(data, Mapping):
        raise DataError(f"{where or cls.__name__}: expected an object, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(typing.cast(Any, cls))}
    extra = sorted(set(data) - set(known))
    if extra:
        raise DataError(f"{where or cls.__name__}: unknown field {extra[0]!r}; known are {', '.join(known)}")
    values = {}
    for name, f in known.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where or cls.__name__}.{name}")
        elif f.default is MISSING and f.default_factory is MISSING:
            raise DataError(f"{where or cls.__name__}: field {name!r} is missing")
    try:
        return cls(**values)
    except (TypeError, ValueError) as e:  # what the class itself refuses
        raise DataError(f"{where or cls.__name__}: {e}") from None
    except InputError as e:
        raise type(e)(f"{where or cls.__name__}: {e}") from None


def read_config(cls: type[T], path: Path, name: str, otherwise: str = "") -> T:
    """A dataclass from a JSON file.

    Args:
        cls: as `from_json` takes it.
        path: the file.
        name: what the file is, for messages.
        otherwise: what to do where there is no such file, for messages.

    Raises:
        InputError: the file cannot be read, or the class refuses a value.
        DataError: it is not JSON, or a field is unknown, missing or of another type.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as e:
        raise InputError(f"{name} {path} cannot be read: {e.strerror}" + (f"; {otherwise}" if otherwise else "")) from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"{name} {path} is not JSON: {e}") from None
    return from_json(cls, data, f"{name} {path}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        if isinstance(value, list):
            options = [a for a in options if typing.get_origin(a) in (tuple, list)] or options
        return _convert(options[0], value, where)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise DataError(f"{where}: expected a list, found {value!r}")
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        if inner is None and len(value) != len(args):
            raise DataError(f"{where}: expected {len(args)} values, found {len(value)}")
        return tuple(
            _convert(inner if inner is not None else a, v, where)
            for a, v in zip(args if inner is None else [inner] * len(value), value, strict=True)
        )
    if origin is typing.Literal:
        if value not in args:
            raise DataError(f"{where}: expected one of {', '.join(map(repr, args))}, found {value!r}")
        return value
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: expected an object, found {value!r}")
        return {k: _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise DataError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
