"""Calibrate cameras: a board to print, the lens, where the camera is on the hand or beside the robot, whether that is still true."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.cli import calibrate_hand_eye, calibrate_leader, calibrate_markerless, calibrate_publish, calibrate_watch
from sinew.cli import calibrate_inputs as inputs
from sinew.cli.calibrate_hand_eye import HandEye
from sinew.cli.calibrate_inputs import BoardArgs
from sinew.cli.calibrate_leader import LeaderArgs
from sinew.cli.calibrate_markerless import MarkerlessArgs
from sinew.cli.calibrate_publish import PublishArgs
from sinew.cli.calibrate_robot import NetworkArgs, RobotArgs
from sinew.cli.calibrate_watch import WatchArgs
from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


NOT_TRUE = 2
"""Exit code of `check` for a calibration that is not true any more."""


@dataclass(frozen=True, kw_only=True)
class Sheet(BoardArgs):
    """Write a PDF of a board at true size, with a ruler to check the print."""

    out: Path = Path("board.pdf")
    """File to write."""
    paper: str = "a4"
    """a4, a3, a2 or letter."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class Intrinsics(BoardArgs, NetworkArgs):
    """The lens from pictures of a board: recorded ones, or those of a camera before which a person moves it."""

    images: Path | None = None
    """Folder of pictures, or a calibration session."""
    robot: Literal["dds", "ros2"] | None = None
    """Take the pictures from a camera of the network, telling the person who moves the board what is missing."""
    camera: str = ""
    """That camera: its name in the robot's contract, or the topic of its pictures."""
    idle: float = 60.0
    """Seconds without a new picture after which it goes on with those that there are."""
    model: Literal["auto", "pinhole", "rational", "fisheye"] = "auto"
    """Lens model; auto takes the one that predicts left-out pictures best."""
    out: Path = Path("camera")
    """Folder for camera.json and camera_info.yaml."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class Check(BoardArgs, RobotArgs):
    """Is a calibration still true, and was it ever believable: by new views, recorded ones or those that a robot takes itself."""

    result: Annotated[Path, tyro.conf.Positional]
    """A calibration.json, or its folder."""
    data: Path | None = None
    """New views, of any kind that 'handeye' reads."""
    camera: tuple[str, ...] = ()
    """Which camera of the calibration, by number or name; the first if left out."""
    hand_frame: str = ""
    """Frame of the hand that the calibration is told in, where that is not the tool of the robot's config."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object."""


Args = (
    Annotated[Sheet, tyro.conf.subcommand("board")]
    | Annotated[Intrinsics, tyro.conf.subcommand("intrinsics")]
    | Annotated[HandEye, tyro.conf.subcommand("handeye")]
    | Annotated[MarkerlessArgs, tyro.conf.subcommand("markerless")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[WatchArgs, tyro.conf.subcommand("watch")]
    | Annotated[PublishArgs, tyro.conf.subcommand("publish")]
    | Annotated[LeaderArgs, tyro.conf.subcommand("leader")]
)


def run(args: Sheet | Intrinsics | HandEye | MarkerlessArgs | Check | WatchArgs | PublishArgs | LeaderArgs) -> dict[str, Any]:
    """Do what the subcommand says."""
    if isinstance(args, LeaderArgs):
        return calibrate_leader.run(args)
    if isinstance(args, PublishArgs):
        return calibrate_publish.run(args)
    if isinstance(args, WatchArgs):
        return calibrate_watch.run(args)
    if isinstance(args, MarkerlessArgs):
        return calibrate_markerless.run(args)
    if isinstance(args, Sheet):
        return _sheet(args)
    if isinstance(args, Intrinsics):
        return _intrinsics(args)
    return calibrate_hand_eye.hand_eye(args) if isinstance(args, HandEye) else _check(args)


def exit_code(result: dict[str, Any]) -> int:
    """0, or 2 for a calibration that is not true any more."""
    return NOT_TRUE if result.get("holds") is False else 0


def _sheet(args: Sheet) -> dict[str, Any]:
    from calibration.sheet import write_sheet
    from sinew.config import to_json

    board = inputs.board(args)
    told = write_sheet(board, args.out, args.paper)
    return {"action": "board", "out": str(args.out), "board": to_json(board), **told}


def _intrinsics(args: Intrinsics) -> dict[str, Any]:
    import json

    import numpy as np
    import yaml

    from calibration.intrinsics import calibrate_intrinsics
    from calibration.results import camera_info
    from calibration.session import Session, Shot, find_views, read_own
    from sinew.cli import calibrate_lens
    from sinew.cli.console_progress import ConsoleProgress
    from sinew.config import to_json

    if (args.images is None) == (args.robot is None):
        raise InputError("give either --images, a folder of pictures, or --robot dds or ros2 with --camera, which takes them")
    images = args.images or args.out / "images"
    if args.robot is not None:
        calibrate_lens.take(args, inputs.board(args), images)
    if not images.is_dir():
        raise InputError(f"{images} is no folder of pictures")
    if (images / "poses.jsonl").exists():
        session = read_own(images)
    else:
        pictures = sorted(p for p in images.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))
        shots = tuple(Shot(T_base_hand=np.eye(4), image=p, name=p.name) for p in pictures)
        session = Session(shots=shots, cameras=(None,), board=inputs.board(args), mount=None, path=images)
    with ConsoleProgress() as progress:
        found = find_views(session, progress=progress)
    lens = calibrate_intrinsics(found.views, found.sizes[0], args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "camera.json").write_text(json.dumps(to_json(lens.camera), indent=1))
    (args.out / "camera_info.yaml").write_text(yaml.safe_dump(camera_info(lens.camera, args.out.name), sort_keys=False))
    return {
        "action": "intrinsics", "out": str(args.out), **to_json(lens), "rejected": {**found.rejected, **lens.rejected},
    }  # fmt: skip


