"""Propose a reward: a model that sees says where the task's points are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Args:
    """Propose a reward: a model that sees says where the task's points are."""

    out: Path
    """Reward file to write."""
    seed: int = 0
    """Of the model's sampling, and of the scene."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Ask, lift the answer to metres, and write the reward file."""
    from sinew.errors import InputError

    raise InputError("sinew reward propose: not there yet")


def show(result: dict[str, Any], console: Console) -> None:
    """Print what was written."""
    console.print(result["out"])
