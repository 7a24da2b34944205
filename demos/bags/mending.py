"""Gives a bag that was cut off or damaged an end again: what is whole is written anew as MCAP, nothing is deleted."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from demos.bags.bag import METADATA, Bag, files_of
from demos.bags.writer import BagWriter
from sinew.errors import DataError

ASIDE = "damaged"


@dataclass(frozen=True)
class Mended:
    """What became of a bag."""

    messages: int
    topics: int
    damage: tuple[str, ...]
    """What was lost, a line each."""
    actions: tuple[str, ...]
    """What was done; empty where the bag was whole."""


def mend(path: Path | str) -> Mended:
    """Read a bag from end to end and, where something is wrong, write what is whole anew; the old files go to `damaged`.

    Raises:
        DataError: no bag, or nothing in it can be read.
        InputError: there is no room.
    """
    path, bag = Path(path), Bag(path)
    count = sum(1 for _ in bag.messages())
    if not bag.damage and bag.whole:
        return Mended(count, len(bag.topics), (), ())
    if not count:
        raise DataError(f"{path} holds no message that can be read ({(bag.damage or ['it is empty'])[0]}); nothing was changed")
    home = path if path.is_dir() else path.parent
    staging = home / f".{path.name}.mending"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        _copy(Bag(path), staging / (path.name if path.is_dir() else f"{path.stem}.mcap"))
        made = [file for file in staging.rglob("*") if file.is_file()]
        for file in (*files_of(path), *([path / METADATA] if path.is_dir() and (path / METADATA).exists() else [])):
            _set_aside(file, home / ASIDE)
        for file in made:
            os.replace(file, home / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    kept = Bag(path) if path.is_dir() else Bag(path.with_suffix(".mcap"))
    done = (f"wrote {count} messages of {len(kept.topics)} topics anew", f"moved the old files to {home / ASIDE}")
    return Mended(count, len(kept.topics), tuple(bag.damage), done)


def _copy(bag: Bag, path: Path) -> None:
    with BagWriter(path) as writer:
        for topic in bag.topics.values():
            writer.add(topic)
        for message in bag.messages():
            writer.write(message.topic, message.log_ns, message.data, message.publish_ns)


def _set_aside(file: Path, folder: Path) -> None:
    """Move a file into a folder, beside earlier ones of that name."""
    folder.mkdir(exist_ok=True)
    target, number = folder / file.name, 0
    while target.exists():
        number += 1
        target = folder / f"{file.name}.{number}"
    os.replace(file, target)
