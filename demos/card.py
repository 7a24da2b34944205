"""The card of a dataset: README.md with the header that the hub and LeRobot read, statistics, and pictures beside it in card/."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from demos import card_pictures, layout
from demos.dataset import Dataset
from demos.doctor import info as facts_of
from demos.formats.source import NOTE
from sinew.errors import InputError
from sinew.rundir import atomic_write, read_json
from sinew.specs import ACTION
from sinew.stats import wilson

CARD, FOLDER = "README.md", "card"
SHEET, HISTOGRAMS = f"{FOLDER}/first_and_last.png", f"{FOLDER}/histograms.png"
OURS = "<!-- written by sinew data card -->"
"""What tells a card of ours from one that somebody wrote."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
"""The hub's size categories, by frames."""
MOST_TASKS = 40
"""Rows of the table of tasks; more are counted."""


def write(root: Path, *, title: str = "", license: str = "", replace: bool = False) -> dict[str, Any]:
    """Write README.md and its pictures into a dataset.

    Args:
        root: dataset.
        title: its name; the folder's if left out.
        license: identifier that the hub knows, such as cc-by-4.0; none is claimed if left out.
        replace: write over a card that somebody else wrote.

    Returns:
        {"card", "pictures", ...} and the figures that it tells.

    Raises:
        DataError: no dataset, or it cannot be read.
        InputError: there is a card that is not ours, the dataset is empty, or the folder cannot be written.
    """
    path = root / CARD
    if path.exists() and OURS not in path.read_text(errors="replace") and not replace:
        raise InputError(f"{path} was not written by sinew and stays; say --replace to write over it")
    data = Dataset(root, cache_bytes=0)
    if not len(data):
        raise InputError(f"{root} has no frames yet; record an episode first")
    told = figures(data)
    pictures = {HISTOGRAMS: card_pictures.histograms(_vectors(data))}
    if data.cameras:
        pictures[SHEET] = card_pictures.contact_sheet(data)
    for name, png in pictures.items():
        atomic_write(root / name, png)
    atomic_write(path, text(told, title or root.resolve().name, license))
    return {"card": str(path), "pictures": [str(root / name) for name in pictures], **told}


def figures(data: Dataset) -> dict[str, Any]:
    """What a card tells of a dataset."""
    facts = facts_of(data.root)
    episodes = [data.episode(i) for i in range(data.num_episodes)]
    by_task: dict[str, list[bool | None]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task, []).append(episode.success)
    lengths = np.array([e.length for e in episodes])
    observed = {key: spec for key, spec in data.observation_spec.tensors.items() if key not in data.cameras}
    note = data.root / NOTE
    source = read_json(note).get("from", {}) if note.is_file() else {}
    return {
        "robot": facts["robot_type"] or "", "fps": facts["fps"], "episodes": len(episodes), "frames": len(data),
        "hours": len(data) / data.fps / 3600, "bytes": facts["bytes"], "version": facts["version"],
        "length_s": [float(v) / data.fps for v in (lengths.min(), np.median(lengths), lengths.max())],
        "outcomes": facts["outcomes"], "interrupted": facts["interrupted"],
        "tasks": {task: dict(Counter(_said(s) for s in found)) for task, found in by_task.items()},
        "cameras": {key: list(camera["shape"]) for key, camera in facts["cameras"].items()},
        "vectors": {key: list(spec.names) or spec.shape[0] for key, spec in observed.items()},
        "commands": {"kind": data.action_spec.kind, "names": list(data.action_spec.names)},
        "cadence": _cadence(data), "lost": dict(facts.get("beside", {}).get("losses", {})),
        "recorded_beside": facts.get("beside", {}).get("episodes", 0),
        "warnings": sum(bool(e.warnings) for e in episodes),
        "calibrations": [sorted(c["cameras"]) for c in facts["calibrations"]],
        "converted_from": Path(str(source.get("source", ""))).name,
    }  # fmt: skip


def _said(success: bool | None) -> str:
    return {True: "success", False: "failure", None: "unknown"}[success]


def _cadence(data: Dataset) -> dict[str, float] | None:
    """How regularly frames were taken, where their stamps were recorded: periods within episodes."""
    if layout.STAMP not in data.info["features"]:
        return None
    stamps, episodes = data.column(layout.STAMP)[:, 0], data.column("episode_index")[:, 0]
    steps_ms = np.diff(stamps)[np.diff(episodes) == 0] / 1e6
    if not len(steps_ms):
        return None
    late = steps_ms > 1.5e3 / data.fps
    return {"median_ms": float(np.median(steps_ms)), "p99_ms": float(np.percentile(steps_ms, 99)), "longest_ms": float(steps_ms.max()),
            "late": int(late.sum()), "periods": len(steps_ms)}  # fmt: skip


def _vectors(data: Dataset) -> dict[str, tuple[Sequence[str], np.ndarray]]:
    found = {}
    for key in (*(k for k in data.observation_spec.vectors), ACTION):
        names = data.action_spec.names if key == ACTION else data.observation_spec[key].names
        values = data.column(key).reshape(len(data), -1)
        found[key] = (names if len(names) == values.shape[1] else [str(i) for i in range(values.shape[1])], values)
    return found


