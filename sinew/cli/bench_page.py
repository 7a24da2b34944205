"""Lays stored benchmark results out as a Markdown page, leaving what people wrote between the tables alone."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from sinew.cli.bench import COLUMNS, NAMES, cells
from sinew.errors import DataError
from sinew.rundir import atomic_write, read_json, write_json

HEADER = """# Benchmarks

Every figure is ours beside the peer's, measured in the same run on the same machine; a ratio above 1 means that ours is better.
The tables are generated: `sinew bench NAME --write docs/benchmarks.md` measures again and replaces one of them. What stands
outside the marked parts is written by hand and kept.
"""
TITLES = {
    "demo": "The demo, seed by seed",
    "sim": "Simulation",
    "data": "Demonstrations",
    "policies": "Policies",
    "learning": "Policies side by side",
    "rl": "Reinforcement learning",
    "offline": "Learning from recorded steps",
    "improve": "Improving a policy",
    "actors": "Actors and learner",
    "rewards": "Rewards",
    "loop": "Control loop and transport",
    "safety": "The safety gate",
    "server": "The policy server",
    "faults": "Faults",
    "soak": "A million ticks",
    "calibration": "Calibration",
}
LAYOUTS = {"learning": "sinew.cli.benchmarks.learning", "offline": "sinew.cli.benchmarks.offline"}
"""Benchmarks with a layout of their own → module whose `markdown(rows)` gives it."""


def folder(page: Path) -> Path:
    """Where the figures behind a page are kept: docs/benchmarks.md → docs/benchmarks/."""
    return page.with_suffix("")


def store(page: Path, result: dict[str, Any]) -> None:
    """Keep one result as <folder>/<bench>.json."""
    write_json(folder(page) / f"{result['bench']}.json", result)


def write(page: Path) -> list[str]:
    """Bring a page up to date from the stored results.

    Args:
        page: Markdown file, made if it is missing.

    Returns:
        Names of the benchmarks that are on it.

    Raises:
        DataError: a stored result cannot be read.
    """
    text = page.read_text() if page.exists() else HEADER
    done = []
    for name in NAMES:
        path = folder(page) / f"{name}.json"
        if path.exists():
            text = replace(text, name, block(load(path)))
            done.append(name)
    atomic_write(page, text)
    return done


def load(path: Path) -> dict[str, Any]:
    """A stored result.

    Raises:
        DataError: it is not one; the missing field is named.
    """
    result = read_json(path)
    for key in ("bench", "machine", "rows"):
        if not isinstance(result, dict) or key not in result:
            raise DataError(f"{path} is no benchmark result: {key!r} is missing; measure again with sinew bench {path.stem} --write")
    for i, row in enumerate(result["rows"]):
        if missing := [c for c in COLUMNS if c not in row]:
            raise DataError(f"{path}: row {i} has no {missing[0]!r}; measure again with sinew bench {path.stem} --write")
    return result


def replace(text: str, name: str, block: str) -> str:
    """`text` with the marked part called `name` exchanged, or added at the end under its own heading."""
    begin, end = f"<!-- begin generated: {name} -->", f"<!-- end generated: {name} -->"
    marked = f"{begin}\n{block}\n{end}"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: marked, text, count=1)
    return f"{text.rstrip()}\n\n## {TITLES[name]}\n\n{marked}\n"


def block(result: dict[str, Any]) -> str:
    """Markdown of one result: how and where it was measured, then the table."""
    m = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m.get("packages", {}).items())
    quick = " --quick" if result.get("quick") else ""
    head = (
        f"`sinew bench {result['bench']}{quick}`, {result.get('date', 'undated')}: {m.get('processor', '?')}, {m.get('cpus', '?')} cores, "
    )
    head += f"Python {m.get('python', '?')}" + (f", {versions}" if versions else "") + "."
    if result["bench"] in LAYOUTS:
        return f"{head}\n\n{import_module(LAYOUTS[result['bench']]).markdown(result['rows'])}"
    lines = ["| | ours | peer | ratio | target | holds |", "|---|---:|---|---:|---|---|"]
    holds = {True: "yes", False: "**no**", None: ""}
    lines += [
        "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in [*cells(row), holds[row["holds"]]]) + " |"
        for row in result["rows"]
    ]
    return head + "\n\n" + "\n".join(lines)
