"""The part of `sinew data` that knows the Hugging Face hub, and the card that a dataset has there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Card:
    """Write a dataset's card: README.md with the hub's header, statistics, and pictures in card/."""

    dir: Annotated[Path, tyro.conf.Positional]
    """Folder of a dataset."""
    title: str = ""
    """Its name; the folder's if left out."""
    license: str = ""
    """Identifier that the hub knows, such as cc-by-4.0; none is claimed if left out."""
    replace: bool = False
    """Write over a card that somebody else wrote."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Send a dataset to the Hugging Face hub; private, with a card, found by LeRobot. The token is HF_TOKEN or hf auth login's."""

    dir: Annotated[Path, tyro.conf.Positional]
    """Folder of a dataset."""
    name: Annotated[str, tyro.conf.Positional]
    """OWNER/NAME; made if it is not there."""
    public: bool = False
    """Let everybody see it."""
    message: str = ""
    """Of the commit."""
    license: str = ""
    """For the card, where one is written: identifier that the hub knows; none is claimed if left out."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Fetch a dataset from the Hugging Face hub; only files that datasets are made of are taken."""

    name: Annotated[str, tyro.conf.Positional]
    """OWNER/NAME."""
    out: Path
    """Folder that is made; must not exist or be empty."""
    revision: str = ""
    """Branch, tag or commit; the newest version's tag, else the main branch, if left out."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


def run(args: Card | Push | Pull) -> dict[str, Any]:
    """Write the card, send or fetch.

    Raises:
        InputError: offline, no token, no repository, or a target that is there already.
        DataError: no dataset, or a damaged one.
    """
    from demos import card, hub
    from sinew.cli.console_progress import ConsoleProgress

    if isinstance(args, Card):
        return {"action": "card", **card.write(args.dir, title=args.title, license=args.license, replace=args.replace)}
    with ConsoleProgress() as progress:
        if isinstance(args, Pull):
            return {"action": "pull", **hub.pull(args.name, args.out, revision=args.revision, progress=progress)}
        if not (args.dir / card.CARD).exists():
            card.write(args.dir, title=args.name.rpartition("/")[2], license=args.license)
        return {"action": "push", **hub.push(args.dir, args.name, public=args.public, message=args.message, progress=progress)}


def show(result: dict[str, Any], console: Console) -> None:
    """What was written, sent or fetched."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if result["action"] == "card":
        say(f"{result['card']}, and {', '.join(result['pictures'])}")
    elif result["action"] == "push":
        seen = "only you and whom you let in can see it" if result["private"] else "everybody can see it"
        removed = f", {result['removed']} that are gone were removed" if result["removed"] else ""
        say(f"{result['url']}: {result['files']} files, {result['bytes'] / 1e6:.1f} MB{removed}; tag {result['tag']}; {seen}")
    else:
        left = result["left_out"]
        if left:
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            say(f"warning  left there, as no dataset needs it: {', '.join(ascii(name)[1:-1] for name in left[:5])}{more}")
        say(f"{result['out']}: {result['files']} files, {result['bytes'] / 1e6:.1f} MB, {result['revision']} ({result['commit'][:8]})")
        if result["version"] == "v2":
            say(f"it is of version 2; to read it: sinew data convert {result['out']} --out {result['out']}-v3")
