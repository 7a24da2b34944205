"""The files of a LeRobot checkpoint, before anything of LeRobot looks at them: nothing that could run code is let through."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from policies.checkpoint import PICKLES, read_tensors
from sinew.errors import DataError, InputError, MissingDependency
from sinew.rundir import read_json
from sinew.specs import ActionKind, ActionSpec

WEIGHTS = "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def folder_of(source: str) -> Path:
    """The folder of a checkpoint, downloaded where `source` is a hub id: JSON and safetensors only.

    Raises:
        InputError: there is none, here or on the hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if source.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(source):
        raise InputError(f"no LeRobot checkpoint at {source}: give a folder with config.json and {WEIGHTS}, or OWNER/NAME on the hub")
    name, _, revision = source.partition("@")
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        raise missing() from None
    try:
        return Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as e:  # of requests, urllib3, httpx or the hub's own, which all mean the same
        raise InputError(f"{source} is no folder, and cannot be had from the hub ({one_line(e)}): download it, give its folder") from e


def check_files(folder: Path, source: str) -> None:
    """Refuse a checkpoint that is incomplete, holds pickles, or names processor steps that are not LeRobot's own.

    LeRobot imports and calls whatever class a step names, so a checkpoint could start any program that is installed.

    Raises:
        DataError: says which file and why.
    """
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES)
    if pickles:
        other = "" if (folder / WEIGHTS).exists() else f" and no {WEIGHTS}"
        raise DataError(f"{source} holds {pickles[0]}{other}: pickles run code and are never read; convert to safetensors and remove it")
    _check_there(folder, source, ("config.json", WEIGHTS, *PROCESSORS))
    check_processors(folder, source)


def _check_there(folder: Path, source: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not (folder / name).exists():
            hint = "; LeRobot's migrate_policy_normalization script adds the processors of an old checkpoint" if name in PROCESSORS else ""
            raise DataError(f"{source} has no {name}{hint}")


def check_processors(folder: Path, source: str) -> None:
    """Refuse processors that name steps which are not LeRobot's own.

    Raises:
        DataError: says which and why.
    """
    for name in PROCESSORS:
        told = read_json(folder / name)
        steps = told.get("steps", []) if isinstance(told, dict) else None
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise DataError(f"{source}/{name} does not describe a processor: an object with a list of steps is expected")
        for step in steps:
            if "registry_name" not in step and not str(step.get("class", "")).startswith("lerobot."):
                raise DataError(f"{source}/{name} names the class {step.get('class')!r}, which is not LeRobot's: it would be run")


def record(folder: Path) -> dict[str, str]:
    """Config and processors of a checkpoint that `check_files` let through: {file name: text, base64 of what is none}."""
    kept = {name: (folder / name).read_text() for name in ("config.json", *PROCESSORS)}
    for name in PROCESSORS:
        for step in read_json(folder / name).get("steps", ()):
            if "state_file" in step:
                state = Path(step["state_file"]).name
                kept[state] = base64.b64encode((folder / state).read_bytes()).decode()
    return kept


def put_back(files: Mapping[str, str], folder: Path, source: str) -> None:
    """Write what `record` gave into a folder.

    Raises:
        DataError: something is missing or damaged, or names what is not LeRobot's.
    """
    for name, text in files.items():
        if Path(name).name != name or not name.endswith((".json", ".safetensors")):
            raise DataError(f"the record of {source} holds a file {name!r}; only JSON and safetensors beside each other are expected")
        try:
            data = text.encode() if name.endswith(".json") else base64.b64decode(text, validate=True)
        except ValueError:
            raise DataError(f"the record of {source} is damaged: {name} is no base64") from None
        (folder / name).write_bytes(data)
    _check_there(folder, f"the record of {source}", ("config.json", *PROCESSORS))
    check_processors(folder, source)


def action_spec(source: str, *, kind: ActionKind, rate_hz: float) -> ActionSpec:
    """Bounds of the actions from the statistics that a checkpoint was normalised with: smallest and largest of its data.

    Args:
        source: as for `load`.
        kind: what an action commands; a checkpoint does not say.
        rate_hz: actions per second; a checkpoint does not say.

    Raises:
        DataError: the checkpoint holds no such statistics.
    """
    folder = folder_of(source)
    for step in read_json(folder / PROCESSORS[1]).get("steps", ()):
        tensors = read_tensors(folder / Path(step["state_file"]).name)[0] if "state_file" in step else {}
        if "action.min" in tensors and "action.max" in tensors:
            low, high = tensors["action.min"].flatten().tolist(), tensors["action.max"].flatten().tolist()
            high = [b if b > a else a + 1e-3 for a, b in zip(low, high, strict=True)]  # an element that never moved
            names = tuple(f"action_{i}" for i in range(len(low)))
            return ActionSpec(kind=kind, low=tuple(low), high=tuple(high), rate_hz=rate_hz, names=names)
    raise DataError(f"{source} holds no smallest and largest actions of its data: give the ActionSpec of the task")


def missing() -> MissingDependency:
    """The error for an environment without lerobot."""
    return MissingDependency("policies of LeRobot need lerobot: pip install 'sinew[lerobot]'")


def one_line(error: BaseException) -> str:
    """The first line of what an error of a foreign library says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
