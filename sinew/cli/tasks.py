"""The simulated tasks with their observations and actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Args:
    """The simulated tasks with their observations and actions."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """One task, told in full; all of them if left out."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


def run(args: Args) -> dict[str, Any]:
    """Build each task once and read its specs.

    Raises:
        InputError: no task of that name; the nearest ones are offered.
    """
    import sim

    names = list(sim.TASKS) if args.name is None else [args.name]
    return {"tasks": [describe(name) for name in names], "detail": args.name is not None}


def describe(name: str) -> dict[str, Any]:
    """JSON-able specs of one task."""
    import sim
    from sinew.config import to_json

    interface = sim.make_interface(name)
    return {
        "name": name,
        "text": interface.task_text,
        "rate_hz": interface.action_spec.rate_hz,
        "max_episode_steps": interface.max_episode_steps,
        "robot": interface.robot_spec.name,
        "objects": list(interface.objects),
        "observation": to_json(interface.observation_spec)["tensors"],
        "action": to_json(interface.action_spec),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """A table of all tasks, or every element of one."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    if not result["detail"]:
        for column in ("task", "action", "time limit", "what to do"):
            table.add_column(column, no_wrap=column != "what to do")
        for task in result["tasks"]:
            seconds = task["max_episode_steps"] / task["rate_hz"]
            action = f"{task['action']['kind']}, {len(task['action']['names'])} elements"
            table.add_row(task["name"], action, f"{seconds:g} s at {task['rate_hz']:g} Hz", task["text"])
        console.print(table)
        return
    task = result["tasks"][0]
    console.print(
        f"{task['name']}: {task['text']}\n{task['max_episode_steps']} steps at {task['rate_hz']:g} Hz, robot {task['robot']}\n",
        markup=False,
    )
    for column in ("tensor", "element", "unit", "range"):
        table.add_column(column)
    for key, tensor in task["observation"].items():
        for i, element in enumerate(tensor["names"] or [f"{tensor['dtype']} {tuple(tensor['shape'])}"]):
            table.add_row(key if i == 0 else "", element, unit_of(tensor["unit"], i), "")
    bounds = zip(task["action"]["names"], task["action"]["low"], task["action"]["high"], strict=True)
    for i, (element, low, high) in enumerate(bounds):
        table.add_row(f"action ({task['action']['kind']})" if i == 0 else "", element, "", f"{low:g} to {high:g}")
    console.print(table)


def unit_of(units: str, element: int) -> str:
    """Unit of one element, from one unit for all or a comma-separated list."""
    each = [u.strip() for u in units.split(",")]
    return each[element] if element < len(each) else each[0] if len(each) == 1 else ""