def text(told: Mapping[str, Any], title: str, license: str = "") -> str:
    """README.md of the figures."""
    header: dict[str, Any] = {"pretty_name": title}
    if license:
        header["license"] = license
    tags = ["LeRobot", "robotics", "sinew", *([str(told["robot"])] if told["robot"] else [])]
    header |= {"task_categories": ["robotics"], "tags": tags, "size_categories": [_size(told["frames"])]}
    header["configs"] = [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n{OURS}\n\n# {_plain(title)}\n",
        f"A LeRobotDataset {told['version']}: {told['episodes']:,} episodes, {told['frames']:,} frames at {told['fps']:g} Hz, "
        f"{_duration(told['hours'])}, {told['bytes'] / 1e6:,.1f} MB.\n",
    ]
    if told["cameras"]:
        parts.append(f"![First and last frames of some episodes, for each camera]({SHEET})\n")
    parts += ["## Tasks\n", _tasks(told["tasks"]), "## What was recorded\n", _recorded(told), "## How it was recorded\n", _how(told)]
    parts += ["## Distributions\n", f"![Histograms of every element of state and action]({HISTOGRAMS})\n", "## Use\n", _use()]
    return "\n".join(parts)


def _size(frames: int) -> str:
    return next((name for most, name in SIZES if frames < most), "10M<n<100M")


def _tasks(tasks: Mapping[str, Mapping[str, int]]) -> str:
    lines = ["| task | episodes | succeeded (95 % interval) | failed | unknown |", "|---|---:|---|---:|---:|"]
    for task, found in list(sorted(tasks.items(), key=lambda item: -sum(item[1].values())))[:MOST_TASKS]:
        lines.append(f"| {_plain(task)} | {sum(found.values())} | {_rate(found)} | {found.get('failure', 0)} | {found.get('unknown', 0)} |")
    if len(tasks) > MOST_TASKS:
        lines.append(f"| and {len(tasks) - MOST_TASKS} more | | | | |")
    if len(tasks) > 1:
        total = sum((Counter(found) for found in tasks.values()), Counter())
        lines.append(f"| **all** | {sum(total.values())} | {_rate(total)} | {total['failure']} | {total['unknown']} |")
    return "\n".join(lines) + "\n"


def _rate(found: Mapping[str, int]) -> str:
    k, n = found.get("success", 0), found.get("success", 0) + found.get("failure", 0)
    if not n:
        return "not told"
    low, high = wilson(k, n)
    return f"{k}/{n} ({100 * low:.0f} to {100 * high:.0f} %)"


def _recorded(told: Mapping[str, Any]) -> str:
    lines = ["| key | what |", "|---|---|"]
    lines += [f"| `{_plain(key)}` | camera, {shape[1]} × {shape[0]} |" for key, shape in told["cameras"].items()]
    for key, names in told["vectors"].items():
        lines.append(f"| `{_plain(key)}` | {_elements(names)} |")
    lines.append(f"| `action` | {told['commands']['kind']}: {_elements(told['commands']['names'])} |")
    return "\n".join(lines) + "\n"


def _elements(names: Sequence[str] | int) -> str:
    return f"{names} numbers" if isinstance(names, int) else f"{len(names)} numbers: {_plain(', '.join(names))}"


def _how(told: Mapping[str, Any]) -> str:
    shortest, usual, longest = told["length_s"]
    lines = [
        f"- Robot: {_plain(told['robot']) or 'not told'}",
        f"- Episodes last {shortest:.1f} to {longest:.1f} s, half of them over {usual:.1f} s",
    ]
    cadence = told["cadence"]
    if cadence:
        lines.append(
            f"- Cadence, by the stamps: {cadence['median_ms']:.1f} ms at the median, {cadence['p99_ms']:.1f} ms at the 99th percentile, "
            f"{cadence['longest_ms']:.1f} ms at most; {cadence['late']} of {cadence['periods']} periods are half as long again or more"
        )
    else:
        lines.append("- Cadence: no stamps were recorded")
    if told["lost"]:
        lines.append(f"- Lost while recording: {_plain(', '.join(f'{n} {what}' for what, n in told['lost'].items()))}")
    elif told["recorded_beside"]:
        lines.append("- Lost while recording: nothing")
    if told["interrupted"]:
        lines.append(f"- {told['interrupted']} episodes were cut short by the end of their process")
    if told["warnings"]:
        lines.append(f"- {told['warnings']} episodes carry warnings, such as a camera that stood still")
    cameras = [", ".join(map(_plain, names)) for names in told["calibrations"] if names]
    lines.append(f"- Calibration of the cameras: {'; then '.join(cameras) + ' (meta/calibrations.json)' if cameras else 'none'}")
    if told["converted_from"]:
        lines.append(f"- Converted from {_plain(told['converted_from'])}")
    return "\n".join(lines) + "\n"


def _use() -> str:
    return (
        "    sinew data pull OWNER/NAME --out data\n\n"
        "In Python with LeRobot: `LeRobotDataset(\"OWNER/NAME\")`.\n"
    )  # fmt: skip


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def _plain(told: str, most: int = 2000) -> str:
    """Words of others as words: nothing in them is markup."""
    return html.escape(" ".join(str(told).split())[:most], quote=False).replace("|", "\\|").replace("`", "'").replace("[", "\\[")
