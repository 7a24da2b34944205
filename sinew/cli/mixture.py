"""What `--data A=0.7 B=0.3` means: folders, and how much of what is drawn comes from each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sinew.errors import InputError


def folders_and_shares(given: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[float, ...] | None]:
    """Folders, and the share of each if shares were given; a folder that is there under the whole text is one without a share.

    Raises:
        InputError: some have a share and some have none, a share is not positive and finite, or a folder is named twice.
    """
    found = [_split(path) for path in given]
    folders = tuple(path for path, _ in found)
    twice = next((path for path in folders if folders.count(path) > 1), None)
    if twice is not None:
        raise InputError(f"--data names {twice} twice: name it once, with a share such as {twice}=0.7 where it shall count more")
    shares = [share for _, share in found if share is not None]
    if not shares:
        return folders, None
    if len(shares) < len(found):
        without = next(path for path, share in found if share is None)
        raise InputError(f"--data: {without} has no share and others have one: give each of the {len(found)} datasets one, or none")
    return folders, tuple(shares)


def _split(path: Path) -> tuple[Path, float | None]:
    name, equals, number = str(path).rpartition("=")
    if path.exists() or not equals or not name:
        return path, None
    try:
        share = float(number)
    except ValueError:
        return path, None
    if not 0 < share < math.inf:
        raise InputError(f"--data {path}: a share is above 0 and finite; leave the dataset out instead")
    return Path(name), share
