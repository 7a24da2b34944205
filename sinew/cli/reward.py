"""Rewards: propose one from a sentence and a picture, look at it, check it, or have it written as code."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

if TYPE_CHECKING:
    from rich.console import Console

NAMES = ("propose", "progress", "ask", "preview", "check", "guard", "generate", "classifier", "preference", "world", "pairs")
"""Second words of the verb; each has its arguments, `run` and `show` in a module reward_<name> beside this file."""

Args: Any = Union[tuple(Annotated[import_module(f"sinew.cli.reward_{name}").Args, tyro.conf.subcommand(name)] for name in NAMES)]  # noqa: UP007


def run(args: Any) -> dict[str, Any]:
    """Do what the second word says."""
    module = sys.modules[type(args).__module__]
    return {"action": module.__name__.rpartition("reward_")[2], **module.run(args)}


def exit_code(result: dict[str, Any]) -> int:
    """0, or what the second word makes of its result."""
    module = import_module(f"sinew.cli.reward_{result['action']}")
    return module.exit_code(result) if hasattr(module, "exit_code") else 0


def show(result: dict[str, Any], console: Console) -> None:
    """The result for a person."""
    import_module(f"sinew.cli.reward_{result['action']}").show(result, console)
