"""What the page sends: small JSON texts, of which nothing is believed before it was looked at."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, get_args

from robot_bridge.takeover import Request
from sinew.errors import DataError

MAX_BYTES = 4096
"""Largest message of the page."""
WORDS: tuple[str, ...] = get_args(Request)
DEVICES = ("pointer", "keyboard", "gamepad", "headset", "phone")
FARTHEST_M = 100.0
"""Positions beyond this are no hand's."""


@dataclass(frozen=True)
class Hand:
    """What one hand asks of one arm."""

    arm: int
    grip: int
    """Counts how often the person has taken hold; 0 where they do not hold."""
    pose: tuple[float, ...] | None = None
    """x, y, z in metres and a quaternion wxyz: where the hand is, along the robot's axes; the origin means nothing."""
    rate: tuple[float, ...] | None = None
    """Along x, y, z and about them, -1 to 1: shares of the largest step."""
    open: float | None = None
    """Share of the gripper's opening; None keeps it."""


@dataclass(frozen=True)
class Sample:
    """What the person does at one moment."""

    number: int
    """Grows by one with each."""
    heard_ns: int
    """Stamp of the newest word of the server that the page had when it was made."""
    device: str
    hands: tuple[Hand, ...] = ()


@dataclass(frozen=True)
class Hello:
    """The first message of a connection: one of the two."""

    token: str = ""
    session: str = ""


@dataclass(frozen=True)
class Word:
    """A button: a request, or an emergency stop."""

    word: str


Message = Sample | Hello | Word


def parse(text: str | bytes) -> Message:
    """A message of the page.

    Raises:
        DataError: it is none.
    """
    try:
        found = json.loads(text)
        kind = found.get("kind")
        if kind == "sample":
            return _sample(found)
        if kind == "word" and found["word"] in (*WORDS, "e_stop"):
            return Word(found["word"])
        if kind == "hello":
            return Hello(_text(found.get("token", "")), _text(found.get("session", "")))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise DataError(f"the page sent something that is no message ({type(e).__name__})") from None
    raise DataError("the page sent a message of no known kind: reload it")


def _sample(found: dict[str, Any]) -> Sample:
    hands = tuple(_hand(hand) for hand in found["hands"])
    if found["device"] not in DEVICES or len(hands) > 2 or len({hand.arm for hand in hands}) < len(hands):
        raise ValueError
    return Sample(_count(found["number"]), _count(found["heard"]), found["device"], hands)


def _hand(found: dict[str, Any]) -> Hand:
    pose, rate, opening = found.get("pose"), found.get("rate"), found.get("open")
    hand = Hand(
        _count(found["arm"]), _count(found["grip"]),
        None if pose is None else _floats(pose, 7, FARTHEST_M), None if rate is None else _floats(rate, 6, 1.0),
        None if opening is None else min(max(_floats([opening], 1, 1.0)[0], 0.0), 1.0),
    )  # fmt: skip
    if (hand.pose is None) == (hand.rate is None):
        raise ValueError
    if hand.pose is not None and not 0.9 < math.hypot(*hand.pose[3:]) < 1.1:
        raise ValueError
    return hand


def _floats(values: Any, length: int, most: float) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values if isinstance(v, (int, float)))
    if len(numbers) != length or len(values) != length or not all(abs(v) <= most for v in numbers):  # NaN is no number that small
        raise ValueError
    return numbers


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200 or not value.isascii():
        raise ValueError
    return value
