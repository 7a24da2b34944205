"""Make datasets of episodes of others: split, merge, and edit; and play an episode again on the simulated robot."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sinew.errors import InputError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from demos.edit import Piece

SUM = 1e-6
"""Shares may add up to one but for this."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all of them take."""

    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Shuffles episodes before they are shared out; no effect elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Split(Common):
    """Share the episodes of a dataset out to several: --parts train=0.9 test=0.1, or --parts a=0-9 b=10,12-19."""

    dir: Annotated[Path, tyro.conf.Positional]
    """Dataset."""
    parts: tuple[str, ...]
    """name=share, of episodes drawn by --seed, shares adding up to 1 at most; or name=episodes, such as 0-9,12."""
    out: Path
    """Folder; each part becomes <out>/<name>."""


@dataclass(frozen=True, kw_only=True)
class Merge(Common):
    """One dataset of several that record the same: the episodes of the first, then of the second, and so on."""

    dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Datasets, at least two."""
    out: Path
    """Folder of the new dataset."""


@dataclass(frozen=True, kw_only=True)
class Edit(Common):
    """Other words and outcomes in place; or with --out a copy without some episodes or frames, and the dataset stays as it is."""

    dir: Annotated[Path, tyro.conf.Positional]
    """Dataset."""
    out: Path | None = None
    """Folder of a new dataset. Videos are not encoded anew, and on one disk not even copied."""
    keep: str | None = None
    """Episodes that stay, such as 0-9,12; all if left out."""
    delete: str = ""
    """Episodes that are left out."""
    keep_best: float | None = None
    """Share of the episodes that stay, the least doubtful ones of sinew data quality: 0.8 drops the most doubtful fifth."""
    drop_worst: int | None = None
    """Number of the most doubtful episodes that are left out."""
    trim: tuple[str, ...] = ()
    """episode:first-last frames that stay, such as 4:10-80; 4:10- drops the first ten, 4:-80 what follows frame 80."""
    task: tuple[str, ...] = ()
    """Words for all episodes that stay, or for some: "3,5:lift the red cube"."""
    success: str = ""
    """Episodes that succeeded after all."""
    failure: str = ""
    """Episodes that failed after all."""


def split(args: Split) -> dict[str, Any]:
    """Share episodes out.

    Raises:
        InputError: parts that overlap, or that say neither shares nor episodes.
    """
    from demos.edit import pieces_of

    pieces = pieces_of(args.dir)
    made = {}
    for name, chosen in shared_out(args.parts, len(pieces), args.seed).items():
        made[name] = _assemble(args.out / name, [pieces[i] for i in chosen])
    return {"action": "split", "made": made}


def merge(args: Merge) -> dict[str, Any]:
    """Join datasets.

    Raises:
        InputError: fewer than two.
        SpecError: they record different things.
    """
    from demos.edit import pieces_of

    if len(args.dirs) < 2:
        raise InputError("sinew data merge joins two datasets or more; give their folders")
    return {"action": "merge", "made": {"": _assemble(args.out, [p for root in args.dirs for p in pieces_of(root)])}}


def edit(args: Edit) -> dict[str, Any]:
    """Make the copy, or change words and outcomes in place.

    Raises:
        InputError: an episode that does not exist or that is spoken of although it goes, nothing to change, or something that makes
            another dataset without a folder for it.
    """
    from demos.edit import pieces_of

    pieces = pieces_of(args.dir)
    count = len(pieces)
    stay = set(range(count) if args.keep is None else numbers(args.keep, count, "--keep")) - set(numbers(args.delete, count, "--delete"))
    stay -= _doubtful(args)
    away = [n for n in ("keep", "delete", "keep_best", "drop_worst", "trim") if getattr(args, n) not in (None, "", ())]
    if not (away or args.task or args.success or args.failure):
        options = "--keep, --delete, --keep-best, --drop-worst, --trim, --task, --success or --failure"
        raise InputError(f"nothing is to be changed: give {options}")
    if away and args.out is None:
        what = f"--{away[0].replace('_', '-')} makes another dataset"
        raise InputError(f"{what}: give a folder for it with --out; words and outcomes can be changed in place")

    def change(option: str, chosen: Iterable[int], **values: Any) -> None:
        for i in chosen:
            if i not in stay:
                raise InputError(f"{option} speaks of episode {i}, which goes by --keep or --delete")
            pieces[i] = replace(pieces[i], **values)

    both = set(numbers(args.success, count, "--success")) & set(numbers(args.failure, count, "--failure"))
    if both:
        raise InputError(f"episode {min(both)} is in --success and in --failure")
    change("--success", numbers(args.success, count, "--success"), success=True)
    change("--failure", numbers(args.failure, count, "--failure"), success=False)
    for text in args.trim:
        episode, first, end = _frames(text, count)
        change("--trim", [episode], first=first, end=end)
    for text in args.task:
        of, colon, words = text.partition(":")
        some = bool(colon) and bool(of) and all(c in "0123456789,- " for c in of)
        change("--task", numbers(of, count, "--task") if some else sorted(stay), task=words.strip() if some else text)
    if args.out is None:
        return _relabel(args.dir, pieces)
    return {"action": "edit", "made": {"": _assemble(args.out, [pieces[i] for i in sorted(stay)])}}


def _doubtful(args: Edit) -> set[int]:
    """The episodes that go because they are doubtful."""
    if args.keep_best is None and args.drop_worst is None:
        return set()
    from demos import Dataset
    from demos.quality import weights

    if args.keep_best is not None and args.drop_worst is not None:
        raise InputError("--keep-best and --drop-worst say the same in two ways; give one")
    data = Dataset(args.dir, cache_bytes=0)
    kept = weights.load(data)
    if kept is None:
        raise InputError(f"{args.dir / weights.FILE} is missing; run sinew data quality {args.dir} first")
    if args.keep_best is not None and not 0 < args.keep_best < 1:
        raise InputError(f"--keep-best {args.keep_best:g} is a share of the episodes, above 0 and below 1")
    share = 0.0 if args.keep_best is None else args.keep_best
    count = data.num_episodes - round(share * data.num_episodes) if args.drop_worst is None else args.drop_worst
    if not 0 < count < data.num_episodes:
        raise InputError(f"{count} of {data.num_episodes} episodes would go: at least one goes and one stays")
    return set((-kept.doubt).argsort(kind="stable")[:count].tolist())


def _relabel(root: Path, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Words and outcomes of pieces, written into their dataset."""
    from demos.relabel import Label, relabel

    labels = {
        p.episode: Label(task=p.task, success=None if p.success == "kept" else p.success)
        for p in pieces
        if p.task is not None or p.success != "kept"
    }
    relabel(root, labels)
    return {"action": "edit", "made": {"": {**_size(root), "relabelled": sorted(labels)}}}


