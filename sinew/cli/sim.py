"""From simulation to the robot and back: identify a robot's parameters from its recordings, or look at what a randomisation draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sinew.cli import sim_draw, sim_sysid
from sinew.cli.sim_draw import Draw
from sinew.cli.sim_sysid import Sysid

if TYPE_CHECKING:
    from rich.console import Console

Args = Annotated[Sysid, tyro.conf.subcommand("sysid")] | Annotated[Draw, tyro.conf.subcommand("draw")]


def run(args: Sysid | Draw) -> dict[str, Any]:
    """Do what the subcommand says."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        if isinstance(args, Sysid):
            return {"action": "sysid", **sim_sysid.identify(args, progress)}
        return {"action": "draw", **sim_draw.draw(args)}


def show(result: dict[str, Any], console: Console) -> None:
    """What was found or drawn."""
    {"sysid": sim_sysid.show, "draw": sim_draw.show}[result["action"]](result, console)
