"""Look at, check or repair a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console

HELP = "look at, check or repair a dataset: info, check, repair"
DAMAGED = 2
"""Exit code where errors remain."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a dataset holds: episodes, frames, keys, successes."""

    dir: Annotated[Path, tyro.conf.Positional]
    """Folder of a LeRobotDataset v3."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


@dataclass(frozen=True, kw_only=True)
class Check(Info):
    """Find what is damaged or suspicious, naming episode, frame and key; changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Repair(Info):
    """Rescue what an interrupted or damaged recording still holds, and finish it."""


Args = (
    Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Repair, tyro.conf.subcommand("repair")]
)


def run(args: Info | Check | Repair) -> dict[str, Any]:
    """Do what the subcommand says.

    Raises:
        DataError: the folder is no dataset, or one of another format.
    """
    import demos

    if isinstance(args, (Check, Repair)):
        report = (demos.repair if isinstance(args, Repair) else demos.check)(args.dir)
        return {"action": type(args).__name__.lower(), "path": str(args.dir), **report.as_dict()}
    return {"action": "info", "path": str(args.dir), **demos.info(args.dir)}


def exit_code(result: dict[str, Any]) -> int:
    """0, or 2 where errors remain in the dataset."""
    return 0 if result.get("ok", True) else DAMAGED


def show(result: dict[str, Any], console: Console) -> None:
    """The findings, or what the dataset holds."""
    if result["action"] == "info":
        for key, value in result.items():
            if key != "action":
                console.print(f"{key:<18} {_plain(value)}", markup=False, highlight=False, soft_wrap=True)
        return
    marks = {"error": "[red]error[/]  ", "warning": "[yellow]warning[/]", "note": "[dim]note[/]   "}
    for finding in result["findings"]:
        console.print(
            marks.get(finding["level"], finding["level"]), f"{finding['where']}: {finding['message']}", highlight=False, soft_wrap=True
        )
    errors = sum(f["level"] == "error" for f in result["findings"])
    warnings = sum(f["level"] == "warning" for f in result["findings"])
    said = (
        "sound" if result["ok"] else f"damaged; try: sinew data repair {result['path']}" if result["action"] == "check" else "still damaged"
    )
    console.print(f"{result['path']}: {errors} errors, {warnings} warnings: {said}", markup=False, highlight=False, soft_wrap=True)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)
