"""Rewards: what dense ones save in the world, how exact and how costly they are; every part has a module rewards_<part> beside this one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sinew.bench import Row
from sinew.errors import unknown

PARTS = ("keypoint", "generated", "progress", "guard", "hacking")
"""Parts; each has `rows(quick)`, which may also take tasks, seeds and out."""


def rows(
    quick: bool, policies: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = (), out: Path | None = None
) -> list[Row]:
    """The rows of all parts, or of those that were asked for.

    Args:
        quick: end within a minute.
        policies: parts; all if empty.
        tasks: tasks, for parts that have several.
        seeds: seeds, likewise.
        out: folder where finished cells are kept.

    Raises:
        InputError: no such part.
    """
    given: dict[str, Any] = {"tasks": tasks, "seeds": seeds, "out": out}
    table: list[Row] = []
    for part in policies or PARTS:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
        made = import_module(f"sinew.cli.benchmarks.rewards_{part}").rows
        table += made(quick, **{name: value for name, value in given.items() if value and name in inspect.signature(made).parameters})
    return table
