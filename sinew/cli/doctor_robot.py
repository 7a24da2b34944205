"""A robot's network: who is there, what comes at which rate, and what is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def run(transport: str, domain: int | None, reach: str | None) -> dict[str, Any]:
    """Look around for some seconds.

    Raises:
        InputError: settings that cannot be used.
        MissingDependency: the transport's library is not here.
    """
    from robot_bridge.diagnosis import survey
    from robot_bridge.transport import CYCLONE, open_transport

    node = open_transport(transport, "sinew_doctor", domain=domain, reach=reach)
    try:
        return survey(node, vendor=CYCLONE if transport == "dds" else "").as_json() | {"transport": transport}
    finally:
        node.close()


def show(result: dict[str, Any], console: Console) -> None:
    """Nodes, topics, controllers, then every problem with its remedy."""
    from rich.markup import escape

    console.print(f"[bold]domain {result['domain']}[/], range {result['reach']}, over {result['transport']}", highlight=False)
    nodes = ", ".join(f"{name} ({vendor})" if vendor else name for name, vendor in sorted(result["nodes"].items()))
    console.print(f"nodes: {nodes or 'none'}", markup=False, highlight=False, soft_wrap=True)
    for line in _columns([_cells(topic) for topic in result["topics"]]):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if result["controllers"] is not None:
        told = ", ".join(f"{name} {state}" for name, state in result["controllers"].items()) or "none"
        console.print(f"controllers: {told}", markup=False, highlight=False, soft_wrap=True)
    for problem in result["problems"]:
        console.print("[red]✗[/]" if problem["blocks"] else "[yellow]![/]", escape(problem["what"]), highlight=False, soft_wrap=True)
        console.print(f"  -> {problem['remedy']}", markup=False, highlight=False, soft_wrap=True)
    blocked = any(problem["blocks"] for problem in result["problems"])
    done = "this robot cannot be used as it is" if blocked else "nothing stands in the way"
    console.print(f"\nsinew doctor --robot: {done}", markup=False, highlight=False)


def _cells(topic: dict[str, Any]) -> list[str]:
    """A topic's name, types, publishers, subscriptions and rate."""
    rate = "" if topic["rate_hz"] is None or not topic["publishers"] else f"{topic['rate_hz']:g} Hz"
    sides = [", ".join(sorted(set(topic[side]))) or "nobody" for side in ("publishers", "subscribers")]
    return [topic["name"], ", ".join(topic["types"]), f"{sides[0]} -> {sides[1]}", rate]


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows with their cells below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