def _check(args: Check) -> dict[str, Any]:
    from dataclasses import replace

    from calibration.check import check
    from calibration.foreign import read_session
    from calibration.results import read, read_board
    from calibration.session import find_views
    from sinew.cli import calibrate_robot
    from sinew.cli.console_progress import ConsoleProgress
    from sinew.config import to_json

    if (args.data is None) == (args.robot is None):
        raise InputError("give either --data, new views, or --robot sim, dds or ros2, which takes them itself")
    cameras = read(args.result)
    chosen = _chosen(args, [m.name for m in cameras])
    stored, data = cameras[chosen], args.data
    if data is None:
        board = read_board(args.result) or inputs.board(args)
        data = calibrate_robot.check_views(replace(args, camera=(stored.name,)), stored, board)
    session = read_session(data)
    number = chosen if len(session.cameras) > 1 else 0
    shots = tuple(replace(s, camera=0) for s in session.shots if s.camera == number)
    session = replace(session, shots=shots, cameras=(stored.camera,), mount=stored.mount)
    with ConsoleProgress() as progress:
        found = find_views(session, progress=progress)
    return {"action": "check", **to_json(check(stored, found.views)), "rejected": found.rejected}


def _chosen(args: Check, names: list[str]) -> int:
    """Number of the camera that is meant."""
    given = args.camera[0] if len(args.camera) == 1 else "0"
    if len(args.camera) > 1 or not (given in names or (given.isdigit() and int(given) < len(names))):
        raise InputError(f"--camera {' '.join(args.camera)}: {args.result} has {', '.join(f'{i} ({n})' for i, n in enumerate(names))}")
    return names.index(given) if given in names else int(given)


def show(result: dict[str, Any], console: Console) -> None:
    """The result for a person."""
    if result["action"] == "watch":
        calibrate_watch.show(result, console)
        return
    if result["action"] == "publish":
        calibrate_publish.show(result, console)
        return
    if result["action"] == "markerless":
        calibrate_markerless.show(result, console)
        return
    if result["action"] == "leader":
        console.print("\n".join(calibrate_leader.lines(result)), markup=False)
        return
    if result["action"] == "board":
        console.print(f"wrote {result['out']}: print it at 100 %, then the ruler must be {result['ruler_mm']:.0f} mm long")
        console.print(
            f"the board is {result['width_mm']:.1f} x {result['height_mm']:.1f} mm; give its true size with --square where it is not"
        )
        return
    for name, why in result["rejected"].items():
        console.print(f"left out {name}: {why}", style="yellow")
    if result["action"] == "check":
        console.print(result["told"])
        console.print(f"corners are {result['px']:.2f} px from where it puts them; {result['px_new']:.2f} px with what the new views say")
        return
    if result["action"] == "intrinsics":
        camera = result["camera"]
        fx, fy = camera["focal"]
        console.print(
            f"{camera['model']} lens, focal lengths {fx:.1f} and {fy:.1f} px, centre {camera['centre'][0]:.1f}, {camera['centre'][1]:.1f}"
        )
        console.print(
            f"left-out pictures are predicted to {result['held_out_px']:.2f} px; corners were seen in {100 * result['covered']:.0f} % of it"
        )
        if result["advice"]:
            console.print(f"to make it better: {result['advice']}")
        return
    calibrate_hand_eye.show(result, console)