def _assemble(out: Path, pieces: Sequence[Piece]) -> dict[str, Any]:
    from demos.edit import assemble
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        assemble(out, pieces, progress)
    return _size(out)


def _size(root: Path) -> dict[str, Any]:
    from demos.layout import load_info

    info = load_info(root)
    return {"root": str(root), "episodes": info["total_episodes"], "frames": info["total_frames"]}


def shared_out(parts: Sequence[str], count: int, seed: int) -> dict[str, list[int]]:
    """Which episodes each part gets.

    Args:
        parts: "name=share" each, or "name=episodes" each.
        count: episodes that there are.
        seed: shuffles them before shares are taken.

    Raises:
        InputError: a part without a name or content, a name twice, shares above 1, or an episode in two parts.
    """
    told: dict[str, str] = {}
    for part in parts:
        name, equals, what = part.partition("=")
        if not (equals and name and what) or "/" in name or name in (".", "..") or name in told:
            raise InputError(f"--parts {part}: write name=share or name=episodes, each name once, such as train=0.9 or test=0-9,12")
        told[name] = what
    if not told:
        raise InputError("--parts is empty: write name=share or name=episodes, such as train=0.9 test=0.1")
    if all("." in what for what in told.values()):
        shares = {name: float(what) for name, what in told.items()}
        if min(shares.values()) <= 0 or sum(shares.values()) > 1 + SUM:
            raise InputError(f"--parts: shares are above 0 and add up to 1 at most, not to {sum(shares.values()):g}")
        order, done, result = random.Random(seed).sample(range(count), count), 0.0, {}
        for name, share in shares.items():
            begin, done = round(done * count), done + share
            result[name] = sorted(order[begin : round(done * count)])
            if not result[name]:
                raise InputError(f"--parts {name}={share:g}: that is no whole episode of {count}")
        return result
    result = {name: numbers(what, count, f"--parts {name}") for name, what in told.items()}
    seen: dict[int, str] = {}
    for name, chosen in result.items():
        for i in chosen:
            if i in seen:
                raise InputError(f"--parts: episode {i} is in {seen[i]} and in {name}")
            seen[i] = name
    return result


def numbers(text: str, count: int, option: str) -> list[int]:
    """Episode numbers of a text such as "0-9,12", in order, each once.

    Raises:
        InputError: it cannot be read, or an episode does not exist.
    """
    found: set[int] = set()
    for part in (p.strip() for p in text.split(",") if p.strip()):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InputError(f"{option} {text}: {part!r} is neither a number nor a range; write such as 0-9,12")
        begin, end = int(first), int(last) if dash else int(first)
        if begin > end or end >= count:
            raise InputError(f"{option} {text}: there are the episodes 0 to {count - 1}")
        found |= set(range(begin, end + 1))
    return sorted(found)


def _frames(text: str, count: int) -> tuple[int, int, int | None]:
    """(episode, first frame, frame after the last) of "4:10-80"."""
    episode, colon, frames = text.partition(":")
    first, dash, last = frames.partition("-")
    if not (colon and dash and (first or last)) or not all(p.strip().isdigit() or not p for p in (episode, first, last)):
        raise InputError(f"--trim {text}: write episode:first-last, such as 4:10-80, 4:10- or 4:-80")
    if not episode.isdigit() or int(episode) >= count:
        raise unknown("episode", episode, [str(i) for i in range(count)])
    return int(episode), int(first or 0), int(last) + 1 if last else None


def show(result: dict[str, Any], console: Console) -> None:
    """A line for each dataset that was made."""
    for made in result["made"].values():
        line = f"{made['root']}: {made['episodes']} episodes, {made['frames']} frames"
        line += f"; {len(made['relabelled'])} of them relabelled in place" if "relabelled" in made else ""
        console.print(line, markup=False, highlight=False, soft_wrap=True)
