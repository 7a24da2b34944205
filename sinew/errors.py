"""Errors that reach a user, each with the exit code that its command ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SinewError(Exception):
    """Base of every error that is told in one line, without a traceback."""

    exit_code = 2


class InputError(SinewError):
    """The user gave something that cannot be used: says what was given, what exists, what to do."""


class SpecError(InputError):
    """Two parts that should fit together do not; names the difference."""


class DataError(InputError):
    """A dataset, checkpoint or file is damaged, foreign or of another version."""


class NoRoom(InputError):  # noqa: N818
    """Memory does not hold what was asked for; says how much of it would fit."""


class MissingDependency(SinewError):  # noqa: N818
    """An optional package is absent; the message holds the exact install command."""

    exit_code = 3


class SafetyStop(SinewError):  # noqa: N818
    """Motion was stopped for safety; the message holds the reason."""

    exit_code = 4


def unknown(kind: str, given: str, known: Iterable[str]) -> InputError:
    """Error for a name that is not known, with the nearest names offered.

    Args:
        kind: what was looked up, for example "task".
        given: the name that was not found.
        known: every name that exists.
    """
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return InputError(f"unknown {kind} {given!r}: {hint}known are {', '.join(known)}")
