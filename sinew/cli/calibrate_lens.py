"""The pictures for a lens, taken while a person moves the board before the camera and is told what is still missing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError
from sinew.progress import Progress

if TYPE_CHECKING:
    from calibration.boards import Board
    from calibration.guidance import Guide
    from robot_bridge.calibrating.feed import CameraFeed

TOLD_S = 2.0
"""Why pictures are not kept is told no more often than this."""
FEWEST = 5
"""Pictures without which there is no lens."""


def take(args: Any, board: Board, folder: Path) -> None:
    """Keep pictures that tell something new in a folder, until nothing is missing, nothing new comes, or Ctrl-C.

    Args:
        args: of `sinew calibrate intrinsics` with a camera of the network.
        board: what the person holds.
        folder: new, or gone on with.

    Raises:
        InputError: no pictures come, or too few of them show the board.
    """
    from robot_bridge.calibrating.feed import CameraFeed, picture_topic
    from robot_bridge.transport import open_transport
    from sinew.cli.calibrate_robot import robot_of
    from sinew.cli.console_progress import ConsoleProgress

    if not args.camera:
        raise InputError(f"--robot {args.robot} needs the camera: --camera with its name, or with the topic of its pictures")
    config = robot_of(args)
    topic, message = picture_topic(args.camera, None if config is None else config.contract)
    if any(folder.glob("*.png")):
        raise InputError(f"{folder} holds pictures already: choose another --out, or solve them with --images {folder}")
    node = open_transport(args.robot, "sinew_calibrate", domain=args.domain, reach=args.reach)
    try:
        feed = CameraFeed(node, topic, message)
        with ConsoleProgress() as progress:
            guide = _watch(feed, board, folder, args, progress)
    finally:
        node.close()
    if len(guide.kept) < FEWEST:
        raise InputError(f"{len(guide.kept)} pictures show the board well enough: at least {FEWEST} are needed, 15 or more are better")


def _watch(feed: CameraFeed, board: Board, folder: Path, args: Any, progress: Progress) -> Guide:
    import cv2

    from calibration.detection import detect
    from calibration.guidance import Guide

    image, _ = feed.picture(args.timeout)
    guide = Guide(board, (image.shape[1], image.shape[0]))
    folder.mkdir(parents=True, exist_ok=True)
    progress.start("pictures", guide.wanted)
    progress.note(f"move the board before {feed.topic}, and hold it still for a moment in each place; Ctrl-C ends it")
    last_kept = last_told = time.monotonic()
    try:
        while guide.missing() and time.monotonic() - last_kept < args.idle:
            try:
                image, _ = feed.picture(args.timeout)
            except InputError as e:
                if len(guide.kept) < FEWEST:
                    raise
                progress.note(f"{e}; going on with those that there are")
                break
            why = guide.offer(detect(image, board), name := f"{len(guide.kept):04d}.png")
            if not why:
                cv2.imwrite(str(folder / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
                last_kept = last_told = time.monotonic()
                progress.advance()
                progress.note(f"{len(guide.kept)} kept {_map(guide)} {'; '.join(guide.missing()[:2]) or 'nothing is missing'}")
            elif time.monotonic() - last_told > TOLD_S:
                last_told = time.monotonic()
                progress.note(f"{why}; {'; '.join(guide.missing()[:2])}")
    except KeyboardInterrupt:
        progress.note("ended")
    return guide


def _map(guide: Guide) -> str:
    """The parts of the picture where corners were seen, row by row."""
    return "[" + "|".join("".join("#" if seen else "." for seen in row) for row in guide.cells()) + "]"
