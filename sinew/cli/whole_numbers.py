"""Whole numbers as people write them on a command line: 2500, 100_000, 100k, 1.5M."""

from __future__ import annotations

from fractions import Fraction
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

TIMES = {"k": 1_000, "M": 1_000_000}


def whole(text: str) -> int:
    """The number that is meant.

    Raises:
        ValueError: it is none, or no whole one.
    """
    times = TIMES.get(text[-1:], 1)
    try:
        number = int(text) if times == 1 else Fraction(text[:-1]) * times
    except (ValueError, ZeroDivisionError):
        number = Fraction(1, 2)
    if number != int(number):
        raise ValueError(f"{text!r} is no whole number, as 2500, 100k or 1.5M are")
    return int(number)


def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kinds = get_args(info.type) if get_origin(info.type) in (Union, UnionType) else (info.type,)
    if set(kinds) - {NoneType} != {int}:
        return None
    open_ = NoneType in kinds
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|INT" if open_ else "INT",
        instance_from_str=lambda words: None if open_ and words == ["None"] else whole(words[0]),
        is_instance=lambda value: type(value) is int or (open_ and value is None),
        str_from_instance=lambda value: [str(value)],
    )


REGISTRY = ConstructorRegistry()
"""For `tyro.cli`."""
REGISTRY.primitive_rule(_rule)
