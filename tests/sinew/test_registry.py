"""The registry refuses duplicates and offers near names."""

from __future__ import annotations

import pytest

from sinew.errors import InputError
from sinew.registry import Registry


@pytest.fixture
def tasks() -> Registry[type]:
    registry: Registry[type] = Registry("task")

    @registry.add("push")
    class Push:
        pass

    @registry.add("lift")
    class Lift:
        pass

    return registry


def test_entries_are_found_and_listed_in_order(tasks: Registry[type]) -> None:
    assert list(tasks) == ["lift", "push"]
    assert "lift" in tasks and "peg" not in tasks
    assert tasks.get("lift").__name__ == "Lift"


def test_decorator_returns_the_entry_itself() -> None:
    registry: Registry[int] = Registry("number")
    assert registry.add("one")(1) == 1
    assert registry.get("one") == 1


def test_a_taken_name_is_refused_and_keeps_its_entry(tasks: Registry[type]) -> None:
    with pytest.raises(ValueError, match="task 'lift' is registered twice"):
        tasks.add("lift")(int)
    assert tasks.get("lift").__name__ == "Lift"


def test_a_wrong_name_is_an_input_error_with_the_near_ones(tasks: Registry[type]) -> None:
    with pytest.raises(InputError, match="unknown task 'lfit': did you mean 'lift'"):
        tasks.get("lfit")
