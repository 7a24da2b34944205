"""Errors carry exit codes and offer the nearest names."""

from __future__ import annotations

import pytest

from sinew import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.InputError, 2), (errors.SpecError, 2), (errors.DataError, 2), (errors.MissingDependency, 3), (errors.SafetyStop, 4)],
)
def test_exit_codes(error: type[errors.SinewError], code: int) -> None:
    assert error.exit_code == code
    assert issubclass(error, errors.SinewError)


def test_unknown_offers_near_names_and_lists_all() -> None:
    text = str(errors.unknown("task", "lfit", ["reach", "lift", "peg"]))
    assert text == "unknown task 'lfit': did you mean 'lift'? known are lift, peg, reach"


def test_unknown_without_a_near_name_only_lists() -> None:
    text = str(errors.unknown("policy", "zzzzzz", ["flow", "residual"]))
    assert text == "unknown policy 'zzzzzz': known are flow, residual"


def test_messages_are_one_line() -> None:
    assert "\n" not in str(errors.unknown("task", "x" * 500, ["a"] * 50))
