"""Look at, check, repair, score, split, merge, edit, replay, convert, push or pull a dataset; record a ROS 2 bag."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sinew.cli import data_bags, data_edit, data_hub, data_quality, data_replay
from sinew.cli.data_bags import Convert, Record
from sinew.cli.data_edit import Edit, Merge, Split
from sinew.cli.data_hub import Card, Pull, Push
from sinew.cli.data_quality import Quality
from sinew.cli.data_replay import Replay

if TYPE_CHECKING:
    from rich.console import Console

MOST_ALIKE = 10
"""Findings of one kind and key that are printed."""
DAMAGED = 2
"""Exit code where errors remain."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a dataset holds: episodes, frames, keys, successes; what a bag holds: topics, types, messages."""

    dir: Annotated[Path, tyro.conf.Positional]
    """Folder of a LeRobotDataset v3, or a ROS 2 bag: a .mcap or .db3 file, or the folder of one."""
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
    | Annotated[Quality, tyro.conf.subcommand("quality")]
    | Annotated[Split, tyro.conf.subcommand("split")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Edit, tyro.conf.subcommand("edit")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Record, tyro.conf.subcommand("record")]
    | Annotated[Card, tyro.conf.subcommand("card")]
    | Annotated[Push, tyro.conf.subcommand("push")]
    | Annotated[Pull, tyro.conf.subcommand("pull")]
)


def run(args: Info | Quality | Split | Merge | Edit | Replay | Convert | Record | Card | Push | Pull) -> dict[str, Any]:
    """Do what the subcommand says.

    Raises:
        DataError: the folder is no dataset, or one of another format.
    """
    import demos
    from demos.bags import is_bag
    from sinew.cli.console_progress import ConsoleProgress

    if isinstance(args, Convert):
        return data_bags.convert(args)
    if isinstance(args, Record):
        return data_bags.record(args)
    if isinstance(args, Quality):
        return data_quality.quality(args)
    if isinstance(args, (Card, Push, Pull)):
        return data_hub.run(args)
    if isinstance(args, Split):
        return data_edit.split(args)
    if isinstance(args, Merge):
        return data_edit.merge(args)
    if isinstance(args, Edit):
        return data_edit.edit(args)
    if isinstance(args, Replay):
        return data_replay.replay(args)
    if is_bag(args.dir):
        return data_bags.look(args.dir, type(args).__name__.lower())
    if not isinstance(args, (Check, Repair)):
        facts = demos.info(args.dir)
        return {**facts, "action": "info", "action_spec": facts["action"]}
    with ConsoleProgress() as progress:
        report = (demos.repair if isinstance(args, Repair) else demos.check)(args.dir, progress=progress)
    return {"action": type(args).__name__.lower(), **report.as_dict()}


def exit_code(result: dict[str, Any]) -> int:
    """0, or 2 where something in the dataset cannot be read; warnings are told and do no harm."""
    return DAMAGED if errors_in(result) else 0


def errors_in(result: dict[str, Any]) -> int:
    """Number of findings that make a part of the dataset unreadable."""
    return sum(finding["level"] == "error" for finding in result.get("findings", ()))


def show(result: dict[str, Any], console: Console) -> None:
    """What the dataset holds, or what was found and done."""
    if result["action"] in ("card", "push", "pull"):
        data_hub.show(result, console)
        return
    if result["action"] in ("convert", "record") or "bag" in result:
        data_bags.show(result, console)
        return
    if result["action"] == "quality":
        data_quality.show(result, console)
        return
    if result["action"] == "replay":
        data_replay.show(result, console)
        return
    if "made" in result:
        data_edit.show(result, console)
        return
    if result["action"] == "info":
        show_info(result, console)
        return
    for action in result.get("actions", ()):
        console.print(f"done     {action}", markup=False, highlight=False, soft_wrap=True)
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    alike: Counter[tuple[str, str | None]] = Counter()
    for finding in result["findings"]:
        level, group = finding["level"], (finding["kind"] or finding["message"], finding["key"])
        alike[group] += 1
        if alike[group] > MOST_ALIKE:
            continue
        console.print(f"[{colours[level]}]{level:<8}[/]", end=" ")
        advice = f"; {finding['advice']}" if finding["advice"] else ""
        console.print(f"{place(finding)}: {finding['message']}{advice}", markup=False, highlight=False, soft_wrap=True)
    for (what, key), count in alike.items():
        if count > MOST_ALIKE:
            more = f"… and {count - MOST_ALIKE} more of {what!r}{f', {key}' if key else ''}; --json tells all"
            console.print(more, markup=False, highlight=False, soft_wrap=True)
    console.print(verdict(result), markup=False, highlight=False, soft_wrap=True)


def place(finding: dict[str, Any]) -> str:
    """Where something was found: file, episode, frames, key."""
    from demos import Finding

    return Finding(**finding).place


def verdict(result: dict[str, Any]) -> str:
    """One line on the whole dataset."""
    errors = errors_in(result)
    warnings = sum(finding["level"] == "warning" for finding in result["findings"])
    size = f"{result['root']}: {result['episodes']} episodes, {result['frames']} frames"
    if not errors and not warnings:
        return f"{size}, sound"
    advice = f"; try: sinew data repair {result['root']}" if errors and result["action"] == "check" else ""
    return f"{size}, {errors} errors, {warnings} warnings{advice}"


def show_info(result: dict[str, Any], console: Console) -> None:
    """Size, tasks, outcomes and keys of a dataset."""
    from rich.table import Table

    lines = {
        "dataset": f"{result['root']}, LeRobot {result['version']}, robot {result['robot_type'] or 'unknown'}",
        "size": f"{result['episodes']} episodes, {result['frames']} frames at {result['fps']:g} Hz = {result['duration_s']:.1f} s, "
        f"{result['bytes'] / 1e6:.1f} MB",
        "outcomes": ", ".join(f"{n} {name}" for name, n in result["outcomes"].items()) or "none",
        "tasks": ", ".join(f"{text!r} ({n})" for text, n in result["tasks"].items()) or "none",
        "unsaved": ", ".join(f"{u['folder']} ({u['frames']} frames)" for u in result["unsaved"]),
        "cameras": "; ".join(_calibrated(c) for c in result["calibrations"]),
        "beside": ", ".join(f"{name} {s['rate_hz']:.4g}/s" for name, s in result["beside"]["streams"].items() if s["rate_hz"]),
        "missing": ", ".join(f"{n} {what}" for what, n in result["beside"]["losses"].items())
        or ("nothing" if result["beside"]["episodes"] else ""),
    }
    for name, text in lines.items():
        if text:
            console.print(f"{name:<9} {text}", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("key", "shape", "type", "unit"):
        table.add_column(column)
    for key, spec in result["observation"].items():
        table.add_row(key, " × ".join(map(str, spec["shape"])), spec["dtype"], units(spec["unit"]))
    action = result["action_spec"]
    table.add_row(f"action, {action['kind']} at {action['rate_hz']:g} Hz", str(len(action["names"])), "float32", "")
    console.print(table)


def _calibrated(calibration: dict[str, Any]) -> str:
    """Since which episode the cameras were where, by their hashes."""
    cameras = ", ".join(f"{name} {told}" for name, told in calibration["cameras"].items())
    since = f" from episode {calibration['from_episode']} on" if calibration["from_episode"] else ""
    return f"{f'calibrated: {cameras}' if cameras else 'not calibrated'}{since}"


def units(text: str) -> str:
    """Unit of a tensor; where elements differ, each unit once."""
    return ", ".join(dict.fromkeys(u.strip() for u in text.split(",")))
