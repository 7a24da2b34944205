"""The part of `sinew data convert` that knows the formats of others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError

if TYPE_CHECKING:
    from sinew.cli.data_bags import Convert

FOREIGN_ONLY = ("state", "environment", "cameras", "action", "action_kind", "fps")
"""Options that only mean something for foreign formats."""


def convert(args: Convert) -> dict[str, Any] | None:
    """Convert from or to a foreign format; None where no such format is spoken of.

    Raises:
        InputError: several sources, options that do not belong to the format, or a target that is there already.
        DataError: the source is damaged.
    """
    from demos.formats import Choice, kind_of, lerobot_v2, open_source, transfer
    from sinew.cli.console_progress import ConsoleProgress

    source = args.source[0] if args.source else Path()
    is_v2 = lerobot_v2.is_it(source)
    kind = "lerobot v2" if is_v2 else kind_of(source) if source.exists() else None
    if kind == "mcap" and _has_contract(args, source):
        kind = None
    if args.to in ("hdf5", "foxglove"):
        return _exported(args)
    if kind is None:
        given = [name for name in FOREIGN_ONLY if getattr(args, name)]
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} is for what has no contract of a robot (docs/data.md); leave it out here")
        return None
    _alone(args, f"{source} is a dataset in another format ({kind}): convert one at a time, then sinew data merge")
    if args.to == "mcap":  # of a dataset in another format
        raise InputError(f"{source} is a dataset in another format ({kind}): convert it to lerobot first, then that to mcap")
    for name in ("contract", "markers", "success"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name} is for ROS 2 bags that are read by --contract; {source} is read as {kind}")
    with ConsoleProgress() as progress:
        if is_v2:
            return _told(args, "lerobot", lerobot_v2.upgrade(source, args.out, progress))
        choice = Choice(**{name: getattr(args, name) for name in FOREIGN_ONLY})
        check_free(args.out)
        opened = open_source(source, choice)
        try:
            told = {"source": str(source.resolve()), "choice": choice, "task": args.task}
            part = part_of(args.out)
            done = transfer(opened, part, task=args.task, told=told, progress=progress)
            _put(part, args.out)
            return {**_told(args, "lerobot", done), "damage": opened.damage}
        finally:
            opened.close()


def _exported(args: Convert) -> dict[str, Any]:
    from demos.dataset import Dataset
    from demos.formats import robomimic
    from robot_bridge.foxglove import to_foxglove
    from sinew.cli.console_progress import ConsoleProgress

    _alone(args, f"--to {args.to} takes one dataset")
    check_free(args.out)
    with ConsoleProgress() as progress, whole(args.out) as out:
        if args.to == "foxglove":
            return _told(args, "foxglove", vars(to_foxglove(args.source[0], out, progress)))
        return _told(args, "hdf5", robomimic.write(Dataset(args.source[0], cache_bytes=0), out, progress))


def check_free(out: Path) -> None:
    """Refuse a target that is there already.

    Raises:
        InputError: it is.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"--out {out} exists already; nothing is written over, choose another path")


def part_of(out: Path) -> Path:
    """Where something is written before it is whole and gets its name."""
    return out.absolute().with_name(f".{out.name}.part")


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A path to write to, of the same last name; what is there in the end, if nothing went wrong, becomes `out`."""
    folder = part_of(out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / out.name
        _put(folder / out.name, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(made: Path, out: Path) -> None:
    if out.is_dir():
        out.rmdir()  # it is empty
    os.replace(made, out)


def _has_contract(args: Convert, source: Path) -> bool:
    """Whether a bag is read by the contract of a robot: one that is given, or that the bag holds."""
    from demos.bags import Bag
    from demos.formats.mcap import bags_of
    from robot_bridge.bags import CONTRACT

    return args.contract is not None or CONTRACT in Bag(bags_of(source)[0]).topics


def _alone(args: Convert, message: str) -> None:
    if len(args.source) != 1:
        raise InputError(f"{message}; given are {', '.join(map(str, args.source)) or 'none'}")


def _told(args: Convert, to: str, done: dict[str, int]) -> dict[str, Any]:
    return {"action": "convert", "to": to, "out": str(args.out), "damage": [], "dropped": 0, **done}
