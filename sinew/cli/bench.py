"""Measure: our figure beside the peer's, taken in the same run."""

from __future__ import annotations

import inspect
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sinew.errors import InputError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from sinew.bench import Row

NAMES = (
    "demo", "sim", "data", "policies", "learning", "rl", "improve", "actors", "offline", "rewards", "loop", "safety", "server", "faults",
    "soak", "calibration",
)  # fmt: skip
COLUMNS = ("name", "unit", "ours", "peer", "peer_value", "ratio", "target", "holds")


@dataclass(frozen=True, kw_only=True)
class Args:
    """Measure: our figure beside the peer's, taken in the same run."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Its name: demo, sim, data, policies, learning, rl, improve, actors, offline, rewards, loop, safety, server, faults, soak or
    calibration; with --write it may be left out."""
    quick: bool = False
    """End within a minute; figures are rougher."""
    policies: tuple[str, ...] = ()
    """learning: only these kinds of policy; offline and improve: only these methods."""
    tasks: tuple[str, ...] = ()
    """learning, offline and improve: only these tasks; for offline also one kind of data of a task, as lift:mixed; for data its parts:
    reading, writing, size, conversion, sessions, quality."""
    seeds: tuple[int, ...] = ()
    """learning, offline and improve: only these seeds."""
    out: Path | None = None
    """data, learning, offline and improve: folder where finished parts are kept, so that they are not made again. sim: the same for runs
    that learn tasks from nothing, which are left out without it."""
    write: Path | None = None
    """Markdown page to bring up to date, for example docs/benchmarks.md; the figures are kept in a folder beside it."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; benchmarks fix their own seeds."""


def run(args: Args) -> dict[str, Any]:
    """Measure, and bring the page up to date if one is named.

    Raises:
        InputError: no such benchmark, or none named.
    """
    from sinew.cli import bench_page

    if args.name is None:
        if args.write is None:
            raise InputError(f"which benchmark? known are {', '.join(NAMES)}; or --write docs/benchmarks.md to lay out stored figures")
        return {"page": str(args.write), "benches": bench_page.write(args.write)}
    options = {name: getattr(args, name) for name in ("policies", "tasks", "seeds", "out") if getattr(args, name)}
    result = measure(args.name, args.quick, options)
    if args.write is not None:
        bench_page.store(args.write, result)
        bench_page.write(args.write)
    return result


def measure(name: str, quick: bool, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run one benchmark.

    Args:
        name: its name.
        quick: end within a minute.
        options: what it shall be narrowed to, for those that can be.

    Returns:
        {"bench", "machine", "rows", "quick", "date", "wall_s"}.

    Raises:
        InputError: no such benchmark, or it does not take these options.
    """
    rows_of, options = find(name), options or {}
    if options and not (known := inspect.signature(rows_of).parameters.keys()) >= options.keys():
        raise InputError(f"bench {name!r} takes no --{min(options.keys() - known)}; leave it out")
    started = time.monotonic()
    rows = rows_of(quick, **options)
    return {
        "bench": name, "machine": machine(), "rows": [as_json(row) for row in rows], "quick": quick,
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "wall_s": round(time.monotonic() - started, 1),
    }  # fmt: skip


def find(name: str) -> Any:
    """`rows(quick)` of the benchmark called `name`.

    Raises:
        InputError: no such name, or nobody has written it yet.
    """
    import importlib
    import importlib.util

    if name not in NAMES:
        raise unknown("bench", name, NAMES)
    module = f"sinew.cli.benchmarks.{name}"
    if importlib.util.find_spec(module) is None:
        there = [n for n in NAMES if importlib.util.find_spec(f"sinew.cli.benchmarks.{n}")]
        raise InputError(f"bench {name!r} is planned and not there yet; there are {', '.join(there) or 'none'}")
    return importlib.import_module(module).rows


def as_json(row: Row) -> dict[str, Any]:
    """A row as it is printed: numbers that are not finite become null."""
    return {column: _finite(getattr(row, column)) for column in COLUMNS} | ({"detail": dict(row.detail)} if row.detail else {})


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import os
    from importlib import metadata

    from sinew.rundir import processor_name

    versions = {}
    for package in ("torch", "mujoco", "numpy", "pyarrow", "av", "cyclonedds"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": versions,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The table, targets that are missed marked."""
    from rich.markup import escape
    from rich.table import Table

    if "rows" not in result:
        console.print(f"{result['page']}: {', '.join(result['benches']) or 'no figures stored yet'}", highlight=False)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "ours", "peer", "ratio", "target", "holds"):
        table.add_column(column, justify="right" if column in ("ours", "ratio") else "left", min_width=0 if column else 32)
    marks = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}
    for row in result["rows"]:
        table.add_row(*(escape(cell) for cell in cells(row)), marks[row["holds"]])
    console.print(table)
    m = result["machine"]
    console.print(
        f"\n{m['processor']}, {m['cpus']} cores, {result['date']}, {result['wall_s']:g} s{', quick' if result['quick'] else ''}",
        highlight=False,
    )


def cells(row: dict[str, Any]) -> list[str]:
    """Name, ours, peer, ratio and target of a row as text."""
    ours = "not measured" if row["ours"] is None else f"{figure(row['ours'])} {row['unit']}".rstrip()
    peer = row["peer"] or ""
    if row["peer_value"] is not None:
        peer = f"{figure(row['peer_value'])} {row['unit']} ({peer})" if peer else f"{figure(row['peer_value'])} {row['unit']}"
    return [row["name"], ours, peer, "" if row["ratio"] is None else f"{row['ratio']:.2f}×", row["target"]]


def figure(value: float) -> str:
    """Three or four significant digits, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _finite(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
