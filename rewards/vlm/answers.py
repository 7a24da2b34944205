"""Text of a model, which may be anything, as JSON that follows a schema, or a reason why not.

The schemas are the part of JSON Schema that servers enforce as well: type, properties, required, additionalProperties, enum, const,
minimum, maximum, items, minItems, maxItems, maxLength and anyOf. Whatever is not in an object's properties is refused unless
additionalProperties says otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

DEPTH = 24
"""Deepest nesting that is read."""
LENGTH = 200_000
"""Longest text that is read, characters."""
TRIED = 8
"""Places of the text at which JSON may begin."""
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,),
    "null": (type(None),),
}  # fmt: skip


class Unreadable(ValueError):  # noqa: N818
    """The answer is no JSON, or does not follow the schema; the message can be shown to the model."""


def read_answer(text: str, schema: Mapping[str, Any]) -> Any:
    """The JSON in an answer; prose and code fences around it are passed over.

    Args:
        text: of the model.
        schema: that it must follow.

    Raises:
        Unreadable: says what is wrong and where.
    """
    if len(text) > LENGTH:
        raise Unreadable(f"the answer has {len(text)} characters; give at most {LENGTH}")
    opening = "[" if schema.get("type") == "array" else "{"
    start, farthest, wrong = text.find(opening), 0, "there is no JSON in the answer"
    for _ in range(TRIED):
        if start < 0:
            break
        value, end, unread = _decoded(text, start)
        problem = unread or _problem(value, schema, "answer")
        if problem is None:
            return value
        if end - start > farthest:  # what was meant is what reads farthest, and not an object within it
            farthest, wrong = end - start, problem
        start = text.find(opening, start + 1 if unread else end)
    raise Unreadable(wrong)


def _decoded(text: str, start: int) -> tuple[Any, int, str | None]:
    """The value that begins at a place in the text, how far that reads, and what keeps it from being read."""
    try:
        _check_depth(text, start)
        value, end = _DECODER.raw_decode(text, start)
    except Unreadable as problem:
        return None, len(text), str(problem)
    except json.JSONDecodeError as problem:
        return None, max(start + 1, problem.pos), f"the answer is no JSON: {str(problem)[:200]}"
    except (ValueError, RecursionError) as problem:  # no JSON for what it says, not for how; an integer of thousands of digits, too
        return None, len(text), f"the answer is no JSON: {str(problem)[:200]}"
    return value, end, None


def check(value: Any, schema: Mapping[str, Any], where: str = "answer") -> None:
    """Hold a value against a schema.

    Raises:
        Unreadable: names the first place that does not follow it.
    """
    if "anyOf" in schema:
        problems = [_problem(value, option, where) for option in schema["anyOf"]]
        if all(problems):
            raise Unreadable(problems[0] or "")
        return
    kinds = schema.get("type")
    if kinds is not None:
        allowed = [kinds] if isinstance(kinds, str) else list(kinds)
        if not any(_is(value, kind) for kind in allowed):
            raise Unreadable(f"{where} is {_shown(value)}, and must be {' or '.join(allowed)}")
    if "enum" in schema and value not in schema["enum"]:
        raise Unreadable(f"{where} is {_shown(value)}, and must be one of {', '.join(map(_shown, schema['enum'][:40]))}")
    if "const" in schema and value != schema["const"]:
        raise Unreadable(f"{where} is {_shown(value)}, and must be {_shown(schema['const'])}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(value, schema, where)
    elif isinstance(value, str) and len(value) > schema.get("maxLength", LENGTH):
        raise Unreadable(f"{where} has {len(value)} characters, and may have {schema['maxLength']}")
    elif isinstance(value, list):
        _check_array(value, schema, where)
    elif isinstance(value, dict):
        _check_object(value, schema, where)


def _problem(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    try:
        check(value, schema, where)
    except Unreadable as problem:
        return str(problem)
    return None


def _check_number(value: float, schema: Mapping[str, Any], where: str) -> None:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if not low <= value <= high:
        raise Unreadable(f"{where} is {_shown(value)}, and must lie between {low:g} and {high:g}")


def _check_array(value: list[Any], schema: Mapping[str, Any], where: str) -> None:
    low, high = schema.get("minItems", 0), schema.get("maxItems", LENGTH)
    if not low <= len(value) <= high:
        raise Unreadable(f"{where} has {len(value)} elements, and must have {low} to {high}")
    for i, item in enumerate(value):
        check(item, schema.get("items", {}), f"{where}[{i}]")


def _check_object(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> None:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            raise Unreadable(f"{where}.{name} is missing")
    for name, item in value.items():
        if name in known:
            check(item, known[name], f"{where}.{name}")
        elif known or schema.get("additionalProperties") is False:
            raise Unreadable(f"{where} has a field {_shown(name)}, and may have {', '.join(known)}")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is given twice")
    return found


def _check_depth(text: str, start: int) -> None:
    """Refuse deep nesting before a recursive parser sees it; brackets in strings do not count."""
    depth, quoted, escaped = 0, False, False
    for character in text[start:]:
        if quoted:
            quoted, escaped = escaped or character != '"', not escaped and character == "\\"
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
            if depth > DEPTH:
                raise Unreadable(f"the answer is nested more than {DEPTH} deep")
        elif character in "}]":
            depth -= 1
            if depth == 0:
                return


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_number, object_pairs_hook=_object)
